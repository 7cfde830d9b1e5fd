"""Requests on their way from a server's threads into checkpoints, and their answers on the way back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from millstream.connectors.http_messages import Answer, Request

BUSY: Final = Answer(
    HTTPStatus.SERVICE_UNAVAILABLE,
    {"error": "too much is waiting to be processed; nothing of this request was taken in, send it again"},
    again=1,
)
CLOSED: Final = Answer(
    HTTPStatus.SERVICE_UNAVAILABLE,
    {"error": "the job is stopping or restarting, and whether this request counts is not certain; send it again"},
    again=1,
)


class Inbox:
    """Keeps requests until they are read, and after that until their checkpoint is durable.

    Numbers of messages count up over all starts of the job: a request is answered once the position in a durable
    checkpoint has reached the number of its last message. Thread-safe.

    Args:
        position: how many messages earlier generations have read.
        most_requests: so many may be unanswered.
        most_bytes: so many may wait to be read, or one request of any size.
    """

    def __init__(self, position: int, most_requests: int, most_bytes: int) -> None:
        self._lock = threading.Lock()
        self._position = position
        self._most_requests = most_requests
        self._most_bytes = most_bytes
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._read: deque[tuple[int, Request, Answer]] = deque()
        self._open = 0
        self._closed = False

    @property
    def position(self) -> int:
        """How many messages have been read."""
        return self._position

    @property
    def unanswered(self) -> int:
        """How many requests have come and have not been answered."""
        return self._open

    def put(self, request: Request) -> None:
        """Take a request, or answer at once that there is no room for it."""
        with self._lock:
            # What is larger than all the room there is fits in when nothing else waits.
            crowded = bool(self._waiting) and self._waiting_bytes + request.size > self._most_bytes
            if not (self._closed or crowded or self._open >= self._most_requests):
                self._waiting.append(request)
                self._waiting_bytes += request.size
                self._open += 1
                return
            closed = self._closed
        request.answer(CLOSED if closed else BUSY)

    def take(self, messages: int) -> list[Request]:
        """Return the oldest requests that wait: as many as have no more messages than that together, or one."""
        taken: list[Request] = []
        with self._lock:
            while self._waiting and (not taken or messages >= len(self._waiting[0].messages)):
                request = self._waiting.popleft()
                self._waiting_bytes -= request.size
                messages -= len(request.messages)
                taken.append(request)
        return taken

    def refuse(self, request: Request, answer: Answer) -> None:
        """Answer a request that was taken, and of which nothing is read."""
        with self._lock:
            self._open -= 1
        request.answer(answer)

    def keep(self, read: Sequence[tuple[Request, Answer]]) -> None:
        """Requests were read: each is to get its answer once a checkpoint covers it."""
        with self._lock:
            for request, answer in read:
                self._position += len(request.messages)
                if not self._closed:
                    self._read.append((self._position, request, answer))
            closed = self._closed
        if closed:
            for request, _ in read:
                request.answer(CLOSED)

    def committed(self, position: int) -> None:
        """A checkpoint with this position is durable: answer the requests it covers."""
        answered = []
        with self._lock:
            while self._read and self._read[0][0] <= position:
                answered.append(self._read.popleft())
            self._open -= len(answered)
        for _, request, answer in answered:
            request.answer(answer)

    def close(self) -> None:
        """Tell all who wait, and all who come, to try again: no checkpoint is certain to cover what they sent."""
        with self._lock:
            self._closed = True
            left = [*self._waiting, *(request for _, request, _ in self._read)]
            self._waiting.clear()
            self._read.clear()
            self._open, self._waiting_bytes = 0, 0
        for request in left:
            request.answer(CLOSED)
