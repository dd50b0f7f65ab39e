"""What KVM_IRQFD answers to what should not be asked of it: the table that error messages and checks rest on.

Sources: ``kvm_irqfd_assign`` and ``kvm_irqfd_deassign`` in ``virt/kvm/eventfd.c``, ``kvm_arch_irqfd_allowed`` in
``arch/x86/kvm/irq.c``. Where kernels are known to differ, both answers are right and the meaning says which is which.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vfio_intx.abi import eventfd, kvm
from vfio_intx.abi.call import call_buffer, close_all
from vfio_intx.abi.kvm import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, MsiRoute
from vfio_intx.errors import KernelError
from vfio_intx.microvm.machine import Irqchip, Machine
from vfio_intx.microvm.trials.row import Ground, Row, judged

_GSI, _OTHER_GSI, _NO_ROUTE = 20, 21, 5000
_UNKNOWN_FLAG = 1 << 7
_NO_FD = 1_000_000


class Props:
    """Descriptors that cases play with; :meth:`close` gives them all back."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def event(self) -> int:
        """A fresh eventfd."""
        return self._kept(eventfd.create())

    def pipe(self) -> int:
        """Something that is not an eventfd."""
        first, second = os.pipe2(os.O_CLOEXEC)
        self._kept(second)
        return self._kept(first)

    def dup(self, fd: int) -> int:
        """Another descriptor of the same eventfd."""
        return self._kept(os.dup(fd))

    def close(self) -> None:
        """Close what is still open."""
        close_all(*self._fds)
        self._fds.clear()

    def _kept(self, fd: int) -> int:
        self._fds.append(fd)
        return fd


