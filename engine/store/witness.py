"""A second, tiny record of the last acknowledged epoch, beside the store.

A write-ahead log that was cut, or an older copy of the store put back, opens without any error. The witness
contradicts it. Two fixed slots are written in turn, so that a torn write leaves the other one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from millstream.engine.element import Epoch
from millstream.engine.errors import StoreCorrupt, StoreError
from millstream.engine.logs import log
from millstream.engine.store.catalog import Catalog

_SLOT: Final = 512
_MAGIC: Final = "millstream-witness-1"


def witness_path(store: Path) -> Path:
    """The witness file beside a store."""
    return store.with_name(store.name + ".witness")


class Witness:
    """Names the job and its last acknowledged epoch.

    Attributes:
        epoch: the last acknowledged epoch; None as long as there is no file.
    """

    def __init__(self, store: Path, job_id: str) -> None:
        self._path = witness_path(store)
        self._job_id = job_id
        self._fd = -1
        self.epoch = read_witness(store, job_id)

    def acknowledge(self, epoch: Epoch) -> None:
        """Write down, durably, that this epoch has been committed.

        Raises:
            OSError: it could not be written; what the file said before still stands.
        """
        if self._fd < 0:
            self._fd = self._create(epoch) if self.epoch is None else os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        os.pwrite(self._fd, _slot(self._job_id, epoch), _SLOT * (epoch % 2))
        os.fdatasync(self._fd)
        self.epoch = epoch

    def _create(self, epoch: Epoch) -> int:
        temporary = self._path.with_name(self._path.name + ".tmp")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, _slot(self._job_id, epoch) * 2, 0)
            os.fsync(fd)
            temporary.rename(self._path)
            sync_folder(self._path.parent)
        except OSError:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_witness(store: Path, job_id: str | None) -> Epoch | None:
    """Return the last epoch the witness saw acknowledged, None without a file.

    Raises:
        StoreCorrupt: the file is damaged in both slots, or belongs to another store than ``job_id``'s.
    """
    path = witness_path(store)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path} ({error.strerror}): its owner must run the job") from error
    slots = [s for s in (_parse(content[at : at + _SLOT]) for at in (0, _SLOT)) if s is not None]
    if not slots:
        raise StoreCorrupt(
            f"{path} is damaged, so nobody can tell whether {store.name} is the newest copy. If you are sure that it "
            f"is, remove {path.name} and start again"
        )
    job, epoch = max(slots, key=lambda slot: slot[1])
    if job_id is not None and job != job_id:
        raise StoreCorrupt(
            f"{path} belongs to job {job}, {store.name} to job {job_id}: one of the two was replaced. Put the right "
            f"store back; to go on with this one whatever has happened, remove {path.name}"
        )
    return epoch


def check_witness(store: Path, catalog: Catalog) -> None:
    """Refuse a store that is older than its witness says.

    Raises:
        StoreCorrupt: it is, or the witness is another job's, or damaged.
    """
    last, seen = catalog.last, read_witness(store, catalog.job_id)
    if seen is not None and (last is None or last.epoch < seen):
        found = last.epoch if last else None
        raise StoreCorrupt(
            f"{store} ends at epoch {found or 'none'}, but epoch {seen} had been acknowledged: an older copy of the "
            f"store was put back, or its .wal was lost or cut. Sinks may have published what this store does not "
            f"know. Put the newest {store.name} and {store.name}.wal back; to go on from epoch {found or 0} in spite "
            f"of this, and have effects twice, remove {store.name}.witness"
        )
    if seen is None and last is not None:
        log.warning("store.witness.missing", store=str(store), last_epoch=last.epoch)


def sync_folder(folder: Path) -> None:
    """Make the creation or renaming of files in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _slot(job_id: str, epoch: int) -> bytes:
    text = f"{_MAGIC} {job_id} {epoch}"
    checksum = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{text} {checksum}\n".encode().ljust(_SLOT, b"\0")


def _parse(slot: bytes) -> tuple[str, Epoch] | None:
    words = slot.rstrip(b"\0").decode("ascii", "replace").split()
    if len(words) != 4 or words[0] != _MAGIC or not words[2].isdigit():
        return None
    job, epoch = words[1], int(words[2])
    return (job, Epoch(epoch)) if slot.rstrip(b"\0") == _slot(job, epoch).rstrip(b"\0") else None
