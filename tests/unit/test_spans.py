"""Events to spans: every scheme's own order of events, and everything that is not a plain interrupt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.script import BARE, DEVICE, LEVEL, MAIN, MASKED, OTHER, VCPU, WORKER, Script, join
from vfio_intx.chain.scheme import Scheme
from vfio_intx.chain.stage import Stage
from vfio_intx.names import Gsi
from vfio_intx.observe.events import LOST, Kind, Target
from vfio_intx.observe.span import Oddity, Span
from vfio_intx.observe.spans import KEPT_OF_A_KIND, Joiner
from vfio_intx.observe.summary import scheme_of


def stages(span: Span) -> list[Stage]:
    return [stage for stage, _ in span.milestones()]


def test_irqfd_of_a_device_shows_every_stage_that_can_be_seen() -> None:
    script = Script().add(Kind.HOST_ENTRY, WORKER, 21).add(Kind.QUEUE_WORK, WORKER)
    script.add(Kind.HOST_EXIT, WORKER, 21, 1).irqfd()
    joiner = join(script, DEVICE)
    (span,) = joiner.done
    assert scheme_of(span) is Scheme.IRQFD
    assert span.userspace_runs == 0
    assert not joiner.counts
    assert stages(span) == [
        Stage.HOST_IRQ, Stage.TRIGGER, Stage.HOST_MASK, Stage.INJECT, Stage.ROUTE, Stage.DELIVER, Stage.EOI,
        Stage.RESAMPLE,
    ]  # fmt: skip
    assert span.start == script.events[0][0]
    assert span.end == script.at


def test_trap_lowers_before_the_eoi_and_needs_userspace_twice() -> None:
    joiner = join(Script().host(wakes=MAIN).trap(), DEVICE)
    (span,) = joiner.done
    assert scheme_of(span) is Scheme.TRAP
    assert span.userspace_runs == 2
    assert stages(span).index(Stage.RESAMPLE) < stages(span).index(Stage.EOI)
    assert Stage.HANDLE in stages(span)
    assert not joiner.counts


def test_ack_eventfd_is_raised_and_lowered_by_the_process_after_the_acknowledge() -> None:
    joiner = join(Script().up(MAIN, 0).eoi().down(MAIN, 0))
    (span,) = joiner.done
    assert scheme_of(span) is Scheme.ACK_EVENTFD
    assert span.userspace_runs == 2


def test_ack_eventfd_that_lowers_for_a_repeated_run_is_not_taken_for_trap() -> None:
    """The EOI of a repeated run is heard of late: what has been raised meanwhile goes down before its own."""
    script = Script().up(MAIN, 0).eoi().down(MAIN, 0).up(MAIN, 0).down(MAIN, 0)
    joiner = join(script.add(Kind.EOI, VCPU, 0, 37).add(Kind.ACK, VCPU, 2, 20))
    assert [scheme_of(span) for span in joiner.done] == [Scheme.ACK_EVENTFD] * 2


def test_trap_by_port_instructions_is_known_by_who_lowers_it() -> None:
    """A serial card's registers are ports: such an exit is not among the events."""
    script = Script().up(MAIN, 0).add(Kind.INJECT_VECTOR, VCPU, 37).down(VCPU, 0)
    joiner = join(script.add(Kind.EOI, VCPU, 0, 37).add(Kind.ACK, VCPU, 2, 20))
    assert [scheme_of(span) for span in joiner.done] == [Scheme.TRAP]


def test_the_lowering_of_another_source_is_not_that_of_the_line() -> None:
    """The irqfd that only tells of EOIs lowers a level of its own (irqfd_resampler_ack in virt/kvm/eventfd.c)."""
    joiner = join(Script().up(MAIN, 0).eoi().down(VCPU, 1).down(MAIN, 0))
    (span,) = joiner.done
    assert scheme_of(span) is Scheme.ACK_EVENTFD
    assert span.userspace_runs == 2
    assert span.lowered_by == 0