Ask = Callable[[int, Props], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A request, the errno that it gets (0: accepted; more than one where kernels differ), and what that means."""

    name: str
    errnos: tuple[int, ...]
    ask: Ask
    meaning: str
    irqchip: Irqchip = Irqchip.FULL


def _assign(vm: int, trigger: int, gsi: int = _GSI, resample: int | None = None, flags: int = 0) -> None:
    kvm.assign_irqfd(vm, trigger, gsi, resample, flags=flags)


def _twice(gsi: int, *, through_dup: bool = False) -> Ask:
    def ask(vm: int, props: Props) -> None:
        trigger = props.event()
        _assign(vm, trigger, resample=props.event())
        _assign(vm, props.dup(trigger) if through_dup else trigger, gsi, props.event())

    return ask


def _shared(vm: int, props: Props) -> None:
    resample = props.event()
    _assign(vm, props.event(), resample=resample)
    _assign(vm, props.event(), resample=resample)


def _itself(vm: int, props: Props) -> None:
    trigger = props.event()
    _assign(vm, trigger, resample=trigger)


def _msi(vm: int, props: Props) -> None:
    kvm.set_routing(vm, [MsiRoute(_GSI, 0x40)])
    _assign(vm, props.event(), resample=props.event())


def _wrong_gsi(vm: int, props: Props) -> None:
    trigger = props.event()
    _assign(vm, trigger, resample=props.event())
    kvm.deassign_irqfd(vm, trigger, _OTHER_GSI)


def _junk_resample(vm: int, props: Props) -> None:
    flags = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE
    request = kvm.encode_irqfd(props.event(), _GSI, flags, _NO_FD)
    call_buffer("KVM_IRQFD(DEASSIGN|RESAMPLE)", f"GSI {_GSI}", vm, kvm.KVM_IRQFD, request)


_NO_CHIP = "a VM without in-kernel controllers is told so"
_NOT_EVENTFD = "a wrong descriptor is refused, not silently dead"
_ACCEPTED = "success proves nothing here: "
CASES = (
    Case("no irqchip, plain", (errno.EINVAL,), lambda vm, p: _assign(vm, p.event()), _NO_CHIP, Irqchip.NONE),
    Case(
        "no irqchip, resample",
        (errno.EINVAL,),
        lambda vm, p: _assign(vm, p.event(), resample=p.event()),
        _NO_CHIP,
        Irqchip.NONE,
    ),
    Case(
        "split irqchip, plain",
        (0,),
        lambda vm, p: _assign(vm, p.event()),
        "userspace has to hear the EOI by KVM_EXIT_IOAPIC_EOI",
        Irqchip.SPLIT,
    ),
    Case(
        "split irqchip, resample",
        (errno.EINVAL,),
        lambda vm, p: _assign(vm, p.event(), resample=p.event()),
        "a split irqchip cannot resample, whatever its capability says; before 5.2 it accepted and never did",
        Irqchip.SPLIT,
    ),
    Case("unknown flag", (errno.EINVAL,), lambda vm, p: _assign(vm, p.event(), flags=_UNKNOWN_FLAG), "refused"),
    Case("trigger not open", (errno.EBADF,), lambda vm, p: _assign(vm, _NO_FD), _NOT_EVENTFD),
    Case("resample not open", (errno.EBADF,), lambda vm, p: _assign(vm, p.event(), resample=_NO_FD), _NOT_EVENTFD),
    Case("trigger is a pipe", (errno.EINVAL,), lambda vm, p: _assign(vm, p.pipe()), _NOT_EVENTFD),
    Case("resample is a pipe", (errno.EINVAL,), lambda vm, p: _assign(vm, p.event(), resample=p.pipe()), _NOT_EVENTFD),
    Case("same trigger twice", (errno.EBUSY,), _twice(_GSI), "wiring twice is refused: unwire first"),
    Case("same trigger, other GSI", (errno.EBUSY,), _twice(_OTHER_GSI), "a trigger belongs to one line"),
    Case("same trigger through dup()", (errno.EBUSY,), _twice(_GSI, through_dup=True), "a dup is the same eventfd"),
    Case("two lines, one resample eventfd", (0,), _shared, "several triggers may share a GSI and a resample eventfd"),
    Case("trigger is its own resample", (0,), _itself, _ACCEPTED + "it would storm for ever; we refuse it ourselves"),
    Case(
        "GSI without a route",
        (0,),
        lambda vm, p: _assign(vm, p.event(), _NO_ROUTE, p.event()),
        _ACCEPTED + "its interrupts vanish silently",
    ),
    Case("resample on an MSI route", (0,), _msi, _ACCEPTED + "it is delivered like an edge and never resampled"),
    Case("de-assign with another GSI", (0,), _wrong_gsi, _ACCEPTED + "nothing was de-assigned"),
    Case(
        "de-assign of what never was",
        (0,),
        lambda vm, p: kvm.deassign_irqfd(vm, p.event(), _GSI),
        _ACCEPTED + "there was nothing to de-assign",
    ),
    Case("de-assign, not open", (errno.EBADF,), lambda vm, p: kvm.deassign_irqfd(vm, _NO_FD, _GSI), _NOT_EVENTFD),
    Case("de-assign, a pipe", (errno.EINVAL,), lambda vm, p: kvm.deassign_irqfd(vm, p.pipe(), _GSI), _NOT_EVENTFD),
    Case("de-assign with a junk resample", (0,), _junk_resample, "the resample eventfd is not looked at"),
)


def rows(ground: Ground) -> Iterator[Row]:
    """The table, and the two cases that take a second VM or a second process."""
    for case in CASES:
        yield _row(case.name, case.errnos, case.meaning, lambda case=case: _answer(ground, case))  # type: ignore[misc]
    yield _row(
        "same trigger in another VM",
        (errno.EBUSY, 0),
        "EBUSY from 6.17 on; where it is accepted, only one of the VMs gets the interrupt",
        lambda: _other_vm(ground),
    )
    yield _row(
        "asked from another process",
        (errno.EIO,),
        "only the process that made a VM can wire its lines: nobody else can, with whatever rights",
        lambda: _other_process(ground),
    )


def _row(name: str, errnos: tuple[int, ...], meaning: str, ask: Callable[[], int]) -> Row:
    def trial() -> tuple[bool, str]:
        answer = ask()
        return answer in errnos, _word(answer)

    return judged(
        f"KVM_IRQFD: {name}",
        " or ".join(map(_word, errnos)),
        trial,
        good=meaning,
        bad="this kernel answers otherwise than any kernel we know; error messages may mislead",
    )


def _word(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "accepted"


def _number(ask: Callable[[], None]) -> int:
    try:
        ask()
    except KernelError as error:
        return error.errno
    return 0


def _answer(ground: Ground, case: Case) -> int:
    props = Props()
    with Machine(ground.kvm_fd, case.irqchip) as machine:
        try:
            return _number(lambda: case.ask(machine.fd, props))
        finally:
            props.close()


def _other_vm(ground: Ground) -> int:
    props = Props()
    with Machine(ground.kvm_fd) as first, Machine(ground.kvm_fd) as second:
        try:
            trigger = props.event()
            _assign(first.fd, trigger, resample=props.event())
            return _number(lambda: _assign(second.fd, trigger, resample=props.event()))
        finally:
            props.close()


def _other_process(ground: Ground) -> int:
    props = Props()
    with Machine(ground.kvm_fd) as machine:
        try:
            trigger, resample = props.event(), props.event()
            child = os.fork()
            if child == 0:
                # Nothing but the question: this is a copy of us, and must not run anybody's clean-up.
                os._exit(min(_number(lambda: _assign(machine.fd, trigger, resample=resample)), 255))
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            props.close()
