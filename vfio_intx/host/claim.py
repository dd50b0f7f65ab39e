"""What a claim on a function is, and how a claim by ids is matched."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from vfio_intx.host.pci import PciIds
from vfio_intx.host.root import HostRoot, list_names, read_text

#: ``PCI_ANY_ID``, as ids are written where any will do.
ANY_ID = 0xFFFFFFFF


class Claim(NamedTuple):
    """One claim on one function.

    :ivar owner: the tool whose file it is.
    :ivar text: what it says, for a person.
    :ivar source: the file.
    :ivar by_ids: True where it names vendor and device, so that twins are meant too.
    :ivar vm: the VM (escaped) that *text* names and that the file *source* is named after, empty for none.
    """

    owner: str
    text: str
    source: str
    by_ids: bool = False
    vm: str = ""

    @classmethod
    def by_vm(cls, owner: str, kind: str, vm: str, source: str) -> Claim:
        """The claim of a VM, which *owner* calls a *kind*."""
        return cls(owner, f"{kind} {vm} passes it through", source, vm=vm)

    def renamed(self, vm: str) -> Claim:
        """The same claim as if its VM were called *vm*."""
        folder, _, file = self.source.rpartition("/")
        source = f"{folder}/{vm}.{file.rpartition('.')[2]}"
        return self._replace(text=self.text.replace(f" {self.vm} ", f" {vm} ", 1), source=source, vm=vm)


class IdPattern(NamedTuple):
    """The cards that some ids mean, as the kernel matches them (``pci_match_one_device`` in drivers/pci/pci.h)."""

    vendor: int
    device: int
    subsystem_vendor: int = ANY_ID
    subsystem_device: int = ANY_ID
    class_code: int = 0
    class_mask: int = 0

    def matches(self, ids: PciIds) -> bool:
        """Whether a function with these *ids* is meant."""
        wanted = (self.vendor, self.device, self.subsystem_vendor, self.subsystem_device)
        same = all(want in (ANY_ID, has) for want, has in zip(wanted, ids, strict=False))
        return same and not (self.class_code ^ ids.class_code) & self.class_mask


class Files(NamedTuple):
    """The files of other tools below one root.

    :ivar unread: why, for each file or folder that is there and could not be read; it fills as files are asked for.
    """

    root: HostRoot
    unread: dict[str, str]

    def in_folder(self, folder: str, suffix: str) -> Iterator[tuple[str, str, str]]:
        """(name, source, text) of each readable file there whose name ends so."""
        names = list_names(self.root.file(folder), root=self.root)
        if names.error not in (None, _ABSENT):
            self.unread[names.source] = names.error or ""
        for name in names.get(()):
            if not name.endswith(suffix):
                continue
            text = read_text(self.root.file(folder, name), root=self.root)
            if text.value is not None:
                yield name, text.source, text.value
            elif text.error != _ABSENT:  # it went away, and its claim with it
                self.unread[text.source] = text.error or ""


_ABSENT = os.strerror(errno.ENOENT)