def test_split_is_a_message_whose_eoi_leaves_the_kernel() -> None:
    script = Script().add(Kind.HOST_ENTRY, WORKER, 21).add(Kind.MSI, WORKER, 0xFEE00000, 37 | LEVEL)
    script.add(Kind.ACCEPT, WORKER, 0, 37).add(Kind.HOST_EXIT, WORKER, 21, 1)
    script.add(Kind.INJECT_VECTOR, VCPU, 37).add(Kind.EOI, VCPU, 0, 37).add(Kind.USERSPACE_EXIT, VCPU, 26)
    joiner = join(script, DEVICE)
    (span,) = joiner.done
    assert scheme_of(span) is Scheme.SPLIT
    assert span.userspace_runs == 1
    assert not joiner.counts


def test_a_vcpu_that_sleeps_is_woken_by_the_message_and_not_by_the_eventfd() -> None:
    """KVM delivers a message from within the host's handler, and a vCPU in HLT is a thread of the process, too."""
    script = Script().add(Kind.HOST_ENTRY, WORKER, 21).add(Kind.MSI, WORKER, 0xFEE00000, 37 | LEVEL)
    script.add(Kind.WAKING, WORKER, VCPU).add(Kind.HOST_EXIT, WORKER, 21, 1)
    script.add(Kind.INJECT_VECTOR, VCPU, 37).add(Kind.EOI, VCPU, 0, 37).add(Kind.USERSPACE_EXIT, VCPU, 26)
    joiner = join(script, DEVICE)
    (span,) = joiner.done
    assert Stage.TRIGGER not in stages(span)
    assert span.userspace_runs == 1, "the EOI that left the kernel, and no other"


def test_split_without_a_device_is_known_by_its_vector() -> None:
    script = Script()
    for vector in (37, 48):  # the second is another line's
        script.add(Kind.MSI, MAIN, 0xFEE00000, vector | LEVEL).add(Kind.EOI, VCPU, 0, vector)
        script.add(Kind.USERSPACE_EXIT, VCPU, 26)
    assert [span.vector for span in join(script).done] == [37]


def test_edge_is_lowered_by_the_kernel_thread_that_raised_it() -> None:
    script = Script().add(Kind.SET_IRQ, WORKER, 20, 1, 0).add(Kind.ACCEPT, WORKER, 0, 37).down(WORKER, 0).eoi()
    (span,) = join(script).done
    assert scheme_of(span) is Scheme.EDGE
    assert span.userspace_runs == 0


def test_two_statements_of_one_raise_are_one_interrupt() -> None:
    # QEMU sets a GSI below 16 as the PIC's and again as the IOAPIC's.
    script = Script().up(MAIN, 0).add(Kind.SET_IRQ, MAIN, 20, 1, 0).down(VCPU, 0).down(VCPU, 0).eoi()
    joiner = join(script)
    assert len(joiner.done) == 1
    assert joiner.restated == 1
    assert not joiner.counts


def odd_merged(script: Script) -> Script:
    return script.up().add(Kind.SET_IRQ, WORKER, 20, 1, 1).eoi().down()


def odd_repeated(script: Script) -> Script:
    script.up(MAIN, 0).eoi().add(Kind.ACCEPT, VCPU, 0, 37)
    return script.eoi().down(MAIN, 0)


def odd_masked(script: Script) -> Script:
    return script.add(Kind.SET_IRQ, WORKER, 20, 1, 1).add(Kind.IOAPIC, WORKER, 37 | LEVEL | MASKED, 20, 0).eoi().down()


def odd_masked_for_ever(script: Script) -> Script:
    return script.add(Kind.SET_IRQ, WORKER, 20, 1, 1).add(Kind.IOAPIC, WORKER, 37 | LEVEL | MASKED, 20, 0)


def odd_coalesced(script: Script) -> Script:
    return script.add(Kind.SET_IRQ, WORKER, 20, 1, 1).add(Kind.IOAPIC, WORKER, 37 | LEVEL, 20, 1).eoi().down()


