"""``ctx``: what ``on_row`` and ``on_timer`` may ask and do besides their state."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from millstream.engine.errors import JobError
from millstream.engine.time import START_OF_TIME, Duration, micros, show_duration
from millstream.operators.process_states import CLOCKS, EVENT, PROCESSING, Clock
from millstream.operators.python_rows import zone_of

if TYPE_CHECKING:
    from millstream.operators.process_cells import At
    from millstream.operators.process_timers import Timers

_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - event times without a zone are naive
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_LAST: Final = (dt.datetime(9999, 12, 31) - _EPOCH) // _MICROSECOND  # noqa: DTZ001


_micros = functools.lru_cache(64)(micros)


class Times:
    """Microseconds as datetimes and back, in the way of the event time column: with its zone, or without any."""

    def __init__(self, zone: dt.tzinfo | None) -> None:
        self._zone = zone

    @classmethod
    def of(cls, type: pa.DataType) -> Times:
        """For event times of a type."""
        zone = type.tz if pa.types.is_timestamp(type) else None
        return cls(None if zone is None else zone_of(zone))

    def datetime(self, time: int) -> dt.datetime:
        """Return microseconds as a datetime; times of the year 9999 and later as its last day."""
        naive = _EPOCH + dt.timedelta(microseconds=min(time, _LAST))
        return naive if self._zone is None else naive.replace(tzinfo=dt.UTC).astimezone(self._zone)

    def micros(self, time: dt.datetime) -> int:
        """Return a datetime as microseconds. Raises JobError if it is none, or has no zone and needs one."""
        if not isinstance(time, dt.datetime):
            raise JobError(f"takes a datetime as at=, such as row['sent_at'] + timedelta(hours=1); got {time!r}")
        if time.tzinfo is not None:
            return (time.astimezone(dt.UTC).replace(tzinfo=None) - _EPOCH) // _MICROSECOND
        if self._zone is not None:
            raise JobError(f"takes a datetime with a time zone as at=, since the clock has one; got {time!r}")
        return (time - _EPOCH) // _MICROSECOND


class ProcessContext:
    """Handed to ``on_row`` and ``on_timer``; it means the row or timer whose turn it is.

    Attributes:
        name: of the timer; "" for one without a name, and for rows.
        weight: of the row, if the stream is a changelog: 1 when it comes, -1 when it is taken back; n equal rows are
            n calls. 1 for all other rows, and for timers.
        ended: whether the input has ended; timers that are still set then fire all at once.
    """

    def __init__(
        self,
        at: At,
        timers: Mapping[str, Timers],
        times: Mapping[str, Times],
        emit: Callable[[str, Any], None],
        retract: Callable[[Any], None],
        put: Callable[[str, Any, Duration], None],
        key: Callable[[], Any],
    ) -> None:
        self._at = at
        self._timers = timers
        self._times = times
        self._emit = emit
        self._retract = retract
        self._put = put
        self._key = key
        self.name = ""
        self.weight = 1
        self.ended = False
        self.firing: tuple[str, int] | None = None  # clock and time of the timer whose turn it is
        self.overdue = False  # whether a timer was set that is due already

    @property
    def key(self) -> Any:
        """The key: its value, or a tuple if several columns make it up."""
        return self._key()

    @property
    def time(self) -> dt.datetime | None:
        """The event time of the row, or the time of the timer; None: it has none."""
        if self.firing is not None:
            clock, time = self.firing
            return self._times[clock].datetime(time)
        moment = self._at.moment
        return None if moment is None else self._times[EVENT].datetime(moment)

    @property
    def watermark(self) -> dt.datetime | None:
        """No row with an earlier event time is expected any more; one that comes is late. None: not known yet.

        It goes on only after the timers that are due have fired, and not to infinity when the input has ended.
        """
        if EVENT not in self._times or self._at.watermark == START_OF_TIME:
            return None
        return self._times[EVENT].datetime(self._at.watermark)

    @property
    def now(self) -> dt.datetime:
        """Processing time, in UTC: that of the batch, so that it stands still between the rows of one."""
        return self._times[PROCESSING].datetime(self._at.now)

    def emit(self, output: str, row: dict[str, Any]) -> None:
        """Put a row into a side output.

        Args:
            output: its name.
            row: a dict with exactly the columns of its schema.
        """
        self._emit(output, row)

    def retract(self, row: dict[str, Any]) -> None:
        """Take a row of the result back, with ``process(..., retracts=True)``; what is yielded next comes after it.

        Args:
            row: a dict as it was yielded, with the same values in all columns.

        Raises:
            JobError: the rows of the result are to stay.
        """
        self._retract(row)

    def put(self, state: str, value: Any, *, ttl: Duration) -> None:
        """Set a value state of this key, to live exactly so long; maps and lists take ``ttl=`` themselves.

        Args:
            state: its name: ``ctx.put("token", "a1", ttl="10m")`` is ``self.token = "a1"`` for ten minutes.
            ttl: by the clock of the state, from the time of this row or timer on.

        Raises:
            JobError: there is no such state.
        """
        self._put(state, value, ttl)

    def timer(
        self,
        *,
        at: dt.datetime | None = None,
        after: Duration | None = None,
        name: str = "",
        clock: Clock = "event",
    ) -> None:
        """Have ``on_timer`` called for this key.

        Args:
            at: when. Setting a timer again for the same key and time changes nothing.
            after: or how long after the time of this row or timer; with ``clock="processing"``, after now.
            name: a timer with a name is there once per key: setting it again moves it.
            clock: ``"event"``: when the watermark has passed it; ``"processing"``: by the clock on the wall.

        Raises:
            JobError: the stream has no event time; or the timer would fire for ever.
        """
        timers = self._of(clock)
        if (at is None) == (after is None):
            raise JobError("ctx.timer() takes one of at=row['sent_at'] + timedelta(hours=1) and after='1h'")
        if not isinstance(name, str):
            raise JobError(f"ctx.timer() takes a string as name=, got {name!r}")
        time = self._moment(at, clock, "timer") if after is None else self._base(clock) + _micros(after)
        if self.firing is not None and self.firing[0] == clock and time <= self.firing[1]:
            late = show_duration(self.firing[1] - time)
            raise JobError(
                f"ctx.timer() in on_timer() sets a timer for a time that is not after its own (by {late}): it would "
                "fire at once, and so for ever"
            )
        timers.start(self._at.slot, time, name)
        if time <= (self._at.watermark if clock == EVENT else self._at.now):
            self.overdue = True

    def cancel(self, *, at: dt.datetime | None = None, name: str = "", clock: Clock = "event") -> None:
        """Take a timer of this key back, by its time or its name; if it is not set, nothing happens."""
        timers = self._of(clock)
        if (at is None) == (not name):
            raise JobError("ctx.cancel() takes one of at= (the time of a timer) and name=")
        timers.cancel(self._at.slot, name or self._moment(at, clock, "cancel"))

    def _of(self, clock: str) -> Timers:
        if clock not in CLOCKS:
            raise JobError(f"ctx.timer(clock={clock!r}): there are two, 'event' and 'processing'")
        if clock not in self._times:
            raise JobError(
                "ctx.timer() needs event time, which the stream does not have: name its column in "
                "job.read(..., event_time='sent_at'), or write ctx.timer(..., clock='processing')"
            )
        if clock not in self._timers:
            raise JobError("ctx.timer() needs a method to call: write def on_timer(self, time, ctx)")
        return self._timers[clock]

    def _moment(self, at: Any, clock: str, method: str) -> int:
        try:
            return self._times[clock].micros(at)
        except JobError as error:
            raise JobError(f"ctx.{method}() {error}") from None

    def _base(self, clock: str) -> int:
        if self.firing is not None and self.firing[0] == clock:
            return self.firing[1]
        moment = self._at.moment if clock == EVENT else None
        time = self._at.time(clock) if moment is None else moment
        if time == START_OF_TIME:
            raise JobError("ctx.timer(after=...) starts from the event time of the row, but it has none: use at=")
        return time
