"""Messages of an HTTP sink, as they wait in the checkpoint: their final bytes, and what names and orders them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.file_formats import json_lines
from millstream.engine.errors import DataError
from millstream.engine.sink import Committable, SinkContext, SinkWriter
from millstream.engine.source import LONGEST_TEXT, DeadLetter

_PIECE: Final = 2 << 20
"""Bytes of messages in one committable, or one message if it has more."""

_PLAIN: Final = "!\"#$&'()*+,-./:;<=>?@[]^_`{|}~ "
"""What may stand in a header besides letters and digits; the percent sign is what the rest is written with."""


Orders: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Message:
    """One that is to be sent.

    Attributes:
        epoch: that of the barrier it came before.
        subtask: the writer it came from.
        number: its place among those of that epoch and writer, from 0.
        key: what tells a receiver that it is the same one, however often it comes; printable ASCII.
        order: messages with equal ones are sent one after the other; None: whenever.
        attempts: how often it is tried, this time included: more than once, if it was put aside and replayed.
    """

    epoch: int
    subtask: int
    number: int
    key: str
    order: int | None
    body: bytes
    attempts: int = 1

    @property
    def place(self) -> tuple[int, int, int]:
        """What names it within its sink."""
        return self.epoch, self.subtask, self.number


class OutboxWriter(SinkWriter):
    """Keeps the rows of an epoch and makes messages of them at the barrier.

    Args:
        name: the sink's.
        key: the column that names messages; None: they are named by their place.
        order_by: the column whose equal values are sent one after the other; None: any order.
    """

    def __init__(self, name: str, key: str | None, order_by: str | None, context: SinkContext) -> None:
        self._name = name
        self._key = key
        self._order_by = order_by
        self._subtask = context.subtask
        self._batches: list[pa.RecordBatch] = []
        self._again: list[DeadLetter] = []

    def replay(self, messages: Sequence[DeadLetter]) -> None:
        """Take messages again that were put aside: with their bytes, and the keys that they had."""
        self._again += messages

    def write(self, batch: pa.RecordBatch) -> None:
        """Keep a batch. Raises DataError if a message has no name."""
        if self._key is not None and batch.column(self._key).null_count:
            raise DataError(
                f"{self._name}: a row has no {self._key!r}, its key for the receiver; leave such rows out, with "
                f"filter(col({self._key!r}).is_valid()), or do without key="
            )
        self._batches.append(batch)

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        """Hand over the epoch's messages, first those that are replayed."""
        del final
        again, self._again = self._again, []
        batches, self._batches = self._batches, []
        named = [_place(letter) for letter in again]
        orders = None if self._order_by is None else np.array([order for order, _ in named], "<i8")
        attempts = [letter.attempts + 1 for letter in again]
        pieces = self._packed(epoch, 0, [letter.raw for letter in again], [key for _, key in named], orders, attempts)
        if not batches:
            return pieces
        rows = pa.Table.from_batches(batches)
        bodies = [line for lines in json_lines(rows) for line in lines.splitlines()]
        keys = None if self._key is None else _texts(rows, self._key)
        orders = None if self._order_by is None else _hashes(rows, self._order_by)
        return pieces + self._packed(epoch, len(again), bodies, keys, orders)

    def _packed(
        self,
        epoch: int,
        first: int,
        bodies: Sequence[bytes],
        keys: Sequence[str] | None,
        orders: Orders | None,
        attempts: Sequence[int] | None = None,
    ) -> list[Committable]:
        """Return messages as committables; the first of them has the number ``first``."""
        pieces = []
        for start, end in _pieces(bodies) if bodies else ():
            ends = np.cumsum([len(body) for body in bodies[start:end]], dtype="<i8")
            payload: dict[str, Any] = {"epoch": epoch, "subtask": self._subtask, "first": first + start}
            payload |= {"ends": ends.tobytes(), "bodies": b"".join(bodies[start:end])}
            payload |= {} if keys is None else {"keys": list(keys[start:end])}
            payload |= {} if orders is None else {"orders": orders[start:end].tobytes()}
            payload |= {} if attempts is None else {"attempts": list(attempts[start:end])}
            pieces.append(Committable(payload))
        return pieces


def put_aside(message: Message, sink: str, refusal: str) -> DeadLetter:
    """Return what is kept of a message that was refused for good: all that it takes to send it again."""
    order = "" if message.order is None else f", order {message.order}"
    return DeadLetter(
        sink,
        f"epoch {message.epoch}, subtask {message.subtask}",
        f"message {message.number}{order}, key {message.key}",
        refusal,
        message.body,
        message.attempts,
    )


def _place(letter: DeadLetter) -> tuple[int, str]:
    """Return the order (0 if it had none) and the key of a message that was put aside.

    Raises:
        DataError: the key was too long to be kept.
    """
    if len(letter.position) > LONGEST_TEXT:
        raise DataError(
            f"{letter.source}: the key of {letter.position[:60]}... is too long to have been kept, so the message "
            "cannot be sent again under it: take the mark off with millstream deadletters replay --undo, export the "
            "letter and send it yourself"
        )
    place, _, key = letter.position.partition(", key ")
    _, _, order = place.partition(", order ")
    return int(order or 0), key


def _pieces(bodies: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    start = size = 0
    for at, body in enumerate(bodies):
        if size and size + len(body) > _PIECE:
            yield start, at
            start, size = at, 0
        size += len(body)
    yield start, len(bodies)


def _texts(rows: pa.Table, column: str) -> list[str]:
    return [quote(value, safe=_PLAIN) for value in pc.cast(rows[column], pa.string()).to_pylist()]


def _hashes(rows: pa.Table, column: str) -> Orders:
    texts = pc.cast(rows[column], pa.string()).to_pylist()
    return np.fromiter((zlib.crc32((text or "").encode()) for text in texts), "<i8", len(texts))


def unpacked(committables: Sequence[Committable], job_id: str, sink_id: str) -> list[Message]:
    """Return the messages of committables, in order.

    Without a key of the user's they are named by job, sink, epoch, subtask, number and a checksum of their bytes: it
    tells an epoch that was processed anew, after all copies of a job were put back to an older state, from the first.
    """
    messages = []
    for committable in committables:
        payload = committable.payload
        epoch, subtask, first = payload["epoch"], payload["subtask"], payload["first"]
        ends = np.frombuffer(payload["ends"], "<i8").tolist()
        orders = np.frombuffer(payload["orders"], "<i8").tolist() if "orders" in payload else None
        start = 0
        for index, end in enumerate(ends):
            body, start = payload["bodies"][start:end], end
            number = first + index
            key = f"{job_id}-{sink_id}-{epoch}-{subtask}-{number}-{zlib.crc32(body):08x}"
            key = payload["keys"][index] if "keys" in payload else key
            attempts = payload["attempts"][index] if "attempts" in payload else 1
            messages.append(Message(epoch, subtask, number, key, orders[index] if orders else None, body, attempts))
    return messages
