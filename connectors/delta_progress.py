"""How far a sink has come, kept in the table itself by the transaction identifiers of the Delta protocol.

A commit may carry ``txn`` actions: an application's name and a number; the table keeps the last number of each. Of two
commits at the same time that carry the same name, one fails. So what is decided after reading these numbers holds
when the commit that was decided on succeeds.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millstream.connectors.outbox_marker import Marker, Publisher
from millstream.engine.errors import JobError

if TYPE_CHECKING:
    import deltalake


def new_owner() -> str:
    """Return a token for a start of a job that fits into the number of a ``txn`` action."""
    return str(uuid.uuid4().int >> 65)


def short_digest(digest: str) -> str:
    """Return as much of a digest as fits into such a number.

    >>> short_digest("ff" * 16) == str(2**63 - 1)
    True
    """
    return str(int(digest[:16], 16) >> 1)


@dataclass(frozen=True, slots=True)
class Progress:
    """The numbers of one start of a job in a table."""

    publisher: Publisher
    again: bool

    def read(self, table: deltalake.DeltaTable) -> Marker | None:
        """Return this sink's marker in the table as it was read."""
        epoch = table.transaction_version(self.key)
        if epoch is None:
            return None
        generation = table.transaction_version(f"{self.key} start") or 0
        digest = table.transaction_version(f"{self.key} digest")
        owner = str(table.transaction_version(f"{self.key} owner"))
        return Marker(epoch, generation, owner, "" if digest is None else str(digest))

    def register(self, table: deltalake.DeltaTable) -> bool:
        """Take over from earlier starts of this job: from now on they cannot commit.

        Returns:
            Whether there is a marker now.

        Raises:
            JobError: this start must not write to the table.
        """
        marker = self.read(table)
        self.publisher.may_start(marker)
        if marker is None and self.publisher.context.restored:
            # There should be one. If rows have been published that will be found, and must not be hidden now.
            return False
        if marker is None:
            self.check_alone(table)
        self.mark(table, marker.epoch if marker is not None else 0)
        return True

    def check_alone(self, table: deltalake.DeltaTable) -> None:
        """Refuse a job that has published nothing yet beside what it has written from another store."""
        found = table.transaction_version(self.job)
        if self.again or found is None or found == self._store:
            return
        publisher = self.publisher
        raise JobError(
            f"{publisher.name}: job {publisher.context.job!r} has written to {publisher.place} before, from another "
            "store, and starts anew now: it would write the same rows again. Go on with that store. To start over, "
            "remove the table; to write beside what is there, pass again=True to the sink"
        )

    def properties(self, epoch: int, digest: str = "") -> Any:
        """Return what goes into the commit that publishes an epoch; without a digest, into one that only registers."""
        from deltalake.transaction import CommitProperties, Transaction

        numbers = {
            self.key: epoch,
            f"{self.key} start": self.publisher.context.generation,
            f"{self.key} owner": int(self.publisher.owner),
        }
        if digest:
            numbers |= {f"{self.key} digest": int(digest), self.job: self._store}
        return CommitProperties(app_transactions=[Transaction(name, number) for name, number in numbers.items()])

    def mark(self, table: deltalake.DeltaTable, epoch: int, digest: str = "") -> None:
        """Commit the numbers alone, as ``properties`` returns them."""
        table.create_write_transaction(
            [],
            "append",
            table.schema(),
            partition_by=table.metadata().partition_columns,
            commit_properties=self.properties(epoch, digest),
        )

    @property
    def key(self) -> str:
        """The name of the number that is the epoch."""
        context = self.publisher.context
        return f"millstream {context.job_id} {context.sink_id}"

    @property
    def job(self) -> str:
        """The name of the number that says from which store the job has written rows."""
        return f"millstream job {self.publisher.context.job}"

    @property
    def _store(self) -> int:
        """A number for the store: job ids are long."""
        digest = hashlib.sha256(self.publisher.context.job_id.encode()).digest()
        return int.from_bytes(digest[:8]) >> 1
