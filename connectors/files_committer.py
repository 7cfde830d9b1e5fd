"""Makes staged files visible, all of an epoch in one step where that was asked for.

A reader may take a file away as soon as it can see it, and the process may die at any moment. So a file that is
neither staged nor in its place is either taken or lost, and one durable note tells which: before the first file of an
epoch is moved, and once all of them were seen to be there, ``publishing`` names the epoch and what is in it. From
then on what is missing has been visible, and is a reader's. Without that note nothing has been, and it is lost.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from millstream.connectors.durable import (
    blame_disk,
    make_folder,
    make_folder_below,
    overwrite,
    size_of,
    sync_folder,
)
from millstream.connectors.files_claim import Claim
from millstream.connectors.files_layout import Layout, StagedFile
from millstream.engine.errors import ExternalError, JobError
from millstream.engine.failpoints import hit
from millstream.engine.sink import Committable, Committer

_LEFTOVER: Final = re.compile(r"g\d+|epoch-\d+-[0-9a-f]{8}")

_MARKER_BYTES: Final = 256
"""Both numbers and a digest fit; a size that stays is overwritten without a word to the file system's journal."""


class _Marker(msgspec.Struct, frozen=True):
    """An epoch, and what was in it."""

    epoch: int
    digest: str


class FilesCommitter(Committer):
    """Renames the files of an epoch into place and remembers that it did."""

    def __init__(self, name: str, layout: Layout, claim: Claim, atomic_epochs: bool) -> None:
        self._name = name
        self._layout = layout
        self._claim = claim
        self._atomic_epochs = atomic_epochs
        self._announced = False

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Make an epoch visible; each step finds out whether it was already taken.

        Raises:
            ExternalError: the disk failed, or a staged file was taken away.
            JobError: the folder is ahead of the checkpoint.
        """
        files = [StagedFile.of(c.payload) for c in committables]
        with blame_disk(self._name, f"making epoch {epoch} visible"):
            wanted = _Marker(epoch, _digest(files))
            publishing, committed = _read(self._layout.publishing), _read(self._layout.committed)
            for known in (publishing, committed):
                if known is not None and known.epoch >= epoch and known != wanted:
                    raise JobError(self._older_store(f"epoch {known.epoch} of this job is in place already"))
            if not files or committed == wanted:
                return
            if publishing != wanted:
                self._check_all_there(epoch, files)
                self._claim.take()
                self._announce(wanted)
            hit("files.publishing")
            self._publish(epoch, files)
            hit("files.visible")
            self._say_committed(wanted)

    def discard_uncommitted(self) -> None:
        """Remove what other generations of this job staged for this sink."""
        with blame_disk(self._name, "removing what an earlier start had left"):
            for entry in list(self._layout.staging.iterdir()):
                if _LEFTOVER.fullmatch(entry.name) and entry.name != self._layout.generation_name:
                    shutil.rmtree(entry)

    # -- before anything is visible ----------------------------------------------------------------------------

    def _check_all_there(self, epoch: int, files: Sequence[StagedFile]) -> None:
        """Raise unless every file is staged; or in its place already, as after somebody removed the markers."""
        name = self._layout.epoch_name(epoch)
        gathered, visible = self._layout.staging / name, self._layout.folder / name
        others = (gathered, visible) if self._in_a_folder(files) else (self._layout.folder,)
        for file in files:
            for path in (self._layout.staging / file.staged, *(other / file.path for other in others)):
                if self._is_whole(path, file):
                    break
            else:
                raise ExternalError(self._lost(file, others[-1]))

    def _announce(self, wanted: _Marker) -> None:
        """Write down, durably, that the files of an epoch may be visible from now on.

        It is overwritten in place. If a power cut tears it, nothing has been moved yet, and no marker is needed.
        """
        overwrite(self._layout.publishing, msgspec.json.encode(wanted).ljust(_MARKER_BYTES))
        if not self._announced:
            sync_folder(self._layout.staging)
            self._announced = True

    # -- making it visible: what is not staged any more has been moved, and may have been taken away ------------

    def _publish(self, epoch: int, files: Sequence[StagedFile]) -> None:
        if self._in_a_folder(files):
            self._publish_folder(self._layout.epoch_name(epoch), files)
        else:
            # For a whole epoch of one file, this rename is the visible step.
            self._move(files, self._layout.folder)

    def _in_a_folder(self, files: Sequence[StagedFile]) -> bool:
        return self._atomic_epochs and (len(files) > 1 or bool(files[0].partition))

    def _publish_folder(self, name: str, files: Sequence[StagedFile]) -> None:
        gathered, visible = self._layout.staging / name, self._layout.folder / name
        staged = any(size_of(self._layout.staging / file.staged) is not None for file in files)
        if staged and visible.exists():
            raise JobError(self._older_store(f"the folder {name} exists already"))
        # With neither it was visible, and is still, or a reader has taken all of it.
        if staged or gathered.exists():
            make_folder(gathered)
            self._move(files, gathered)
            for file in files:
                if not self._is_whole(gathered / file.path, file):
                    raise ExternalError(self._lost(file, visible))
            hit("files.gathered")
            # The visible step: before it a reader finds nothing of the epoch, after it every file.
            gathered.rename(visible)
        sync_folder(self._layout.folder)
        sync_folder(self._layout.staging)

    def _move(self, files: Sequence[StagedFile], target: Path) -> None:
        """Move the files that are still staged to their places below ``target``, durably."""
        for file in files:
            staged = self._layout.staging / file.staged
            if not self._is_whole(staged, file):
                continue
            folder = make_folder_below(target, file.partition)
            if (folder / file.final).exists():
                raise JobError(self._older_store(f"the file {folder / file.final} exists already"))
            staged.rename(folder / file.final)
            hit("files.rename")
        for folder in sorted({target / file.partition for file in files}):
            # A reader that has taken all files of a partition may have removed its folder too.
            if folder.exists():
                sync_folder(folder)

    def _say_committed(self, wanted: _Marker) -> None:
        """Say that an epoch is visible. It may be torn by a power cut: it saves steps, ``publishing`` is the truth."""
        fresh = self._layout.committed.with_name("committed.new")
        fresh.write_bytes(msgspec.json.encode(wanted))
        fresh.replace(self._layout.committed)

    # -- what can be wrong ---------------------------------------------------------------------------------------

    def _is_whole(self, path: Path, file: StagedFile) -> bool:
        """Whether the file is there; raises ExternalError if it is not the one that was written."""
        size = size_of(path)
        if size not in (None, file.size):
            raise ExternalError(
                f"{self._name}: {path} has {size} bytes, but {file.size} were written: some other program has "
                "changed it, or the disk has lost part of it. Put the file back as it was and start the job again"
            )
        return size is not None

    def _lost(self, file: StagedFile, target: Path) -> str:
        return (
            f"{self._name}: the {file.rows} rows of {file.final} are lost: the file is neither staged at "
            f"{self._layout.staging / file.staged} nor in its place at {target / file.path}, and it was not visible "
            "yet; some other program has removed it. Put it back and start the job again"
        )

    def _older_store(self, found: str) -> str:
        markers = f"{self._layout.publishing} and {self._layout.committed.name} beside it"
        return (
            f"{self._name}: {found} in {self._layout.folder}, but the checkpoint store knows nothing of it: an "
            "older copy of the store has been put back, and going on would write the same rows twice. Put the newer "
            f"store back; or, if the job is to go back in time, remove its files (part-{self._layout.tag}-*, "
            f"epoch-*-{self._layout.tag}) newer than the checkpoint, and {markers}"
        )


def _read(marker: Path) -> _Marker | None:
    try:
        return msgspec.json.decode(marker.read_bytes(), type=_Marker)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _digest(files: Sequence[StagedFile]) -> str:
    names = sorted(f"{file.path}:{file.size}" for file in files)
    return hashlib.blake2s("\n".join(names).encode()).hexdigest()
