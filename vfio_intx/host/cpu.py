"""The processor, as far as figures measured on it need it: which one, and whether it is a virtual one itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vfio_intx.chain.fact import Fact
from vfio_intx.host.root import HostRoot

#: The first processor's paragraph of /proc/cpuinfo is some 1.5 KiB; a big host has hundreds of them.
_ENOUGH = 16384
_FIELD = re.compile(r"^(model name|flags)\s*: ?(.*)$", re.MULTILINE | re.ASCII)


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The first processor.

    :ivar model: its ``model name``. :ivar virtual: whether it has the flag ``hypervisor`` (``X86_FEATURE_HYPERVISOR``),
        so that this host is a guest itself and its KVM a nested one.
    """

    model: Fact[str]
    virtual: Fact[bool]


def parse_cpuinfo(text: str) -> CpuFacts:
    """``/proc/cpuinfo``, or its beginning. Pure."""
    source = "/proc/cpuinfo"
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        fields.setdefault(name, value)
    missing: Fact[str] = Fact.unknown(source, "no such line")
    flags = Fact.known(fields["flags"], source) if "flags" in fields else missing
    model = Fact.known(fields["model name"].strip(), source) if "model name" in fields else missing
    return CpuFacts(model, flags.map(lambda words: "hypervisor" in words.split()))


def read_cpu(root: HostRoot) -> CpuFacts:
    """These facts, read now; what went wrong is in them."""
    try:
        with root.at("proc/cpuinfo").open("rb") as file:
            text = file.read(_ENOUGH).decode("utf-8", "backslashreplace")
    except OSError as error:
        unknown = error.strerror or str(error)
        return CpuFacts(Fact.unknown("/proc/cpuinfo", unknown), Fact.unknown("/proc/cpuinfo", unknown))
    return parse_cpuinfo(text)
