"""The import arrows, the edges and the sizes of the house plan, checked on the source itself."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PACKAGE = TREE / "vfio_intx"
SOURCES = sorted(PACKAGE.rglob("*.py"))

#: What each folder may import from the package, itself aside. The three modules at the top are everybody's.
EVERYBODY = {"errors", "names", "deadline"}
ARROWS: dict[str, set[str]] = {"abi": set()}
for _place, _left in (
    ("chain", set[str]()),
    ("host", {"abi", "chain"}),
    ("qemu", {"host"}),
    ("wiring", {"qemu"}),
    ("observe", {"wiring"}),
    ("diagnose", {"observe"}),
):
    ARROWS[_place] = set().union(*(ARROWS[name] | {name} for name in _left))
ARROWS["microvm"] = {"abi", "chain", "host", "wiring", "qemu", "observe"}
ARROWS["lab"] = ARROWS["diagnose"] | {"diagnose", "microvm"}
ARROWS["cli"] = ARROWS["lab"] | {"lab"}

LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def _name(path: Path) -> str:
    return str(path.relative_to(TREE))


def _folder(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides the arrow"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _folders_imported(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in _imports(_parsed(path)):
        parts = name.split(".")
        if parts[0] != "vfio_intx" or len(parts) == 1:
            continue
        if (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists():
            yield line, parts[1]


def test_every_folder_has_its_place_and_every_place_is_a_folder() -> None:
    assert set(ARROWS) == {path.parent.relative_to(PACKAGE).parts[0] for path in SOURCES if path.parent != PACKAGE}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_module_imports_only_from_the_left(path: Path) -> None:
    here = _folder(path)
    if here in ("__init__", "__main__"):
        return
    allowed = EVERYBODY | {here} | ARROWS.get(here, set())
    wrong = {f"line {line}: {name}" for line, name in _folders_imported(path) if name not in allowed}
    assert not wrong, f"{here} may import {sorted(allowed)}, but has {sorted(wrong)}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_only_abi_speaks_to_the_kernel_in_numbers(path: Path) -> None:
    if _folder(path) == "abi":
        return
    numbers = {name for _, name in _imports(_parsed(path)) if name.split(".")[0] in ("ctypes", "fcntl")}
    assert not numbers, f"{numbers} belongs in vfio_intx/abi"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_only_cli_prints_or_exits(path: Path) -> None:
    if _folder(path) in ("cli", "__main__"):
        return
    calls = [node for node in ast.walk(_parsed(path)) if isinstance(node, ast.Call)]
    named = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    assert not named & {"print", "exit", "quit", "breakpoint"}
    exits = [
        node
        for node in calls
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in ("sys.exit", "sys.stdout.write")
    ]
    entry = path.parts[-2:] in {("lab", "inside.py")}
    assert entry or not exits, f"{ast.unparse(exits[0])}: raise an error instead, cli prints it"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_and_functions_stay_small_and_speak_for_themselves(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    tree = _parsed(path)
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{node.name} is too long"


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if _folder(path) not in ("host", "lab")],
    ids=_name,
)
def test_only_the_host_root_knows_where_sysfs_and_procfs_are(path: Path) -> None:
    calls = (node for node in ast.walk(_parsed(path)) if isinstance(node, ast.Call))
    opened = [
        ast.unparse(call)
        for call in calls
        if call.args
        and isinstance(call.args[0], ast.Constant)
        and ast.unparse(call.func) in ("open", "Path", "os.open", "os.listdir", "os.readlink")
        and str(call.args[0].value).startswith(("/sys", "/proc"))
        and not str(call.args[0].value).startswith("/proc/self/")
    ]
    assert not opened, f"{opened}: derive the path from HostRoot"
