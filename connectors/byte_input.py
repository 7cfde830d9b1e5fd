"""The bytes of a text file from any offset on: plain, or as a compressed file unpacks."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import pyarrow as pa
from millstream.connectors.reading_plan import BadFile, FileChanged
from millstream.engine.errors import ExternalError

if TYPE_CHECKING:
    from millstream.connectors.object_store import ObjectPath
    from millstream.connectors.paths import InputPath

COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Suffixes of compressed files, and the compressions they stand for."""

_FETCH_AT_ONCE: Final = 4 << 20
_SKIP_AT_A_TIME: Final = 1 << 20


class ByteInput(ABC):
    """Yields a file's bytes one stretch after the other."""

    @abstractmethod
    def seek(self, offset: int) -> None:
        """Go to an offset, counted in unpacked bytes."""

    @abstractmethod
    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; fewer only at the end, none after it.

        Raises:
            BadFile: the file is damaged.
            FileChanged: it is no longer as long as it was when it was found.
            ExternalError: it cannot be read.
        """

    def close(self) -> None:
        """Let go of the file."""


def open_bytes(path: InputPath, size: int) -> ByteInput:
    """Open a file of ``size`` bytes at its start; its suffix tells how it is compressed."""
    if path.suffix in COMPRESSIONS:
        return PackedBytes(path, size)
    return PlainBytes(path, size) if isinstance(path, Path) else ObjectBytes(path, size)


class PlainBytes(ByteInput):
    """An uncompressed file. It is open only while it is read: a source may have thousands of splits open."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._offset = 0

    def seek(self, offset: int) -> None:
        """Go to an offset."""
        self._offset = offset

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        try:
            with self._path.open("rb", buffering=0) as file:
                _check_size(os.fstat(file.fileno()).st_size, self._size)
                file.seek(self._offset)
                data = _read_fully(file, size)
        except OSError as error:
            raise _cannot_read(self._path, error) from error
        self._offset += len(data)
        return data


class ObjectBytes(ByteInput):
    """An uncompressed object, of which more is fetched than is asked for."""

    def __init__(self, path: ObjectPath, size: int) -> None:
        self._path = path
        self._size = size
        self._offset = 0
        self._file: BinaryIO | None = None

    def seek(self, offset: int) -> None:
        """Go to an offset."""
        self._offset = offset
        if self._file is not None:
            self._file.seek(offset)

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; raises as ``ObjectPath.open``, too."""
        if self._file is None:
            self._file = _opened(self._path, self._size)
            self._file.seek(self._offset)
        data = _read_fully(self._file, size)
        self._offset += len(data)
        return data

    def close(self) -> None:
        """Let go of the object."""
        if self._file is not None:
            self._file.close()
        self._file = None


class PackedBytes(ByteInput):
    """A compressed file: to go back, or forward, is to unpack it again up to there."""

    def __init__(self, path: InputPath, size: int) -> None:
        self._path = path
        self._size = size
        self._stream: Any = None
        self._offset = 0

    def seek(self, offset: int) -> None:
        """Go to an offset."""
        if offset < self._offset:
            self.close()
        while self._offset < offset:
            if not self.read(min(_SKIP_AT_A_TIME, offset - self._offset)):
                raise BadFile(f"it unpacks to {self._offset} bytes, and was read up to byte {offset} before")

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        try:
            if self._stream is None:
                self._stream = self._unpacking()
            data = _read_fully(self._stream, size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadFile(f"it cannot be unpacked after byte {self._offset}: {error}") from error
        except OSError as error:
            if error.errno is None:  # Arrow's and bz2's word for damaged data
                raise BadFile(f"it cannot be unpacked after byte {self._offset}: {error}") from error
            raise _cannot_read(self._path, error) from error
        self._offset += len(data)
        return data

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()
            self._file.close()
        self._stream, self._offset = None, 0

    def _unpacking(self) -> Any:
        self._file = _opened(self._path, self._size)
        if self._path.suffix == ".gz":
            return gzip.open(self._file)
        if self._path.suffix == ".bz2":
            return bz2.open(self._file)
        return pa.input_stream(self._file, compression=COMPRESSIONS[self._path.suffix])


def _opened(path: InputPath, size: int) -> BinaryIO:
    if not isinstance(path, Path):
        object_ = path.open()
        _check_size(object_.size, size)
        return io.BufferedReader(object_, _FETCH_AT_ONCE)
    local = path.open("rb")
    _check_size(os.fstat(local.fileno()).st_size, size)
    return local


def _check_size(size: int, expected: int) -> None:
    if size != expected:
        raise FileChanged(f"it had {expected} bytes when it was found, and has {size} now")


def _read_fully(file: Any, size: int) -> bytes:
    """Read until there are ``size`` bytes or the file ends: one ``read`` may bring less."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _cannot_read(path: InputPath, error: OSError) -> ExternalError:
    return ExternalError(
        f"{path} cannot be read: {error.strerror or error}; see that it is there and may be read, the job goes on from "
        "its last checkpoint"
    )
