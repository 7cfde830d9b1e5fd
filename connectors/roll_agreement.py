"""How the subtasks of a sink agree, epoch by epoch, whether to hand over all they hold or nothing."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from millstream.engine.sink import SinkContext


@dataclass(slots=True)
class _Decision:
    roll: bool
    asked: int = 0


class RollAgreement:
    """One per sink and generation; every method may be called from any thread.

    The subtask that comes first to ``decide`` decides for all, so that what a reader sees always ends between
    two epochs: with one subtask's rows of an epoch come all the others'.
    """

    def __init__(self, parallelism: int) -> None:
        self._parallelism = parallelism
        self._lock = threading.Lock()
        self._wanted = False
        self._oldest: int | None = None
        self._bytes = 0
        self._decisions: dict[int, _Decision] = {}

    def want(self, after: int) -> bool:
        """Ask that everything be handed over, by a subtask whose last epoch was ``after``.

        Returns:
            Whether that will happen in the subtask's very next epoch. If not, it was already decided to hold
            that one back (another subtask is ahead), and everything is handed over in the epoch after it.
        """
        with self._lock:
            upcoming = min((epoch for epoch in self._decisions if epoch > after), default=None)
            if upcoming is not None and self._decisions[upcoming].roll:
                return True
            self._wanted = True
            return upcoming is None

    def note_oldest(self, since: int) -> None:
        """Say that rows are held since a wall-clock time, in microseconds."""
        with self._lock:
            self._oldest = since if self._oldest is None else min(since, self._oldest)

    def note_bytes(self, after: int, more: int, limit: int) -> None:
        """Say that a subtask holds so many bytes more, or fewer; all hand over when together they hold ``limit``."""
        with self._lock:
            self._bytes += more
            enough = self._bytes >= limit
        if enough:
            self.want(after)

    def decide(self, epoch: int, force: bool, now: int, longest: int) -> bool:
        """Return whether everything is handed over in this epoch: the same answer to every subtask.

        Args:
            epoch: the one being prepared.
            force: hand over whatever the reason (the same for all subtasks).
            now: wall-clock microseconds.
            longest: how long rows may be held, microseconds.
        """
        with self._lock:
            decision = self._decisions.get(epoch)
            if decision is None:
                decision = self._decisions[epoch] = _Decision(force or self._is_due(epoch, now, longest))
                if decision.roll:
                    self._wanted, self._oldest, self._bytes = False, None, 0
            decision.asked += 1
            if decision.asked == self._parallelism:
                self._decisions = {e: d for e, d in self._decisions.items() if e > epoch}
            return decision.roll

    def _is_due(self, epoch: int, now: int, longest: int) -> bool:
        # An earlier epoch of which only some subtasks have handed over was aborted: its files come with this
        # one, so the other subtasks must hand over as well.
        torn = any(d.roll for e, d in self._decisions.items() if e < epoch)
        # A clock that was set back would otherwise hold rows for however long it was set back.
        old = self._oldest is not None and not 0 <= now - self._oldest < longest
        return self._wanted or torn or old


@dataclass(frozen=True, slots=True)
class Agreements:
    """The agreement of each running generation of a sink, shared by its writers."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    running: dict[tuple[str, str, int], RollAgreement] = field(default_factory=dict)

    def of(self, context: SinkContext) -> RollAgreement:
        """Return that of a generation; those before it are forgotten."""
        key = (context.job_id, context.sink_id, context.generation)
        with self.lock:
            for other in [k for k in self.running if k[:2] == key[:2] and k != key]:
                del self.running[other]
            return self.running.setdefault(key, RollAgreement(context.parallelism))
