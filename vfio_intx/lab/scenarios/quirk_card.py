"""A card on the kernel's list of broken ones: check knows it, predicts the conflict, and QEMU fails as predicted.

L1 runs in a QEMU whose edu card takes any ids (``tools/build-qemu --base lab``, built first where the cache lacks it).
``quirk`` bears those of a Ceton InfiniTV 4, which is on the kernel's list; ``plain`` is the same card as QEMU has it;
``hidden`` those of an X722, whose INTx vfio-pci hides. ``quirk``, ``plain`` and a NIC of the host share a line.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from vfio_intx.deadline import Deadline
from vfio_intx.errors import VerifyError
from vfio_intx.host.irq import vfio_action
from vfio_intx.host.log import read_log
from vfio_intx.host.root import HostRoot
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.lab import kernels
from vfio_intx.lab.qemu_series import LAB
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, LabSpec, UserNetwork
from vfio_intx.names import Bdf

QUIRK = Card("edu", 0x10, ("x-pci-vendor-id=0x1b7c", "x-pci-device-id=0x0004"), name="quirk")
NEIGHBOUR = Card("e1000", 0x14, backend=UserNetwork(), name="neighbour")
PLAIN = Card("edu", 0x18, name="plain")
HIDDEN = Card("edu", 0x11, ("x-pci-vendor-id=0x8086", "x-pci-device-id=0x37d2"), name="hidden")
SPEC = LabSpec(kernels.DEFAULT, (QUIRK, NEIGHBOUR, PLAIN, HIDDEN), qemu=LAB.name)
DEADLINE_S = 900.0

_QEMU_S = 90.0
_QEMU = ("qemu-system-x86_64", "-machine", "q35", "-accel", "kvm", "-display", "none", "-nodefaults", "-S", "-m", "64")


def inside(context: Context) -> dict[str, object]:
    """Each step as a user takes it, and what came of it; :func:`failures` judges."""
    quirk, plain, hidden = (context.bdf(card) for card in (QUIRK, PLAIN, HIDDEN))
    interface = _neighbour_up(context.bdf(NEIGHBOUR))
    steps: dict[str, object] = {"neighbour": interface, "list alone": _check(context, quirk)}
    _remedy(context, steps["list alone"], "INTX023")
    for bdf in (quirk, plain, hidden):
        _must(context, "bind", str(bdf))
    steps["beside the neighbour"] = before = _check(context, quirk)
    steps["QEMU beside the neighbour"] = _qemu(context, quirk)
    steps["after the failure"] = _check(context, quirk)
    steps["the kernel's words"] = [
        line.text
        for line in read_log(HostRoot()).get(())
        if "Flags mismatch" in line.text or "broken INTx" in line.text
    ]
    steps["the same card with its own ids"] = _check(context, plain)
    steps["QEMU with its own ids"] = _qemu(context, plain)
    steps["hidden"] = _check(context, hidden)
    _remedy(context, before, "INTX001")
    steps["after the remedy"] = _check(context, quirk)
    steps["QEMU after the remedy"] = _qemu(context, quirk)
    for bdf in (quirk, plain, hidden):
        _must(context, "restore", str(bdf))
    return {"schema": "vfio-intx/lab-quirk-card/1", "bdf": str(quirk), "steps": steps}


def failures(result: dict[str, Any]) -> list[str]:
    """What does not hold of the promise that a listed card is known, and its conflict predicted."""
    steps = result["steps"]
    alone, beside, own = steps["list alone"], steps["beside the neighbour"], steps["the same card with its own ids"]
    conflict = beside["findings"].get("INTX001", {"summary": "nothing"})["summary"]
    holds = {
        "the verdict comes from the kernel's list": "on the kernel's list" in alone["why"],
        "a line that nobody has enabled yet is called unknown": "INTX023" in alone["findings"],
        "the line would be exclusive": alone["masking"] == beside["masking"] == "exclusive",
        "the conflict names the neighbour": steps["neighbour"] in conflict,
        "QEMU fails as predicted": "Device or resource busy" in steps["QEMU beside the neighbour"]["said"],
        "the kernel says why": any(
            f"vfio-intx({result['bdf']})" in line and steps["neighbour"] in line for line in steps["the kernel's words"]
        ),
        "the kernel's words are found": "INTX002" in steps["after the failure"]["findings"],
        "the same card with its own ids masks itself": own["masking"] == "disintx",
        "and shares the line": steps["QEMU with its own ids"]["up"],
        "a hidden INTx is known": "INTX017" in steps["hidden"]["findings"],
        "the remedy removes the finding": "INTX001" not in steps["after the remedy"]["findings"],
        "QEMU starts after the remedy": steps["QEMU after the remedy"]["up"],
    }
    return [f"{name} does not hold" for name, so in holds.items() if not so]


def show(result: dict[str, Any]) -> list[str]:
    """One line a step."""
    lines = []
    for name, step in result["steps"].items():
        if isinstance(step, dict) and "masking" in step:
            found = "; ".join(f"{code} {finding['summary']}" for code, finding in step["findings"].items())
            step = f"IRQ {step['irq']}, {step['masking']} ({step['why']}): {found or 'nothing found'}"
        elif isinstance(step, dict):
            step = "starts" if step["up"] else step["said"]
        lines.append(f"{name}: {step}")
    return lines


def _neighbour_up(bdf: Bdf) -> str:
    """Let the host's NIC take its line; its name. An address would make it one that must not move."""
    (interface,) = take_snapshot(HostRoot()).function(bdf).interfaces.get(())
    Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")
    subprocess.run(["ip", "link", "set", interface, "up"], check=True)
    return interface


