"""The wrong moments for a switch: MSI, no INTx, unplug, migration, a reset, an INTx that the guest has masked.

Each is refused with its reason, or done, and the line goes on. The word after ``--`` is the QEMU base.
"""

from __future__ import annotations

from vfio_intx.deadline import Deadline
from vfio_intx.errors import PeerRefused, VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.live_line import DEVICE_ID, NETWORK, NIC, PATH
from vfio_intx.lab.passthrough import give_to_vfio, ping, qemu_for, set_network_up
from vfio_intx.lab.refusing import LiveNic, live_nic, said_no
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, LabSpec
from vfio_intx.names import Bdf
from vfio_intx.qemu.intx_state import SCHEME, LiveScheme, Mode

EDU = Card("edu", 0x11)
#: The one emulated card without an interrupt pin.
TESTDEV = Card("pci-testdev", 0x12)
SPEC = LabSpec(kernels.DEFAULT, (NIC, EDU, TESTDEV))
DEADLINE_S = 900.0

#: The edu card's MSI capability: message control, in the guest's copy of its configuration space.
_MSI_CONTROL = 0x42
#: The high byte of the command register, where bit 2 is Interrupt Disable.
_COMMAND_HIGH, _DISINTX = 0x05, 0x04


def inside(context: Context) -> dict[str, object]:
    """One guest for all but the migration, which needs one that has not begun."""
    nic, edu, testdev = (context.bdf(card) for card in SPEC.cards)
    give_to_vfio(nic, edu)
    give_to_vfio(testdev, force=True)
    program = qemu_for(context.options)
    said = {"migration": _migrating(program, nic)}
    with live_nic(GuestOptions(qemu=program), nic, edu=edu, testdev=testdev) as line:
        said["no INTx"] = line.refused(lambda: line.set("testdev", SCHEME, "trap"), "does not use INTx.*'none'")
        said["MSI"] = _msi(line)
        line.monitor.close()
        for name, card in (("no INTx", testdev), ("MSI", edu)):
            argv = ("switch", str(card), "trap", "--qmp", str(line.guest.qmp))
            said[f"{name}, our words"] = said_no(context, *argv)
    with live_nic(GuestOptions(qemu=program), nic, edu=edu) as line:
        said["masked by the guest"] = _masked(line)
        said["unplug"] = _unplugging(line)
        said["reset"] = _resetting(line)
    for name, words in said.items():
        context.say(f"{name}: {words}")
    return {"schema": "vfio-intx/lab-refusals-by-state/1", "kernel": context.spec.kernel, "said": said}


def _migrating(program: str, nic: Bdf) -> str:
    """The receiving end of a migration: its device is there, and no guest yet."""
    device = ("-incoming", "defer", "-device", f"vfio-pci,host={nic},id={DEVICE_ID}")
    with Guest.start(GuestOptions(qemu=program, extra=device), wait=False) as guest:
        try:
            guest.execute("qom-set", path=PATH, property=SCHEME, value="trap")
        except PeerRefused as refusal:
            if "migration" not in refusal.description:
                raise VerifyError(f"not the migration was the reason: {refusal.description}") from refusal
            return refusal.description
    raise VerifyError("QEMU switches a line while a migration comes in")


def _config(line: LiveNic, name: str) -> str:
    """The path of a device's configuration space in the guest, by its ids."""
    path = next(bdf for bdf, ids in line.guest.pci_devices().items() if ids == name)
    return f"/sys/bus/pci/devices/{path}/config"


def _poke(line: LiveNic, config: str, offset: int, value: int) -> None:
    line.guest.check(f"printf '\\{value:03o}' | dd of={config} bs=1 seek={offset} conv=notrunc 2>/dev/null")


def _msi(line: LiveNic) -> str:
    """The guest turns MSI on in the edu card, which has no driver there to mind."""
    _poke(line, _config(line, "1234:11e8"), _MSI_CONTROL, 1)
    if line.state("edu").mode is not Mode.MSI:
        raise VerifyError(f"the guest turned MSI on, but QEMU says {line.state('edu').mode}")
    return line.refused(lambda: line.set("edu", SCHEME, "trap"), "does not use INTx.*'msi'")


def _masked(line: LiveNic) -> str:
    """While the guest has INTx masked the scheme changes, nothing comes through, and afterwards all does."""
    config = _config(line, "8086:100e")
    command = int(line.guest.check(f"dd if={config} bs=1 skip={_COMMAND_HIGH} count=1 2>/dev/null | od -An -tu1"))
    for scheme in ("trap", "ack-eventfd", "irqfd"):
        _poke(line, config, _COMMAND_HIGH, command | _DISINTX)
        before = line.guest.interrupt_count("eth")
        # The card asserts, and must not be heard.
        silent = ping(line.guest, line.network, 1, 2)
        line.set(DEVICE_ID, SCHEME, scheme)
        came = line.guest.interrupt_count("eth") - before
        _poke(line, config, _COMMAND_HIGH, command)
        if came or silent.received:
            raise VerifyError(f"masked by the guest and switched to {scheme}, it interrupted {came} times: {silent}")
        line.carries(f"masked, switched to {scheme} and unmasked by the guest,")
        if line.state().scheme is not LiveScheme(scheme):
            raise VerifyError(f"switched to {scheme} while masked, it runs {line.state()}")
    return "switched three times, 0 interrupts while masked, pings after each"


def _unplugging(line: LiveNic) -> str:
    """Unplugged while the guest stands still, so that it cannot let go of the device yet."""

    def attempt() -> None:
        line.guest.execute("stop")
        try:
            line.guest.execute("device_del", id="edu")
            line.set("edu", SCHEME, "trap")
        finally:
            line.guest.execute("cont")

    return line.refused(attempt, "being unplugged")


def _resetting(line: LiveNic) -> str:
    """A switch right after a reset: done or refused, and the next guest has its line."""
    guest = line.guest
    guest.execute("set-action", reboot="reset")
    guest.execute("system_reset")
    words = "switched"
    try:
        line.set(DEVICE_ID, SCHEME, "trap")
    except PeerRefused as refusal:
        words = refusal.description
    guest.wait_ready()
    guest.load("e1000")
    set_network_up(guest, NETWORK, guest.wait_interface())
    Deadline.after("the first answer", 60).poll(lambda: ping(guest, NETWORK, 1, 2).received > 0)
    line.carries(f"after a reset ({words})")
    state = line.state()
    if state.scheme is not state.wanted:
        raise VerifyError(f"after the reset the line wants {state.wanted} and runs {state}")
    return f"{words}; after the boot it runs {state.scheme.value}"
