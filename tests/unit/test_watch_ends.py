"""However ``status --watch`` is ended, the terminal is given back as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from vfio_intx.deadline import Deadline

SCRIPT = """
import sys
from pathlib import Path
from vfio_intx.cli.watch import Roster, watch
from vfio_intx.host.root import HostRoot
from vfio_intx.observe.watch import Watcher
sys.exit(watch(Watcher(HostRoot(Path(sys.argv[1]))), Roster((), None), interval_s=600, as_json=False))
"""
_LOCAL = 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_as_before(number: signal.Signals, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    try:
        before = termios.tcgetattr(theirs)
        watching = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
        )

        def takes_keys() -> bool:
            return not termios.tcgetattr(theirs)[_LOCAL] & termios.ICANON

        assert Deadline.after("single keys", 30.0).poll(takes_keys)
        watching.send_signal(number)
        _, err = watching.communicate(timeout=30)
        assert (watching.returncode, err) == (0, b"")
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
