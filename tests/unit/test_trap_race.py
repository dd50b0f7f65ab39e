"""The trap scheme's two threads at their worst moment: an access of the guest while the other one is injecting."""

from __future__ import annotations

from typing import cast

import pytest

from tests.fakes.vfio_device import FakeCard
from vfio_intx.abi import eventfd, kvm
from vfio_intx.abi.call import close_all
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.schemes import Ends
from vfio_intx.microvm.schemes.trap import Trap


class NoMachine:
    """Only its descriptor is used."""

    fd = -1


def test_an_access_during_the_injection_does_not_leave_the_level_up(monkeypatch: pytest.MonkeyPatch) -> None:
    trigger, unmask = eventfd.create(), eventfd.create()
    scheme = Trap(cast(Machine, NoMachine()), Ends(20, trigger, unmask, 0xE000_0000, 0x1000, FakeCard()))
    level, guest_is_quick = 0, True

    def set_line(fd: int, request: bytearray) -> None:
        nonlocal level, guest_is_quick
        wanted = 1 if request == kvm.encode_line(20, 1) else 0
        if wanted and guest_is_quick:
            # Before and after the ioctl are the same to the guest's thread: it gets in on both sides.
            guest_is_quick = False
            scheme.accessed()
            level = wanted
            scheme.accessed()
        else:
            level = wanted

    monkeypatch.setattr(kvm, "set_line", set_line)
    try:
        scheme._inject()
        for _ in range(2):  # with the level up the guest's handler runs again, and touches a register
            if level:
                scheme.accessed()
        assert level == 0
        assert eventfd.drain(unmask) == 1
    finally:
        close_all(trigger, unmask)
