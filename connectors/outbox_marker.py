"""What the marker in a destination, the epoch last published there, says about what is to be done. No connection here.

The marker is always read under a lock that lasts until it is written in the same transaction, so what is decided holds.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from millstream.engine.errors import JobError
from millstream.engine.sink import SinkContext


@dataclass(frozen=True, slots=True)
class Marker:
    """What a destination says of one sink of one job.

    Attributes:
        epoch: the last one published; 0: none yet.
        generation: the start of the job that has registered last.
        owner: a token of that start; a copy of the store may have started with the same number.
        digest: of what was published of the epoch; empty: nothing was, or by a version that did not write digests.
    """

    epoch: int
    generation: int
    owner: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Publisher:
    """One start of a job, as the destination of one sink sees it."""

    name: str
    place: str
    context: SinkContext
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    def may_start(self, marker: Marker | None) -> None:
        """Check the marker found at the start.

        Raises:
            JobError: the destination is ahead of the store, or belongs to a later start.
        """
        if marker is None:
            return
        restored = self.context.restored
        if marker.epoch > restored:
            raise JobError(
                f"{self.name}: {self.place} has epoch {marker.epoch} of this job already, but the checkpoint store "
                f"goes on from epoch {restored}: an older copy of the store has been put back, and going on would "
                "write the same rows twice. Put the newer store back, or start with a new store and an empty "
                "destination"
            )
        # Starts are counted in the store before they come here, so an equal number is that of a copy's start.
        other = marker.owner != self.owner
        if marker.generation > self.context.generation or (marker.generation == self.context.generation and other):
            raise JobError(
                f"{self.name}: start {marker.generation} of this job has been seen in {self.place}, and this is start "
                f"{self.context.generation}: an older copy of the store has been put back, or the job runs elsewhere "
                "too. Stop the other one, or put the newer store back"
            )

    def must_publish(self, marker: Marker | None, epoch: int, after: int, digest: str, *, registered: bool) -> bool:
        """Whether an epoch is still to be published, given the marker found then.

        Args:
            after: the last epoch with rows before this one, which is the one that the marker must have then.
            digest: of what the checkpoint has of this epoch.
            registered: there was a marker when this start began.

        Raises:
            JobError: another start has taken over, or the destination lacks something it had, or has another epoch.
        """
        if marker is None:
            if registered:
                raise JobError(
                    f"{self.name}: what {self.place} knew of this job when it started has gone: it has been started "
                    "anew with another store meanwhile, or its marker was removed. Let only one of them run"
                )
            if after or epoch <= self.context.restored:
                raise JobError(self._lost("nothing of this job", after or epoch))
            return True
        if marker.owner != self.owner:
            raise JobError(
                f"{self.name}: another process that runs this job has taken over {self.place} (its start "
                f"{marker.generation}, this is start {self.context.generation}), so this one writes nothing more. Let "
                "only one of them run"
            )
        if marker.epoch >= epoch:
            self.check_same(marker, epoch, digest)
            return False
        if marker.epoch < after:
            raise JobError(self._lost(f"only epoch {marker.epoch}", after))
        if marker.epoch > after:
            # This store's epochs in between are empty, so it was not this one that published it.
            raise JobError(
                f"{self.name}: {self.place} has rows of epoch {marker.epoch}, of which the checkpoint store knows "
                "nothing: a copy of the store has been run, and went on differently. Go on with that one, or start "
                "with a new store and an empty destination"
            )
        return True

    def check_same(self, marker: Marker, epoch: int, digest: str) -> None:
        """Raise JobError unless what the marker counts is this epoch as it stands in the checkpoint.

        Two copies of a store that both go on commit epochs of the same number, each from what it has read by then.
        """
        if marker.epoch == epoch and marker.digest in ("", digest):
            return
        raise JobError(
            f"{self.name}: {self.place} has other rows of epoch {marker.epoch} than the checkpoint store: a copy of "
            "the store has been run, and went on differently. Go on with that one, or start with a new store and an "
            "empty destination"
        )

    def _lost(self, found: str, expected: int) -> str:
        return (
            f"{self.name}: {self.place} knows {found}, but epoch {expected} may have been published there: an older "
            "copy of it has been put back, or the marker was changed. Put the newer one back; to begin from nothing, "
            "empty the destination and start the job with a new store"
        )