def odd_orphan(script: Script) -> Script:
    return script.irqfd().add(Kind.ACK, VCPU, 2, 20)


def odd_unfinished(script: Script) -> Script:
    return script.up()


def odd_foreign(script: Script) -> Script:
    return script.up().eoi(OTHER).down(OTHER)


def odd_late(script: Script) -> Script:
    script.irqfd()
    script.events.append((5, Kind.EOI, 0, (VCPU, 0, 99)))
    return script


def test_what_is_open_at_the_end_says_for_how_long() -> None:
    """An interrupt that was under way when somebody stopped is no stuck line."""
    joiner = Joiner(BARE)
    joiner.feed(Script().up().events)
    joiner.feed(Script(at=29_000).add(Kind.EOI, OTHER, 0, 99).events)
    joiner.finish()
    (odd,) = joiner.anomalies
    assert odd.detail == "interrupt 1 was not acknowledged by the end of the recording, 28.0 us later"


@pytest.mark.parametrize(
    ("write", "expected", "spans"),
    [
        (odd_merged, {Oddity.MERGED: 1}, 1),
        (odd_repeated, {Oddity.REPEATED: 1}, 1),
        (odd_masked, {Oddity.MASKED: 1}, 1),
        (odd_masked_for_ever, {Oddity.MASKED: 1, Oddity.UNFINISHED: 1}, 0),
        (odd_coalesced, {Oddity.COALESCED: 1}, 1),
        (odd_orphan, {Oddity.ORPHAN_ACK: 1}, 1),
        (odd_unfinished, {Oddity.UNFINISHED: 1}, 0),
        (odd_foreign, {Oddity.FOREIGN: 1}, 0),
        (odd_late, {Oddity.LATE: 1}, 1),
    ],
)
def test_what_is_not_plain_is_told_apart_and_counted(
    write: Callable[[Script], Script], expected: dict[Oddity, int], spans: int
) -> None:
    script = Script()
    write(script)
    joiner = Joiner(BARE)
    late = next((at for at, event in enumerate(script.events) if event[0] < 1000), len(script.events))
    joiner.feed(script.events[:late])
    joiner.feed(script.events[late:])
    joiner.finish()
    assert dict(joiner.counts) == expected
    assert len(joiner.done) == spans
    assert {anomaly.oddity for anomaly in joiner.anomalies} == set(expected)
    assert all(anomaly.time <= script.at and anomaly.detail for anomaly in joiner.anomalies)


def test_a_pin_masked_at_the_ioapic_is_normal_where_the_pic_delivers() -> None:
    script = Script().add(Kind.SET_IRQ, WORKER, 10, 1, 1).add(Kind.IOAPIC, WORKER, MASKED, 10, 0)
    script.add(Kind.PIC, WORKER, 2, 0, 0).add(Kind.ACK, VCPU, 1, 10).add(Kind.SET_IRQ, VCPU, 10, 0, 1)
    joiner = join(script, Target(Gsi(10), (MAIN, VCPU)))
    assert len(joiner.done) == 1
    assert Stage.ROUTE in stages(joiner.done[0])
    assert not joiner.counts


def test_another_vm_on_the_same_gsi_does_not_borrow_our_spans() -> None:
    script = Script().irqfd().up().eoi(OTHER).down(OTHER).irqfd()
    joiner = join(script)
    assert [scheme_of(span) for span in joiner.done] == [Scheme.IRQFD, Scheme.IRQFD]
    assert joiner.counts == {Oddity.FOREIGN: 1}
    assert joiner.injected == 2


def test_two_vms_at_once_are_called_ambiguous() -> None:
    script = Script().up().add(Kind.SET_IRQ, WORKER, 20, 1, 1).eoi(OTHER).down(OTHER).eoi().down()
    joiner = join(script)
    assert len(joiner.done) == 1
    assert joiner.done[0].oddities == {Oddity.MERGED: 1, Oddity.AMBIGUOUS: 1}


