"""Messages that name their schema: a zero byte, the schema's id in a registry, and what the format adds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.connectors.message_decoders import MessageDecoder
from millstream.connectors.reading_plan import empty_batch
from millstream.connectors.schema_registry import UnknownSchema
from millstream.engine.errors import SchemaError

MAGIC: Final = 0
_HEADER: Final = struct.Struct(">bI")
_BAD_PREFIX: Final = "expected a message that begins with a zero byte and the id of its schema"


def header(id_: int) -> bytes:
    r"""Return how a message begins.

    >>> header(258)
    b'\x00\x00\x00\x01\x02'
    """
    return _HEADER.pack(MAGIC, id_)


class RegisteredMessages:
    """Decodes messages of one format, each as the schema says that it names.

    Args:
        columns: the schema to decode into.
        make: the decoder of what follows the id, for an id: called once for each. It raises UnknownSchema or
            SchemaError if the messages of that id cannot be decoded, ExternalError if the registry is away.
    """

    def __init__(self, columns: pa.Schema, make: Callable[[int], MessageDecoder]) -> None:
        self._schema = columns
        self._make = make
        self._decoders: dict[int, MessageDecoder] = {}
        self._unfit: dict[int, str] = {}

    def decode(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """As ``MessageDecoder.decode``. Raises ExternalError if the registry is away, and none of it is decoded."""
        bad: dict[int, str] = {}
        of_id: dict[int, list[int]] = {}
        for place, value in enumerate(values):
            if len(value) < _HEADER.size or value[0] != MAGIC:
                bad[place] = f"{_BAD_PREFIX}, got {value[: _HEADER.size]!r}"
            else:
                of_id.setdefault(int.from_bytes(value[1:5], "big"), []).append(place)
        batches: list[pa.RecordBatch] = []
        order: list[int] = []
        for id_, places in of_id.items():
            decoder = self._decoder(id_)
            if isinstance(decoder, str):
                bad |= dict.fromkeys(places, decoder)
                continue
            batch, unfit = decoder.decode([values[place][_HEADER.size :] for place in places])
            bad |= {places[index]: problem for index, problem in unfit.items()}
            order += [place for index, place in enumerate(places) if index not in unfit]
            batches.append(batch)
        return self._in_order(batches, order), bad

    def _in_order(self, batches: list[pa.RecordBatch], order: list[int]) -> pa.RecordBatch:
        if len(batches) < 2:
            return batches[0] if batches else empty_batch(self._schema)
        return pa.concat_batches(batches).take(pa.array(np.argsort(order)))

    def _decoder(self, id_: int) -> MessageDecoder | str:
        """Return the decoder of an id, or what is wrong with its messages."""
        if id_ not in self._decoders and id_ not in self._unfit:
            try:
                self._decoders[id_] = self._make(id_)
            except UnknownSchema as error:
                # Another registry's, or one that this node of the registry has not heard of: asked again next time.
                return f"the registry knows no schema {id_}: {error}"
            except SchemaError as error:
                self._unfit[id_] = f"schema {id_}: {error}"
        return self._decoders.get(id_) or self._unfit[id_]
