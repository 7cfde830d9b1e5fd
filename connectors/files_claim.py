"""Who has published in a folder: a job that starts anew must not write the same rows again beside the old ones."""

from __future__ import annotations

from pathlib import Path

import msgspec
from millstream.connectors.durable import sync_file, sync_folder
from millstream.connectors.files_layout import Layout
from millstream.engine.errors import JobError
from millstream.engine.sink import SinkContext


class _Publisher(msgspec.Struct, frozen=True):
    """The last one of a job's stores from which files became visible; ``store`` is None if it ran without."""

    job: str
    job_id: str
    store: str | None


class Claim:
    """One job's claim to a folder: that what is in it under the job's name is all of this store.

    Jobs of other names may write to the same folder. The claim outlives the store, and lasts until the folder is
    removed: a folder that a reader has emptied still is one whose rows have been seen.
    """

    def __init__(self, name: str, layout: Layout, context: SinkContext) -> None:
        self._name = name
        self._layout = layout
        self._own = _Publisher(context.job, context.job_id, _as_text(context.store))
        self._taken = False

    def check(self) -> None:
        """Called at a start from nothing, before the folder is made.

        Raises:
            JobError: the job has published in the folder, from another store or without one.
        """
        if not self._layout.folder.exists():
            self._layout.claim.unlink(missing_ok=True)
        before = self._read()
        if before is not None and before.job_id != self._own.job_id:
            raise JobError(self._refusal(before))

    def take(self) -> None:
        """Make the claim durable; called before anything becomes visible."""
        if not self._taken and self._read() != self._own:
            fresh = self._layout.staging / "claim.new"
            fresh.write_bytes(msgspec.json.encode(self._own))
            sync_file(fresh)
            fresh.replace(self._layout.claim)
            sync_folder(self._layout.claim.parent)
        self._taken = True

    def _read(self) -> _Publisher | None:
        try:
            return msgspec.json.decode(self._layout.claim.read_bytes(), type=_Publisher)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _refusal(self, before: _Publisher) -> str:
        if before.store is None:
            how, first = "in a run without a store", ""
        elif before.store != self._own.store and Path(before.store).exists():
            how, first = f"with the store {before.store}", "Go on with that store. "
        else:
            how, first = f"with the store {before.store}, which is gone", "To go on, put that store back. "
        folder = self._layout.folder
        return (
            f"{self._name}: job {before.job!r} has written to {folder} before, {how}, and starts anew now: it would "
            f"write the same rows again beside the old ones. {first}To start over, remove {folder}, or write to "
            "another folder; to keep both, pass append=True to the sink"
        )


def _as_text(path: Path | None) -> str | None:
    return None if path is None else str(path)
