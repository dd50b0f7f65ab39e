"""What a rule looks at: one function in its host, and what is known of the virtual machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vfio_intx.diagnose.masking import Verdict, masking_verdict
from vfio_intx.diagnose.routing import Wire, known_lines, wire_of
from vfio_intx.host.iommu import Group, is_vfio_driver
from vfio_intx.host.irq import IrqLine
from vfio_intx.host.log import History, history_of
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.snapshot import Snapshot
from vfio_intx.names import HostIrq


class VmFacts(NamedTuple):
    """What is known besides the snapshot, of the VM above all; empty and None mean unknown.

    :ivar irqchip: ``on``, ``split`` or ``off``, as in QEMU's ``kernel-irqchip``.
    :ivar no_kvm_intx: vfio-pci's property ``x-no-kvm-intx``.
    :ivar messages: lines of QEMU's own log.
    :ivar guest_trigger: how the guest programmed the pin: ``level`` or ``edge``.
    :ivar guest_uses: which interrupt the guest's driver chose: ``intx``, ``msi`` or ``msix``.
    :ivar disintx_changes: what the write test of the card's DisINTx bit gave, None where it was not asked for.
    """

    irqchip: str = ""
    no_kvm_intx: bool | None = None
    messages: tuple[str, ...] = ()
    guest_trigger: str = ""
    guest_uses: str = ""
    disintx_changes: bool | None = None


class Subject(NamedTuple):
    """One function with everything a rule may ask about.

    :ivar irq: the host IRQ of its line; from sysfs, or else from its neighbours on the same wire (*irq_source* tells).
    :ivar handlers: the handlers on its line now, its own left out as far as it can be told.
    :ivar neighbours: other functions whose INTx line is the same.
    """

    function: PciFunction
    snapshot: Snapshot
    vm: VmFacts
    history: History
    irq: HostIrq | None
    irq_source: str
    own: tuple[str, ...]
    handlers: tuple[str, ...]
    neighbours: tuple[PciFunction, ...]
    verdict: Verdict

    @property
    def name(self) -> str:
        """Its address, for sentences."""
        return str(self.function.bdf)

    @property
    def driver(self) -> str:
        """Its driver, empty for none or unknown."""
        return self.function.driver.get("")

    @property
    def group(self) -> Group | None:
        """Its IOMMU group."""
        return self.snapshot.group_of(self.function)

    @property
    def line(self) -> IrqLine | None:
        """The row of its line in ``/proc/interrupts``."""
        return self.snapshot.line_of(self.function)

    @property
    def actions_file(self) -> str:
        """The file that its line's handlers were read from."""
        return f"/sys/kernel/irq/{self.irq}/actions"


def subjects(snapshot: Snapshot, functions: Iterable[PciFunction], vm: VmFacts | None = None) -> tuple[Subject, ...]:
    """A subject for each of *functions*; the tables that they share are made once."""
    by_line, routes = snapshot.by_line(), known_lines(snapshot.functions.values())
    history = history_of(snapshot.log.get(()))
    return tuple(_subject(function, snapshot, vm or VmFacts(), history, by_line, routes) for function in functions)


def _subject(
    function: PciFunction,
    snapshot: Snapshot,
    vm: VmFacts,
    history: History,
    by_line: Mapping[HostIrq, tuple[PciFunction, ...]],
    routes: Mapping[Wire, HostIrq],
) -> Subject:
    irq, irq_source = function.intx_irq.value or None, function.intx_irq.source
    where = wire_of(function) if irq is None else None
    if where is not None and where in routes:
        irq, irq_source = routes[where], f"other functions on pin {function.pin and function.pin.name} of the same slot"
    handlers = snapshot.handlers_of(irq) if irq else ()
    neighbours = tuple(other for other in by_line.get(irq, ()) if other.bdf != function.bdf) if irq else ()
    own = _own_among(function, handlers, neighbours) or _only_candidate(function, handlers, neighbours)
    others = _without(handlers, own)
    verdict = masking_verdict(function, snapshot, history, vm.disintx_changes)
    return Subject(function, snapshot, vm, history, irq, irq_source, own, others, neighbours, verdict)


def _own_among(
    function: PciFunction, handlers: tuple[str, ...], neighbours: tuple[PciFunction, ...]
) -> tuple[str, ...]:
    """Those handlers of a line that are this function's; of those named after a driver, twins have one each.

    Which one is whose their names do not tell, nor need they.
    """
    certain = tuple(handler for handler in handlers if _names_function(function, handler))
    by_driver = tuple(handler for handler in handlers if handler not in certain and _names_driver(function, handler))
    twins = sum(other.driver.value == function.driver.value for other in neighbours)
    return certain + by_driver[: max(0, len(by_driver) - twins)]


def _without(handlers: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    left, others = list(own), []
    for handler in handlers:
        if handler in left:
            left.remove(handler)
        else:
            others.append(handler)
    return tuple(others)


def _names_function(function: PciFunction, handler: str) -> bool:
    _, _, rest = handler.partition(":")
    if rest.startswith("usb"):
        return rest in function.files
    return f"[{function.bdf}]" in handler or handler in (f"vfio-intx({function.bdf})", *function.interfaces.get(()))


def _names_driver(function: PciFunction, handler: str) -> bool:
    head, _, rest = handler.partition(":")
    driver = function.driver.get("").replace("-", "_")
    if driver == "" or rest.startswith("usb"):
        return False
    return head.replace("-", "_") == driver or (driver == "serial" and handler.startswith("ttyS"))


def _only_candidate(
    function: PciFunction, handlers: tuple[str, ...], neighbours: tuple[PciFunction, ...]
) -> tuple[str, ...]:
    # An interface that was renamed after its driver asked for the line: one handler, one driver, they go together.
    alone = len(handlers) == 1 and not any(other.driver.value for other in neighbours)
    driver = function.driver.get("")
    return handlers if alone and driver and not is_vfio_driver(driver) and not handlers[0].startswith("vfio-") else ()


def owner_of(handler: str, neighbours: Iterable[PciFunction]) -> PciFunction | None:
    """Which of a line's functions a handler belongs to, None where its name does not tell."""
    return next((function for function in neighbours if _names_function(function, handler)), None) or next(
        (function for function in neighbours if _names_driver(function, handler)), None
    )
