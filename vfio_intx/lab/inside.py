"""``python -m vfio_intx.lab.inside NAME RESULTS [KERNEL] [-- WORDS]``: one scenario, run in L1; its result, written.

The result file appears whole: ``{"ok": true, "result": {…}}`` or ``{"ok": false, "error": …, "hint": …}``.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vfio_intx.errors import InternalError, VfioIntxError
from vfio_intx.lab.scenario import Context, Scenario, deadline_s, find

RESULT = "result.json"

#: So long before the scenario's deadline, after which nothing can be asked any more, it is asked where it hangs.
_LAST_WORDS_S = 20.0


def write_result(results_dir: Path, payload: object) -> None:
    """Put *payload* into the results folder as JSON, in one step."""
    scratch = results_dir / f".{RESULT}.part"
    with scratch.open("wb") as file:
        file.write(msgspec.json.encode(payload))
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(results_dir / RESULT)


def tell_where_it_hangs() -> None:
    """Every thread's stack to stderr, and the kernel's blocked tasks and running one to the console."""
    faulthandler.dump_traceback(all_threads=True)
    for key in ("w", "l"):
        Path("/proc/sysrq-trigger").write_text(key, "ascii")


def _last_words(scenario: Scenario) -> threading.Timer:
    """A timer, running, that tells where the scenario hangs shortly before the lab is stopped for it."""
    up_s = float(Path("/proc/uptime").read_text("ascii").split()[0])
    timer = threading.Timer(max(0.0, deadline_s(scenario) - up_s - _LAST_WORDS_S), tell_where_it_hangs)
    timer.daemon = True
    timer.start()
    return timer


def main(argv: Sequence[str]) -> int:
    """Run the scenario named by *argv*; the exit status is 0, or that of the error it ended with."""
    name, folder, kernel, *words = argv
    results_dir = Path(folder)

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        scenario = find(name)
        spec = dataclasses.replace(scenario.SPEC, kernel=kernel)
        timer = _last_words(scenario)
        try:
            result = scenario.inside(Context(spec, results_dir, say, tuple(words)))
        finally:
            timer.cancel()
    except Exception as error:
        known = isinstance(error, VfioIntxError)
        if not known or os.environ.get("VFIO_INTX_DEBUG"):
            traceback.print_exc()
        hint = error.hint if isinstance(error, VfioIntxError) else None
        text = str(error) if known else f"{type(error).__name__}: {error}"
        notes = list(getattr(error, "__notes__", ()))
        status = error.exit_status if isinstance(error, VfioIntxError) else InternalError.exit_status
        write_result(results_dir, {"ok": False, "error": text, "hint": hint, "notes": notes, "status": status})
        return status
    write_result(results_dir, {"ok": True, "result": dict(result)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