def test_a_resampler_shut_down_while_the_level_is_up_lowers_it_from_a_kernel_thread() -> None:
    joiner = join(Script().up().down(WORKER, 1).eoi())
    assert len(joiner.done) == 1
    assert not joiner.counts


def test_an_interrupt_of_the_neighbour_on_a_shared_line_is_not_ours() -> None:
    joiner = join(Script().host(verdict=0).host().irqfd().host(verdict=0), DEVICE)
    assert joiner.counts == {Oddity.UNHANDLED: 2}
    assert joiner.handled == 1
    assert len(joiner.done) == 1


def test_a_handler_that_led_to_no_injection_is_noted_when_it_runs_again() -> None:
    joiner = join(Script().host().irqfd().host().host().irqfd(), DEVICE)
    assert joiner.counts == {Oddity.NOT_INJECTED: 1}
    assert len(joiner.done) == 2


def test_a_handler_that_nothing_ever_followed_is_noted_at_the_end() -> None:
    # The lost listener: masked by its first interrupt, which nobody hears of, the line never interrupts again.
    alone = join(Script().host(), DEVICE)
    assert alone.handled == 1
    assert alone.counts == {Oddity.NOT_INJECTED: 1}
    assert join(Script().host().host().host(), DEVICE).counts == {Oddity.NOT_INJECTED: 3}
    assert join(Script().host().irqfd().host(), DEVICE).counts == {Oddity.NOT_INJECTED: 1}
    # After a loss the injection may have been among what is missing.
    assert join(Script().host().add(LOST, 0, 3, 0).host().host().irqfd(), DEVICE).counts == {Oddity.LOST_EVENTS: 1}


def test_a_wake_up_on_another_cpu_is_not_the_handlers() -> None:
    script = Script().add(Kind.HOST_ENTRY, WORKER, 21).add(Kind.WAKING, WORKER, MAIN, cpu=1)
    script.add(Kind.HOST_EXIT, WORKER, 21, 1).add(Kind.WAKING, WORKER, MAIN).irqfd()
    assert join(script, DEVICE).done[0].userspace_runs == 0


def test_the_handler_ends_on_its_own_cpu_though_the_injection_was_quicker() -> None:
    script = (
        Script().add(Kind.HOST_ENTRY, WORKER, 21, cpu=3).up().add(Kind.HOST_EXIT, WORKER, 21, 1, cpu=3).eoi().down()
    )
    (span,) = join(script, DEVICE).done
    assert span.handler is not None
    assert span.handler.exit > span.inject


def test_lost_events_tear_what_was_open_and_are_no_orphans_afterwards() -> None:
    script = Script().irqfd().up().add(LOST, 0, 12, 0).eoi().down().irqfd()
    joiner = join(script)
    assert len(joiner.done) == 2
    assert joiner.counts == {Oddity.LOST_EVENTS: 1, Oddity.TORN: 1}
    assert "12 events" in next(a.detail for a in joiner.anomalies if a.oddity is Oddity.LOST_EVENTS)


def test_a_damaged_page_is_told_from_a_loss() -> None:
    joiner = join(Script().add(LOST, 0, 0, 1))
    assert joiner.counts == {Oddity.DAMAGED: 1}
    assert Oddity.LOST_EVENTS in join(Script().add(LOST, 0, -1, 0)).counts


def test_an_interrupt_in_flight_at_the_start_is_no_anomaly() -> None:
    joiner = join(Script().eoi().down().irqfd())
    assert len(joiner.done) == 1
    assert not joiner.counts


def test_trap_may_raise_the_next_before_the_last_is_acknowledged() -> None:
    script = Script().up(MAIN, 0).down(VCPU, 0).up(MAIN, 0).eoi().down(VCPU, 0).eoi()
    joiner = join(script)
    assert [span.number for span in joiner.done] == [1, 2]
    assert all(scheme_of(span) is Scheme.TRAP for span in joiner.done)


