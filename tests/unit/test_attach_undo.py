"""attach and detach when interrupted, refused or overtaken: what is taken back, and what is told to be left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.attach_bench import ATTACH, BDF, ID, Bench, attach_bench
from tests.fakes.qmp_server import PATIENCE


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    with attach_bench(tmp_path, monkeypatch, capsys) as found:
        yield found


@pytest.mark.parametrize("settles", [True, False])
def test_an_unplug_while_the_slot_still_blinks_is_asked_for_again(bench: Bench, settles: bool) -> None:
    bench.json(*ATTACH)
    blinking = "Hot-unplug failed: guest is busy (power indicator blinking)"
    bench.vm.faults["device_del"] = blinking

    def settle(asked: str) -> None:
        bench.tick(asked)
        if len(bench.sent("device_del")) == 3 and settles:
            bench.vm.faults.clear()

    bench.vm.on_command = settle
    if settles:
        assert bench.json("detach", BDF, "--timeout", "60")["was_attached"] is True
        assert bench.vm.devices == {}
    else:
        for seconds in PATIENCE:
            said = bench.refused("detach", BDF, "--timeout", str(seconds))
            if bench.sent("device_del"):
                break
        assert blinking in said
        assert "detach again in some seconds" in said


def test_what_somebody_else_adds_at_the_same_moment_stays_theirs(bench: Bench) -> None:
    def be_first(asked: str) -> None:
        bench.tick(asked)
        if asked == "device_add":
            bench.vm.devices[ID] = {"driver": "vfio-pci", "host": BDF, "guest": "listens"}

    bench.vm.on_command = be_first
    said = bench.refused(*ATTACH)
    assert "Duplicate device ID" in said
    assert "nothing was added to the VM" in said
    assert ID in bench.vm.devices
    assert bench.sent("device_del") == []


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("number", "in_background"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGTERM, True)],
)
def test_a_signal_after_device_add_takes_the_device_out_and_says_so(
    bench: Bench, capsys: pytest.CaptureFixture[str], number: signal.Signals, in_background: bool
) -> None:
    if in_background:  # what a shell without job control does for "vfio-intx attach … &"
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def interrupt(asked: str) -> None:
        bench.tick(asked)
        if asked == "query-pci" and bench.sent("query-pci") == [{}]:
            signal.raise_signal(number)

    bench.vm.guest = "ignores"
    bench.vm.on_command = interrupt
    assert bench.run("attach", BDF, "--timeout", "60") == 130
    errors = capsys.readouterr().err
    assert errors.splitlines() == [
        "vfio-intx attach: interrupted",
        "  also: the device was taken out of the VM again",
    ]
    assert bench.vm.devices == {}


@pytest.mark.usefixtures("handlers")
def test_a_second_ctrl_c_that_ends_the_undoing_says_what_is_left(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(asked: str) -> None:
        bench.tick(asked)
        if (asked == "query-pci" and bench.sent("query-pci") == [{}]) or asked == "device_del":
            signal.raise_signal(signal.SIGINT)

    bench.vm.guest, bench.vm.unplugs = "ignores", False
    bench.vm.on_command = interrupt
    assert bench.run("attach", BDF, "--timeout", "60") == 130
    errors = capsys.readouterr().err
    assert f"may still be in the VM as {ID}: the undoing was interrupted" in errors
    assert "vfio-intx detach" in errors


@pytest.mark.usefixtures("handlers")
def test_a_hangup_that_is_ignored_stays_ignored(bench: Bench) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    bench.run("attach", BDF, "--dry-run")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
def test_an_interrupted_detach_says_that_the_guest_may_still_let_go(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.json(*ATTACH)
    bench.vm.unplugs = False

    def interrupt(asked: str) -> None:
        bench.tick(asked)
        if asked == "qom-list" and bench.sent("device_del"):
            signal.raise_signal(signal.SIGINT)

    bench.vm.on_command = interrupt
    assert bench.run("detach", BDF, "--timeout", "60") == 130
    assert f"asked already to let {BDF} go" in capsys.readouterr().err
