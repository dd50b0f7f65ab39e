"""What the program loads before it works, and how wide its help is without asking the standard library for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.kernel import nic_host
from vfio_intx.cli import main as program

#: Each costs a good part of what all of ``scan`` takes; dataclasses brings inspect, shutil four compressors.
HEAVY = (
    *("msgspec", "rich", "asyncio", "pyudev", "qemu", "ctypes", "shutil", "subprocess", "json"),
    *("dataclasses", "inspect", "pathlib", "logging"),
)
SCAN = (
    "import functools, sys; from vfio_intx.cli import main, scan; from vfio_intx.host.root import HostRoot; "
    "scan.run = functools.partial(scan.run, root=HostRoot(sys.argv[1])); status = main.main(['scan']); "
    "print(*sys.modules); sys.exit(status)"
)


def test_a_scan_loads_nothing_heavy(tmp_path: Path) -> None:
    nic_host(tmp_path)
    argv = [sys.executable, "-c", SCAN, str(tmp_path)]
    *table, modules = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(line.startswith("0000:00:10.0") for line in table)
    assert "vfio_intx.diagnose.prediction" in modules.split()
    assert not set(HEAVY) & set(modules.split())


@pytest.mark.parametrize(
    ("columns", "most"),
    [("50", 48), ("200", 198), ("no number", 78), ("-3", 78)],
)
def test_help_is_as_wide_as_the_terminal(
    columns: str, most: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    parser = program._Parser("vfio-intx", " ".join(["word"] * 100))
    parser.print_help()
    widest = max(map(len, capsys.readouterr().out.splitlines()))
    assert most - len("word ") <= widest <= most
