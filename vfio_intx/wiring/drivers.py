"""Giving a function to vfio-pci and back, without ever losing it: the work behind ``bind``, ``unbind`` and ``restore``.

Each function here refuses before it records, records before it changes, and leaves the machine as it was when it fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.deadline import Deadline
from vfio_intx.errors import BusyError, MissingError, RefusedError, WorldError
from vfio_intx.host.holders import device_holders
from vfio_intx.host.iommu import SWITCH_ON, blockers, is_vfio_driver
from vfio_intx.host.kernel import vfio_pci_loaded
from vfio_intx.host.pci import NO_GROUP, PciFunction, PciIds, read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.host.snapshot import Snapshot, take_snapshot
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import Machine, StuckWrite, apply, read_binding
from vfio_intx.wiring.journal import Record, StateDirectory, open_state
from vfio_intx.wiring.plan import VFIO_PCI, Change, goal_of_bind, steps_of
from vfio_intx.wiring.refusals import refusals, release_command
from vfio_intx.wiring.steps import Binding

MODULE_BUDGET_S = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one function.

    :ivar was: its binding before.
    :ivar now: its binding after, read back; in a dry run, what it would be.
    :ivar writes: how many writes that took; 0 where all was already so.
    """

    bdf: Bdf
    was: Binding
    now: Binding
    writes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a verb is going to do.

    :ivar modules: kernel modules that have to be loaded first.
    :ivar changes: the functions, each with where it is and where it goes.
    """

    modules: tuple[str, ...]
    changes: tuple[Change, ...]

    def script(self) -> tuple[str, ...]:
        """The exact commands that it comes to, as ``--dry-run`` prints them."""
        loads = [f"+ modprobe {module}" for module in self.modules]
        return (*loads, *(str(write) for change in self.changes for step in steps_of(change) for write in step.do))


def plan_bind(snapshot: Snapshot, bdfs: Sequence[Bdf], records: Mapping[Bdf, Record], *, force: bool = False) -> Plan:
    """The plan that gives these functions to vfio-pci; what somebody else has bound to it stays as it is.

    :param records: what we hold of these functions.

    :raise MissingError: no such function, or no IOMMU. :raise RefusedError: no INTx pin, or a group that would not be
        usable afterwards.
    """
    functions = [snapshot.function(bdf) for bdf in bdfs]
    # Of a group one with a pin is enough: the others go along because they must.
    waived = force or any(function.pin is not None for function in functions)
    for function in functions:
        _refuse_unbindable(function, force=waived)
        _refuse_without_group(snapshot, function, going=bdfs)
        if not force:
            _refuse_used(snapshot, function)
    changes = tuple(_to_vfio(function, ours=function.bdf in records) for function in functions)
    needed = any(not change.is_done for change in changes) and not snapshot.kernel.vfio_pci_loaded
    return Plan((VFIO_PCI,) if needed else (), changes)


def refuse_fixed(root: HostRoot, plan: Plan) -> None:
    """:raise RefusedError: where a driver cannot be told to let go, since it has no file for it."""
    for change in plan.changes:
        folder = root.at("sys/bus/pci/drivers", change.now.driver)
        if change.now.driver in ("", change.goal.driver) or not folder.is_dir():
            continue
        if not (folder / "unbind").exists():
            raise RefusedError(
                f"{change.bdf} cannot be taken from its driver: {change.now.driver} has no file unbind",
                hint=f"keep the driver from loading: vfio-intx persist {change.bdf}, then reboot",
            )


def with_group(snapshot: Snapshot, bdf: Bdf) -> tuple[Bdf, ...]:
    """The function and the members of its group that would keep the group from being usable, in order of address.

    A bridge is none of them: vfio-pci takes no bridges, and its driver has to let go of it instead.
    """
    function = snapshot.function(bdf)
    group = snapshot.group_of(function)
    others = blockers(group, snapshot.functions, apart_from=(bdf,)) if group is not None else ()
    return tuple(sorted((bdf, *(other.bdf for other in others if not other.is_bridge))))


def _to_vfio(function: PciFunction, *, ours: bool) -> Change:
    now = _binding(function)
    return Change(function.bdf, now, goal_of_bind() if ours or not is_vfio_driver(now.driver) else now)


def _binding(function: PciFunction) -> Binding:
    for fact in (function.driver, function.override, function.ids):
        if fact.value is None:
            raise WorldError(f"{fact.source} cannot be read: {fact.error}; nothing was changed")
    return Binding(function.driver.get(""), function.override.get(""))


def refuse_at_boot(snapshot: Snapshot, function: PciFunction, *, force: bool) -> None:
    """What speaks against giving a function away at the next boot; the group is not looked at.

    :raise RefusedError: it is a bridge, dead, without INTx, or the host lives on it; *force* waives the last two.
    """
    _refuse_unbindable(function, force=force)
    if not force:
        _refuse_used(snapshot, function, at_boot=True)


def _refuse_unbindable(function: PciFunction, *, force: bool) -> None:
    if function.is_bridge:
        raise RefusedError(f"{function.bdf} is a bridge: vfio-pci does not take bridges")
    if function.is_dead:
        raise RefusedError(
            f"{function.bdf} answers all ones: it is gone or powered down",
            hint=f"echo 1 > /sys/bus/pci/devices/{function.bdf}/remove and rescan, or power the host off and on",
        )
    if force or function.pin is not None or function.config.value is None:
        return
    if function.config.value.raw_pin:
        raise RefusedError(
            f"{function.bdf} says it has interrupt pin {function.config.value.raw_pin}, which there is not",
            hint="the firmware left it unset, or the card is asleep; try another slot. --force binds it anyway",
        )
    raise RefusedError(
        f"{function.bdf} has no INTx pin, so there is no line to forward",
        hint="use MSI: any VFIO tool will do, for example driverctl. --force binds it anyway",
    )


def _refuse_without_group(snapshot: Snapshot, function: PciFunction, *, going: Iterable[Bdf]) -> None:
    if function.group.value is None:
        raise WorldError(f"{function.group.source} cannot be read: {function.group.error}; nothing was changed")
    group = snapshot.group_of(function)
    if group is None:
        what = "there is no IOMMU in use on this machine" if not snapshot.iommu.present else "it is in no IOMMU group"
        raise MissingError(
            f"{function.bdf} cannot be given to a guest: {what}",
            hint=SWITCH_ON,
        )
    others = blockers(group, snapshot.functions, apart_from=going)
    if others:
        names = ", ".join(f"{other.bdf} ({other.driver.get('?')})" for other in others)
        bridges = [release_command(other, snapshot) for other in others if other.is_bridge]
        raise RefusedError(
            f"IOMMU group {group.number} of {function.bdf} is not viable: {names} would stay with the host",
            hint=" && ".join(bridges)
            or f"give them away too: vfio-intx bind --group {function.bdf}; or put the card into another slot",
        )


def _refuse_used(snapshot: Snapshot, function: PciFunction, *, at_boot: bool = False) -> None:
    found = refusals(function, snapshot) if not is_vfio_driver(function.driver.get("")) else ()
    reasons = [reason for reason in found if not (at_boot and reason.now_only)]
    if reasons:
        listed = "; it ".join(f"{reason.text} ({reason.source})" for reason in reasons)
        raise RefusedError(
            f"{function.bdf} stays with the host: it {listed}",
            hint=f"{reasons[0].advice}; --force binds it all the same",
        )


def bind(machine: Machine, state_path: Path, bdfs: Sequence[Bdf], *, force: bool = False) -> tuple[Outcome, ...]:
    """Give functions to vfio-pci; all of them, or none.

    A record of each one's first binding is on disk before the first change. Loading vfio-pci is not undone.

    :raise WorldError: see :func:`plan_bind`; and when a step failed, after all steps were undone.
    """
    need_rights(machine, "bind", bdfs)
    plan_bind(
        take_snapshot(machine.root), bdfs, {}, force=force
    )  # refuse before anything is made, the directory included
    with open_state(state_path) as state:
        records = {bdf: record for bdf in bdfs if (record := state.read(bdf)) is not None}
        plan = plan_bind(take_snapshot(machine.root), bdfs, records, force=force)
        refuse_fixed(machine.root, plan)
        for module in plan.modules:
            machine.load_module(module, Deadline.after(f"modprobe {module}", MODULE_BUDGET_S))
        if plan.modules and not vfio_pci_loaded(machine.root):
            raise MissingError(
                "modprobe vfio-pci succeeded, but the kernel has no PCI driver vfio-pci", hint="dmesg | tail"
            )
        return _carry_out(machine, state, plan.changes)


def unbind(machine: Machine, state_path: Path, bdf: Bdf) -> Outcome:
    """Take a function from vfio-pci and leave it without a driver; its record stays, so ``restore`` still works.

    :raise RefusedError: if a driver of the host has it. :raise BusyError: if a process has its group open.
    """
    need_rights(machine, "unbind", [bdf])
    plan_unbind(machine, None, bdf)
    with open_state(state_path) as state:
        return _carry_out(machine, state, (plan_unbind(machine, state.read(bdf), bdf),))[0]


def plan_unbind(machine: Machine, record: Record | None, bdf: Bdf) -> Change:
    """The change that ``unbind`` makes; *record* tells the first ``driver_override``, which comes back."""
    now = _present(machine, bdf)
    if now.driver and not is_vfio_driver(now.driver):
        raise RefusedError(
            f"{bdf} is not bound to vfio-pci: {now.driver} has it; nothing was changed",
            hint=f"vfio-intx bind {bdf} gives it to vfio-pci",
        )
    first = record.first.override if record is not None else ""
    # The first driver's name, too, is of our making while it is on its way back, or was when its restore died.
    ours = {VFIO_PCI} | ({record.first.driver} if record is not None and not record.settled else set())
    goal = Binding("", first if now.override in ours else now.override)
    _refuse_held(machine, bdf, now)
    return Change(bdf, now, goal)


def restore(machine: Machine, state_path: Path, bdf: Bdf) -> Outcome:
    """Bring a function back to the binding it had before our first change, and forget it. Twice is as good as once.

    :raise MissingError: if vfio-pci has it and we did not give it. :raise BusyError: if a process has its group open.
    """
    need_rights(machine, "restore", [bdf])
    if not state_path.exists():
        idle = plan_restore(machine, None, bdf)
        return Outcome(bdf, idle.now, idle.now, 0)
    with open_state(state_path) as state:
        record = state.read(bdf)
        change = plan_restore(machine, record, bdf)
        if record is None or change.is_done:
            state.remove(bdf)
            return Outcome(bdf, change.now, change.now, 0)
        outcome = _carry_out(machine, state, (change,))[0]
        state.remove(bdf)
        return outcome


def plan_restore(machine: Machine, record: Record | None, bdf: Bdf) -> Change:
    """The change that ``restore`` makes; none where we hold no record and vfio-pci does not have the function."""
    if record is None:
        now = _present(machine, bdf)
        if is_vfio_driver(now.driver):
            raise MissingError(
                f"{bdf} is on {now.driver}, but not by us: there is no record of its first driver",
                hint=f"whoever bound it gives it back (driverctl, libvirt, modprobe.d); or: vfio-intx unbind {bdf}",
            )
        return Change(bdf, now, now)
    now = read_binding(machine.root, bdf, record.ids)
    if now.driver != record.first.driver:
        _refuse_held(machine, bdf, now)
    return Change(bdf, now, record.first)


def need_rights(machine: Machine, verb: str, bdfs: Sequence[Bdf]) -> None:
    """:raise RefusedError: if this process may not change drivers."""
    if not machine.may_change():
        raise RefusedError(
            f"{verb} changes drivers, which only root may do; nothing was changed",
            hint=" ".join(("sudo vfio-intx", verb, *map(str, bdfs))),
        )


def _present(machine: Machine, bdf: Bdf) -> Binding:
    if read_function(machine.root, bdf) is None:
        raise MissingError(f"there is no PCI function {bdf}", hint="lspci -D lists them")
    return read_binding(machine.root, bdf)


def _refuse_held(machine: Machine, bdf: Bdf, now: Binding) -> None:
    function = read_function(machine.root, bdf)
    if function is None or not is_vfio_driver(now.driver) or function.group.get(NO_GROUP) == NO_GROUP:
        return
    holders = device_holders(machine.root, bdf, function.group.get(NO_GROUP))
    if holders:
        raise BusyError(
            f"{bdf} is in use by {', '.join(map(str, holders))}; unbinding it now would block in the kernel",
            hint=f"vfio-intx detach {bdf} --pid {holders[0].pid}, or end that process, then try again",
        )


def _carry_out(machine: Machine, state: StateDirectory, changes: Sequence[Change]) -> tuple[Outcome, ...]:
    """Record every change, make all, settle the records; on failure the old records (or none) come back."""
    ids = {change.bdf: _identity(machine, change.bdf) for change in changes}
    former = {change.bdf: state.read(change.bdf) for change in changes}
    active = [change for change in changes if not change.is_done]
    records = [_record(change, former[change.bdf], ids[change.bdf]) for change in active]
    try:
        for record in records:
            state.write(record)
        apply(machine, [step for change in active for step in steps_of(change)], ids)
    except StuckWrite:
        raise  # what hangs may still happen, whatever can be read now: the records stay, for restore
    except BaseException:
        _settle_failure(machine, state, active, former)
        raise
    for record in (*records, *_left_unsettled(changes, former)):
        state.write(record.settle())
    return tuple(_outcome(machine, change) for change in changes)


def _left_unsettled(changes: Sequence[Change], former: Mapping[Bdf, Record | None]) -> tuple[Record, ...]:
    # A change that was complete when its process died, but for the last word in its record.
    records = (former[change.bdf] for change in changes if change.is_done)
    return tuple(record for record in records if record is not None and not record.settled)


def _outcome(machine: Machine, change: Change) -> Outcome:
    writes = sum(len(step.do) for step in steps_of(change))
    return Outcome(change.bdf, change.now, read_binding(machine.root, change.bdf), writes)


def _identity(machine: Machine, bdf: Bdf) -> PciIds:
    function = read_function(machine.root, bdf)
    if function is None or function.ids.value is None:
        raise MissingError(f"what {bdf} is cannot be read; nothing was changed")
    return function.ids.value


def _record(change: Change, former: Record | None, ids: PciIds) -> Record:
    # Somebody else has moved it since we settled (or the host was booted anew): what they left is what comes back.
    stale = (
        former is not None
        and (former.ids != ids or (former.settled and change.now != former.goal))
        and change.now.driver != ""
        and not is_vfio_driver(change.now.driver)
    )
    first = change.now if former is None or stale else former.first
    return Record(change.bdf, ids, first, change.goal, settled=False)


def _settle_failure(
    machine: Machine, state: StateDirectory, active: Sequence[Change], former: Mapping[Bdf, Record | None]
) -> None:
    """After a failure: where a function is as it was, so is its record; where it is not, the new record stays."""
    for change in active:
        try:
            if read_binding(machine.root, change.bdf) != change.now:
                continue
            old = former[change.bdf]
            if old is None:
                state.remove(change.bdf)
            else:
                state.write(old)
        except WorldError:
            continue  # the record stays as it is: unsettled, which is the truth
