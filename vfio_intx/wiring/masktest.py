"""The write test of DisINTx: does the bit change when it is written? Only on request, and only without a driver.

This is what the kernel does once, when it finds a card (``pci_intx_mask_broken`` in drivers/pci/probe.c), and tells
nobody. A card that fails it cannot mask itself. A card that passes may still be on the kernel's list of liars.
"""

from __future__ import annotations

import os
import struct

from vfio_intx.abi.pciconf import PCI_COMMAND, PCI_COMMAND_INTX_DISABLE
from vfio_intx.errors import KernelError, RefusedError, WorldError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import read_binding


def disintx_changes(root: HostRoot, bdf: Bdf) -> bool:
    """Flip DisINTx, look, and put the Command register back as it was; whether the bit changed.

    :raise RefusedError: if the function has a driver, whose interrupts the test could cut off.
    :raise WorldError: if it answers all ones. :raise KernelError: if its configuration space cannot be written.
    """
    driver = read_binding(root, bdf).driver
    if driver:
        raise RefusedError(
            f"{bdf} has the driver {driver}: the write test of DisINTx is for functions without one",
            hint=f"vfio-intx bind {bdf} && vfio-intx unbind {bdf}, test, then vfio-intx restore {bdf}",
        )
    path = root.pci_device(bdf) / "config"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", str(path), error.errno or 0, hint="sudo vfio-intx check --write-test") from error
    try:
        return _flip(fd, bdf)
    except OSError as error:
        raise KernelError("write", str(path), error.errno or 0) from error
    finally:
        os.close(fd)


def _flip(fd: int, bdf: Bdf) -> bool:
    first = _command(fd)
    if first == 0xFFFF:
        raise WorldError(f"{bdf} answers all ones; nothing was written")
    try:
        os.pwrite(fd, struct.pack("<H", first ^ PCI_COMMAND_INTX_DISABLE), PCI_COMMAND)
        return bool((_command(fd) ^ first) & PCI_COMMAND_INTX_DISABLE)
    finally:
        os.pwrite(fd, struct.pack("<H", first), PCI_COMMAND)


def _command(fd: int) -> int:
    return int(struct.unpack("<H", os.pread(fd, 2, PCI_COMMAND))[0])
