"""A monitor behind ``virsh``, with a fake virsh in PATH that speaks for a fake VM."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from vfio_intx.deadline import Deadline
from vfio_intx.errors import MissingError, PeerGarbage, PeerGone, PeerRefused, PeerTimeout, UsageError
from vfio_intx.qemu import replies
from vfio_intx.qemu.libvirt import VirshMonitor, parse_domain
from vfio_intx.qemu.monitor import ask

PROGRAM = """\
    #!{python}
    import json, sys
    from pathlib import Path
    here = Path(__file__).parent
    (here / "argv").write_text(json.dumps(sys.argv[1:]))
    {body}
"""


def virsh(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> VirshMonitor:
    """A monitor whose virsh does what the Python statement *body* says."""
    program = folder / "virsh"
    program.write_text(textwrap.dedent(PROGRAM).format(python=sys.executable, body=body))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return VirshMonitor("web", budget_s=60)


def test_a_command_goes_through_virsh_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = virsh(tmp_path, monkeypatch, "print(json.dumps({'return': {'status': 'running', 'running': True}}))")
    assert ask(monitor, "query-status", replies.RunState).running
    *head, request = json.loads((tmp_path / "argv").read_text())
    assert head == ["--quiet", "qemu-monitor-command", "--domain", "web"]
    assert json.loads(request) == {"execute": "query-status"}
    monitor.execute("device_del", {"id": "x"})
    assert json.loads(json.loads((tmp_path / "argv").read_text())[-1])["arguments"] == {"id": "x"}
    assert monitor.take_events() == ()
    monitor.close()


def test_an_error_of_qemu_is_refused_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "print(json.dumps({'error': {'class': 'GenericError', 'desc': 'no \\x1b[2J'}, 'id': 'libvirt-7'}))"
    with pytest.raises(PeerRefused) as caught:
        virsh(tmp_path, monkeypatch, body).execute("device_del", {"id": "x"})
    assert caught.value.description == "no \\x1b[2J"


@pytest.mark.parametrize(
    "body",
    [
        "print('hello')",
        "print('[' * 100000)",
        "print(json.dumps({'return': 1, 'error': {'class': 'x', 'desc': 'y'}}))",
        "print('{}')",
        "print(json.dumps({'error': 7}))",
        "sys.stdout.buffer.write(b'\\xff\\xfe')",
        "print('{\"return\": NaN}')",
    ],
)
def test_an_answer_that_is_no_qmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    with pytest.raises(PeerGarbage):
        virsh(tmp_path, monkeypatch, body).execute("query-status")


def test_a_domain_that_libvirt_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "sys.exit(\"error: failed to get domain 'web'\")"
    with pytest.raises(MissingError, match="knows no domain 'web'"):
        virsh(tmp_path, monkeypatch, body).execute("query-status")


def test_a_libvirt_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeerGone, match="Failed to connect socket") as caught:
        virsh(tmp_path, monkeypatch, "sys.exit('error: Failed to connect socket')").execute("query-status")
    assert "virsh domstate" in (caught.value.hint or "")


def hanging(folder: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> tuple[PeerTimeout, int]:
    """How a virsh ends that starts a program and waits for it, and the program's pid.

    A machine that has not even started it when the short time is over is given a longer one.
    """
    monitor = virsh(folder, monkeypatch, "")
    (folder / "virsh").write_text(f"#!/bin/sh\n{start} sh -c 'echo $$ > {folder}/child; exec sleep 300' &\nwait\n")
    for budget_s in (0.2, 3, 30):
        with pytest.raises(PeerTimeout) as caught:
            monitor.execute("query-status", budget_s=budget_s)
        assert caught.value.budget_s == budget_s
        with suppress(FileNotFoundError, ValueError):
            return caught.value, int((folder / "child").read_text())
    pytest.fail("the program did not start")


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_virsh_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error, child = hanging(tmp_path, monkeypatch, "")
    assert error.deadline == "query-status"
    # A busy machine lets a killed process run once more, to die, when its turn comes.
    assert Deadline.after("its death", 60).poll(lambda: not runs(child))


def test_a_child_that_outlives_virsh_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The master connection of ssh lives on in a session of its own, and keeps stdout and stderr open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    _, child = hanging(tmp_path, monkeypatch, "setsid")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert runs(child), "it was not waited for"
    os.kill(child, signal.SIGKILL)


def test_a_machine_without_virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError) as caught:
        VirshMonitor("web").execute("query-status")
    assert "libvirt-clients" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["web", "7", "My VM", "8c1b2f8e-0000-4000-8000-000000000001"])
def test_names_of_domains(name: str) -> None:
    assert parse_domain(name) == name


@pytest.mark.parametrize("name", ["", "-c", "--connect", "a\nb", "a;b", "x" * 200, "é"])
def test_what_is_no_name_of_a_domain(name: str) -> None:
    with pytest.raises(UsageError):
        parse_domain(name)
