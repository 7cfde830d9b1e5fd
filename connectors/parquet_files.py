"""Open Parquet files, lent to one reader at a time: a file is read as many splits, and opening it anew costs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq
from millstream.connectors.parquet_pruning import RowGroups
from millstream.connectors.reading_plan import BadFile
from millstream.engine.errors import ExternalError

if TYPE_CHECKING:
    from millstream.connectors.paths import InputPath

FOOTERS_KEPT: Final = 64
IDLE_FILES_KEPT: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class OpenFile:
    """An open file.

    Attributes:
        parquet: to read it by; for one thread at a time.
        columns: as Arrow types.
        groups: its row groups, as the footer describes them.
    """

    parquet: pq.ParquetFile
    columns: pa.Schema
    groups: RowGroups


class ParquetFiles:
    """Remembers the footers of the last files, and keeps a few files open that nobody reads now. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._footers: OrderedDict[tuple[InputPath, int], pq.FileMetaData] = OrderedDict()
        self._idle: list[tuple[tuple[InputPath, int], OpenFile]] = []

    def take(self, path: InputPath, size: int) -> OpenFile:
        """Open a file of so many bytes, or take it as it stands open.

        Raises:
            BadFile: it is not a Parquet file, or damaged.
            ExternalError: it cannot be read.
        """
        with self._lock:
            for at, (key, file) in enumerate(self._idle):
                if key == (path, size):
                    del self._idle[at]
                    return file
            footer = self._footers.get((path, size))
        parquet = open_parquet(path, footer)
        columns = parquet.schema_arrow
        self._remember((path, size), parquet.metadata)
        return OpenFile(parquet, columns, RowGroups(parquet.metadata, columns))

    def give_back(self, path: InputPath, size: int, file: OpenFile) -> None:
        """Say that nobody reads a file any more, for now."""
        with self._lock:
            self._idle.append(((path, size), file))
            dropped = self._idle[:-IDLE_FILES_KEPT]
            del self._idle[:-IDLE_FILES_KEPT]
        for _, old in dropped:
            old.parquet.close(force=True)

    def _remember(self, key: tuple[InputPath, int], footer: pq.FileMetaData) -> None:
        with self._lock:
            self._footers[key] = footer
            self._footers.move_to_end(key)
            if len(self._footers) > FOOTERS_KEPT:
                self._footers.popitem(last=False)


def open_parquet(path: InputPath, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a file and read its footer, if it is not known.

    Raises:
        BadFile: it is not a Parquet file, or damaged.
        ExternalError: it cannot be read.
    """
    try:
        # Reading ahead by other threads costs more than it gains on a local disk; from a store it saves requests.
        local = isinstance(path, Path)
        source = path if isinstance(path, Path) else path.open()
        return pq.ParquetFile(source, metadata=footer, pre_buffer=not local, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise refusal(path, error) from error


def refusal(path: InputPath, error: Exception) -> Exception:
    """Tell damage, which stays, from trouble with the disk, which may pass."""
    if isinstance(error, OSError) and error.errno is not None:
        return ExternalError(
            f"{path} cannot be read: {error.strerror or error}; see that it is there and may be read, the job goes on "
            "from its last checkpoint"
        )
    return BadFile(f"it is not a Parquet file, or damaged: {error}")
