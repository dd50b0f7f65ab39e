"""What a report says of the VMs that run: their lines as ``status`` has them, their QEMUs' versions, and no names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial

from vfio_intx.errors import PeerGarbage, VfioIntxError
from vfio_intx.host.redact import Redactor
from vfio_intx.host.root import HostRoot
from vfio_intx.names import escape
from vfio_intx.observe.status import VmStatus, gather
from vfio_intx.observe.together import together
from vfio_intx.observe.watch import Watcher
from vfio_intx.qemu.process import QemuProcess, find_processes, open_monitor_of

#: For each wait on one QEMU; all are asked at once.
_BUDGET_S = 10.0
#: For how long the counters are watched.
_INTERVAL_S = 1.0
#: Paths below these are the same on every host; others may be named after a VM or its owner.
_COMMON_PATH = re.compile(r"/(?:dev|proc|sys)/")
_PATH = re.compile(r"(?<![\w/.])/[^\s:;,'\"()]+")
#: Ids that this program and the usual managers give to a device, which name nobody.
_COMMON_ID = re.compile(r"intx-[0-9a-f-]+|hostdev[0-9]+|hostpci[0-9]+(?:\.[0-9]+)?")
#: The sentences in ``vfio-intx/status/1``, by their keys; in all the rest are numbers and words of a fixed list.
_SENTENCES = frozenset({"trouble", "notes", "text", "why", "why_not_proven", "reason"})


def look_at_vms(
    root: HostRoot, redactor: Redactor, *, budget_s: float = _BUDGET_S, interval_s: float = _INTERVAL_S
) -> dict[str, object]:
    """The lines of all VMs as ``vfio-intx/status/1`` has them, each VM with the version of its ``qemu`` (or null).

    What could not be found out is null, and the VM's ``trouble`` says why; a QEMU that does not answer is given up
    after *budget_s* seconds for a question. In place of the VMs' names, their devices' ids and of paths that may tell
    of them are marks: the same for a VM as where it claims a function in the snapshot.
    """
    watcher = Watcher(root)
    watcher.tick()
    vms = gather(root, interval_s=interval_s, budget_s=budget_s)
    states = [row.as_json() for row in watcher.tick()]
    versions = _versions(root, {vm.pid for vm in vms if vm.lines and not vm.trouble}, budget_s)
    names = {vm.name: redactor.mark("vm", vm.name) for vm in vms if vm.name}
    ids = {line.device_id for vm in vms for line in vm.lines if line.device_id}
    marks = names | {one: redactor.mark("device", one) for one in ids if not _COMMON_ID.fullmatch(one)}
    hide = _hider(marks, redactor)
    told = [_as_json(vm, versions.get(vm.pid or 0), names, marks, hide) for vm in vms]
    return {"schema": "vfio-intx/status/1", "vms": told, "states": _hidden(states, hide)}


def _versions(root: HostRoot, pids: Iterable[int | None], budget_s: float) -> Mapping[int, str | VfioIntxError]:
    wanted = frozenset(pids)
    asked = [process for process in find_processes(root) if process.pid in wanted]
    found = together([partial(_version, root, process, budget_s) for process in asked])
    return {process.pid: version for process, version in zip(asked, found, strict=True)}


def _version(root: HostRoot, process: QemuProcess, budget_s: float) -> str | VfioIntxError:
    try:
        with closing(open_monitor_of(root, process, budget_s=budget_s)) as monitor:
            answer = monitor.execute("query-version")
    except VfioIntxError as error:
        return error
    match answer:
        case {"qemu": {"major": int(major), "minor": int(minor), "micro": int(micro)}, "package": str(package)}:
            return escape(f"{major}.{minor}.{micro} {package[:100]}".strip())
    return PeerGarbage(f"VM {process.label} answered query-version without a version")


def _as_json(
    vm: VmStatus,
    version: str | VfioIntxError | None,
    names: Mapping[str, str],
    marks: Mapping[str, str],
    hide: Callable[[str], str],
) -> dict[str, object]:
    lines = [line.as_json() | {"id": marks.get(line.device_id or "", line.device_id)} for line in vm.lines]
    trouble = list(vm.trouble)
    if isinstance(version, VfioIntxError):
        trouble.append(f"its version could not be asked: {escape(str(version))}")
        version = None
    table = vm.as_json() | {"name": names.get(vm.name or ""), "qemu": version, "lines": lines, "trouble": trouble}
    return {key: _hidden(value, hide, sentence=key in _SENTENCES) for key, value in table.items()}


def _hidden(value: object, hide: Callable[[str], str], *, sentence: bool = False) -> object:
    """*value* with its sentences hidden; a VM that is called "irqfd" must not cost a line its scheme."""
    if isinstance(value, dict):
        return {key: _hidden(item, hide, sentence=key in _SENTENCES) for key, item in value.items()}
    if isinstance(value, list):
        return [_hidden(item, hide, sentence=sentence) for item in value]
    return hide(value) if sentence and isinstance(value, str) else value


def _hider(marks: Mapping[str, str], redactor: Redactor) -> Callable[[str], str]:
    escaped = {escape(name): mark for name, mark in marks.items()}
    longest_first = "|".join(re.escape(name) for name in sorted(escaped, key=len, reverse=True))
    names = re.compile(rf"(?<!\w)(?:{longest_first})(?!\w)") if marks else None

    def hide(text: str) -> str:
        text = _PATH.sub(lambda path: path[0] if _COMMON_PATH.match(path[0]) else redactor.mark("path", path[0]), text)
        return text if names is None else names.sub(lambda name: escaped[name[0]], text)

    return hide
