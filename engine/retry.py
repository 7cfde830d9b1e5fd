"""How often to try something outside again, and how long to wait before that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from millstream.engine.errors import JobError
from millstream.engine.time import Duration, micros


@dataclass(frozen=True, slots=True)
class Retry:
    """How often to call again, and how long to wait before that; see ``retry``.

    Attributes:
        attempts: calls of one row or request altogether, 1 or more.
        wait: microseconds before the second one.
        factor: by which the wait grows each time.
        longest: microseconds that no wait exceeds.
        on: the exceptions after which to call again.
    """

    attempts: int
    wait: int
    factor: float
    longest: int
    on: tuple[type[Exception], ...]

    def pause(self, failures: int, drawn: float) -> float:
        """Return the seconds to wait after so many failures: of what is due, between a half and all.

        Args:
            drawn: from 0 to 1, for the jitter: rows that failed together should not come again together.

        >>> rule = retry(5, wait="1s", factor=3, longest="5s")
        >>> [rule.pause(failures, 1.0) for failures in (1, 2, 3)], rule.pause(1, 0.0)
        ([1.0, 3.0, 5.0], 0.5)
        """
        due = min(self.wait * self.factor ** (failures - 1), self.longest)
        return due / 1_000_000 * (0.5 + drawn / 2)


def retry(
    attempts: int = 3,
    *,
    wait: Duration = "200ms",
    factor: float = 2.0,
    longest: Duration = "30s",
    on: type[Exception] | Sequence[type[Exception]] = Exception,
) -> Retry:
    """Say how often something outside is tried before it counts as failed: by ``map_async``, and by connectors.

    Args:
        attempts: calls altogether.
        wait: before the second call; a random part of up to a half is taken off, so that what failed together does
            not come again together.
        factor: by which the wait grows with each further call.
        longest: what it grows to at most.
        on: the exceptions after which to call again, ``TimeoutError`` among them; any other is final.

    Raises:
        JobError: a number is out of range, or ``on`` is not made of exceptions.
    """
    on = (on,) if isinstance(on, type) else tuple(on)
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise JobError(f"retry(): attempts must be a whole number from 1 on, got {attempts!r}")
    if not 1 <= factor <= 1_000:
        raise JobError(f"retry(): factor must be from 1 to 1000, got {factor!r}")
    for kind in on:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise JobError(f"retry(): on= takes exceptions, as in on=(OSError, TimeoutError), got {kind!r}")
    return Retry(attempts, micros(wait), float(factor), micros(longest), on)


NO_RETRY: Final = Retry(1, 0, 1.0, 0, ())
