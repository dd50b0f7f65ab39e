"""The rows of the demo: what each must show to hold, and how the table looks. Pure."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import msgspec

SCHEMA = "vfio-intx/demo/1"

#: Who wired a line: QEMU; our program, on eventfds of its own; or the latter with our program hearing the EOI.
BY_QEMU, BY_AGENT, IN_PATH = "QEMU", "agent", "agent in the path"

#: Below so many interrupts a row shows nothing.
FEWEST = 20


class Latency(msgspec.Struct, frozen=True):
    """From the host's handler to the guest's acknowledge, microseconds; None where no span was complete."""

    p50: float | None
    p99: float | None


class Row(msgspec.Struct, frozen=True):
    """One device under one scheme.

    :ivar host_interrupts: of the host's line over the traffic's time; ``guest_interrupts`` of the guest's.
    :ivar sent: in *unit*s, by the guest; ``received`` what came back whole.
    :ivar proven: the scheme that two kinds of evidence speak for and none against, None where there is none.
    :ivar evidence: kind and words, of ``status`` while the traffic ran and of the kernel's trace.
    :ivar traced: the interrupts that wake-ups and latency were taken from.
    :ivar wiring: who wired the line: :data:`BY_QEMU`, :data:`BY_AGENT`, :data:`IN_PATH`.
    """

    device: str
    card: str
    scheme: str
    host_interrupts: int
    guest_interrupts: int
    sent: int
    received: int
    unit: str
    proven: str | None
    evidence: tuple[str, ...]
    evidence_kinds: tuple[str, ...]
    traced: int
    lost_events: int
    wakeups_per_interrupt: float | None
    handler_to_ack_us: Latency
    wiring: str = BY_QEMU


def shortcomings(row: Row) -> list[str]:
    """Why a row does not hold; empty if it does."""
    wakeups = row.wakeups_per_interrupt
    in_kernel = row.scheme == "irqfd" and row.wiring != IN_PATH
    checks = {
        f"the scheme was not proven to be {row.scheme}": row.proven == row.scheme,
        "fewer than two kinds of evidence": len(set(row.evidence_kinds)) >= 2,
        f"{row.received} of {row.sent} {row.unit} came back": row.sent > 0 and row.received == row.sent,
        f"the host counted {row.host_interrupts} interrupts only": row.host_interrupts >= FEWEST,
        f"the guest counted {row.guest_interrupts} interrupts only": row.guest_interrupts >= FEWEST,
        f"{row.traced} interrupts were traced, {row.lost_events} events lost": row.traced > 0 and not row.lost_events,
        f"userspace woke {wakeups} times per interrupt": wakeups is not None
        and (wakeups == 0 if in_kernel else wakeups >= 1),
        "no latency was measured": row.handler_to_ack_us.p50 is not None,
    }
    return [complaint for complaint, holds in checks.items() if not holds]


def failures(result: Mapping[str, object], expected: int = 4) -> list[str]:
    """What of the whole demo does not hold, which has to have *expected* rows."""
    found = [
        f"{row.device} under {row.scheme} by {row.wiring}: {why}" for row in rows(result) for why in shortcomings(row)
    ]
    found += [f"left behind: {why}" for why in cast(Sequence[str], result["left_behind"])]
    if len(rows(result)) != expected:
        found.append(f"{len(rows(result))} rows instead of {expected}")
    return found


def rows(result: Mapping[str, object]) -> list[Row]:
    """The rows of a result that has been through JSON."""
    return msgspec.convert(result["lines"], list[Row])


_TITLE = "vfio-intx demo: two real INTx lines, forwarded both ways"


def table(result: Mapping[str, object], title: str = _TITLE) -> Iterable[str]:
    """The table, the evidence below it, the phases: lines for a terminal of 124 columns."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title)
    for name in ("device", "card", "scheme"):
        grid.add_column(name)
    for name in ("host\nirqs", "guest\nirqs", "sent", "received", "wake-ups\nper irq", "handler to\nack p50 /\np99 us"):
        grid.add_column(name, justify="right")
    grid.add_column("proven by", no_wrap=True)
    for row in rows(result):
        grid.add_row(*_cells(row))
    out = Console(file=io.StringIO(), width=124, highlight=False)
    out.print(grid)
    for row in rows(result):
        said = [f"{row.device} {_scheme(row)}:", *(f"  {text}" for text in row.evidence)]
        out.print(*said, sep="\n", markup=False, soft_wrap=True)
    phases = cast(Mapping[str, float], result["phases_s"])
    out.print(
        "phases: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items()),
        markup=False,
        soft_wrap=True,
    )
    return cast(io.StringIO, out.file).getvalue().splitlines()


def _cells(row: Row) -> list[str]:
    latency = row.handler_to_ack_us
    times = "-" if latency.p50 is None or latency.p99 is None else f"{latency.p50:.0f} /\n{latency.p99:.0f}"
    wakeups = "-" if row.wakeups_per_interrupt is None else f"{row.wakeups_per_interrupt:g}"
    traffic = [f"{row.sent} {row.unit}", f"{row.received} {row.unit}"]
    proof = "\n".join(dict.fromkeys(row.evidence_kinds)) if row.proven == row.scheme else "NOT PROVEN"
    counts = [str(row.host_interrupts), str(row.guest_interrupts)]
    return [row.device, row.card, _scheme(row), *counts, *traffic, wakeups, times, proof]


def _scheme(row: Row) -> str:
    return row.scheme if row.wiring == BY_QEMU else f"{row.scheme},\n{row.wiring}"
