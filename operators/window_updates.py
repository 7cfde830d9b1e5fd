"""Results of windows that are shown before they are final: early ones, and ones that late rows correct."""

from __future__ import annotations

from dataclasses import dataclass

from millstream.engine.errors import JobError
from millstream.engine.time import Duration, micros, show_duration
from millstream.operators.count_window import CountWindow
from millstream.operators.windows import ClockWindow, Window


@dataclass(frozen=True, slots=True)
class Updates:
    """When a window shows results that may still change; what it emits is then a changelog.

    Attributes:
        early: how often the results of windows that have not ended are brought up to date, microseconds of processing
            time; 0: after every batch; None: never.
        correct: whether a window shows its result at its end, and corrects it after every batch with rows that come
            within the lateness; otherwise it waits for these.
    """

    early: int | None = None
    correct: bool = False

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return f"updates(early={self.early}, correct={self.correct})"

    def describe(self) -> str:
        """A few words for the plan."""
        parts = []
        if self.early is not None:
            parts.append(f"early every {show_duration(self.early)}" if self.early else "early with every batch")
        if self.correct:
            parts.append("corrected by late rows")
        return ", ".join(parts)


def updates_of(early: Duration | None, late: str) -> Updates | None:
    """Return what ``window(early=, late=)`` asks for, None if nothing. Raises JobError if it makes no sense.

    >>> updates_of("5s", "wait"), updates_of(None, "wait")
    (Updates(early=5000000, correct=False), None)
    """
    if late not in {"wait", "correct"}:
        raise JobError(f"window(late={late!r}): late is 'wait' or 'correct'")
    every = None if early is None else 0 if early == "batch" else micros(early)
    if every == 0 and early != "batch":
        raise JobError(f"window(early={early!r}): early is a time such as '5s', or 'batch' for after every batch")
    return None if every is None and late == "wait" else Updates(every, late == "correct")


def check_stream(window: object, *, changes: bool, timed: bool) -> None:
    """Raise JobError if windows cannot be of a stream.

    Args:
        changes: whether it is a changelog.
        timed: whether it has event time.
    """
    if changes and isinstance(window, (ClockWindow, CountWindow)):
        raise JobError(
            "window(): the stream is a changelog, whose rows may be taken back, and only windows of event time give "
            "rows back: by the clock, or counted, a row is in another window by then. Leave time='processing' out; or "
            "window the rows before they are made a changelog"
        )
    if isinstance(window, Window) and not timed:
        if changes:
            raise JobError(
                "window() needs event time, and this changelog has none: its rows are results over all time, or of "
                "rows of several times. Window the rows before that; deduplicate(), top() and windows keep event time"
            )
        raise JobError(
            "window() needs event time: name its column in job.read(..., event_time='paid_at'), and keep that column "
            "in select(), drop() and map()"
        )
