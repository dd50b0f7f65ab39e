"""The word for a line, and the watching of many lines on a fake host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vfio_intx.chain.stage import Stage
from vfio_intx.cli.watch import Roster, View, _one_key, _screen
from vfio_intx.deadline import Deadline
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, HostIrq
from vfio_intx.observe.state import Look, State, Word, judge
from vfio_intx.observe.status import VmStatus, _unasked
from vfio_intx.observe.watch import Row, Watcher
from vfio_intx.wiring.verify import HostLine

ASKS = {"asserted": True, "masked": True}
QUIET = {"asserted": False, "masked": False}


def look(at: float, count: int, asserted: bool | None = None, masked: bool | None = None, **more: bool) -> Look:
    return Look(at, count, asserted, masked, **more)


@pytest.mark.parametrize(
    ("before", "now", "still_s", "said"),
    [
        (look(0, 5, **QUIET), look(1, 5, **QUIET), 9, "idle"),
        (look(0, 5, **QUIET), look(1, 90, **QUIET), 0, "healthy"),
        (look(0, 5, **QUIET), look(1, 90, **ASKS), 0, "waiting"),
        (look(0, 5, **ASKS), look(0.5, 5, **ASKS), 0.5, "waiting"),
        (look(0, 5, **QUIET), look(1, 5, False, True), 9, "masked"),
        (look(0, 5, **ASKS), look(2, 5, **ASKS), 2, "stuck at eoi"),
        (look(0, 5, True, False), look(2, 5, True, False), 2, "stuck at host-irq"),
        (look(0, 5), look(1, 5), 1, "unknown"),
        (look(0, 5), look(1, 50), 0, "healthy"),
        (look(0, 5, **QUIET), look(1, 50_000, **ASKS), 0, "storming"),
        (look(0, 5, **QUIET), look(1, 15, True, False, disabled=True), 0, "polling (host line disabled)"),
        (look(3, 5, **ASKS), look(3, 5, **ASKS), 0, "waiting"),
    ],
)
def test_the_word_for_two_looks(before: Look, now: Look, still_s: float, said: str) -> None:
    state = judge(before, now, still_s)
    assert str(state) == said
    assert state.why


class Host:
    """A fake tree of some devices whose registers and counts a test sets; its clock goes by hand."""

    def __init__(self, root: Path, lines: int) -> None:
        self.root = HostRoot(root)
        self.now = 100.0
        self.bdfs = [Bdf(0, 1 + number // 32, number % 32, 0) for number in range(lines)]
        self.counts = dict.fromkeys(self.bdfs, 0)
        for bdf in self.bdfs:
            folder = self.root.pci_device(bdf)
            (folder / "power").mkdir(parents=True)
            (folder / "power/runtime_status").write_text("active\n")
            self.set(bdf)
        (root / "proc").mkdir()
        self.write()

    def set(self, bdf: Bdf, *, asserted: bool = False, masked: bool = False) -> None:
        command, status = 0x0107 | masked << 10, 0x0010 | asserted << 3
        head = (0x100E8086).to_bytes(4, "little") + command.to_bytes(2, "little") + status.to_bytes(2, "little")
        (self.root.pci_device(bdf) / "config").write_bytes(head + bytes(56))

    def write(self) -> None:
        rows = ["           CPU0       CPU1"]
        for irq, (bdf, count) in enumerate(self.counts.items(), 30):
            rows.append(f" {irq}: {count:10} {0:10}   IO-APIC   {irq}-fasteoi   vfio-intx({bdf})")
        self.root.at("proc/interrupts").write_text("\n".join(rows) + "\n")

    def later(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.write()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, 3)


def words(rows: list[Row]) -> list[str]:
    return [str(row.state) for row in rows]


def test_a_line_becomes_stuck_only_when_nothing_advanced_for_a_while(host: Host) -> None:
    watcher = Watcher(host.root, clock=lambda: host.now)
    healthy, stuck, _ = host.bdfs
    assert words(watcher.tick()) == ["idle", "idle", "idle"]
    host.set(stuck, asserted=True, masked=True)
    host.counts[stuck] += 1
    seen = []
    for _ in range(3):
        host.counts[healthy] += 10
        host.later(0.6)
        rows = watcher.tick()
        seen.append(words(rows)[:2])
    assert seen == [["healthy", "waiting"], ["healthy", "waiting"], ["healthy", "stuck at eoi"]]
    assert rows[0].rate == pytest.approx(10 / 0.6)
    assert rows[1].last_s == pytest.approx(1.2)
    assert rows[2].last_s is None
    host.set(stuck)
    host.later()
    assert words(watcher.tick())[1] == "idle"


def test_a_device_that_goes_and_comes_back_starts_anew(host: Host) -> None:
    watcher = Watcher(host.root, clock=lambda: host.now)
    watcher.tick()
    gone = host.bdfs[0]
    host.counts.pop(gone)
    host.later()
    assert gone not in [row.bdf for row in watcher.tick()]
    host.counts = {gone: 7, **host.counts}
    host.later()
    assert watcher.tick()[0].rate == 0.0


def test_a_device_that_sleeps_is_not_woken_and_one_that_is_dead_is_unknown(host: Host) -> None:
    asleep, dead, missing = (host.root.pci_device(bdf) for bdf in host.bdfs)
    (asleep / "power/runtime_status").write_text("suspended\n")
    (asleep / "config").unlink()
    (dead / "config").write_bytes(b"\xff" * 64)
    (missing / "config").write_bytes(b"\x86")
    assert words(Watcher(host.root, clock=lambda: host.now).tick()) == ["unknown"] * 3


def test_a_line_that_the_kernel_gave_up_is_told_where_debugfs_tells(host: Host) -> None:
    folder = host.root.at("sys/kernel/debug/irq/irqs")
    folder.mkdir(parents=True)
    (folder / "30").write_text(
        "handler:  handle_fasteoi_irq\nistate:   0x00000002\n            IRQS_SPURIOUS_DISABLED\n"
    )
    assert words(Watcher(host.root, clock=lambda: host.now).tick())[0] == "polling (host line disabled)"


def test_json_says_state_and_why(host: Host) -> None:
    found = Watcher(host.root, clock=lambda: host.now).tick()[0].as_json()
    assert found["device"] == "0000:01:00.0"
    assert found["state"] == "idle"
    assert found["last_interrupt_s"] is None


def rows_of(*words: Word) -> list[Row]:
    return [
        Row(Bdf(0, 0, number, 0), HostIrq(9), 0, float(number), None, State(word, Stage.EOI, "why"))
        for number, word in enumerate(words)
    ]


def test_keys_sort_move_open_and_quit() -> None:
    view = View()
    rows = rows_of(Word.IDLE, Word.STUCK, Word.HEALTHY)
    assert [row.bdf.slot for row in view.order(rows)] == [0, 1, 2]
    view.press("s", 3)
    assert [row.bdf.slot for row in view.order(rows)] == [2, 1, 0]
    view.press("s", 3)
    assert [row.state.word for row in view.order(rows)] == [Word.STUCK, Word.HEALTHY, Word.IDLE]
    for _ in range(5):
        view.press("j", 3)
    assert view.at == 2
    view.press("k", 3)
    view.press("\n", 3)
    view.press("x", 3)
    assert (view.at, view.open, view.quit) == (1, True, False)
    view.press("\x1b[A", 3)
    view.press("\x1bOA", 3)
    view.press("\x1b[B", 3)
    assert view.at == 1
    view.press("\x1b", 3)
    assert not view.quit
    view.press("q", 3)
    assert view.quit


def test_an_arrow_key_is_one_key_and_escape_alone_does_not_wait() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"\x1b[Bj\x1b")
        assert [_one_key(reading) for _ in range(3)] == ["\x1b[B", "j", "\x1b"]
    finally:
        os.close(reading)
        os.close(writing)


def test_a_line_that_nobody_told_of_is_asked_for_and_one_that_went_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vfio_intx.cli.watch._ROSTER_S", 0.001)
    old, new = rows_of(Word.IDLE, Word.IDLE)
    lines = {row.bdf: _unasked(row.bdf, HostLine(row.irq, 0, ())) for row in (old, new)}
    vms = {bdf: VmStatus(7, f"vm{bdf.slot}", None, (line,)) for bdf, line in lines.items()}
    asked: list[int] = []

    def again() -> tuple[VmStatus, ...]:
        asked.append(1)
        return (vms[old.bdf], vms[new.bdf])

    roster = Roster((vms[old.bdf],), again)
    roster.see([old])
    assert (set(roster.known), asked) == ({old.bdf}, [])

    def knows() -> bool:
        roster.see([old, new])
        return new.bdf in roster.known

    assert Deadline.after("the roster", 10.0).poll(knows)
    assert roster.known[new.bdf][0].name == "vm1"
    roster.see([old])
    assert set(roster.known) == {old.bdf}


def test_every_word_has_its_place_when_sorted_by_state() -> None:
    view = View()
    view.sort = 2
    assert len(view.order(rows_of(*Word))) == len(Word)


def test_the_screen_shows_every_line_its_state_and_the_open_ones_detail(host: Host) -> None:
    watcher = Watcher(host.root, clock=lambda: host.now)
    view = View()
    assert "no line of this host" in _screen(view, [], {}).plain
    rows = watcher.tick()
    text = _screen(view, rows, {}).plain
    assert [line.split()[0] for line in text.splitlines()[1:4]] == [str(bdf) for bdf in host.bdfs]
    assert text.count("idle") == 3
    assert "next:" not in text
    view.press("\n", 3)
    assert f"next: vfio-intx trace {host.bdfs[0]}" in _screen(view, rows, {}).plain
