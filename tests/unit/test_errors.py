"""The command line's promise: every error is words and a status, never a traceback, and errno is never lost."""

from __future__ import annotations

import errno
import os
import sys
from types import SimpleNamespace

import pytest

from vfio_intx.abi.call import call_buffer, call_value, syscall
from vfio_intx.cli import main as cli
from vfio_intx.cli.main import main
from vfio_intx.errors import InternalError, KernelError, LabLost, MissingError, PeerRefused, UsageError

_KVM_GET_API_VERSION = 0xAE00


def _verb(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Put a verb ``fail`` on the command line that raises *error*."""

    def run(_arguments: object) -> int:
        raise error

    monkeypatch.setitem(sys.modules, "vfio_intx.cli.fail", SimpleNamespace(add_arguments=lambda _: None, run=run))
    monkeypatch.setitem(cli.VERBS, "fail", ("fail", "fail on purpose"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("bad word", hint="a good one"), 2),
        (MissingError("no such card", hint="lspci"), 1),
        (KernelError("KVM_IRQFD", "VM", errno.EBUSY, hint="close the other"), 1),
        (LabLost("L1 died", hint="again"), 3),
        (InternalError("cannot be", hint="report"), 70),
        (ZeroDivisionError("oops"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_verb_raises_becomes_a_message_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int
) -> None:
    _verb(monkeypatch, error)
    assert main(["fail"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vfio-intx fail: ")
    assert "Traceback" not in err
    assert ("  try: " in err) == (status != 130)


def test_a_strangers_words_reach_the_terminal_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _verb(monkeypatch, PeerRefused("device_add", "GenericError", "\x1b[2Jgone"))
    assert main(["fail"]) == 1
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["nonsense"], ["fail", "--nonsense"], []])
def test_a_usage_error_is_status_2(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    _verb(monkeypatch, ZeroDivisionError())
    assert main(argv) == 2


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_version_and_help_succeed(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main([flag]) == 0
    assert "vfio-intx" in capsys.readouterr().out


def test_every_verb_on_the_list_parses_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli.VERBS:
        assert main([verb, "--help"]) == 0, verb
        assert f"vfio-intx {verb}" in capsys.readouterr().out


def test_an_errno_comes_through_each_way_into_the_kernel() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(KernelError) as value:
            call_value("KVM_GET_API_VERSION", "a pipe", read, _KVM_GET_API_VERSION)
        with pytest.raises(KernelError) as buffer:
            call_buffer("KVM_GET_API_VERSION", "a pipe", read, _KVM_GET_API_VERSION, bytearray(8))
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(KernelError) as call:
        syscall("pidfd_open", "pid -1", 434, -1, 0)
    assert value.value.errno == buffer.value.errno == errno.ENOTTY
    assert call.value.errno == errno.EINVAL
    assert str(value.value) == "KVM_GET_API_VERSION on a pipe failed: Inappropriate ioctl for device (ENOTTY)"
