"""QEMU under trap, the registers mapped and trapped in turn: does what the guest writes reach the card as it wrote it?

``trap`` takes the mmaps away at an interrupt and brings them back when none has come for a while; here after 1 ms, so
that it happens dozens of times a second. Stock QEMU 7.2 brings them back while the vCPU runs. A register write that KVM
is just emulating for want of a memory slot then goes through the new slot, byte by byte: a tail pointer of 0x17
becomes 0x17, 0, 0, 0, and a driver that has lost track of its ring resets the card in the end.
Words after ``--``: the QEMU base, ``stock`` for the build without the series, and for how many seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from vfio_intx.lab import kernels
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.live_line import DEVICE_ID, NETWORK, NIC, STREAMS, base_and_number
from vfio_intx.lab.passthrough import Flood, give_to_vfio, ping, qemu_for, set_network_up
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import LabSpec

SPEC = LabSpec(kernels.DEFAULT, (NIC,))
DEADLINE_S = 1200.0

_SECONDS = 120
_STOCK = "stock"
_TELL_S = 20.0


def inside(context: Context) -> dict[str, object]:
    """Boot a guest, plug with ``x-no-kvm-intx``, ping, count the resets of the guest's driver."""
    words, seconds = base_and_number(context.options, _SECONDS)
    stock = _STOCK in words
    program, card = qemu_for((word for word in words if word != _STOCK), stock=stock), context.bdf(NIC)
    give_to_vfio(card)
    trace = ("-trace", "vfio_region_mmaps_set_enabled")
    with Guest.start(GuestOptions(qemu=program, extra=trace)) as guest:
        options = {"x-no-kvm-intx": True, "x-intx-mmap-timeout-ms": 1}
        guest.execute("device_add", driver="vfio-pci", host=str(card), id=DEVICE_ID, **options)
        guest.load("e1000")
        set_network_up(guest, NETWORK, guest.wait_interface())
        ping(guest, NETWORK)
        begun, before = time.monotonic(), _toggles(guest)
        flood = Flood(guest, NETWORK, STREAMS)
        flood.start()
        while (left := begun + seconds - time.monotonic()) > 0:
            time.sleep(min(left, _TELL_S))
            context.say(f"{_toggles(guest) - before} times mapped again, {time.monotonic() - begun:.0f} s")
        pings, toggles = flood.stop(), _toggles(guest) - before
        qemu = guest.execute("query-version")
    return {
        "schema": "vfio-intx/lab-toggled-mmaps/1",
        "qemu": qemu,
        "stock": stock,
        "kernel": context.spec.kernel,
        "toggles": toggles,
        "driver_resets": pings.resets,
        "pings": pings.received,
        "slowest_ping_ms": pings.slowest_ms,
    }


def _toggles(guest: Guest) -> int:
    """How often QEMU has mapped the registers again, from its trace: one line for each BAR that can be mapped."""
    guest.execute("query-status")
    return (guest.folder / "stderr").read_text("utf-8", "replace").count("BAR 0 mmaps enabled: 1")


def failures(result: Mapping[str, Any]) -> list[str]:
    """What does not hold."""
    found = []
    if result["toggles"] < 100:
        found.append(f"the mmaps were brought back {result['toggles']} times only")
    if result["driver_resets"]:
        found.append(f"the guest's driver has reset the card {result['driver_resets']} times")
    return found


def show(result: Mapping[str, Any]) -> Iterable[str]:
    """What came of it."""
    yield f"{result['toggles']} times mapped again, {result['driver_resets']} resets by the guest's driver"
    yield f"{result['pings']} pings answered, the slowest took {result['slowest_ping_ms']} ms"
