"""The script that L1 runs first: a plain, prepared host, then the command, then its status into the results folder.

virtme-ng has mounted proc, sys, tracefs, debugfs and memory over everything that may be written (``/etc``, ``/home``,
``/usr``, ``/var``, ``/tmp``, ``/run``); the machine's own files are never changed. udev is not relied upon, as a bare
machine has none: each function gets the driver that its modalias asks for.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Modules a passthrough host has loaded. A kernel without one of them says so in the output; nothing stops.
MODULES = ("vfio-pci", "kvm-amd")

#: The 9p tag under which the whole machine is exported a second time.
MACHINE_TAG = "vfio-intx-machine"

#: Files in the results folder.
STARTED, OUTPUT, STATUS, OUTER, INNER = "started", "output", "status", "outer.sh", "inner.sh"

#: A root of our own: the machine's files once more, this time with the guest's page cache, under an overlay in memory.
#: (virtme-ng mounts them without one, so that each component of each path is asked for anew: importing pytest took 9 s)
_ROOT = """\
lab=/run/vfio-intx-lab
root=$lab/root
mkdir -p $lab/machine $lab/upper $lab/work $root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 {tag} $lab/machine
mount -t overlay -o lowerdir=$lab/machine,upperdir=$lab/upper,workdir=$lab/work overlay $root
for folder in proc sys dev; do mount --rbind /$folder $root/$folder; done
for folder in run tmp var/tmp var/log var/lib/vfio-intx; do
    mkdir -p $root/$folder
    mount -t tmpfs -o mode=1777 tmpfs $root/$folder
done
chmod 0700 $root/var/lib/vfio-intx
number=0
for folder in {folders}; do
    [ -e "$root$folder" ] && continue
    # What lies under one of the folders just emptied is shown again, with a memory of its own to write to.
    number=$((number + 1))
    mkdir -p "$root$folder" $lab/upper-$number $lab/work-$number
    mount -t overlay -o lowerdir="$lab/machine$folder",upperdir=$lab/upper-$number,workdir=$lab/work-$number \\
        overlay "$root$folder"
done
mkdir -p {results} $root{results}
mount --bind {results} $root{results}
mkdir -p $root/lib/modules
mount -t tmpfs tmpfs $root/lib/modules
ln -s {modules} "$root/lib/modules/$(uname -r)"
exec chroot $root /bin/sh {results}/{inner}
"""

_PREPARE = """\
ulimit -c 0
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/run/home TMPDIR=/tmp LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
mkdir -p "$HOME" /run/vfio-intx
grep -q ' /sys/kernel/debug ' /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug
grep -q ' /sys/kernel/tracing ' /proc/mounts || mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up 2>/dev/null
"""

_DRIVERS = """\
for module in {modules}; do modprobe "$module" || echo "lab: no module $module"; done
for alias in /sys/bus/pci/devices/*/modalias; do
    # The chipset and virtme-ng's own devices need no drivers.
    case $alias in */0000:00:0?.?/*|*/0000:00:1f.?/*) continue ;; esac
    [ -e "${{alias%/modalias}}/driver" ] || modprobe -q -b "$(cat "$alias")"
done
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a script needs to know of the lab around it.

    :ivar folders: to be seen in L1 at their own paths, wherever on the machine they lie.
    :ivar modules: the modules of L1's kernel.
    :ivar environment: exported to the command.
    :ivar interactive: leave the terminal alone, for ``lab shell``.
    :ivar programs: a folder that comes first in the shell's PATH.
    """

    results_dir: Path
    cwd: Path
    folders: tuple[Path, ...]
    modules: Path
    environment: Mapping[str, str]
    interactive: bool = False
    programs: Path | None = None


def outer_script(setting: Setting) -> str:
    """What virtme-ng starts: say that L1 is up, make the root, go on in it with the inner script."""
    results = shlex.quote(str(setting.results_dir))
    folders = " ".join(shlex.quote(str(path)) for path in setting.folders)
    modules = shlex.quote(str(setting.modules))
    root = _ROOT.format(tag=MACHINE_TAG, folders=folders, modules=modules, results=results, inner=INNER)
    redirect = "" if setting.interactive else f"exec < /dev/null >> {results}/{OUTPUT} 2>&1\n"
    return f"#!/bin/sh\ncd / && : > {results}/{STARTED}\n{redirect}{root}"


def inner_script(command: Sequence[str], setting: Setting) -> str:
    """What runs in the root: drivers, then *command*, then its status (for a shell: nothing more).

    The status file appears whole (rename) and last; without it the command has not ended.
    """
    results = shlex.quote(str(setting.results_dir))
    lines = [_PREPARE, *(f"export {name}={shlex.quote(value)}" for name, value in setting.environment.items())]
    lines += [_DRIVERS.format(modules=" ".join(MODULES)), f"cd {shlex.quote(str(setting.cwd))} || exit 1"]
    if setting.programs is not None:
        lines.append(f"export PATH={shlex.quote(str(setting.programs))}:$PATH")
    if setting.interactive:
        lines.append("echo 'This is L1, the emulated host: vfio-intx scan shows its cards. exit ends it.'")
        return "\n".join([*lines, f"exec {shlex.join(command)}", ""])
    lines += [
        shlex.join(command),
        f"echo $? > {results}/{STATUS}.part",
        f"mv {results}/{STATUS}.part {results}/{STATUS}",
    ]
    return "\n".join([*lines, ""])
