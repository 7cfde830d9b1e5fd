"""The checkpoint store: one DuckDB file, one writer, one transaction per epoch."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import duckdb
import pyarrow as pa
from millstream.engine.element import Epoch, Generation
from millstream.engine.errors import InternalError, StoreCorrupt, StoreError
from millstream.engine.failpoints import hit
from millstream.engine.logs import log
from millstream.engine.sink import Committable
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.catalog import (
    Catalog,
    Query,
    committables_of,
    count_positions,
    facts_of,
    load_catalog,
    pending_drops,
    positions_after_drops,
    written_to,
)
from millstream.engine.store.commit import Prepared, prepare, write
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.gather import FullFrom, starting_full_from
from millstream.engine.store.generation import declare_generation
from millstream.engine.store.instance import Instance, explain
from millstream.engine.store.letters import (
    ALL,
    LetterChange,
    Selection,
    add_letters,
    change_letters,
    count_letters,
    letters_of,
    replayable_letters,
)
from millstream.engine.store.lock import StoreLock
from millstream.engine.store.pruning import execute_pruning, plan_pruning
from millstream.engine.store.query import answer
from millstream.engine.store.restoring import restore_keyed, restore_rows
from millstream.engine.store.savepoints import sweep
from millstream.engine.store.schema import CREATE, FORMAT
from millstream.engine.store.types import (
    CheckpointData,
    Manifest,
    MarkedLetter,
    NodeLetters,
    OperatorState,
    SplitPosition,
    StoreFacts,
)
from millstream.engine.store.versions import pieces_of
from millstream.engine.store.witness import Witness, check_witness, read_witness, sync_folder, witness_path

_T = TypeVar("_T")


_FOLD_LOG_BYTES: Final = 16 * 1024 * 1024
"""Beyond this size the write-ahead log is folded into the file: opening replays about 300 MB of it a second."""

_FOLD_DELETED_ROWS: Final = 200_000
"""So many deleted rows are worth a fold: only that gives their space back."""


class CheckpointStore:
    """Everything a job must not forget. All methods but ``cursor`` and ``query`` belong to one thread.

    Attributes:
        path: the DuckDB file. Nothing else in this process may open it: closing it would drop DuckDB's lock.
        job_id: made once, when the store was.
        parent: of a fork, which checkpoint of which job it began with.

    >>> import tempfile
    >>> store = CheckpointStore.open(Path(tempfile.mkdtemp()) / "job.duckdb")
    >>> generation = store.begin_generation([])
    >>> store.commit(CheckpointData(Epoch(1), generation)).epoch
    1
    >>> store.close()
    """

    def __init__(self, path: Path, lock: StoreLock, instance: Instance, catalog: Catalog, witness: Witness) -> None:
        self.path = path
        self.job_id = catalog.job_id
        self.parent = catalog.parent
        self._lock = lock
        self._instance = instance
        self._catalog = catalog
        self._witness = witness
        self._full_from: dict[TableKey, FullFrom] = {}
        self._tables: dict[TableKey, StateTable] = {}
        self._began: Generation | None = None
        self._cuts: dict[TableKey, int | None] = {}
        self._deleted_rows = 0
        self._settled = True
        self._dead = ""
        self._removed = False

    @classmethod
    def open(cls, path: Path) -> CheckpointStore:
        """Lock and open a store; create it if it is not there.

        Raises:
            StoreLocked: another process has it.
            StoreCorrupt: it is damaged, or older than its witness says.
            StoreError: it cannot be read or written.
        """
        path = Path(path).absolute()
        with contextlib.ExitStack() as undo:
            _make_folder(path)
            lock = StoreLock.exclusive(path)
            undo.callback(lock.release)
            if not path.exists() and read_witness(path, None) is not None:
                raise StoreCorrupt(
                    f"{path} is gone, but the witness beside it says that it had checkpoints. Put it back; to start "
                    f"over on purpose, remove {path.name}.witness"
                )
            instance = Instance(path)
            undo.callback(instance.close)
            try:
                catalog = _create_tables(instance, path) or load_catalog(_query(instance))
            except duckdb.Error as error:
                raise explain(error, path, "read the store") from error
            witness = Witness(path, catalog.job_id)
            undo.callback(witness.close)
            check_witness(path, catalog)
            if catalog.parent is not None and catalog.parent.name is not None:
                raise StoreError(
                    f"{path} is a savepoint: start a job from it with --from {path} and a --store of its own"
                )
            sweep(path)
            undo.pop_all()
        return cls(path, lock, instance, catalog, witness)

    @property
    def generation(self) -> Generation:
        """The newest generation that has begun; 0: none has."""
        return self._catalog.generation

    def facts(self) -> StoreFacts:
        """What recovery reads before it decides."""
        return self._reading(lambda query: facts_of(query, self._catalog, self._witness.epoch))

    def shown_until(self, restored: Epoch | None) -> int:
        """The epoch up to which this job's sinks may have shown something, given the one it goes on from; 0: nothing.

        A fork has shown nothing of the checkpoint it began with: that was the first job.
        """
        begun_with = self.parent.epoch if self.parent is not None else 0
        return 0 if restored is None or restored == begun_with else int(restored)

    def begin_generation(
        self, operators: Sequence[OperatorState], dropped: Mapping[str, str] | None = None
    ) -> Generation:
        """Write down that the job starts with these operators; make their state tables and views.

        Args:
            dropped: (id, name) of operators, sources and sinks whose state is given up with this.

        Raises:
            StateMismatch: the last checkpoint's state does not fit them.
            StoreError: it could not be written.
        """
        generation = Generation(self._catalog.generation + 1)
        with self._transaction("begin a generation") as connection:
            declared = declare_generation(connection, self._catalog, generation, operators, dropped or {})
            hit("store.generation")
        # What a store without any epoch knows is what has just been declared.
        self._catalog = declared if generation == 1 and not dropped else self._reading(load_catalog)
        self._settled = False
        last = self._catalog.last
        restored = {key: table.full_from for key, table in last.tables.items()} if last else {}
        self._full_from = starting_full_from(operators, restored)
        self._tables = {(o.id, t.name): t for o in operators for t in o.tables}
        self._began = generation
        return generation

    def settle(self) -> None:
        """Fold what the generation has declared into the file; ``commit`` sees to it, unless it has been done before.

        Raises:
            StoreError: it could not be done.
        """
        # DuckDB has had bugs in replaying DDL: let there be none in the log when an epoch is.
        if not self._settled:
            self._fold_log()
            self._settled = True

    def commit(self, data: CheckpointData) -> Manifest:
        """Make an epoch durable, all of it or nothing.

        Raises:
            StoreError: it was not committed, for certain; or, if the message says that nobody knows, this store
                object refuses everything from then on and the job must open the store anew.
            InternalError: the data contradict what was declared.
        """
        prepared = self._prepare(data)
        self.settle()
        hit("store.begin")
        try:
            with self._transaction(f"commit epoch {data.epoch}") as connection:
                write(connection, data, prepared)
        except StoreError:
            # What is on disk decides, whatever the error was.
            if self._dead or data.epoch not in self._catalog.entries:
                raise
            log.warning("store.commit.outcome_was_unclear", epoch=data.epoch, committed=True)
        self._remember(prepared)
        hit("store.after_commit")
        hit("store.witness")
        self._acknowledge(data.epoch)
        return prepared.entry.manifest

    def _prepare(self, data: CheckpointData) -> Prepared:
        last = self._catalog.last
        if data.generation != self._began:
            raise InternalError(f"epoch {data.epoch} is of generation {data.generation}, not {self._began}")
        if last is not None and data.epoch <= last.epoch:
            raise InternalError(f"epoch {data.epoch} cannot follow epoch {last.epoch}")
        return prepare(data, self._catalog, self._tables, self._full_from, time.time_ns() // 1_000)

    def _remember(self, prepared: Prepared) -> None:
        epoch = prepared.entry.manifest.epoch
        self._catalog.entries[epoch] = prepared.entry
        self._catalog.splits |= prepared.new_splits
        self._catalog.position_rows += len(prepared.many_positions)
        for gathered in prepared.gathered:
            if gathered.dropped:
                self._catalog.drops.setdefault(gathered.key, epoch)
        self._full_from = prepared.full_from

    def _acknowledge(self, epoch: Epoch) -> None:
        try:
            self._witness.acknowledge(epoch)
        except OSError as error:
            # The epoch is committed; only the second opinion lags behind until the next one.
            log.warning("store.witness.not_written", epoch=epoch, error=str(error))

    def manifests(self) -> list[Manifest]:
        """Every epoch that can be restored, oldest first."""
        return [entry.manifest for entry in self._catalog.entries.values()]

    def published(self, epoch: Epoch) -> None:
        """Write down that the last epoch is visible in every sink; only said when the job ends.

        Raises:
            StoreError: it could not be written; the next start then makes it visible once more.
        """
        with self._transaction("write down what is visible") as connection:
            connection.execute("DELETE FROM published")
            connection.execute("INSERT INTO published VALUES (?)", [int(epoch)])
        self._catalog.published = epoch

    def positions(self, epoch: Epoch) -> list[SplitPosition]:
        """The position of every split at an epoch, without sources that have been dropped after it.

        Raises:
            StoreError: the epoch is not in the store.
            StoreCorrupt: positions are missing.
        """
        return self._reading(lambda query: positions_after_drops(query, self._catalog, epoch))

    def committables(self, epoch: Epoch) -> dict[str, list[Committable]]:
        """What the sinks handed over at the last epoch, by sink id.

        Raises:
            StoreCorrupt: it is not what was written.
        """
        return self._reading(lambda query: committables_of(query, self._catalog, epoch))

    def dead_letters(self, selection: Selection = ALL) -> pa.Table:
        """Dead letters, oldest first."""
        return self._reading(lambda query: letters_of(query, selection))

    def count_dead_letters(self) -> int:
        """How many dead letters there are."""
        return self._reading(count_letters)

    def letters_to_replay(self) -> list[MarkedLetter]:
        """The dead letters that are to be replayed, oldest first."""
        return self._reading(lambda query: replayable_letters(query, Selection(marked=True)))

    def add_letters(self, epoch: int, letters: Sequence[NodeLetters]) -> int:
        """Write dead letters of an epoch that is committed, those that are not there yet; return how many those were.

        Raises:
            StoreError: it was not done; see ``commit`` for what is certain then.
        """
        with self._transaction(f"add dead letters of epoch {epoch}") as connection:
            added = add_letters(connection, epoch, letters)
            hit("letters.change")
        return added

    def change_letters(self, selection: Selection, change: LetterChange) -> int:
        """Mark dead letters, take the mark off, or drop them; all of those selected or none. Return how many.

        Raises:
            StoreError: it was not done; see ``commit`` for what is certain then.
        """
        with self._transaction(f"{change.value} dead letters") as connection:
            changed = change_letters(connection, selection, change)
            hit("letters.change")
        return changed

    def restore_rows(self, operator_id: str, table: StateTable, epoch: Epoch) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one state table at an epoch, in the order they were written.

        Rows that were written with other columns come as rows of ``table``.

        KEYED: ``table.schema`` plus ``deleted``, the last row of a key wins. ROWS: ``table.schema``, without dropped
        buckets. Read it to the end: the last step is what notices that rows are missing.

        Raises:
            StoreCorrupt: the rows are not those that were written; names the table and the epoch.
        """
        key = (operator_id, table.name)
        manifest = self._catalog.entry(epoch).manifest
        if key not in manifest.tables:
            return
        pieces = pieces_of(self._catalog, manifest.generation, key)
        written = self._reading(lambda query: written_to(query, self._catalog, key, epoch))
        cursor = self.cursor()
        try:
            if table.kind is StateKind.KEYED:
                oldest = Epoch(manifest.tables[key].full_from)
                yield from restore_keyed(cursor, pieces, table, (oldest, epoch), written)
            else:
                yield from restore_rows(cursor, pieces, table, epoch, written)
        except duckdb.Error as error:
            raise explain(error, self.path, f"read state {table.name!r} of operator {operator_id}") from error
        finally:
            cursor.close()

    def prune(self) -> None:
        """Remove what no restorable epoch needs. Does nothing most of the time; call it after a commit.

        Raises:
            StoreError: it could not be done; nothing that is needed was removed.
        """
        plan = plan_pruning(self._catalog, self._cuts)
        if plan is None:
            return
        hit("store.prune")
        with self._transaction("remove old epochs") as connection:
            deleted = execute_pruning(connection, self._catalog, plan)
        for epoch in plan.going:
            del self._catalog.entries[epoch]
        self._cuts.update(plan.cuts)
        self._deleted_rows += deleted
        self._catalog.position_rows = self._reading(count_positions)
        if plan.drops:
            self._catalog.drops = self._reading(pending_drops)
        if self._deleted_rows >= _FOLD_DELETED_ROWS or self._log_bytes() >= _FOLD_LOG_BYTES:
            self._fold_log()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same instance, for reading. Keep transactions short; close it."""
        return self._instance.cursor()

    def query(self, sql: str, epoch: int | None = None) -> pa.Table:
        """Answer one SELECT, of the last checkpoint or of an earlier epoch; may be called from any thread.

        Raises:
            JobError: it is not a SELECT, or DuckDB refuses it, or the epoch is not in the store any more.
        """
        cursor = self.cursor()
        try:
            return answer(cursor, sql, epoch)
        finally:
            cursor.close()

    def interrupt_queries(self) -> None:
        """End the queries that are running, with an error; may be called from any thread."""
        self._instance.interrupt()

    def remove(self) -> None:
        """Close it and remove its files: of a job that was refused before it began, in a store that was made for it."""
        assert (last := self.facts().last) is None, f"{self.path} has checkpoints: {last}"
        self._instance.close()
        self._witness.close()
        for file in (self.path, self.path.with_name(f"{self.path.name}.wal"), witness_path(self.path)):
            file.unlink(missing_ok=True)
        self._lock.remove()
        self._removed = True

    def close(self) -> None:
        """Fold the log, close the file, let go of the lock; the latter also if the former is interrupted."""
        if self._removed:
            return
        try:
            if not self._dead and self._log_bytes():
                self._fold_log()
        except Exception as error:
            log.warning("store.close.log_not_folded", error=str(error))
        finally:
            self._instance.close()
            self._witness.close()
            self._lock.release()

    # --- transactions, and what is left of them when they fail -----------------------------------------------

    @contextlib.contextmanager
    def _transaction(self, doing: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction. If anything goes wrong, memory is afterwards what the disk says.

        Raises:
            StoreError: DuckDB failed; see ``commit`` for what is certain then.
        """
        if self._dead:
            raise StoreError(self._dead)
        connection = self._instance.connection
        try:
            connection.execute("BEGIN TRANSACTION")
            yield connection
            connection.execute("COMMIT")
        except duckdb.Error as error:
            self._reopen(doing, error)
            raise explain(error, self.path, doing) from error
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            raise

    def _reopen(self, doing: str, cause: Exception) -> None:
        """After an error of DuckDB's its memory is not to be trusted: read again what is on disk."""
        try:
            self._instance.reopen()
            self._catalog = load_catalog(_query(self._instance))
        except (duckdb.Error, StoreError) as error:
            self._dead = (
                f"could not {doing} ({self.path}), and nobody knows whether it was done since the store cannot be "
                f"read again ({error}). Nothing that was acknowledged is lost; the job must be started again"
            )
            raise StoreError(self._dead) from cause

    def _reading(self, read: Callable[[Query], _T]) -> _T:
        """Read through the store's own connection.

        Raises:
            StoreError: DuckDB failed.
        """
        if self._dead:
            raise StoreError(self._dead)
        try:
            return read(_query(self._instance))
        except duckdb.Error as error:
            raise explain(error, self.path, "read the store") from error

    def _fold_log(self) -> None:
        hit("store.checkpoint")
        try:
            self._instance.connection.execute("CHECKPOINT")
        except duckdb.TransactionException as error:
            log.info("store.log_not_folded", error=str(error))  # a reader is in the way; next time
        except duckdb.Error as error:
            self._reopen("fold the write-ahead log", error)
            raise explain(error, self.path, "fold the write-ahead log") from error
        self._deleted_rows = 0

    def _log_bytes(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.path.with_name(self.path.name + ".wal").stat().st_size
        return 0


def _query(instance: Instance) -> Query:
    return lambda sql: instance.connection.sql(sql).to_arrow_table()


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {path.parent} ({error.strerror}): give another path") from error


def _create_tables(instance: Instance, path: Path) -> Catalog | None:
    """Make a new store's tables and return its catalog; None if they are there."""
    connection = instance.connection
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if "job" in tables:
        return None
    if tables:
        raise StoreError(f"{path} is a DuckDB database with tables of somebody else's: give the job a store of its own")
    job_id = uuid.uuid4().hex
    connection.execute("BEGIN TRANSACTION")
    for statement in CREATE:
        connection.execute(statement)
    connection.execute("INSERT INTO job VALUES (?, ?, now()::TIMESTAMP, NULL)", [FORMAT, job_id])
    connection.execute("COMMIT")
    sync_folder(path.parent)
    return Catalog(job_id, Generation(0))
