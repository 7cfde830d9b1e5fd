"""``millstream run --supervise``: a parent that starts the job again when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

import structlog
from millstream.cli.errors import HANGS
from millstream.cli.logs import configure_logging
from millstream.engine.runtime.run import Control

log = structlog.get_logger("millstream")

HEALTHY_SECONDS = 60.0
"""A child that lived so long before it was killed starts the count of restarts anew."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
"""Seconds before the job is started again, doubled each time up to the longest."""


def supervise(job: str, arguments: Sequence[str], restarts: int) -> int:
    """Run ``millstream`` with these arguments; start it again each time a signal kills it, or something in it hangs.

    Any other child that leaves by itself is not started again: its own restarts have been tried.

    Returns:
        The exit code of the last child; 128 + the signal's number if it was killed and not started again.
    """
    configure_logging(sys.stderr.isatty(), job)
    family = _Family()
    signal.signal(signal.SIGTERM, family.pass_on)
    signal.signal(signal.SIGINT, family.pass_on)
    in_a_row = 0
    while True:
        started = time.monotonic()
        code = family.run([sys.executable, "-m", "millstream", *arguments])
        if time.monotonic() - started >= HEALTHY_SECONDS:
            in_a_row = 0
        last = code if code >= 0 else 128 - code
        if (code >= 0 and code != HANGS) or family.control.stop_requested:
            return last
        ended_by = "hang" if code == HANGS else signal.Signals(-code).name
        if in_a_row >= restarts:
            log.error("killed too often", signal=ended_by, restarts=in_a_row)
            return last
        pause = min(FIRST_PAUSE * 2**in_a_row, LONGEST_PAUSE)
        log.warning("job was killed, starting it again", signal=ended_by, after_seconds=pause)
        family.control.sleep(pause)
        if family.control.stop_requested:
            return last
        in_a_row += 1


class _Family:
    """The child, and the signals that are meant for it."""

    def __init__(self) -> None:
        self.control = Control()
        self._child: subprocess.Popen[bytes] | None = None
        self._waiting: list[int] = []

    def run(self, command: Sequence[str]) -> int:
        """Run the child to its end and return its code, as ``Popen`` gives it."""
        # Its own session: a Ctrl-C at the terminal reaches the child once, through us, and not twice.
        self._child = subprocess.Popen(command, start_new_session=True)
        while self._waiting:
            self._child.send_signal(self._waiting.pop())
        return self._child.wait()

    def pass_on(self, signum: int, frame: FrameType | None) -> None:
        """Hand a signal on, now or as soon as there is a child."""
        del frame
        self.control.stop()
        if self._child is None or self._child.returncode is not None:
            self._waiting.append(signum)
        else:
            self._child.send_signal(signum)
