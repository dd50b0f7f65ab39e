"""From names to a line, from events to its GSI, from a line to tracepoints with filters."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.fakes.script import BARE, DEVICE, LEVEL, MAIN, VCPU, WORKER, Script
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.deadline import Deadline
from vfio_intx.errors import MissingError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, Gsi, HostIrq
from vfio_intx.observe.collect import Tracer
from vfio_intx.observe.events import TRACEPOINTS, Kind, Target, plan
from vfio_intx.observe.target import LEARN_FROM, irq_of, learn, only_of, resolve, threads_of
from vfio_intx.observe.traced import Traced

UNLEARNT = Target(None, (MAIN, VCPU), HostIrq(21), "vfio-intx(0000:00:05.0)")


def filters(target: Target) -> dict[Kind, str | None]:
    return {enable.point.kind: enable.filter for enable in plan(target)}


def test_a_device_below_gsi_16_is_watched_at_both_controllers() -> None:
    found = filters(Target(Gsi(10), (MAIN, VCPU), HostIrq(21), "vfio-intx(0000:00:05.0)"))
    assert found[Kind.SET_IRQ] == "gsi == 10"
    assert found[Kind.PIC] == "chip == 1 && pin == 2"
    assert found[Kind.ACK] == "pin == 10"
    assert found[Kind.EOI] == "vector >= 0 && (common_pid == 100 || common_pid == 101)"
    assert found[Kind.HOST_ENTRY] == 'irq == 21 && name == "vfio-intx(0000:00:05.0)"'
    assert found[Kind.HOST_EXIT] == "irq == 21"  # the exit has no name: it is told by its CPU


def test_a_line_without_a_device_has_no_host_side_and_above_15_no_pic() -> None:
    found = filters(BARE)
    assert not {Kind.HOST_ENTRY, Kind.HOST_EXIT, Kind.WAKING, Kind.QUEUE_WORK, Kind.PIC} & found.keys()


def test_a_line_by_messages_has_no_pins() -> None:
    found = filters(Target(None, (MAIN,), HostIrq(21), None, by_message=True))
    assert not {Kind.SET_IRQ, Kind.IOAPIC, Kind.PIC, Kind.ACK} & found.keys()
    assert Kind.MSI in found


def test_the_first_stage_is_switched_on_last() -> None:
    for target in (BARE, DEVICE, UNLEARNT):
        order = [enable.point.kind for enable in plan(target)]
        first = Kind.SET_IRQ if target.irq is None else Kind.HOST_ENTRY
        assert order[-1] is first
        assert order.index(Kind.ACK) < order.index(Kind.SET_IRQ)
        assert len(order) == len(set(order))


def test_of_a_vm_with_many_threads_the_kernel_still_takes_the_filters() -> None:
    many = tuple(range(4_000_000, 4_000_600))
    for enable in plan(Target(Gsi(20), many, HostIrq(21), "vfio-intx(0000:00:05.0)")):
        assert enable.filter is None or len(enable.filter) < 4096


def test_every_kind_has_its_tracepoint() -> None:
    assert set(TRACEPOINTS) == set(Kind)


def neighbours(script: Script, gsi: int) -> Script:
    """Another line of the same VM raises between two of ours."""
    return script.add(Kind.SET_IRQ, MAIN, gsi, 1, 0).add(Kind.SET_IRQ, MAIN, gsi, 0, 0)


def test_the_gsi_is_learnt_from_what_follows_the_handler() -> None:
    script = Script()
    for number in range(8):
        script.host()
        if number == 3:
            neighbours(script, 4)
        script.irqfd()
        neighbours(script, 4)
    learnt = learn(UNLEARNT, script.events)
    assert learnt is not None
    assert learnt.gsi == 20


def test_too_few_or_too_mixed_interrupts_teach_nothing_yet() -> None:
    few = Script()
    for _ in range(LEARN_FROM - 1):
        few.host().irqfd()
    assert learn(UNLEARNT, few.events) is None
    assert learn(UNLEARNT, few.events, least=1) is not None
    mixed = Script()
    for number in range(12):
        neighbours(mixed.host(), 4 + number % 2)
    assert learn(UNLEARNT, mixed.events) is None
    assert learn(UNLEARNT, []) is None


def test_messages_from_inside_the_handler_mean_split() -> None:
    script = Script()
    for _ in range(6):
        script.add(Kind.HOST_ENTRY, WORKER, 21).add(Kind.MSI, WORKER, 0, 37 | LEVEL)
        script.add(Kind.HOST_EXIT, WORKER, 21, 1)
        neighbours(script, 4)
    learnt = learn(UNLEARNT, script.events)
    assert learnt is not None
    assert (learnt.by_message, learnt.gsi) == (True, None)
    assert not any(event[1] == Kind.SET_IRQ for event in only_of(learnt, script.events))


def test_events_of_other_pins_are_left_out_once_the_gsi_is_known() -> None:
    script = Script()
    for gsi in (20, 4):
        script.add(Kind.SET_IRQ, MAIN, gsi, 1, 0).add(Kind.IOAPIC, MAIN, 37, gsi, 0).add(Kind.ACK, VCPU, 2, gsi)
    script.add(Kind.PIC, MAIN, 4, 0, 0).add(Kind.EOI, VCPU, 0, 37)
    kept = only_of(BARE, script.events)
    assert [event[1] for event in kept] == [Kind.SET_IRQ, Kind.IOAPIC, Kind.ACK, Kind.EOI]
    assert only_of(UNLEARNT, script.events) == script.events


@pytest.fixture
def host(tmp_path: Path) -> HostRoot:
    (tmp_path / "proc/7/task").mkdir(parents=True)
    for thread in (7, 9):
        (tmp_path / f"proc/7/task/{thread}").mkdir()
    (tmp_path / "proc/interrupts").write_text(
        "            CPU0       CPU1\n"
        " 16:        5          0   IO-APIC   16-fasteoi   ehci_hcd:usb1, vfio-intx(0000:05:00.0)\n"
        " 21:        1          2   IO-APIC   21-fasteoi   vfio-intx(0000:05:00.1)\n"
    )
    return HostRoot(tmp_path)


def test_a_device_is_found_on_a_shared_line_by_its_own_name(host: HostRoot) -> None:
    assert irq_of(host, Bdf.parse("05:00.0")) == (16, "vfio-intx(0000:05:00.0)")
    with pytest.raises(MissingError, match="06:00") as caught:
        irq_of(host, Bdf.parse("06:00.0"))
    assert "INTx" in str(caught.value.hint)


@pytest.mark.parametrize(("first", "second"), [("4", "5"), ("devices/vfio7", "devices/vfio8"), ("4", "devices/vfio8")])
def test_the_vm_is_the_one_that_has_the_device_open(tmp_path: Path, first: str, second: str) -> None:
    host = FakeTree(tmp_path)
    for number, (node, bdf) in enumerate(((first, "0000:05:00.0"), (second, "0000:06:00.0"))):
        host.add(FakeFunction(bdf, irq=16 + number, driver="vfio-pci", group=4 + number))
        (tmp_path / f"sys/bus/pci/devices/{bdf}/vfio-dev/vfio{7 + number}").mkdir(parents=True)
        pid = 70 + number
        host.process(pid, "qemu-system-x86", (f"/dev/vfio/{node}", "anon_inode:[vfio-device]"))
        host.write(f"proc/{pid}/cmdline", "qemu-system-x86_64\0")
        host.write(f"proc/{pid}/stat", f"{pid} (q) S " + " ".join(["1"] * 18) + " 500 0 0\n")
        (tmp_path / f"proc/{pid}/task/{pid}").mkdir(parents=True)
    host.interrupts({16 + n: (5, "IO-APIC 16-fasteoi", f"vfio-intx(0000:0{5 + n}:00.0)") for n in (0, 1)})
    for number in (0, 1):
        held = Bdf.parse(f"0{5 + number}:00.0")
        assert resolve(host.root, pid=None, gsi=None, bdf=held)[1] == 70 + number
    with pytest.raises(MissingError, match="no interrupt line"):
        resolve(host.root, pid=None, gsi=None, bdf=Bdf.parse("07:00.0"))


def test_threads_come_from_proc(host: HostRoot) -> None:
    assert threads_of(host, 7) == (7, 9)
    with pytest.raises(MissingError, match="no process 8"):
        threads_of(host, 8)


def test_spans_do_not_depend_on_how_the_events_were_cut_into_rounds() -> None:
    from vfio_intx.observe.spans import Joiner

    script = Script()
    for _ in range(5):
        script.host(wakes=MAIN).trap().host().irqfd()
    whole = Joiner(DEVICE)
    whole.feed(script.events)
    for size in (1, 3, 7):
        parts = Joiner(DEVICE)
        for start in itertools.count(0, size):
            if start >= len(script.events):
                break
            parts.feed(script.events[start : start + size])
        assert [span.milestones() for span in parts.done] == [span.milestones() for span in whole.done]


def test_a_line_that_was_never_injected_is_counted_at_the_host(tmp_path: Path) -> None:
    script = Script()
    for number in range(3):
        neighbours(script.host(wakes=MAIN), 4 + number).host()
    tracer = Tracer(UNLEARNT, root=HostRoot(tmp_path))
    tracer._pending = list(script.events)
    tracer._join(list(script.events), last=False)
    assert (tracer._joiner.handled, len(tracer._pending)) == (0, len(script.events))  # kept: it may yet be learnt
    tracer._join(list(script.events), last=True)
    assert (tracer._joiner.handled, tracer._joiner.injected, tracer._pending) == (6, 0, [])


def test_a_line_that_went_to_another_vm_is_not_traced_by_the_threads_of_the_first(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    line, action = Bdf.parse("05:00.0"), "vfio-intx(0000:05:00.0)"
    tree.interrupts({21: (5, "IR-IO-APIC 21-fasteoi", action)})
    tree.write("proc/7/stat", "7 (q) S " + " ".join(["1"] * 18) + " 500 0 0\n")
    traced = Traced(tree.root)
    traced._tracers[line] = Tracer(Target(Gsi(20), (7,), HostIrq(21), action), root=tree.root, pid=7)
    traced.follow([line])
    assert (list(traced._tracers), traced.why_not) == ([line], {})
    traced._tracers[line]._checked = 0.0
    tree.write("proc/7/stat", "7 (q) S " + " ".join(["1"] * 18) + " 600 0 0\n")
    traced.follow([line])
    assert traced._tracers == {}
    assert line in traced.why_not  # asked for anew; this tree has nobody who holds it


def test_a_device_that_is_unplugged_and_a_vm_that_dies_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfio_intx.observe.collect._CHECK_S", 0.02)
    tree = FakeTree(tmp_path)
    action = "vfio-intx(0000:05:00.0)"
    tree.interrupts({21: (5, "IR-IO-APIC 21-fasteoi", action)})
    tree.write("proc/7/stat", "7 (q) S " + " ".join(["1"] * 18) + " 500 0 0\n")
    target = Target(Gsi(20), (7,), HostIrq(21), action)
    tracer = Tracer(target, root=tree.root, pid=7)
    assert tracer.gone() is None
    tree.interrupts({21: (5, "IR-IO-APIC 21-fasteoi", "eth0")})
    assert Deadline.after("it notices", 10.0).poll(lambda: tracer.gone() == "line-gone")
    # The pid is taken by another process: not the VM any more.
    tree.write("proc/7/stat", "7 (q) S " + " ".join(["1"] * 18) + " 600 0 0\n")
    assert Deadline.after("it notices", 10.0).poll(lambda: tracer.gone() == "vm-gone")
