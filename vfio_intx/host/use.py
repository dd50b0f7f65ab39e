"""What a use of a function is, and how sysfs tells which function a disk or an interface belongs to."""

from __future__ import annotations

import os
from typing import NamedTuple

from vfio_intx.host.root import HostRoot, read_text
from vfio_intx.names import Bdf


class Use(NamedTuple):
    """Something that would break if the function were taken away.

    :ivar what: ``network``, ``disk``, ``console`` or ``display``.
    :ivar text: what exactly, to complete "it …".
    :ivar source: the file that says so.
    :ivar name: the mount point or pool (escaped) that *text* names, which somebody chose; empty for none.
    """

    what: str
    text: str
    source: str
    name: str = ""

    def renamed(self, name: str) -> Use:
        """The same use as if what it names were called *name*."""
        text = self.text.replace(f" {self.name} ", f" {name} ", 1)
        folder, slash, file = self.source.rpartition("/")
        return self._replace(text=text, source=folder + slash + (name if file == self.name else file), name=name)


def class_link(root: HostRoot, kind: str, name: str) -> tuple[str, ...]:
    """The parts of the path that ``/sys/class/KIND/NAME`` points to; none where it cannot be read."""
    try:
        return tuple(os.readlink(root.file("sys/class", kind, name)).split("/"))
    except OSError:
        return ()


def owner_in(parts: tuple[str, ...]) -> Bdf | None:
    """The function that such a path lies below: the last PCI address in it."""
    return next((bdf for part in reversed(parts) if (bdf := Bdf.maybe(part)) is not None), None)


def table_of(root: HostRoot, name: str) -> tuple[list[list[str]], str]:
    """The words of each line of a table of procfs, and its path; no lines where it cannot be read."""
    text = read_text(root.file(name), root=root)
    return [line.split() for line in (text.value or "").splitlines()], text.source
