"""The micro VM on a real /dev/kvm: it starts, it stops in every state, and an exit nobody expects is told."""

from __future__ import annotations

import mmap
import threading

import pytest

from tests.kvm.starving import starved_vcpus
from vfio_intx.abi import eventfd, kvm
from vfio_intx.abi.call import close_all
from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, VerifyError
from vfio_intx.microvm import device
from vfio_intx.microvm.bench import Ceiling
from vfio_intx.microvm.contest import BAR
from vfio_intx.microvm.device import LevelDevice
from vfio_intx.microvm.guest import CODE, Command, GuestParameters, Hold, Pin, Word
from vfio_intx.microvm.machine import Irqchip, Machine
from vfio_intx.microvm.vcpu import UnexpectedExit

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("irqchip", list(Irqchip))
def test_a_machine_that_never_ran_is_closed_twice(kvm_fd: int, irqchip: Irqchip) -> None:
    machine = Machine(kvm_fd, irqchip)
    machine.close()
    machine.close()


@pytest.mark.parametrize("pin", list(Pin))
def test_a_running_guest_is_stopped_and_no_thread_stays(kvm_fd: int, pin: Pin) -> None:
    before = threading.active_count()
    with Machine(kvm_fd) as machine:
        machine.load(GuestParameters(10, pin))
        machine.start()
        assert machine.exits == 0
        machine.stop()
        machine.stop()
    assert threading.active_count() == before


def test_a_guest_that_spins_in_its_handler_is_stopped(kvm_fd: int) -> None:
    card = LevelDevice()
    with Machine(kvm_fd) as machine:
        machine.load(GuestParameters(20, status=BAR, acknowledge=BAR + device.ACKNOWLEDGE))
        machine.map_memory(BAR, card.memory, device.PAGE)
        machine.start()
        machine.mailbox[Word.HOLD] = Hold.BEFORE_QUIET
        kvm.assign_irqfd(machine.fd, card.trigger, 20, card.unmask)
        card.raise_line()
        machine.wait_for(Word.HELD, Hold.BEFORE_QUIET, "guest to enter its handler")
    card.close()


def _unmapped(machine: Machine) -> int:
    """A guest whose card is nowhere, and an interrupt for it; the trigger."""
    machine.load(GuestParameters(20, status=BAR, acknowledge=BAR))
    machine.start()
    trigger = eventfd.create()
    kvm.assign_irqfd(machine.fd, trigger, 20)
    eventfd.signal(trigger)
    return trigger


def test_an_exit_that_nobody_expects_is_told_with_registers(kvm_fd: int) -> None:
    with Machine(kvm_fd) as machine:
        trigger = _unmapped(machine)
        with pytest.raises(UnexpectedExit) as caught:
            machine.wait_for(Word.IDLE_RUNS, 1, "impossible")
        assert f"KVM_EXIT_MMIO (4-byte read of {BAR:#x})" in caught.value.reason
        assert CODE <= caught.value.registers["rip"] < CODE + 0x1000
        assert "rip=0x1" in str(caught.value)
        assert machine.vcpu is not None
        gone = machine.vcpu.gone
        assert Deadline.after("word of it", 60).poll(lambda: eventfd.drain(gone) == 1)
        close_all(trigger)


def test_a_cpu_exception_in_the_guest_is_told_as_such(kvm_fd: int) -> None:
    with Machine(kvm_fd) as machine:
        machine.load(GuestParameters(20, Pin.IOAPIC))
        # Vector 0x50 is the doorbell: let it lead to the guest's own fault vector.
        machine.start()
        assert machine._ram is not None
        machine._ram[0x50 * 4 : 0x50 * 4 + 4] = machine._ram[6 * 4 : 6 * 4 + 4]
        with pytest.raises(UnexpectedExit, match="CPU exception"):
            machine.command(Command.MASK_PIN)


def test_a_guest_that_does_not_answer_is_not_waited_for_for_ever(kvm_fd: int) -> None:
    with Machine(kvm_fd) as machine:
        machine.load(GuestParameters(20))
        machine.start()
        with pytest.raises(VerifyError, match=r"waited 0\.05 s for the miracle in vain"):
            machine.wait_for(Word.CAUSE, 1, "miracle", 0.05)


def test_memory_may_not_be_mapped_twice_in_one_place(kvm_fd: int) -> None:
    memory = mmap.mmap(-1, 4096)
    with Machine(kvm_fd) as machine:
        machine.load(GuestParameters(20))
        first = machine.map_memory(BAR, memory, 4096)
        with pytest.raises(KernelError) as caught:
            machine.map_memory(BAR, memory, 4096)
        assert caught.value.errno_name == "EEXIST"
        assert machine.map_memory(BAR + 4096, memory, 4096) == first + 1
    memory.close()


def test_the_guest_obeys_commands(kvm_fd: int) -> None:
    with Machine(kvm_fd) as machine:
        machine.load(GuestParameters(20))
        machine.start()
        for command, masked in ((Command.MASK_PIN, 1), (Command.UNMASK_PIN, 0)):
            machine.command(command)
            state = kvm.decode_ioapic(kvm.get_irqchip(machine.fd, kvm.Chip.IOAPIC))
            assert state.redirections[20] >> 16 & 1 == masked


def test_the_guest_programs_its_pic_pin_as_level(kvm_fd: int) -> None:
    with Machine(kvm_fd) as machine:
        machine.load(GuestParameters(10, Pin.PIC))
        machine.start()
        slave = kvm.decode_pic(kvm.get_irqchip(machine.fd, kvm.Chip.PIC_SLAVE))
        assert slave.elcr & 1 << 2
        assert not slave.imr & 1 << 2


def test_the_ceiling_counts_and_stops(kvm_fd: int) -> None:
    ceiling = Ceiling(kvm_fd)
    try:
        ceiling.run(60.0, 1000)
        first = ceiling.figures.interrupts
        assert first >= 1000
        ceiling.run(0.05)
        assert ceiling.figures.interrupts > first
        assert ceiling.progress() == 0
    finally:
        ceiling.close()


def test_the_ceiling_ends_with_its_guest_at_rest_even_if_that_gets_hardly_any_cpu_time(kvm_fd: int) -> None:
    ceiling = Ceiling(kvm_fd)
    try:
        for _ in range(3):
            ceiling.begin()
            assert Deadline.after("some interrupts", 60.0).poll(lambda: ceiling.progress() > 500)
            with starved_vcpus():
                ceiling.end()
                ended = ceiling.total()
            assert ceiling.figures.interrupts == ended
            # Nothing was in flight: what was not delivered then would be now.
            assert not Deadline.after("a late one", 0.2).poll(lambda: ceiling.total() != ceiling.figures.interrupts)
    finally:
        ceiling.close()
