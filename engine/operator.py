"""The contract between the engine and an operator.

An *operator spec* is a value in the job's graph: what the operator does, to which columns, with which types. An
*operator* is one running copy of it (one per subtask). It never sees threads, channels, barriers or the store.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
from millstream.engine.memory import bytes_by_part
from millstream.engine.state import StateDelta, StateTable

if TYPE_CHECKING:
    from concurrent.futures import Future

    from millstream.engine.expression import Expr

MAIN = "main"
"""The port every operator has."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row could not be processed.

    Attributes:
        type: the name of the error's class, for counting: ``"ZeroDivisionError"``.
        message: what is wrong, for people.
    """

    type: str
    message: str


class Output(Protocol):
    """Where an operator puts what it makes."""

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        """Pass a batch on; an empty one goes no further."""
        ...

    def dead_letter(
        self,
        rows: pa.RecordBatch,
        faults: Sequence[Fault],
        *,
        times: pa.Array | None = None,
        code: str = "",
        attempt: int | None = None,
    ) -> None:
        """Put rows aside that cannot be processed, if the user has asked for that instead of an error.

        They become durable with the epoch in which they came, and may be processed again later.

        Args:
            rows: as they came in, by the only input, with all columns.
            faults: one for each row.
            times: the event time of each row, timestamp[us]; None if it has none.
            code: the version of the function that could not take them.
            attempt: how often they have been tried, this time included, if they have been in hand; see ``on_attempt``.
        """
        ...


class Calls(Protocol):
    """Runs coroutines beside the operator's own thread."""

    def start(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        """Run the coroutine that ``make`` returns; cancelled when the generation ends."""
        ...


class _NoCalls:
    """Stands where an operator is run without an engine."""

    def start(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        raise AssertionError(f"{make!r} cannot be called: the operator was opened without calls")


def _wake_nobody() -> None:
    """Whoever runs the operator looks at it all the time anyway."""


@dataclass(frozen=True, slots=True)
class OperatorContext:
    """What a running operator may know of its place in the job.

    Attributes:
        wake: says that ``is_ready()`` may have become true; called from any thread.
        calls: runs coroutines, for operators that work aside.
    """

    job: str
    operator: str
    subtask: int
    parallelism: int
    wake: Callable[[], None] = _wake_nobody
    calls: Calls = field(default_factory=_NoCalls)


class ExchangeKind(enum.Enum):
    """How rows must be distributed over an operator's subtasks."""

    FORWARD = "forward"  # any subtask will do: stay where you are
    HASH = "hash"  # rows with equal keys meet in one subtask
    SINGLE = "single"  # all rows meet in subtask 0
    BROADCAST = "broadcast"  # every subtask gets every row, and gets them before those of the other inputs


@dataclass(frozen=True, slots=True)
class Exchange:
    """A distribution, with its key columns when it is by hash.

    Until a BROADCAST input has ended, the others of its operator are read only up to a barrier that waits for them, and
    no watermark reaches the operator.
    """

    kind: ExchangeKind = ExchangeKind.FORWARD
    keys: tuple[str, ...] = ()


FORWARD = Exchange()


class Operator(ABC):
    """One running copy of an operator. Calls come from one thread at a time.

    Attributes:
        uses_clock: whether it is told the processing time, see ``on_clock``; a class or ``__init__`` sets it.
        works_aside: whether rows stay in hand while something outside is at work on them, and go out when that is
            done: then ``is_full``, ``is_ready``, ``on_ready`` and ``held_watermark`` are asked. A barrier does not
            wait for such rows: they are state. The input's end does: no job finishes with rows in hand.
    """

    uses_clock: bool = False
    works_aside: bool = False

    def open(self, context: OperatorContext) -> None:
        """Called once, before ``restore`` and the first batch."""

    @abstractmethod
    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take one batch (never empty) and emit what follows from it."""

    def process_input(self, index: int, batch: pa.RecordBatch, out: Output) -> None:
        """Take one batch of input ``index``; operators with several inputs override this."""
        del index
        self.process(batch, out)

    def on_attempt(self, attempt: int) -> None:
        """Rows that come from now on are tried for so many-th time: more than 1 while dead letters are replayed.

        Only who keeps rows in hand need note it, and say it when they are put aside after all.
        """

    def on_input_end(self, index: int, out: Output) -> None:
        """Of several inputs this one has ended: no more of its rows will come. Said again after a restart."""

    def on_watermark(self, time: int, out: Output) -> None:
        """Event time has reached ``time`` (microseconds); the engine passes the watermark on afterwards."""

    def next_due(self) -> int | None:
        """The processing time (microseconds since 1970) at which it wants ``on_clock`` to be called; None: never."""
        return None

    def on_clock(self, now: int, out: Output) -> None:
        """Processing time has reached ``now`` (microseconds since 1970): do what is due.

        Called, if ``uses_clock``, as soon as ``next_due()`` is reached, whether data flows or not, and before each
        batch and watermark; ``now`` never goes back while the job runs, but may after a restart. What came due while
        the job was down is due at the first call. When the input has ended it is called with END_OF_TIME, right after
        ``on_watermark`` was: nobody will wait for the clock any more, so what is still to come happens now.
        """

    def is_full(self) -> bool:
        """Whether it has so many rows in hand that it should get no more input for now.

        A batch that is on its way within the subtask still comes, and so must always be taken. Full ends by what goes
        on outside and never by input, so that nobody waits for himself.
        """
        return False

    def is_ready(self) -> bool:
        """Whether ``on_ready`` has something to do; asked at every step, so it must be quick."""
        return False

    def on_ready(self, out: Output) -> None:
        """Emit rows that are done, and take up others; called again as long as ``is_ready()``.

        The engine then passes on the watermark as far as it goes. It is never called while an output has no room.
        """

    def held_watermark(self) -> int | None:
        """The last watermark that came before the oldest row in hand; None if no row is in hand.

        The engine passes on no later one, nor that the input is idle, nor its end.
        """
        return None

    def on_barrier(self, out: Output) -> None:
        """A barrier has come: emit what should not wait for the next epoch; ``snapshot`` follows at once."""

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """Return the deltas since the last call, by state table; tables that did not change may be left out."""
        del epoch
        return {}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """Take back this subtask's rows of one state table, in the order they were written.

        KEYED rows still carry ``deleted``; the last row of a key wins. ROWS come without dropped buckets.
        ``full_from`` is the table's own from the manifest: hand it to ``RollingBase``.
        """
        del batches, full_from
        raise AssertionError(f"{type(self).__name__} declares state table {table!r} but cannot restore it")

    def counters(self) -> Mapping[str, int]:
        """Numbers worth showing, such as ``{"late_rows": 3}``."""
        return {}

    def memory(self) -> Mapping[str, int]:
        """Bytes of memory held, by part; asked for at every barrier, so it must not go through rows.

        The default counts the arrays, buffers and containers behind each attribute, which is right for most.
        """
        return bytes_by_part(self)

    def close(self) -> None:
        """Called once, after the last batch; after a crash it is not called."""


class OperatorSpec(ABC):
    """What an operator does, before it runs. Immutable; equal specs have equal ``identity()``."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """One word for plans and errors: ``"filter"``, ``"window"``."""

    @abstractmethod
    def identity(self) -> str:
        """Text that changes exactly when the meaning changes: the operator's id is derived from it."""

    @abstractmethod
    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the schema of each port. Raises SchemaError when the inputs do not fit."""

    @abstractmethod
    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy for inputs of these (possibly pruned) schemas."""

    def describe(self) -> str:
        """One line for the plan."""
        return self.identity()

    def exchange(self) -> Exchange:
        """How the input must be distributed."""
        return FORWARD

    def exchange_of(self, index: int) -> Exchange:
        """How input ``index`` must be distributed, where inputs differ; all that are not BROADCAST are of one kind."""
        del index
        return self.exchange()

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """Declare the operator's state; () means stateless."""
        del inputs
        return ()

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """Return the columns of each input needed to make the ``wanted`` columns of each port.

        The default asks for everything, which is always right.
        """
        del wanted
        return [frozenset(schema.names) for schema in inputs]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec:
        """Return a spec that makes no more than the ``wanted`` columns (or itself: also right)."""
        del wanted
        return self

    @property
    def takes_changelog(self) -> bool:
        """Whether the operator understands weights (see ``millstream.engine.changelog``); if not, it never sees any."""
        return False

    @property
    def uses_event_time(self) -> bool:
        """Whether the operator needs watermarks."""
        return False

    def as_filter(self) -> Expr | None:
        """The predicate, if all the operator does is keep the rows for which it is true."""
        return None

    def as_projection(self) -> Mapping[str, Expr] | None:
        """Output columns as expressions over the input's, if all the operator does is compute them row by row."""
        return None

    def combiner(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec | None:
        """A stateless operator that may run before the exchange to make less to send, or None."""
        del wanted
        return None
