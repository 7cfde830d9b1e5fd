"""A bounded queue between two subtasks. One thread puts, one takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pyarrow as pa
from millstream.engine.element import Barrier, Element

CAPACITY = 8
"""Elements a channel holds before its producer has to wait: about half a million rows of backlog."""

ROWS_BEFORE_SLOW = 4_096
"""Rows a channel holds where its consumer may have its hands full for long: at a barrier they all become state."""


class Channel:
    """Elements in order from one subtask to another.

    ``put`` always succeeds: a producer asks ``full`` before it takes on more input, so that a batch already taken
    can be finished and a barrier can always be passed on. Without the second, two paths that part and meet again
    could block each other for ever.

    A consumer that has no room, but must come to a barrier, takes what stands before it all the same and owes it: it
    goes on counting as if it were still here until the consumer has room again. So however many barriers come
    meanwhile, no more gets past than fits in here.
    """

    __slots__ = (
        "_barriers",
        "_barriers_taken",
        "_elements",
        "_gone",
        "_owed",
        "_put",
        "_wake_consumer",
        "_wake_producer",
        "capacity",
        "rows",
    )

    def __init__(self, capacity: int = CAPACITY, rows: int | None = None) -> None:
        self.capacity = capacity
        self.rows = rows
        self._elements: deque[Element] = deque()
        self._put = _Size()  # by the producer, ever; each number is changed by one thread only
        self._gone = _Size()  # taken by the consumer and not owed
        self._owed = _Size()
        self._barriers = 0
        self._barriers_taken = 0
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
        if self._put.elements - self._gone.elements >= self.capacity:
            return True
        return self.rows is not None and self._put.rows - self._gone.rows >= self.rows

    @property
    def holds_barrier(self) -> bool:
        """Whether a barrier stands among the elements."""
        return self._barriers > self._barriers_taken

    def put(self, element: Element) -> None:
        """Append an element."""
        self._put.add(element)
        self._elements.append(element)
        if isinstance(element, Barrier):
            self._barriers += 1
        self._wake_consumer()

    def take(self, *, owed: bool = False) -> Element | None:
        """Remove the first element; None when there is none. If ``owed`` it goes on counting until ``settle``."""
        if not self._elements:
            return None
        element = self._elements.popleft()
        if isinstance(element, Barrier):
            self._barriers_taken += 1
        if owed:
            self._owed.add(element)
            return element
        was_full = self.full
        self._gone.add(element)
        if was_full:
            self._wake_producer()
        return element

    def settle(self) -> None:
        """There is room for what is owed."""
        if not self._owed.elements:
            return
        was_full, owed, self._owed = self.full, self._owed, _Size()
        self._gone.elements += owed.elements
        self._gone.rows += owed.rows
        if was_full:
            self._wake_producer()


class _Size:
    """So many elements, and rows in them."""

    __slots__ = ("elements", "rows")

    def __init__(self) -> None:
        self.elements = 0
        self.rows = 0

    def add(self, element: Element) -> None:
        self.elements += 1
        if isinstance(element, pa.RecordBatch):
            self.rows += element.num_rows


def _nobody() -> None:
    """Wake nobody: the single-threaded scheduler looks at everything anyway."""
