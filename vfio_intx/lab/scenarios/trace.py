"""Trace one card's line under irqfd, trap and split, and compare the spans with what the host and the guest count.

With the word ``record`` the recordings come back in the results folder, for the golden inputs.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfio_intx.deadline import Deadline
from vfio_intx.errors import VerifyError
from vfio_intx.host.irq import read_interrupts, vfio_action
from vfio_intx.host.root import HostRoot
from vfio_intx.lab import kernels
from vfio_intx.lab.echoes import Echoes
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.scenarios.smoke import NETWORK, NIC, bind_by_hand
from vfio_intx.lab.spec import LabSpec
from vfio_intx.lab.traffic import ANSWER_S
from vfio_intx.observe.collect import Tracer, run
from vfio_intx.observe.events import Target
from vfio_intx.observe.recording import Recorder
from vfio_intx.observe.report import to_json
from vfio_intx.observe.span import Span
from vfio_intx.observe.target import resolve

SPEC = LabSpec(kernels.DEFAULT, (NIC,))
DEADLINE_S = 900.0

_PINGS = 20
_PAGE_DATA = 4096 - 16
_TRACEFS = Path("/sys/kernel/tracing")
_GLOBAL_FILES = ("tracing_on", "trace_clock", "current_tracer", "set_event", "trace_options", "buffer_size_kb")


def inside(context: Context) -> dict[str, object]:
    """Trace the card's line under each scheme while it answers pings.

    The guest's kernel is always the same one: what differs is the kernel that is traced.
    """
    bind_by_hand(context)
    settings = _global_settings()
    rows: dict[str, object] = {}
    for irqchip, schemes in (("on", ("irqfd", "trap")), ("split", ("split",))):
        with Guest.start(GuestOptions(irqchip=irqchip, kernel=kernels.DEFAULT)) as guest:
            guest.load("e1000")
            for scheme in schemes:
                rows[scheme] = _under(context, guest, scheme)
    left = [path.name for path in (_TRACEFS / "instances").iterdir()]
    touched = {name: [text, now] for name, now in _global_settings().items() if (text := settings[name]) != now}
    found = {"schemes": rows, "left_behind": left, "global_settings_touched": touched}
    return {"schema": "vfio-intx/lab-trace/1", "kernel": platform.release(), **found}


def _global_settings() -> dict[str, str]:
    """What a tool that uses the global trace buffer has set there, and the buffer's size."""
    found = {name: (_TRACEFS / name).read_text().strip() for name in _GLOBAL_FILES}
    # "7 (expanded: 1408)": the kernel gives the buffer its 1408 KiB when somebody first uses tracing, in any instance.
    size_kb = int(found["buffer_size_kb"].rpartition("expanded: ")[2].rstrip(")"))
    # Whole pages then, each without its head of 16 bytes: 1408 KiB are 354 pages, and read as 1410.
    return {**found, "buffer_size_kb": f"{-(-size_kb * 1024 // _PAGE_DATA)} pages"}


def _under(context: Context, guest: Guest, scheme: str) -> dict[str, object]:
    properties: dict[str, object] = {"x-no-kvm-intx": scheme == "trap"}
    if scheme == "trap":
        # QEMU would map the registers again in every silence. Stock 7.2 does so while a write of the guest is emulated,
        # which now and then ends in a KVM error (docs/qemu-patches.md, patch 0013): that is not what is looked at here.
        properties["x-intx-mmap-timeout-ms"] = 0
    guest.execute("device_add", driver="vfio-pci", host=str(NIC.bdf), id=f"nic-{scheme}", **properties)
    interface = guest.wait_interface()
    guest.check(f"ip addr add {NETWORK.address} dev {interface} && ip link set {interface} up")
    _ping(guest, 1)
    root = HostRoot()
    target = _learnt(root, guest)
    recorder = Recorder() if "record" in context.options else None
    starts: list[int] = []

    def keep(spans: list[Span]) -> None:
        starts.extend(span.start for span in spans)

    with Tracer(target, root=root, pid=guest.pid, keeper=recorder, sink=keep) as tracer:
        # Both ends of what is compared lie in silence: the guest sends a packet of its own now and then.
        before = _counts(root, guest, interface)
        tracer.poll()
        _ping(guest, _PINGS)
        after = _counts(root, guest, interface)
        report = tracer.finish()
    if recorder is not None:
        recorder.save(context.results_dir / scheme, platform.release(), report.target)
    unplugged = _unplug_while_traced(guest, f"nic-{scheme}")
    gone = "for i in $(seq 600); do ls /sys/class/net | grep -qv lo || exit 0; sleep 0.05; done; exit 1"
    guest.check(gone, seconds=180.0)
    found = to_json(report)
    found["unplugged_while_traced"] = unplugged
    found["spans_between"] = sum(before.moment < start <= after.moment for start in starts)
    found |= {"host_interrupts": after.host - before.host, "guest_interrupts": after.guest - before.guest}
    context.say(f"{scheme}: {found['spans_between']} spans, {found['host_interrupts']} host interrupts")
    return found


