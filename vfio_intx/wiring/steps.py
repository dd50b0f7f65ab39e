"""The smallest changes of a function's driver, as data: what to write, what must hold after it, how to undo it.

A step never runs itself: ``plan`` makes steps, ``apply`` executes them, ``--dry-run`` prints them.

Facts about the driver core that the steps rest on (drivers/base/bus.c, drivers/base/dd.c, drivers/pci/pci-driver.c):

- ``driver_override`` decides which driver matches, whatever the ids (``pci_match_device``); it binds nothing by itself.
- ``drivers_probe`` succeeds also when no driver took the function, so only the ``driver`` link tells what came of it.
- ``unbind`` waits for the driver's remove function. vfio-pci's waits until userspace closes the device: for ever.
- ``new_id`` would make a driver grab every function with these ids, twins included. It is not used here.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import NamedTuple

from vfio_intx.names import Bdf


class Binding(NamedTuple):
    """Which driver a function has and which one ``driver_override`` asks for; empty strings for none."""

    driver: str
    override: str

    def __str__(self) -> str:
        driver = self.driver or "no driver"
        return f"{driver} (driver_override {self.override})" if self.override else driver


@dataclass(frozen=True, slots=True)
class Write:
    """One write to a sysfs file: *path* as the host knows it, *text* without the newline that clears an override."""

    path: str
    text: str

    def __str__(self) -> str:
        return f'+ echo "{self.text}" > {shlex.quote(self.path)}'


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one function's binding.

    :ivar purpose: in words, to complete "could not …".
    :ivar before: the binding that undoing brings back; a step whose *before* still holds has nothing to undo.
    :ivar after: the binding that must be read back when it is done.
    """

    bdf: Bdf
    purpose: str
    before: Binding
    after: Binding
    do: tuple[Write, ...]
    undo: tuple[Write, ...]


def device_file(bdf: Bdf, name: str) -> str:
    """The path of a function's file in sysfs, as the host knows it."""
    return f"/sys/bus/pci/devices/{bdf}/{name}"


def _set_override(bdf: Bdf, driver: str) -> Write:
    return Write(device_file(bdf, "driver_override"), driver)


def _probe(bdf: Bdf) -> Write:
    return Write("/sys/bus/pci/drivers_probe", str(bdf))


def _release(bdf: Bdf, driver: str) -> Write:
    return Write(f"/sys/bus/pci/drivers/{driver}/unbind", str(bdf))


def override(bdf: Bdf, now: Binding, wanted: str) -> Step:
    """Ask for the driver *wanted* at the next probe, or for none in particular if it is empty."""
    return Step(
        bdf,
        f"set driver_override to {wanted}" if wanted else "clear driver_override",
        now,
        Binding(now.driver, wanted),
        (_set_override(bdf, wanted),),
        (_set_override(bdf, now.override),),
    )


def unbind(bdf: Bdf, now: Binding) -> Step:
    """Take the function from its driver; undoing gives it back to that driver and to no other that matches too."""
    undo = [_probe(bdf)]
    if now.override != now.driver:
        undo = [_set_override(bdf, now.driver), _probe(bdf), _set_override(bdf, now.override)]
    return Step(
        bdf, f"unbind it from {now.driver}", now, Binding("", now.override), (_release(bdf, now.driver),), tuple(undo)
    )


def probe(bdf: Bdf, now: Binding) -> Step:
    """Let the driver that ``driver_override`` names take the function."""
    return Step(
        bdf,
        f"bind it to {now.override}",
        now,
        Binding(now.override, now.override),
        (_probe(bdf),),
        (_release(bdf, now.override),),
    )
