"""Find scenarios, and what one is given when it runs in L1."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from vfio_intx.errors import UsageError
from vfio_intx.lab import scenarios
from vfio_intx.lab.spec import Card, LabSpec
from vfio_intx.names import Bdf

_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}(/[a-z][a-z0-9-]{0,40}){0,2}")

#: Where a scenario has no DEADLINE_S of its own.
DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Context:
    """A scenario's hands in L1.

    :ivar results_dir: comes back to the machine; sockets of backends lie there, too (of use outside only).
    :ivar say: print a line of progress.
    :ivar options: words after ``--`` on the command line of ``lab run``.
    """

    spec: LabSpec
    results_dir: Path
    say: Callable[[str], None]
    options: tuple[str, ...] = field(default=())

    def bdf(self, card: Card) -> Bdf:
        """The address of a card in L1, behind a bridge too."""
        if card.bus is None:
            return card.bdf
        bridge = self.bdf(self.spec.card(card.bus))
        secondary = Path(f"/sys/bus/pci/devices/{bridge}/secondary_bus_number").read_text("ascii").strip()
        return Bdf(0, int(secondary), card.slot, 0)

    def vfio_intx(self, *words: str, seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run our own program as a user would; its status, stdout and stderr. It is not checked."""
        argv = [sys.executable, "-m", "vfio_intx", *words]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)


class Scenario(Protocol):
    """A module under ``scenarios/``, as the rest of the lab sees it."""

    SPEC: LabSpec

    def inside(self, context: Context) -> Mapping[str, object]:
        """Run in L1; what it returns is the JSON result."""


def find(name: str) -> Scenario:
    """The scenario of that name (``smoke``, ``qemu/defect-a``). :raise UsageError: if there is none."""
    if _NAME.fullmatch(name):
        module_name = "vfio_intx.lab.scenarios." + name.replace("-", "_").replace("/", ".")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
        else:
            if hasattr(module, "SPEC"):
                return cast(Scenario, module)
    raise UsageError(f"there is no scenario {name[:64]!r}", hint="vfio-intx lab list shows what there is")


def names() -> list[str]:
    """The names of all scenarios, sorted."""
    prefix = scenarios.__name__ + "."
    found = pkgutil.walk_packages(scenarios.__path__, prefix)
    return sorted(m.name.removeprefix(prefix).replace("_", "-").replace(".", "/") for m in found if not m.ispkg)


def summary(scenario: Scenario) -> str:
    """The first line of its docstring."""
    return ((cast(ModuleType, scenario).__doc__ or "").strip().splitlines() or [""])[0]


def deadline_s(scenario: Scenario) -> float:
    """How long it may take in all."""
    return float(getattr(scenario, "DEADLINE_S", DEADLINE_S))


def outside(scenario: Scenario, results_dir: Path) -> contextlib.AbstractContextManager[object]:
    """What it does on the machine beside L1; nothing, for most."""
    manager = getattr(scenario, "outside", None)
    return contextlib.nullcontext() if manager is None else manager(results_dir)
