"""Messages that name their schema: a zero byte, the schema's id in a registry, and what the format adds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

import numpy as np
import pyarrow as pa
from millstream.connectors.message_decoders import MessageDecoder
from millstream.connectors.reading_plan import empty_batch
from millstream.connectors.schema_registry import UnknownSchema
from millstream.engine.errors import SchemaError

Kind = TypeVar("Kind", bound=Hashable)

MAGIC: Final = 0
_HEADER: Final = struct.Struct(">bI")
_BAD_PREFIX: Final = "expected a message that begins with a zero byte and the id of its schema"


def header(id_: int) -> bytes:
    r"""Return how a message begins.

    >>> header(258)
    b'\x00\x00\x00\x01\x02'
    """
    return _HEADER.pack(MAGIC, id_)


class MixedMessages(Generic[Kind]):
    """Decodes messages of several kinds, each as what it begins with says.

    Args:
        columns: the schema to decode into.
        split: takes a message apart: its kind, and what is to be decoded. It raises ValueError if it cannot be.
        make: the decoder for a kind: called once for each. It raises UnknownSchema or SchemaError if such messages
            cannot be decoded, ExternalError if the registry is away.
    """

    def __init__(
        self,
        columns: pa.Schema,
        split: Callable[[bytes], tuple[Kind, bytes]],
        make: Callable[[Kind], MessageDecoder],
    ) -> None:
        self._schema = columns
        self._split = split
        self._make = make
        self._decoders: dict[Kind, MessageDecoder] = {}
        self._unfit: dict[Kind, str] = {}

    def decode(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """As ``MessageDecoder.decode``. Raises ExternalError if the registry is away, and none of it is decoded."""
        bad: dict[int, str] = {}
        of_kind: dict[Kind, tuple[list[int], list[bytes]]] = {}
        for place, value in enumerate(values):
            try:
                kind, rest = self._split(value)
            except ValueError as error:
                bad[place] = str(error)
                continue
            places, rests = of_kind.setdefault(kind, ([], []))
            places.append(place)
            rests.append(rest)
        batches: list[pa.RecordBatch] = []
        order: list[int] = []
        for kind, (places, rests) in of_kind.items():
            decoder = self._decoder(kind)
            if isinstance(decoder, str):
                bad |= dict.fromkeys(places, decoder)
                continue
            batch, unfit = decoder.decode(rests)
            bad |= {places[index]: problem for index, problem in unfit.items()}
            order += [place for index, place in enumerate(places) if index not in unfit]
            batches.append(batch)
        return self._in_order(batches, order), bad

    def _in_order(self, batches: list[pa.RecordBatch], order: list[int]) -> pa.RecordBatch:
        if len(batches) < 2:
            return batches[0] if batches else empty_batch(self._schema)
        return pa.concat_batches(batches).take(pa.array(np.argsort(order)))

    def _decoder(self, kind: Kind) -> MessageDecoder | str:
        """Return the decoder for a kind, or what is wrong with such messages."""
        if kind not in self._decoders and kind not in self._unfit:
            try:
                self._decoders[kind] = self._make(kind)
            except UnknownSchema as error:
                # Another registry's, or one that this node of the registry has not heard of: asked again next time.
                return f"the registry knows no schema {kind}: {error}"
            except SchemaError as error:
                self._unfit[kind] = f"schema {kind}: {error}"
        return self._decoders.get(kind) or self._unfit[kind]


class RegisteredMessages(MixedMessages[int]):
    """Decodes messages of one format, each as the schema says whose id it begins with; see ``MixedMessages``."""

    def __init__(self, columns: pa.Schema, make: Callable[[int], MessageDecoder]) -> None:
        super().__init__(columns, _id_and_rest, make)


def _id_and_rest(value: bytes) -> tuple[int, bytes]:
    if len(value) < _HEADER.size or value[0] != MAGIC:
        raise ValueError(f"{_BAD_PREFIX}, got {value[: _HEADER.size]!r}")
    return int.from_bytes(value[1 : _HEADER.size], "big"), value[_HEADER.size :]
