"""Bash's completion: the script is the one that the parsers make, and what bash makes of it at a Tab."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vfio_intx.cli import completion
from vfio_intx.cli.main import VERBS
from vfio_intx.diagnose.rules import RULES

TREE = Path(__file__).parents[2]
SCRIPT = TREE / "docs/completions/vfio-intx"
#: What the script takes from the package bash-completion, as far as it matters here.
PACKAGE = """\
_init_completion() { words=("${WORDS[@]}"); cword=$((${#words[@]} - 1)); cur=${words[cword]}; prev=${words[cword-1]}; }
_filedir() { COMPREPLY=("files${1:-}"); }
_pids() { COMPREPLY=(pids); }
__ltrim_colon_completions() { :; }
"""


def completed(tmp_path: Path, *words: str) -> list[str]:
    """What stands to choose when Tab is pressed behind the last of *words*, on a host with three functions."""
    devices = tmp_path / "devices"
    for bdf in ("0000:05:00.0", "0000:05:00.1", "0001:05:00.0"):
        (devices / bdf).mkdir(parents=True, exist_ok=True)
    text = SCRIPT.read_text().replace("/sys/bus/pci/devices", str(devices))
    asked = f'{PACKAGE}{text}WORDS=("$@"); COMPREPLY=(); _vfio_intx; printf "%s\\n" "${{COMPREPLY[@]}}"'
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash: apt-get install bash")
    done = subprocess.run([bash, "-euc", asked, "bash", "vfio-intx", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_script_is_the_one_that_the_parsers_make() -> None:
    assert SCRIPT.read_text() == completion.script(), "run tools/gen-completion > docs/completions/vfio-intx"


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ([""], list(VERBS)),
        (["re"], ["restore", "report"]),
        (["restore", ""], ["0000:05:00.0", "0000:05:00.1", "0001:05:00.0"]),
        (["restore", "0000:05:00.1"], ["0000:05:00.1"]),
        (["restore", "0001:"], ["0001:05:00.0"]),
        (["bind", "05:"], ["05:00.0", "05:00.1"]),
        (["bind", "--gr"], ["--group"]),
        (["check", "--irqchip", ""], ["on", "split", "off"]),
        (["check", "--irqchip", "s"], ["split"]),
        (["attach", "05:00.0", "--qmp", "/run/"], ["files"]),
        (["restore", "--state-dir", ""], ["files-d"]),
        (["bench", "--device", "0001"], ["0001:05:00.0"]),
        (["trace", "--count", ""], []),
        (["lab", ""], ["run", "shell", "list"]),
        (["lab", "run", "smoke", "--ke"], ["--kernel", "--keep"]),
        (["lab", "li"], ["list"]),
        (["lab", "--"], ["--help"]),
        (["lab", "list", "--"], ["--help"]),
        (["lab", "run", "sm"], ["smoke"]),
        (
            ["lab", "run", "--keep", "logs", "qemu/def"],
            ["qemu/defect-a", "qemu/defect-b", "qemu/defect-c", "qemu/defect-d", "qemu/defect-detach", "qemu/defects"],
        ),
        (["lab", "run", "smoke", "--", "smo"], []),
        (["lab", "shell", "--scenario", "smo"], ["smoke"]),
        (["lab", "shell", "smo"], []),
        (["explain", "INTX00"], [code for code in RULES if code.startswith("INTX00")]),
        (["explain", "INTX001", "INTX00"], []),
        (["attach", "05:00.0", "--scheme", ""], ["irqfd", "trap"]),
        (["bench", "--scheme", "irqfd", "--scheme", "tr"], ["trap"]),
        (["switch", "0001"], ["0001:05:00.0"]),
        (["switch", "05:00.0", ""], ["irqfd", "ack-eventfd", "trap"]),
        (["switch", "--qmp", "/run/vm.qmp", "05:00.0", "a"], ["ack-eventfd"]),
        (["switch", "05:00.0", "trap", ""], []),
        (["scan", "05:00.0", "0001"], ["0001:05:00.0"]),
        (["trace", "--pid", ""], ["pids"]),
        (["help", "s"], [verb for verb in VERBS if verb.startswith("s")]),
        (["help", "scan", "s"], []),
        (["selftest", ""], []),
        (["nonsense", ""], []),
    ],
)
def test_what_a_tab_offers(words: list[str], choices: list[str], tmp_path: Path) -> None:
    assert completed(tmp_path, *words) == choices
