"""Logs: readable lines on a terminal, JSON otherwise, both to standard error."""

from __future__ import annotations

import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import structlog
from millstream.cli.errors import notes, user_frames
from millstream.engine.errors import InternalError, MillstreamError


class Context:
    """Says in every line of which job it is, and after which checkpoint it was written."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.epoch: int | None = None

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Complete a line, as structlog's processors do."""
        del logger, method
        head = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
        return {**head, "job": self.job, "epoch": self.epoch, **event}


def configure_logging(terminal: bool, job: str) -> Context:
    """Set up logging for one job; the context returned is to be told of new checkpoints."""
    context = Context(job)
    last: Any
    if terminal:
        last = [structlog.dev.ConsoleRenderer()]
    else:
        last = [context, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        # Looked up for each line: a live view puts something of its own in its place.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    return context


def log_failure(error: Exception) -> None:
    """Log the error that ended the job: its cause in the user's files, and all frames if it was not foreseen."""
    foreseen = isinstance(error, MillstreamError) and not isinstance(error, InternalError)
    structlog.get_logger("millstream").error(
        "failed",
        error=type(error).__name__,
        message=str(error),
        notes=notes(error),
        frames=[f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in user_frames(error)],
        **({} if foreseen else {"traceback": "".join(traceback.format_exception(error))}),
    )
