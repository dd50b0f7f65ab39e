"""``vfio-intx report``: one archive for a bug report; what is in it is listed before it is written."""

from __future__ import annotations

import argparse
import contextlib
import platform
from collections.abc import Mapping
from pathlib import Path

from vfio_intx.cli.text import screen_columns, wrapped
from vfio_intx.diagnose.report import CONTENTS, LEFT_OUT, build, host_interfaces, host_names, new_archive, write_archive
from vfio_intx.diagnose.vms import look_at_vms
from vfio_intx.host.redact import Redactor
from vfio_intx.host.root import HostRoot
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import escape

#: Where the words on a file begin.
_HANG = 34

EPILOG = """\
as root it has the kernel log and the VMs' lines too; an archive that is there already is not written over
scan --from FILE and check --from FILE look at the host that made it

examples:
  vfio-intx report --dry-run
  vfio-intx report --output host7.tar.gz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("vfio-intx-report.tar.gz"),
        metavar="FILE",
        help="the archive (default: vfio-intx-report.tar.gz)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be in it and write nothing")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """List the contents, then write them; what has no place is not listed first as if it had."""
    host, output = root or HostRoot(), arguments.output
    with contextlib.ExitStack() as stack:
        archive = None if arguments.dry_run else stack.enter_context(new_archive(output))
        files = _gathered(host)
        if archive is not None:
            write_archive(archive, output, files)
            print(f"written: {escape(str(output))}; look through it before you send it")
    return 0


def _gathered(host: HostRoot) -> Mapping[str, bytes]:
    snapshot = take_snapshot(host)
    redactor = Redactor(host_names(host), host_interfaces(host, snapshot))
    files = build(snapshot, look_at_vms(host, redactor), redactor, platform.python_version())
    columns = screen_columns()
    for name, what in CONTENTS.items():
        print(wrapped(f"{name:<16} {len(files[name]):>9} bytes  {what}", columns, hang=_HANG))
    print(wrapped(LEFT_OUT, columns))
    if not snapshot.log.is_known:
        why = f"the kernel log could not be read ({snapshot.log.error}); run it as root to have it in the report"
        print(wrapped(why, columns))
    return files
