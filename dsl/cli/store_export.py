"""The content of a checkpoint as files that anything can read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from millstream.cli.state import relation
from millstream.cli.text import show_time
from millstream.engine.element import Epoch
from millstream.engine.errors import ExternalError, JobError

if TYPE_CHECKING:
    from millstream.engine.store.reader import StoreReader
    from millstream.engine.store.types import Manifest


def export_store(reader: StoreReader, out: Path, epoch: int | None) -> dict[str, int]:
    """Write a checkpoint to a new folder; return the rows of each file by its name.

    Raises:
        JobError: there is no checkpoint, or not this one, or the folder has something in it.
        ExternalError: the disk failed.
    """
    manifests = {manifest.epoch: manifest for manifest in reader.manifests()}
    if not manifests:
        raise JobError("the store holds no checkpoint yet: there is nothing to write")
    wanted = max(manifests) if epoch is None else epoch
    if Epoch(wanted) not in manifests:
        raise JobError(f"the store does not hold epoch {wanted}; it holds {', '.join(map(str, manifests))}")
    if out.exists() and any(out.iterdir()):
        raise JobError(f"{out} is not empty: give a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _write(reader, out, manifests[Epoch(wanted)], None if epoch is None else wanted)
    except OSError as error:
        raise ExternalError(f"cannot write to {out} ({error.strerror}): give another folder, or make room") from error


def _write(reader: StoreReader, out: Path, manifest: Manifest, epoch: int | None) -> dict[str, int]:
    written: dict[str, int] = {}
    for view in reader.state_views():
        rows = reader.query(f"SELECT * FROM {relation(view)}", epoch)  # noqa: S608 - the name is quoted
        name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', view)}.parquet"
        pq.write_table(rows, out / name)
        written[name] = rows.num_rows
    letters = reader.dead_letters()
    pq.write_table(letters, out / "dead_letters.parquet")
    written["dead_letters.parquet"] = letters.num_rows
    (out / "checkpoint.json").write_text(json.dumps(_described(reader, manifest), indent=2, default=repr) + "\n")
    return written


def _described(reader: StoreReader, manifest: Manifest) -> dict[str, Any]:
    names = {id_: operator.name for id_, operator in manifest.operators.items()}
    return {
        "job_id": reader.job_id(),
        "epoch": manifest.epoch,
        "generation": manifest.generation,
        "kind": manifest.kind.value,
        "committed": show_time(manifest.committed_at),
        "operators": [{"id": o.id, "name": o.name, "kind": o.kind} for o in manifest.operators.values()],
        "positions": [
            {
                "source": names.get(p.source_id, p.source_id),
                "split": p.split.id,
                "position": p.position,
                "finished": p.finished,
            }
            for p in reader.positions(manifest.epoch)
        ],
        "watermarks": {names.get(id_, id_): show_time(time) for id_, time in manifest.watermarks.items()},
    }
