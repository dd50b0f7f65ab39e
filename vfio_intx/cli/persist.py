"""``vfio-intx persist BDF``: a udev rule that gives the function to vfio-pci at every boot."""

from __future__ import annotations

import argparse
import os
import sys

from vfio_intx.errors import RefusedError
from vfio_intx.host.iommu import is_vfio_driver
from vfio_intx.host.root import HostRoot
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf, escape
from vfio_intx.wiring.drivers import refuse_at_boot
from vfio_intx.wiring.persist import initramfs_command, install, installed, remove, rule_for

EPILOG = """\
needs root, but for --dry-run; writes /etc/udev/rules.d/70-vfio-intx-BDF.rules and changes no binding now

examples:
  vfio-intx persist 05:00.0 --dry-run
  vfio-intx persist 05:00.0
  vfio-intx persist 05:00.0 --remove
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("bdf", metavar="BDF", help="the PCI function, such as 0000:05:00.0")
    parser.add_argument("--remove", action="store_true", help="take the rule away again")
    parser.add_argument("--force", action="store_true", help="also where the host uses the function, as bind has it")
    parser.add_argument("--dry-run", action="store_true", help="show the file and write nothing")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Show the rule, then install or remove it; the binding of this moment is not changed."""
    host, bdf = root or HostRoot(), Bdf.parse(arguments.bdf)
    if root is None and not arguments.dry_run and os.geteuid() != 0:
        raise RefusedError("persist writes to /etc/udev/rules.d, which only root may do", hint="use sudo, or --dry-run")
    return _remove(arguments, host, bdf) if arguments.remove else _install(arguments, host, bdf)


def _remove(arguments: argparse.Namespace, host: HostRoot, bdf: Bdf) -> int:
    rule = installed(host, bdf)
    if rule is None:
        print(f"{bdf}: already so: no rule of ours")
        return 0
    print(f"+ rm {rule.path}")
    if not arguments.dry_run:
        remove(host, bdf)
    print(f"note: an initramfs that was made meanwhile has the rule, too; {_anew(host)}")
    return 0


def _anew(host: HostRoot) -> str:
    command = initramfs_command(host)
    return f"then: {command}" if command else "then make the initramfs anew"


def _install(arguments: argparse.Namespace, host: HostRoot, bdf: Bdf) -> int:
    snapshot = take_snapshot(host)
    function = snapshot.function(bdf)
    refuse_at_boot(snapshot, function, force=arguments.force)
    rule = rule_for(function)
    for claim in snapshot.claims.get(bdf, ()):
        if claim.owner != "vfio-intx":
            print(f"vfio-intx persist: {claim.source}: {claim.owner} {claim.text}", file=sys.stderr)
    if installed(host, bdf) == rule:
        print(f"{bdf}: already so: {rule.path}")
        return 0
    print(f"+ cat > {rule.path} <<'EOF'\n{rule.text}EOF")
    if not arguments.dry_run:
        install(host, rule)
        print(f"{bdf}: from the next boot (or now: vfio-intx bind {bdf})")
    driver = function.driver.get("")
    its = f"its driver, {escape(driver)}," if driver and not is_vfio_driver(driver) else "its own driver"
    print(f"note: if the initramfs loads {its} the rule has to be in there to come first; {_anew(host)}")
    return 0
