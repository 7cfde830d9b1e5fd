"""Trying again while something outside is away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from millstream.engine.logs import log

Result = TypeVar("Result")


def insist(
    attempt: Callable[[], Result],
    what: str,
    seconds: float,
    *,
    may_pass: Callable[[Exception], bool],
    explained: Callable[[Exception], str],
) -> Result:
    """Call ``attempt`` until it succeeds, with growing pauses, for so long; then let its error through.

    Only for what finds out by itself, each time, how much of it has been done.

    Args:
        what: names the sink or source, for the log.
        may_pass: whether the same may succeed later.
        explained: one line of what an error says.

    >>> insist(lambda: 7, "a sink", 30, may_pass=lambda error: isinstance(error, OSError), explained=str)
    7
    """
    until, pause = time.monotonic() + seconds, 0.02
    while True:
        try:
            return attempt()
        except Exception as error:
            if not may_pass(error) or time.monotonic() + pause > until:
                raise
            log.warning("trying again", what=what, error=explained(error), after_seconds=round(pause, 2))
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - only so that many do not come back together
        pause = min(2 * pause, 5.0)
