"""``vfio-intx report``: one archive for a bug report; what is in it is listed before it is written."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from vfio_intx.diagnose.report import CONTENTS, LEFT_OUT, build, host_interfaces, host_names, write_archive
from vfio_intx.host.redact import Redactor
from vfio_intx.host.root import HostRoot
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import escape

EPILOG = """\
as root it has the kernel log too; an archive that is there already is not written over
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
    """List the contents, then write them."""
    host = root or HostRoot()
    snapshot = take_snapshot(host)
    redactor = Redactor(host_names(host), host_interfaces(host, snapshot))
    files = build(snapshot, redactor, platform.python_version())
    for name, what in CONTENTS.items():
        print(f"{name:<16} {len(files[name]):>9} bytes  {what}")
    print(LEFT_OUT)
    if not snapshot.log.is_known:
        print(f"the kernel log could not be read ({snapshot.log.error}); run it as root to have it in the report")
    if not arguments.dry_run:
        write_archive(arguments.output, files)
        print(f"written: {escape(str(arguments.output))}; look through it before you send it")
    return 0
