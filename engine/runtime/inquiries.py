"""What a running job answers to other processes: queries, savepoints, what it is waiting for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import pyarrow as pa
from millstream.engine.element import Epoch
from millstream.engine.errors import JobError
from millstream.engine.runtime.build import Running
from millstream.engine.runtime.coordinator import Coordinator
from millstream.engine.runtime.stuck import holds
from millstream.engine.store.holds import HOLDS
from millstream.engine.store.savepoints import savepoint_path, write_passing, write_savepoint
from millstream.engine.store.store import CheckpointStore
from millstream.engine.time import Clock

_LOOK_EVERY: Final = 0.005


class Inquiries:
    """Answers for one store while its job runs, from any thread, over restarts of the job."""

    def __init__(self, store: CheckpointStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._running: Running | None = None
        self._coordinator: Coordinator | None = None
        self._closing = threading.Event()

    def attend(self, running: Running | None, coordinator: Coordinator | None) -> None:
        """From now on this generation runs, or none."""
        self._running, self._coordinator = running, coordinator

    def close(self) -> None:
        """End what is waiting."""
        self._closing.set()

    def answer(self, what: str, arguments: Mapping[str, Any]) -> pa.Table:
        """Answer one request.

        Raises:
            JobError: nobody knows what is asked, or it cannot be done.
        """
        match what:
            case "query":
                return self._store.query(arguments["sql"], arguments.get("epoch"))
            case "savepoint":
                return self._savepoint(arguments["name"])
            case "passing":
                return self._passing(arguments.get("epoch"))
            case "stuck":
                return self._stuck()
        raise JobError(f"the job does not know {what!r}: it runs another version of Millstream")

    def _savepoint(self, name: str) -> pa.Table:
        path = savepoint_path(self._store.path, name)  # refuses a bad name before the wait
        self._wait_for_checkpoint()
        cursor = self._store.cursor()
        try:
            manifest = write_savepoint(cursor, self._store.path, name)
        finally:
            cursor.close()
        return pa.table({"file": [path.name], "epoch": [int(manifest.epoch)]})

    def _passing(self, epoch: int | None) -> pa.Table:
        cursor = self._store.cursor()
        try:
            return pa.table(
                {"file": [write_passing(cursor, self._store.path, None if epoch is None else Epoch(epoch))]}
            )
        finally:
            cursor.close()

    def _stuck(self) -> pa.Table:
        running, coordinator = self._running, self._coordinator
        if running is None or coordinator is None:
            raise JobError("the job is starting or ending: ask again")
        found = [asdict(hold) for hold in holds(running, coordinator, self._clock.monotonic())]
        return pa.Table.from_pylist(found, schema=HOLDS)

    def _wait_for_checkpoint(self) -> None:
        """Have the job take a checkpoint now, and wait until it is committed."""
        asked: Coordinator | None = None
        before = 0
        while not self._closing.wait(_LOOK_EVERY):
            coordinator = self._coordinator
            if coordinator is None:
                continue
            if asked is None:
                before = coordinator.stats.last_epoch
            if coordinator is not asked:
                coordinator.request_checkpoint()
                asked = coordinator
            if coordinator.stats.last_epoch > before:
                return
        raise JobError("the job ended before its next checkpoint: ask again, of its last one")