def _check(context: Context, bdf: Bdf) -> dict[str, Any]:
    """What ``check`` says, as far as it bears on this."""
    answer = json.loads(context.vfio_intx("check", str(bdf), "--json").stdout)
    findings = {found["code"]: found for found in answer["findings"]}
    context.say(f"check {bdf}: {answer['status']}: {answer['outlook'][0]}")
    kept = {code: {"summary": found["summary"], "remedy": found["remedy"]} for code, found in findings.items()}
    return {"irq": answer["irq"], "masking": answer["masking"]["verdict"], "why": answer["masking"]["why"],
            "status": answer["status"], "findings": kept}  # fmt: skip


def _remedy(context: Context, checked: Any, code: str) -> None:
    """Run the command that a finding printed, as it stands. :raise VerifyError: if it has none, or fails."""
    remedy = checked["findings"].get(code, {}).get("remedy")
    if not remedy:
        raise VerifyError(f"check did not find {code} with a remedy, but {sorted(checked['findings'])}")
    context.say(f"following {code}: {remedy}")
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    # The last command of a remedy may be check, whose status is its finding.
    done = subprocess.run(remedy, shell=True, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if "error" in done.stderr or "denied" in done.stderr or "busy" in done.stderr:
        raise VerifyError(f"the remedy of {code} failed: {done.stderr.strip()[-300:]}")


def _must(context: Context, *words: str) -> None:
    done = context.vfio_intx(*words)
    if done.returncode != 0:
        raise VerifyError(f"vfio-intx {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def _qemu(context: Context, bdf: Bdf) -> dict[str, object]:
    """Start a QEMU with the card, stopped before its first instruction: whether it stayed up, and its last words."""
    process = subprocess.Popen(
        [*_QEMU, "-device", f"vfio-pci,host={bdf}"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    line = vfio_action(bdf)
    waiting = Deadline.after("QEMU requests the line", _QEMU_S)
    waiting.poll(lambda: process.poll() is not None or line in Path("/proc/interrupts").read_text("utf-8"))
    up = process.poll() is None
    process.kill()
    said = re.sub(r"^.*?: (?=vfio|-device)", "", process.communicate()[1].strip())
    context.say(f"QEMU with {bdf}: {'up' if up else said}")
    return {"up": up, "said": said}
