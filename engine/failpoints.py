"""Named places where a test can make the process die, fail or hang.

Arm them through the environment, ``MILLSTREAM_FAILPOINTS="store.before_commit=kill@3;sink.commit=raise"``, or with
``arm``. The action is taken at the n-th hit (``@n``, default 1) of that name in this process. Unarmed, a
fail point is one look at an empty dict.

The idea is FreeBSD's fail(9); the actions are those the crash tests need.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Final

from millstream.engine.errors import ExternalError, JobError

ENVIRONMENT: Final = "MILLSTREAM_FAILPOINTS"

NAMES: Final = (
    "barrier.inject",  # the coordinator has decided on an epoch; no source has heard of it
    "barrier.align",  # a subtask with several inputs has seen its first barrier
    "subtask.snapshot",  # barriers are aligned; operators are about to hand over their state
    "sink.prepare",  # before a writer makes its epoch durable
    "sink.prepared",  # after it
    "subtask.acknowledge",  # snapshot complete; the coordinator does not know yet
    "store.generation",  # a new generation is declared, not committed
    "store.begin",  # before the store's transaction
    "store.state",  # state rows written, not the manifest
    "store.before_commit",  # the manifest row written, not committed
    "store.after_commit",  # past the commit point; nobody knows
    "store.witness",  # before the witness file follows
    "letters.change",  # dead letters marked or dropped by a command, not committed
    "letters.replay",  # before dead letters are handed back to an operator
    "store.prune",  # before old epochs are deleted
    "store.checkpoint",  # before DuckDB folds its write-ahead log
    "copy.written",  # a savepoint or fork is complete under a temporary name
    "sink.commit",  # before a committer makes an epoch visible
    "sink.committed",  # after it
    "source.committed",  # every sink shows the epoch; the sources have not been told
    "files.staged",  # a staged file is written, not yet on disk for sure
    "files.publishing",  # it is written down that an epoch may be visible from now on; nothing of it is
    "files.rename",  # one of an epoch's files has been moved
    "files.gathered",  # all of them have been; the epoch's folder is not visible yet
    "files.visible",  # all of the epoch is visible; that is not written down yet
    "postgres.begun",  # an epoch's transaction has begun, and has its marker locked
    "postgres.written",  # its rows and its marker are written, not committed
    "postgres.visible",  # it is committed in the server; nobody knows
    "postgres.copying",  # what a source keeps in a database is begun; it has no slot yet
    "postgres.copied",  # slot and copy are there; nothing was read
    "duckdb.written",  # a DuckDB file has an epoch's rows and marker, not committed
    "duckdb.visible",  # it is committed in the file; nobody knows
    "delta.begun",  # a Delta table's marker is read, nothing of the epoch is written
    "delta.written",  # the table has the epoch's rows and marker; that it is on disk was not waited for
    "delta.visible",  # it is committed in the table, and on disk; nobody knows
    "iceberg.begun",  # an Iceberg table's marker is read, nothing of the epoch is written
    "iceberg.written",  # it has the epoch's rows and marker
    "iceberg.visible",  # the same; the committer has nothing more to do there
    "kafka.fenced",  # a new producer has ended what those before it had begun; the marker is not read yet
    "kafka.begun",  # a transaction has begun, nothing is sent
    "kafka.sent",  # the brokers have its messages and its marker, not committed
    "kafka.visible",  # it is committed by the brokers; nobody knows
    "http.confirmed",  # a receiver has answered a message; that is not noted yet
    "http.put_aside",  # what it refused for good are dead letters; that is not noted yet
    "recovery.begin",  # the store is open, nothing decided
    "recovery.declared",  # the new generation is written down, with what it drops and migrates
    "recovery.commit_again",  # before the last epoch's effects are repeated
    "recovery.discard",  # before leftovers of the dead generation are removed
    "recovery.restore",  # before state is handed back
    "recovery.done",  # before the first batch is read
    "job.stop",  # the last checkpoint is committed, the job not yet left
)


class FailpointError(ExternalError):
    """What a fail point armed with ``raise`` raises."""


@dataclass(slots=True)
class _Armed:
    action: str
    at_hit: int
    hits: int = 0


_armed: dict[str, _Armed] = {}
_lock = threading.Lock()
_hang = threading.Event()


def hit(name: str) -> None:
    """Say that execution has come to this place."""
    if _armed:
        _act(name)


def _act(name: str) -> None:
    with _lock:
        armed = _armed.get(name)
        if armed is None:
            return
        armed.hits += 1
        due = armed.hits == armed.at_hit
    if not due:
        return
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if armed.action == "raise":
        raise FailpointError(f"fail point {name} was armed to raise at hit {armed.at_hit}")
    _hang.wait()


def arm(text: str) -> None:
    """Arm fail points from text: ``name=kill|raise|hang[@hit]``, separated by semicolons.

    Raises:
        JobError: a name or an action is not known.
    """
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, _, rest = part.partition("=")
        action, _, at = rest.partition("@")
        if name not in NAMES:
            raise JobError(f"there is no fail point {name!r}; there are: {', '.join(NAMES)}")
        if action not in ("kill", "raise", "hang") or not (at or "1").isdigit():
            raise JobError(f"fail point {name}: expected kill, raise or hang, and @hit, got {rest!r}")
        _armed[name] = _Armed(action, int(at or 1))


def disarm() -> None:
    """Disarm every fail point and release what hangs."""
    _armed.clear()
    _hang.set()
    _hang.clear()


def hits(name: str) -> int:
    """How often an armed fail point has been reached."""
    armed = _armed.get(name)
    return armed.hits if armed else 0


if os.environ.get(ENVIRONMENT):
    arm(os.environ[ENVIRONMENT])
