"""The schemes raced in one run: all machines are built first, then every round gives each scheme its turn.

So a host that gets slower or busier in the course of a run does so for all of them alike.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from vfio_intx.abi import eventfd, kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.deadline import Deadline
from vfio_intx.errors import VerifyError
from vfio_intx.microvm.contest import GSI, Contestant
from vfio_intx.microvm.figures import BenchFigures, CeilingFigures, SchemeFigures
from vfio_intx.microvm.guest import GuestParameters, Hold, Pin, Quiet, Word
from vfio_intx.microvm.machine import Machine

#: A round is at most so many interrupts of one scheme, so that the rounds of all schemes lie close together, and that
#: Ctrl-C finds some that have ended, however long the run was to be.
LONGEST_ROUND = 1000
#: The ceiling runs in about so many of them: much shorter spells would be beginnings and ends only.
_CEILING_ROUNDS = 100
CEILING_S = 2.0
_WORD = 0xFFFF_FFFF
_TICK_S = 0.5
#: For the guest to end an interrupt, which takes it microseconds once it gets CPU time.
_REST_S = 10.0


def contests(schemes: Sequence[Scheme]) -> list[tuple[Scheme, Pin]]:
    """The rows of a run in their order: every scheme on the IOAPIC, then on the PIC where it has one."""
    return [(scheme, pin) for pin in Pin for scheme in schemes if not (scheme is Scheme.SPLIT and pin is Pin.PIC)]


def rounds_of(count: int) -> list[int]:
    """*count* interrupts cut into rounds of nearly equal length, at least one."""
    number = max(1, -(-count // LONGEST_ROUND))
    share, rest = divmod(count, number)
    return [share + (place < rest) for place in range(number)]


class Ceiling:
    """An irqfd that is its own resample eventfd: every EOI fires the next interrupt, with nobody in userspace.

    The guest and the kernel do all the work, so its rate is the most that any scheme could reach on this host. It
    runs only between :meth:`begin` and :meth:`end`, and as often as one likes.
    """

    def __init__(self, kvm_fd: int, gsi: int = GSI[Pin.IOAPIC]) -> None:
        self.figures = CeilingFigures(gsi)
        self._eventfd = eventfd.create()
        self._machine = Machine(kvm_fd)
        self._began: tuple[float, int] | None = None
        try:
            self._machine.load(GuestParameters(gsi=gsi, quiet=Quiet.NEVER))
            self._machine.start()
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Fire the first interrupt; the rest follow by themselves."""
        kvm.assign_irqfd(self._machine.fd, self._eventfd, self.figures.gsi, self._eventfd)
        self._began = time.perf_counter(), self._machine.mailbox[Word.HANDLER_RUNS]
        eventfd.signal(self._eventfd)

    def progress(self) -> int:
        """Interrupts since :meth:`begin`. :raise UnexpectedExit: the vCPU died."""
        self._machine.check()
        return (self._machine.mailbox[Word.HANDLER_RUNS] - self._began[1]) & _WORD if self._began else 0

    def total(self) -> int:
        """Every run of the guest's handler so far; it stands still after :meth:`end`."""
        return self._machine.mailbox[Word.HANDLER_RUNS]

    def end(self) -> None:
        """Take the irqfd away, wait until the guest is done with the last interrupt, add all of them to the figures.

        The guest is held inside its handler meanwhile. Otherwise an EOI may come when KVM has unregistered the
        resampler's acknowledge notifier and not yet lowered the level (``irqfd_resampler_shutdown``): the guest is
        then interrupted over and over by a level that nobody raised anew.

        :raise UnexpectedExit: the vCPU died. :raise VerifyError: the guest does not come to rest.
        """
        if self._began is None:
            return
        machine, (began, before), self._began = self._machine, self._began, None
        ended = time.perf_counter()
        machine.mailbox[Word.HOLD] = Hold.BEFORE_EOI
        try:
            machine.wait_for(Word.HELD, Hold.BEFORE_EOI, "guest to enter its handler", _REST_S)
        finally:
            kvm.deassign_irqfd(machine.fd, self._eventfd, self.figures.gsi)
            eventfd.drain(self._eventfd)
            machine.mailbox[Word.HOLD] = Hold.NONE
        self._wait_at_rest()
        self.figures.interrupts += self.total() - before & _WORD
        self.figures.seconds += ended - began

    def _wait_at_rest(self) -> None:
        gsi = self.figures.gsi

        def rests() -> bool:
            self._machine.check()
            return self._machine.pin_rests(gsi, Pin.IOAPIC)

        if not Deadline.after("the guest's pin at rest", _REST_S).poll(rests, first_s=0.0001):
            raise VerifyError(f"waited {_REST_S:g} s for the guest's pin {gsi} to come to rest in vain")

    def run(self, seconds: float, count: int | None = None) -> None:
        """Run for so long, or until about *count* interrupts if those come first."""
        self.begin()
        try:
            stop = time.perf_counter() + seconds
            while (left := stop - time.perf_counter()) > 0 and (count is None or self.progress() < count):
                time.sleep(min(left, _TICK_S if count is None else 0.01))
        finally:
            self.end()

    def close(self) -> None:
        """Stop the guest and give everything back."""
        self._machine.close()
        close_all(self._eventfd)
        self._eventfd = -1


def race(
    kvm_fd: int,
    schemes: Sequence[Scheme],
    count: int,
    *,
    ceiling_s: float = CEILING_S,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> BenchFigures:
    """Race *schemes* over *count* interrupts each, and run the ceiling for *ceiling_s* seconds in between.

    :param progress: called after every round with the rounds done and their number.
    :return: the figures; after Ctrl-C those of the rounds that had ended, marked as partial.
    :raise UnexpectedExit: a vCPU died. :raise VfioIntxError: a machine could not be built. Nothing is left either way.
    """
    rounds = rounds_of(count)
    every = -(-len(rounds) // _CEILING_ROUNDS)
    durations = array("Q", bytes(8 * max(rounds)))
    partial = False
    with ExitStack() as stack:
        racers: list[Contestant] = []
        for scheme, pin in contests(schemes):
            racer = Contestant(kvm_fd, scheme, pin)
            stack.callback(racer.close)
            racers.append(racer)
        ceiling = Ceiling(kvm_fd)
        stack.callback(ceiling.close)
        try:
            for done, length in enumerate(rounds):
                for racer in racers:
                    racer.race(length, durations)
                if done % every == 0:
                    ceiling.run(ceiling_s * every / len(rounds))
                progress(done + 1, len(rounds))
        except KeyboardInterrupt:
            partial = True
        rows: list[SchemeFigures] = [racer.finish() for racer in racers]
        return BenchFigures(rows, ceiling.figures, partial)
