"""A bounded queue between two subtasks. One thread puts, one takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from millstream.engine.element import Element

CAPACITY = 8
"""Elements a channel holds before its producer has to wait: about half a million rows of backlog."""


class Channel:
    """Elements in order from one subtask to another.

    ``put`` always succeeds: a producer asks ``full`` before it takes on more input, so that a batch already taken
    can be finished and a barrier can always be passed on. Without the second, two paths that part and meet again
    could block each other for ever.
    """

    __slots__ = ("_elements", "_wake_consumer", "_wake_producer", "capacity")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._elements: deque[Element] = deque()
        self._wake_consumer: Callable[[], None] = _nobody
        self._wake_producer: Callable[[], None] = _nobody

    def connect(self, wake_producer: Callable[[], None], wake_consumer: Callable[[], None]) -> None:
        """Say how to wake the workers at both ends."""
        self._wake_producer, self._wake_consumer = wake_producer, wake_consumer

    def __len__(self) -> int:
        return len(self._elements)

    @property
    def full(self) -> bool:
        """Whether the producer should wait."""
        return len(self._elements) >= self.capacity

    def put(self, element: Element) -> None:
        """Append an element."""
        self._elements.append(element)
        self._wake_consumer()

    def take(self) -> Element | None:
        """Remove the first element; None when there is none."""
        if not self._elements:
            return None
        was_full = self.full
        element = self._elements.popleft()
        if was_full:
            self._wake_producer()
        return element


def _nobody() -> None:
    """Wake nobody: the single-threaded scheduler looks at everything anyway."""
