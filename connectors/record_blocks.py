"""Cuts a text file into blocks of whole records, and knows where every record stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from millstream.connectors.byte_input import ByteInput

Offsets = npt.NDArray[np.int64]

_READ_SIZE: Final = 1 << 20  # decoding is fastest when a block fits into the processor's cache
LONGEST_QUOTED: Final = 16 << 20
"""How far, in bytes, a closing quote is looked for before its opening quote is taken for a mistake."""


class FindEnds(Protocol):
    """Finds the ends of records."""

    def __call__(self, text: npt.NDArray[np.uint8]) -> tuple[Offsets, bool]:
        """Return the offset after each record, and whether the text stops inside quotes."""
        ...


def line_ends(text: npt.NDArray[np.uint8]) -> tuple[Offsets, bool]:
    r"""Return the offset after each newline.

    >>> line_ends(np.frombuffer(b"a\nbc\nd", np.uint8))[0].tolist()
    [2, 5]
    """
    return np.flatnonzero(text == 10) + 1, False


@dataclass(frozen=True, slots=True)
class Block:
    """Whole records, one after the other.

    Attributes:
        text: their bytes.
        ends: the offset in ``text`` after each of them.
        offset: where in the file the first one starts.
        line: the number of its first line, from 1.
        problem: why its only record is bad, if that is known already.
    """

    text: bytes
    ends: Offsets
    offset: int
    line: int
    problem: str | None = None

    def record(self, index: int) -> bytes:
        """Return the bytes of one record, with its newline."""
        return self.text[self.start(index) : int(self.ends[index])]

    def start(self, index: int) -> int:
        """Return where in ``text`` a record starts."""
        return int(self.ends[index - 1]) if index else 0

    def line_of(self, index: int) -> int:
        """Return the number of a record's first line."""
        return self.line + self.text.count(b"\n", 0, self.start(index))


class RecordBlocks:
    """Goes through a file block by block. ``offset`` and ``line`` are those of the next record."""

    def __init__(self, source: ByteInput, find_ends: FindEnds) -> None:
        self._source = source
        self._find_ends = find_ends
        self._text = b""
        self._ends: Offsets = np.empty(0, np.int64)
        self._at = 0
        self._unterminated: str | None = None
        self._look_again = False
        self._begin(0, 1)

    def seek(self, offset: int, line: int) -> None:
        """Go to the start of a record."""
        self._source.seek(offset)
        self._begin(offset, line)

    def next(self, most: int) -> Block | None:
        """Return the next records, at most so many; None at the end of the file.

        Raises:
            BadFile: the file is damaged; the records before the damage have been returned.
            ExternalError: it cannot be read.
        """
        if self._at == len(self._ends):
            if self._unterminated is None:
                self._fill()
            if self._unterminated is not None:
                return self._bad_line(self._unterminated)
            if self._at == len(self._ends):
                return None
        upto = min(self._at + most, len(self._ends))
        start = int(self._ends[self._at - 1]) if self._at else 0
        text = self._text[start : int(self._ends[upto - 1])]
        block = Block(text, self._ends[self._at : upto] - start, self.offset, self.line)
        self._at = upto
        self._pass(text)
        return block

    def skip_byte_order_mark(self) -> None:
        """Go past the three bytes that some programs put before UTF-8."""
        if self.offset == 0 and self._source.read(3) == b"\xef\xbb\xbf":
            self._begin(3, 1)
        else:
            self.seek(self.offset, self.line)

    def _begin(self, offset: int, line: int) -> None:
        self.offset, self.line = offset, line
        self._text = b""
        self._ends, self._at = np.empty(0, np.int64), 0
        self._unterminated = None
        self._look_again = False

    def _fill(self) -> None:
        """Read until there is a whole record, or nothing more to read."""
        rest = self._text[int(self._ends[-1]) :] if len(self._ends) else self._text
        self._ends, self._at = np.empty(0, np.int64), 0
        size = 0 if self._look_again else _READ_SIZE
        self._look_again = False
        while not len(self._ends) and self._unterminated is None:
            more = self._source.read(size)
            self._text = rest = rest + more
            if not rest:
                return
            self._find(at_end=len(more) < size)
            size = max(_READ_SIZE, 2 * size)  # a record longer than a block is looked through again each time

    def _find(self, at_end: bool) -> None:
        """Set the ends of the records in the text, or say that a quote in the first of them is never closed."""
        self._ends, in_quotes = self._find_ends(np.frombuffer(self._text, np.uint8))
        lengths = np.diff(self._ends, prepend=0)
        too_long = np.flatnonzero(lengths > LONGEST_QUOTED)
        suspects = [
            int(i) for i in too_long if self._has_newline(int(self._ends[i] - lengths[i]), int(self._ends[i]) - 1)
        ]
        if suspects:
            self._ends = self._ends[: suspects[0]]
            self._look_again = True
        if len(self._ends):
            return
        long_open = in_quotes and len(self._text) > LONGEST_QUOTED and self._has_newline(0, len(self._text))
        if suspects or long_open:
            self._unterminated = f"a quote is opened and not closed within {LONGEST_QUOTED >> 20} MiB"
        elif at_end and in_quotes:
            self._unterminated = "a quote is opened and never closed"
        elif at_end:
            self._ends = np.array([len(self._text)], np.int64)

    def _has_newline(self, start: int, end: int) -> bool:
        return self._text.find(b"\n", start, end) >= 0

    def _bad_line(self, problem: str) -> Block:
        """Give up the line with the open quote, and look at what follows as if it had not been there."""
        end = self._text.find(b"\n") + 1 or len(self._text)
        line, self._text = self._text[:end], self._text[end:]
        block = Block(line, np.array([end], np.int64), self.offset, self.line, problem)
        self._unterminated, self._look_again = None, True
        self._pass(line)
        return block

    def _pass(self, text: bytes) -> None:
        self.offset += len(text)
        self.line += text.count(b"\n")