def _ping(guest: Guest, count: int) -> None:
    """So many pings, and the wait for their answers. :raise VerifyError: one did not come."""
    echoes = Echoes(guest)
    guest.run(f"ping -c {count} -i 0.1 -W {ANSWER_S} {NETWORK.gateway}")
    sent, received = echoes.settled(ANSWER_S)
    if (sent, received) != (count, count):
        raise VerifyError(f"{received} of {sent} pings were answered, {count} were asked for")


def _unplug_while_traced(guest: Guest, device_id: str) -> str:
    """Take the device out of the VM under a trace of its line; how that trace says that it ended."""
    target, pid = resolve(HostRoot(), pid=guest.pid, gsi=None, bdf=NIC.bdf)
    tracer = Tracer(target, root=HostRoot(), pid=pid)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run, tracer, seconds=120.0, count=None)
        guest.execute("device_del", id=device_id)
        return ended.result().ended


def _learnt(root: HostRoot, guest: Guest) -> Target:
    """The target, its GSI found as a user's would be: a recording need not hold what other lines do."""
    target, _ = resolve(root, pid=guest.pid, gsi=None, bdf=NIC.bdf)
    with Tracer(target, root=root, pid=guest.pid) as tracer:
        _ping(guest, 6)
        tracer.finish()
    return tracer.target


@dataclass(frozen=True, slots=True)
class _Counts:
    """Both counts, and a moment (ns, the clock of the events): all that started before it is in them, nothing else."""

    host: int
    guest: int
    moment: int


def _counts(root: HostRoot, guest: Guest, interface: str) -> _Counts:
    """The host's and the guest's count of the line in one silence."""
    while True:
        host = _quiet(root)
        counted, moment = guest.interrupt_count(interface), time.monotonic_ns()
        if _host_count(root) == host:
            return _Counts(host, counted, moment)


def _quiet(root: HostRoot) -> int:
    """Wait until the line has been silent for a third of a second; its count then."""
    deadline = Deadline.after("the line falls silent", 60.0)
    count = _host_count(root)
    while not deadline.passed():
        time.sleep(0.3)
        before, count = count, _host_count(root)
        if before == count:
            return count
    raise VerifyError(f"the line of {NIC.bdf} does not fall silent")


def _host_count(root: HostRoot) -> int:
    for line in read_interrupts(root).get({}).values():
        if vfio_action(NIC.bdf) in line.actions:
            return line.count
    raise VerifyError(f"no line of {NIC.bdf} in /proc/interrupts")


def failures(result: Mapping[str, Any]) -> list[str]:
    """What does not hold of a result, in words; empty if it all holds."""
    wrong = [f"left behind: {name}" for name in result["left_behind"]]
    for name, (before, after) in result["global_settings_touched"].items():
        wrong.append(f"the global buffer's {name} was {before!r} and is {after!r}")
    for scheme, row in result["schemes"].items():
        spoken = row["evidence"] and row["evidence"]["speaks_for"]
        if spoken != scheme:
            wrong.append(f"{scheme}: the trace speaks for {spoken}")
        if row["spans_between"] != row["host_interrupts"]:
            wrong.append(f"{scheme}: {row['spans_between']} spans for {row['host_interrupts']} host interrupts")
        if (ended := row["unplugged_while_traced"]) != "line-gone":
            wrong.append(f"{scheme}: the card was unplugged under a trace, which ended with {ended}")
        if row["lost_events"]:
            wrong.append(f"{scheme}: {row['lost_events']} events lost")
    return wrong


def show(result: Mapping[str, Any]) -> Iterable[str]:
    """One table a scheme."""
    for scheme, row in result["schemes"].items():
        counts = f"{row['host_interrupts']} host and {row['guest_interrupts']} guest interrupts"
        yield f"{scheme}: {row['spans_between']} spans for {counts}"
        yield f"  {row['wakeups_per_interrupt']} wake-ups of userspace each; {row['anomaly_counts'] or 'no anomaly'}"
        for stage in row["stages"]:
            times = "  ".join(f"{name} {value:9.1f}" for name, value in stage["us"].items())
            yield f"  {stage['stage']:<10} {times}  {stage['share']:6.1%}"
