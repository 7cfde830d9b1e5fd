"""Makes staged files visible, all of an epoch in one step where that was asked for."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
from millstream.connectors.durable import blame_disk, make_folder, make_folder_below, size_of, sync_folder
from millstream.connectors.files_layout import Layout, StagedFile
from millstream.engine.errors import ExternalError, JobError
from millstream.engine.failpoints import hit
from millstream.engine.sink import Committable, Committer

_LEFTOVER = re.compile(r"g\d+|epoch-\d+-[0-9a-f]{8}")


class _Marker(msgspec.Struct, frozen=True):
    """The last epoch made visible, and what was in it."""

    epoch: int
    digest: str


class FilesCommitter(Committer):
    """Renames the files of an epoch into place and remembers that it did."""

    def __init__(self, name: str, layout: Layout, atomic_epochs: bool) -> None:
        self._name = name
        self._layout = layout
        self._atomic_epochs = atomic_epochs

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Make an epoch visible; each step finds out whether it was already taken.

        Raises:
            ExternalError: the disk failed, or a staged file was taken away.
            JobError: the folder is ahead of the checkpoint.
        """
        files = [StagedFile.of(c.payload) for c in committables]
        with blame_disk(self._name, f"making epoch {epoch} visible"):
            marker = self._read_marker()
            wanted = _Marker(epoch, _digest(files))
            if marker is not None and marker.epoch >= epoch and marker != wanted:
                raise JobError(self._older_store(f"epoch {marker.epoch} of this job is in place already"))
            # Readers may have taken finished files away by now, so the marker decides and not the folder.
            if not files or marker == wanted:
                return
            self._publish(epoch, files)
            self._write_marker(wanted)

    def discard_uncommitted(self) -> None:
        """Remove what other generations of this job staged for this sink."""
        with blame_disk(self._name, "removing what an earlier start had left"):
            for entry in list(self._layout.staging.iterdir()):
                if _LEFTOVER.fullmatch(entry.name) and entry.name != self._layout.generation_name:
                    shutil.rmtree(entry)

    def _publish(self, epoch: int, files: Sequence[StagedFile]) -> None:
        if not self._atomic_epochs:
            self._move(files, self._layout.folder)
        elif len(files) == 1 and not files[0].partition:
            # The visible step: before it a reader finds nothing of the epoch, after it the only file.
            self._move(files, self._layout.folder)
        else:
            self._publish_folder(self._layout.epoch_name(epoch), files)

    def _publish_folder(self, name: str, files: Sequence[StagedFile]) -> None:
        gathered, visible = self._layout.staging / name, self._layout.folder / name
        if visible.exists():
            for file in files:
                self._check_in_place(file, visible)
            return
        make_folder(gathered)
        self._move(files, gathered)
        hit("files.gathered")
        # The visible step: before it a reader finds nothing of the epoch, after it every file.
        gathered.rename(visible)
        sync_folder(self._layout.folder)
        sync_folder(self._layout.staging)

    def _move(self, files: Sequence[StagedFile], target: Path) -> None:
        """Move staged files to their places below ``target``, durably; files that are there already stay."""
        touched = set()
        for file in files:
            staged = self._layout.staging / file.staged
            size = size_of(staged)
            if size is None:
                self._check_in_place(file, target)
                touched.add(target / file.partition)
                continue
            if size != file.size:
                raise ExternalError(self._changed(file, staged, size))
            folder = make_folder_below(target, file.partition)
            if (folder / file.final).exists():
                raise JobError(self._older_store(f"the file {folder / file.final} exists already"))
            staged.rename(folder / file.final)
            touched.add(folder)
            hit("files.rename")
        for folder in sorted(touched):
            sync_folder(folder)

    def _check_in_place(self, file: StagedFile, target: Path) -> None:
        """Raise unless the file was moved already."""
        size = size_of(target / file.path)
        if size is None:
            raise ExternalError(
                f"{self._name}: the {file.rows} rows of {file.final} are lost: the file is neither staged at "
                f"{self._layout.staging / file.staged} nor in its place at {target / file.path}; some other "
                "program has removed it. Put it back and start the job again"
            )
        if size != file.size:
            raise ExternalError(self._changed(file, target / file.path, size))

    def _changed(self, file: StagedFile, path: Path, size: int) -> str:
        return (
            f"{self._name}: {path} has {size} bytes, but {file.size} were written: some other program has "
            "changed it, or the disk has lost part of it. Put the file back as it was and start the job again"
        )

    def _read_marker(self) -> _Marker | None:
        try:
            return msgspec.json.decode(self._layout.marker.read_bytes(), type=_Marker)
        except (FileNotFoundError, msgspec.DecodeError):
            # Torn by a power cut: it is a short cut only, the folder itself still tells what is in place.
            return None

    def _write_marker(self, marker: _Marker) -> None:
        fresh = self._layout.marker.with_name("committed.new")
        fresh.write_bytes(msgspec.json.encode(marker))
        fresh.replace(self._layout.marker)

    def _older_store(self, found: str) -> str:
        return (
            f"{self._name}: {found} in {self._layout.folder}, but the checkpoint store knows nothing of it: an "
            "older copy of the store has been put back, and going on would write the same rows twice. Put the newer "
            f"store back; or, if the job is to go back in time, remove its files (part-{self._layout.tag}-*, "
            f"epoch-*-{self._layout.tag}) newer than the checkpoint, and {self._layout.marker}"
        )


def _digest(files: Sequence[StagedFile]) -> str:
    names = sorted(f"{file.path}:{file.size}" for file in files)
    return hashlib.blake2s("\n".join(names).encode()).hexdigest()
