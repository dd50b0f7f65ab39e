"""Time commands and calls side by side: in turns, so that a slow minute of the machine falls on all alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence


def in_turns(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run every action once a round, the first round not counted; for each the median of its wall-clock seconds."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def command(argv: Sequence[str]) -> Callable[[], object]:
    """An action that runs a program to its end, its output thrown away; a failure of it is ours."""
    kept = with_byte_code()
    return lambda: subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True, env=kept)


def with_byte_code() -> dict[str, str]:
    """The environment for a program of ours that is timed, as an installed one has it.

    Where ours forbids Python to keep its byte code, that is lifted: compiling it anew at every start costs as much as a
    scan.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def table(medians: Mapping[str, float], base: str) -> str:
    """A line each: name, milliseconds, and how many times the *base*'s."""
    width = max(map(len, medians))
    return "\n".join(
        f"{name:<{width}}  {seconds * 1000:9.1f} ms  {seconds / medians[base]:6.2f} x {base}"
        for name, seconds in medians.items()
    )
