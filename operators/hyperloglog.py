"""HyperLogLog sketches, one per slot. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.codes import Bytes, Ints, byte_strings, validity
from millstream.engine.hashing import exchange_hash
from millstream.operators import sketch_kernels as kernels
from millstream.operators.accumulators import Accumulator
from millstream.operators.cells import resized

_FIRST_PAGES: Final = 4


class HyperLogLog(Accumulator):
    """Estimates how many different values each slot has had.

    Flajolet, Fusy, Gandouet and Meunier, "HyperLogLog: the analysis of a near-optimal cardinality estimation
    algorithm" (2007), with the estimator of Ertl, "New cardinality estimation algorithms for HyperLogLog sketches"
    (2017), which needs no tables for small numbers. A register keeps its maximum whatever the order of the rows, and
    two sketches are merged by the maxima of their registers.

    State: the registers, a byte each, or those that are not 0, four bytes each, while they are few.
    """

    def __init__(self) -> None:
        self._few: npt.NDArray[np.int32] = np.empty((0, kernels.FEW), np.int32)
        self._sizes: Ints = np.empty(0, np.int64)
        self._page_of: Ints = np.empty(0, np.int64)
        self._pages: Bytes = np.empty((_FIRST_PAGES, kernels.REGISTERS), np.uint8)
        self._count = 0

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        few = np.zeros((slots, kernels.FEW), np.int32)
        kept = min(slots, len(self._few))
        few[:kept] = self._few[:kept]
        self._few = few
        self._sizes = resized(self._sizes, slots)
        self._page_of = resized(self._page_of, slots, fill=-1)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        del times
        (values,) = arguments
        hashes, valid, row = exchange_hash([values]), validity(values), 0
        while True:
            row, self._count = kernels.add_hashes(
                slots, hashes, valid, row, self._few, self._sizes, self._page_of, self._pages, self._count
            )
            if row == len(slots):
                return
            self._grow(2 * len(self._pages))

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``."""
        offsets, data = byte_strings(columns[0])
        row = 0
        while True:
            row, self._count = kernels.merge_registers(
                slots, offsets, data, row, self._few, self._sizes, self._page_of, self._pages, self._count
            )
            if row == len(slots):
                return
            self._grow(2 * len(self._pages))

    def _grow(self, capacity: int) -> None:
        pages = np.empty((capacity, kernels.REGISTERS), np.uint8)
        pages[: self._count] = self._pages[: self._count]
        self._pages = pages

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; int64."""
        estimates = np.empty(len(slots), np.float64)
        kernels.estimate(slots, self._few, self._sizes, self._page_of, self._pages, estimates)
        return pa.array(np.rint(estimates).astype(np.int64))

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``."""
        ends = np.zeros(len(slots) + 1, np.int64)
        np.cumsum(np.where(self._page_of[slots] >= 0, kernels.REGISTERS, 4 * self._sizes[slots]), out=ends[1:])
        data = np.empty(int(ends[-1]), np.uint8)
        kernels.write_registers(slots, self._few, self._sizes, self._page_of, self._pages, ends, data)
        parts = [None, pa.py_buffer(ends), pa.py_buffer(data)]
        return [pa.Array.from_buffers(pa.large_binary(), len(slots), parts)]

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        offsets, data = byte_strings(columns[0])
        whole = int((np.diff(offsets) == kernels.REGISTERS).sum())
        if self._count + whole > len(self._pages):
            self._grow(max(2 * len(self._pages), self._count + whole))
        self._count = kernels.read_registers(
            slots, offsets, data, self._few, self._sizes, self._page_of, self._pages, self._count
        )

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        # A whole page that a slot had stays unused until the slots are compacted.
        self._few[slots], self._sizes[slots], self._page_of[slots] = 0, 0, -1

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        self._few, self._sizes = self._few[kept], self._sizes[kept]
        old = self._page_of[kept]
        held = old >= 0
        self._count = int(held.sum())
        self._pages = self._pages[old[held]] if self._count else self._pages[:_FIRST_PAGES]
        self._page_of = np.where(held, np.cumsum(held) - 1, -1)
