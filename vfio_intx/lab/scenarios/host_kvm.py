"""L1's own KVM (kvm_amd): selftest, and the schemes raced without a device, as on a host without a spare card.

Words after ``--``: how many interrupts a scheme (2,000 if none is given).
"""

from __future__ import annotations

import json
from typing import Any

from vfio_intx.errors import VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import LabSpec

SPEC = LabSpec(kernels.DEFAULT, ())
DEADLINE_S = 600.0

_COUNT = 2000
_BENCH_S = 400.0


def inside(context: Context) -> dict[str, object]:
    """Both verbs as a user runs them; their JSON."""
    count = context.options[0] if context.options else str(_COUNT)
    status, selftest = _ask(context, "selftest", "--json")
    context.say(f"selftest ended with {status} after {selftest['seconds']} s")
    raced, bench = _ask(context, "bench", "--count", count, "--json")
    return {
        "schema": "vfio-intx/lab-host-kvm/1",
        "selftest": {"status": status, **selftest},
        "bench": {"status": raced, **bench},
    }


def _ask(context: Context, *words: str) -> tuple[int, dict[str, Any]]:
    done = context.vfio_intx(*words, seconds=_BENCH_S)
    if not done.stdout:
        raise VerifyError(f"vfio-intx {words[0]} said nothing on stdout: {done.stderr.strip()[-400:]}")
    return done.returncode, json.loads(done.stdout)


def failures(result: dict[str, Any]) -> list[str]:
    """What a KVM that keeps the rules must not show."""
    found = [] if result["selftest"]["status"] == 0 else ["selftest does not call this KVM usable"]
    found += [f"selftest: {row['name']}: {row['seen']}" for row in result["selftest"]["rows"] if row["verdict"] != "ok"]
    for row in result["bench"]["schemes"]:
        name = f"{row['scheme']} on the {row['pin']}"
        if row["scheme"] == "edge":
            found += [f"{name} was acknowledged"] if row["acknowledged"] else []
            continue
        if row["lost"] or row["acknowledged"] != row["triggers"]:
            found.append(f"{name} lost {row['lost']} of {row['triggers']}")
        if row["scheme"] == "irqfd" and (row["repeated"] or row["vmm_wakeups_per_interrupt"]):
            found.append(f"{name} repeated {row['repeated']} and woke the VMM {row['vmm_wakeups_per_interrupt']} times")
        if row["acknowledged_early"]:
            found.append(f"{name} was acknowledged before the guest's EOI")
    return found
