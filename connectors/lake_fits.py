"""What sinks of data lakes remember of their tables for the time of a generation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from millstream.connectors.lake_types import Fit
from millstream.engine.sink import SinkContext


@dataclass(frozen=True)
class Fits:
    """How rows fit the table of a running generation, as it was found at the start; its writers need not ask again."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _found: dict[tuple[str, int], Fit] = field(default_factory=dict)

    def of(self, context: SinkContext, look: Callable[[], Fit]) -> Fit:
        """Return that of a generation; those before it are forgotten."""
        key = (context.job_id, context.generation)
        with self._lock:
            if key not in self._found:
                found = look()
                self._found.clear()
                self._found[key] = found
            return self._found[key]
