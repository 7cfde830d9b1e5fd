"""Where the engine logs: to structlog as the program has set it up; to a program that has not, only warnings."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


class _Log:
    """Looks structlog's configuration up at each use: a library must not make one of its own."""

    def __getattr__(self, method: str) -> Any:
        return getattr(structlog.get_logger("millstream") if structlog.is_configured() else _warnings(), method)


def _warnings() -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
    )


log: Any = _Log()
"""Takes ``log.info("event", key=value)``."""
