"""The evidence for a line's scheme, from two witnesses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.chain.evidence import Kind, weigh
from vfio_intx.chain.scheme import Scheme
from vfio_intx.names import Gsi, HostIrq
from vfio_intx.qemu.irqchip import IrqchipKind, IrqCounts
from vfio_intx.wiring.verify import (
    HostLine,
    Sample,
    Window,
    configuration_evidence,
    counters_evidence,
    window,
)

KERNEL, SPLIT, USER = IrqchipKind.KERNEL, IrqchipKind.SPLIT, IrqchipKind.USERSPACE
GSI = Gsi(10)


@pytest.mark.parametrize(
    ("flag", "irqchip", "scheme"),
    [
        (False, KERNEL, Scheme.IRQFD),
        (True, KERNEL, Scheme.TRAP),
        (False, SPLIT, Scheme.SPLIT),
        (True, SPLIT, Scheme.TRAP),
        (False, USER, Scheme.TRAP),
        (None, USER, Scheme.TRAP),
        (None, KERNEL, None),
        (None, SPLIT, None),
    ],
)
def test_the_configuration(flag: bool | None, irqchip: IrqchipKind, scheme: Scheme | None) -> None:
    found = configuration_evidence(flag, irqchip)
    assert found.kind is Kind.CONFIGURATION
    assert found.speaks_for is scheme


@pytest.mark.parametrize(
    ("host", "qemu", "irqchip", "host_others", "guest_others", "scheme"),
    [
        (5, 0, KERNEL, (), (), Scheme.IRQFD),
        (5, 0, SPLIT, (), (), Scheme.SPLIT),
        (5, 5, KERNEL, (), (), Scheme.TRAP),
        (5, 6, SPLIT, (), (), Scheme.TRAP),
        (5, 5, USER, (), (), Scheme.TRAP),
        (0, 0, KERNEL, (), (), None),
        (0, 3, KERNEL, (), (), None),
        (5, None, KERNEL, (), (), None),
        (5, 2, KERNEL, (), (), None),
        (5, 0, USER, (), (), None),
        (5, 0, KERNEL, ("ehci_hcd",), (), None),
        (5, 2, KERNEL, ("ehci_hcd",), (), Scheme.TRAP),
        (5, 5, KERNEL, (), ("00:03.0 nic",), None),
        (5, 0, KERNEL, (), ("00:03.0 nic",), Scheme.IRQFD),
    ],
)
def test_the_counters(
    host: int,
    qemu: int | None,
    irqchip: IrqchipKind,
    host_others: tuple[str, ...],
    guest_others: tuple[str, ...],
    scheme: Scheme | None,
) -> None:
    seen = Window(1.0, host, qemu)
    found = counters_evidence(seen, irqchip, (GSI,), host_others=host_others, guest_others=guest_others)
    assert found.kind is Kind.COUNTERS
    assert found.speaks_for is scheme


def test_configuration_and_counters_that_disagree_prove_nothing() -> None:
    seen = Window(1.0, 5, 5)
    items = [
        configuration_evidence(False, KERNEL),
        counters_evidence(seen, KERNEL, (GSI,), host_others=(), guest_others=()),
    ]
    verdict = weigh(items)
    assert not verdict.proven
    assert "contradicts itself" in (verdict.why_not or "")


def sample(irq: int | None, count: int, qemu: int, at: float) -> Sample:
    host = None if irq is None else HostLine(HostIrq(irq), count, ())
    return Sample(host, IrqCounts({"kvm-ioapic": {10: qemu}}), at)


@pytest.mark.parametrize(
    ("first", "last", "host"),
    [
        (sample(20, 3, 0, 1.0), sample(20, 8, 2, 3.5), 5),
        (sample(None, 0, 0, 1.0), sample(20, 8, 2, 3.5), 0),
        (sample(20, 3, 0, 1.0), sample(None, 0, 2, 3.5), 0),
        (sample(20, 3, 0, 1.0), sample(21, 8, 2, 3.5), 0),
        (sample(20, 9, 0, 1.0), sample(20, 8, 2, 3.5), 0),
    ],
    ids=["same line", "came", "went", "moved", "a CPU went offline"],
)
def test_a_window_counts_only_on_one_and_the_same_line(first: Sample, last: Sample, host: int) -> None:
    assert window(first, last, (GSI,)) == Window(2.5, host, 2)
    assert window(first, last, ()).qemu is None


@pytest.mark.parametrize(
    ("raised", "scheme"),
    [({10: 0, 11: 0}, Scheme.IRQFD), ({10: 9, 11: 0}, None), ({10: 0, 11: 9}, None), ({10: 9, 11: 9}, None)],
)
def test_of_several_gsis_only_silence_on_all_of_them_tells(raised: dict[int, int], scheme: Scheme | None) -> None:
    # Two lines of a "pc" guest, one on 10 and one on 11: a count on the wrong one proved what was not so.
    gsis = (Gsi(10), Gsi(11))
    last = Sample(HostLine(HostIrq(20), 5, ()), IrqCounts({"kvm-ioapic": raised}), 2.0)
    seen = window(sample(20, 0, 0, 1.0), last, gsis)
    assert counters_evidence(seen, KERNEL, gsis, host_others=(), guest_others=()).speaks_for is scheme


@given(st.integers(0, 50), st.none() | st.integers(0, 50), st.sampled_from(IrqchipKind), st.booleans(), st.booleans())
def test_silence_never_proves_anything(
    host: int, qemu: int | None, irqchip: IrqchipKind, shared: bool, flag: bool
) -> None:
    others = ("x",) if shared else ()
    counters = counters_evidence(Window(1, host, qemu), irqchip, (GSI,), host_others=others, guest_others=())
    verdict = weigh([configuration_evidence(flag, irqchip), counters])
    if host == 0 or qemu is None:
        assert not verdict.proven
    if verdict.proven:
        assert verdict.scheme is Scheme.TRAP or qemu == 0