def test_trap_that_is_raised_again_before_the_eoi_ends_with_that_eoi() -> None:
    # A serial card's handler reads registers until nothing is pending: each read lowers and unmasks, the card, still
    # asserting, is injected again, and one EOI ends it all. Given one each, every later span would hang behind.
    script = Script()
    for _ in range(3):
        script.up(MAIN, 0).down(VCPU, 0).up(MAIN, 0).down(VCPU, 0).eoi()
    joiner = join(script)
    assert len(joiner.done) == 6
    assert joiner.counts[Oddity.MERGED] == 3
    assert not joiner.counts[Oddity.UNFINISHED]
    assert max(span.end - span.start for span in joiner.done) < 150


def test_anomalies_are_kept_in_bounds_and_counted_beyond() -> None:
    script = Script().irqfd()
    for _ in range(KEPT_OF_A_KIND * 3):
        script.add(Kind.ACK, VCPU, 2, 20)
    joiner = join(script)
    assert joiner.counts[Oddity.ORPHAN_ACK] == KEPT_OF_A_KIND * 3
    assert len(joiner.anomalies) == KEPT_OF_A_KIND


def test_a_line_that_is_never_acknowledged_is_waited_for_in_bounded_space() -> None:
    # A plain irqfd or an ISA device's edge: raised and lowered, and KVM hears of no EOI.
    script = Script()
    for _ in range(500):
        script.up(WORKER, 0).down(WORKER, 0)
    joiner = Joiner(BARE)
    joiner.feed(script.events)
    waiting = joiner.injected - joiner.counts[Oddity.UNFINISHED]
    assert waiting <= 64
    joiner.finish()
    assert joiner.injected == joiner.counts[Oddity.UNFINISHED] == 500


BIT, ANY, VECTORS = st.integers(0, 1), st.sampled_from([MAIN, VCPU, WORKER, OTHER]), st.sampled_from([37, 48])
VECTOR_DATA = st.sampled_from([37 | LEVEL, 48 | LEVEL])
EVENTS = st.one_of(
    st.tuples(st.just(Kind.SET_IRQ), ANY, st.just(20), BIT, BIT),
    st.tuples(st.just(Kind.ACCEPT), ANY, st.just(0), VECTORS),
    st.tuples(st.just(Kind.IOAPIC), ANY, st.integers(0, 1 << 17), st.just(20), BIT),
    st.tuples(st.just(Kind.PIC), ANY, st.integers(0, 7), st.integers(0, 255), BIT),
    st.tuples(st.just(Kind.MSI), ANY, st.just(0), VECTOR_DATA),
    st.tuples(st.just(Kind.EOI), st.just(VCPU), st.just(0), VECTORS),
    st.tuples(st.just(Kind.INJECT_VECTOR), st.just(VCPU), VECTORS),
    st.tuples(st.just(Kind.ACK), st.sampled_from([VCPU, OTHER]), st.just(2), st.just(20)),
    st.tuples(st.just(Kind.USERSPACE_EXIT), st.just(VCPU), st.sampled_from([6, 26])),
    st.tuples(st.just(Kind.HOST_ENTRY), st.just(WORKER), st.just(21)),
    st.tuples(st.just(Kind.HOST_EXIT), st.just(WORKER), st.just(21), BIT),
    st.tuples(st.just(Kind.WAKING), st.just(WORKER), st.just(MAIN)),
    st.tuples(st.just(LOST), st.just(0), st.integers(-1, 5), BIT),
)


@given(st.lists(EVENTS, max_size=120), st.booleans())
def test_every_injection_is_accounted_for_whatever_the_order(events: list[tuple[int, ...]], device: bool) -> None:
    script = Script()
    for kind, *fields in events:
        script.add(kind, *fields)
    joiner = join(script, DEVICE if device else BARE)
    counts = joiner.counts
    assert joiner.injected == len(joiner.done) + counts[Oddity.UNFINISHED] + counts[Oddity.TORN]
    for span in joiner.done:
        moments = [moment for _, moment in span.milestones()]
        assert moments == sorted(moments)
        assert span.start <= span.end <= script.at
