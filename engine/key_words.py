"""Rows of key columns as machine words and back: what ``key_log`` keeps, compares and hashes.

Equal keys have equal words and different keys different ones: nulls are a key of their own, NaN equals NaN and -0.0
equals 0.0. Importing this module loads numba.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine import key_log_kernels as kernels
from millstream.engine.codes import (
    NO_MASK,
    Bools,
    Form,
    Ints,
    byte_strings,
    bytes_array,
    fixed_array,
    fixed_codes,
    form_of,
    validity,
)
from millstream.engine.errors import InternalError

MOST_COLUMNS: Final = 28
"""A key has no more: a bit of its first word says of each column whether it is null."""

_WASTE: Final = 32
_NULLS: Final = 35
_WORDS: Final = (1 << _WASTE) - 1

_A = TypeVar("_A", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Packed:
    """Row i is ``words[starts[i]:starts[i + 1]]``, which are ``sizes[i]`` words. Not to be written to."""

    words: Ints
    starts: Ints
    sizes: Ints


class KeyWords(ABC):
    """How keys of some types become words.

    Attributes:
        width: words of every key; 0 if it differs. Then the first word's low 32 bits say how many follow.
    """

    width: int

    @abstractmethod
    def pack(self, arrays: Sequence[pa.Array]) -> Packed:
        """Return rows of key columns as words."""

    @abstractmethod
    def unpack(self, words: Ints, at: Ints) -> list[pa.Array]:
        """Return the key columns of the keys that begin at these indices of ``words``."""


class PlainWords(KeyWords):
    """Keys of numbers, times and booleans, none of them null: a word per column.

    >>> plain = PlainWords([pa.int64(), pa.float64()])
    >>> packed = plain.pack([pa.array([7, 8]), pa.array([1.5, 2.5])])
    >>> [column.to_pylist() for column in plain.unpack(packed.words, packed.starts[1:2])]
    [[8], [2.5]]
    """

    def __init__(self, types: Sequence[pa.DataType]) -> None:
        self._types = tuple(types)
        self.width = len(self._types)

    @staticmethod
    def fits(types: Sequence[pa.DataType]) -> bool:
        """Whether values of all these types are one word each."""
        return all(form_of(type, f"key column {number}") is Form.FIXED for number, type in enumerate(types))

    def pack(self, arrays: Sequence[pa.Array]) -> Packed:
        """As ``KeyWords.pack``."""
        codes = [fixed_codes(array) for array in arrays]
        words = codes[0] if len(codes) == 1 else np.stack(codes, axis=1).reshape(-1)
        return _packed(words, np.arange(0, len(words) + 1, self.width, dtype=np.int64))

    def unpack(self, words: Ints, at: Ints) -> list[pa.Array]:
        """As ``KeyWords.unpack``."""
        return [fixed_array(words[at + number], NO_MASK, type) for number, type in enumerate(self._types)]


class AnyWords(KeyWords):
    """Keys of any types, nulls among them.

    A key is a head (how many words follow, unused bytes of the last one, which columns are null), a word per value
    that fits one, the length of every byte string but the last, and the byte strings, each from a new word on.

    >>> any_words = AnyWords([pa.string(), pa.int64()])
    >>> packed = any_words.pack([pa.array(["millstream", None]), pa.array([1, 2])])
    >>> [column.to_pylist() for column in any_words.unpack(packed.words, packed.starts[:-1])]
    [['millstream', None], [1, 2]]
    """

    def __init__(self, types: Sequence[pa.DataType]) -> None:
        if len(types) > MOST_COLUMNS:
            raise InternalError(f"a key has at most {MOST_COLUMNS} columns, got {len(types)}")
        self._types = tuple(types)
        self.width = 0
        forms = [form_of(type, f"key column {number}") for number, type in enumerate(types)]
        self._fixed = [number for number, form in enumerate(forms) if form is Form.FIXED]
        self._bytes = [number for number, form in enumerate(forms) if form is Form.BYTES]
        self._before_bytes = 1 + len(self._fixed) + max(0, len(self._bytes) - 1)

    def pack(self, arrays: Sequence[pa.Array]) -> Packed:
        """As ``KeyWords.pack``."""
        rows = len(arrays[0])
        valids = [validity(array) for array in arrays]
        strings = {number: byte_strings(arrays[number]) for number in self._bytes}
        lengths = [_where(valids[number], np.diff(strings[number][0])) for number in self._bytes]
        sizes = np.full(rows, self._before_bytes, np.int64)
        for length in lengths:
            sizes += (length + 7) >> 3
        starts = np.zeros(rows + 1, np.int64)
        np.cumsum(sizes, out=starts[1:])
        words = np.zeros(int(starts[-1]), np.int64)
        at = starts[:-1].copy()
        waste = -lengths[-1] & 7 if lengths else np.int64(0)
        words[at] = (sizes - 1) | waste << _WASTE | _null_bits(valids, rows)
        for number in self._fixed:
            at += 1
            words[at] = _where(valids[number], fixed_codes(arrays[number]))
        for length in lengths[:-1]:
            at += 1
            words[at] = length
        at += 1
        for number in self._bytes:
            offsets, data = strings[number]
            kernels.pack_bytes(frozen(offsets), frozen(data), valids[number], at, words.view(np.uint8))
        return _packed(words, starts)

    def unpack(self, words: Ints, at: Ints) -> list[pa.Array]:
        """As ``KeyWords.unpack``."""
        heads = words[at]
        end = at + 1 + (heads & _WORDS)
        nulls = heads >> _NULLS
        columns: dict[int, pa.Array] = {}
        at = at.copy()
        for number in self._fixed:
            at += 1
            columns[number] = fixed_array(words[at], _valid(nulls, number), self._types[number])
        lengths = []
        for _ in self._bytes[:-1]:
            at += 1
            lengths.append(words[at])
        at += 1
        for number in self._bytes:
            length = lengths.pop(0) if number != self._bytes[-1] else 8 * (end - at) - (heads >> _WASTE & 7)
            columns[number] = _strings(words, at, length, _valid(nulls, number), self._types[number])
        return [columns[number] for number in range(len(self._types))]


def _packed(words: Ints, starts: Ints) -> Packed:
    return Packed(frozen(words), frozen(starts), frozen(np.diff(starts)))


def frozen(array: npt.NDArray[_A]) -> npt.NDArray[_A]:
    """Return a view that cannot be written to: kernels are compiled anew for each kind, so let there be one."""
    view = array.view()
    view.flags.writeable = False
    return view


def _where(valid: Bools, codes: Ints) -> Ints:
    """The codes, 0 for nulls: what stands under a null must not tell keys apart."""
    return np.where(valid, codes, 0) if len(valid) else codes


def _null_bits(valids: Sequence[Bools], rows: int) -> Ints:
    bits = np.zeros(rows, np.int64)
    for number, valid in enumerate(valids):
        if len(valid):
            bits |= np.where(valid, 0, 1 << (_NULLS + number))
    return bits


def _valid(nulls: Ints, number: int) -> Bools:
    null = nulls >> number & 1 != 0
    return ~null if bool(null.any()) else NO_MASK


def _strings(words: Ints, at: Ints, lengths: Ints, valid: Bools, type: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(at) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    data = np.empty(int(offsets[-1]), np.uint8)
    kernels.unpack_bytes(words.view(np.uint8), at, offsets, data)
    bitmap = pa.array(valid).buffers()[1] if len(valid) else None
    parts = [bitmap, pa.py_buffer(offsets), pa.py_buffer(data)]
    return bytes_array(pa.Array.from_buffers(pa.large_binary(), len(at), parts), type)
