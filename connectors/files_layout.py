"""Where a file sink's files are: finished ones in the folder, everything else in a staging folder beside it.

::

    out/                                        the folder's parent
    ├── revenue/                                the folder: finished files and nothing else
    │   ├── part-1f3a9c02-….parquet             an epoch of one file
    │   └── epoch-000000000017-1f3a9c02/        an epoch of several: the folder appeared in one rename
    │       ├── part-1f3a9c02-….parquet
    │       └── part-1f3a9c02-….parquet
    └── .millstream/revenue/
        ├── job-5d2e81c0                        who has published in the folder under a job's name
        └── <sink>/<job>/                       the staging folder
            ├── g3/….parquet.staged             what generation 3 has prepared
            ├── epoch-000000000018-1f3a9c02/    an epoch that is about to appear
            ├── publishing                      the last epoch of which files may have appeared
            └── committed                       the last epoch of which all have

Staging is beside the folder and not inside it because DuckDB's ``**`` and pathlib's walk hidden folders too:
a reader of ``out/revenue/**/*.parquet`` would see an epoch that is only half gathered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from millstream.connectors.durable import make_folder
from millstream.connectors.partition_path import escape
from millstream.engine.errors import JobError
from millstream.engine.sink import Committable, SinkContext


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file that is written and durable, and not yet visible.

    Attributes:
        staged: where it is, below the staging folder.
        partition: the folder it belongs in, ``day=2026-01-31/shop=7``, or ``""``.
        final: its name there.
        size: in bytes.
    """

    staged: str
    partition: str
    final: str
    rows: int
    size: int

    def committable(self) -> Committable:
        """As the checkpoint keeps it."""
        return Committable(asdict(self))

    @staticmethod
    def of(payload: Mapping[str, Any]) -> StagedFile:
        """Read a committable's payload back."""
        return StagedFile(**payload)

    @property
    def path(self) -> str:
        """Where it will be, below the folder."""
        return f"{self.partition}/{self.final}" if self.partition else self.final


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one sink in one generation of one job.

    Attributes:
        shared: the staging folders of all sinks that write to ``folder`` are below it.
        claim: who has published in ``folder`` under the job's name.
    """

    folder: Path
    staging: Path
    shared: Path
    claim: Path
    tag: str
    generation: int

    @staticmethod
    def of(folder: Path, home: Path, context: SinkContext) -> Layout:
        """Work out the places; touches nothing. Staging folders are below ``home``."""
        shared = home / folder.name
        staging = shared / escape(context.sink_id) / escape(context.job_id)
        # Other folders of that name may have the same ``home``, unless it is beside them.
        claimed = context.job if home.parent == folder.parent else f"{context.job}\0{folder}"
        claim = shared / f"job-{_short_hash(claimed)}"
        tag = _short_hash(f"{context.job_id}/{context.sink_id}")
        return Layout(folder, staging, shared, claim, tag, context.generation)

    def make(self) -> None:
        """Make both folders.

        Raises:
            OSError: they cannot be made.
            JobError: they are on different file systems, where nothing can be renamed from one to the other.
        """
        make_folder(self.folder)
        make_folder(self.generation_folder)
        if self.folder.stat().st_dev != self.staging.stat().st_dev:
            raise JobError(
                f"{self.folder} and its staging folder {self.staging} are on different file systems, so files "
                "cannot be moved over in one step; pass staging= with a folder outside of it, but on the same one"
            )

    @property
    def generation_folder(self) -> Path:
        """Where this generation stages."""
        return self.staging / self.generation_name

    @property
    def generation_name(self) -> str:
        """The name of that folder."""
        return f"g{self.generation}"

    @property
    def publishing(self) -> Path:
        """The file that names the last epoch this job has begun to make visible here."""
        return self.staging / "publishing"

    @property
    def committed(self) -> Path:
        """The file that names the last epoch this job has made visible here."""
        return self.staging / "committed"

    def epoch_name(self, epoch: int) -> str:
        """The name of the folder in which the files of an epoch appear together."""
        return f"epoch-{epoch:012d}-{self.tag}"


def _short_hash(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=4).hexdigest()
