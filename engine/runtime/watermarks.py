"""The watermark of several inputs, some of which may be idle: the minimum of those that are not."""

from __future__ import annotations

from millstream.engine.time import END_OF_TIME, START_OF_TIME


class WatermarkMerge:
    """Combines the watermarks of a fixed number of inputs.

    The result never goes back: an input that was idle and comes back behind the others does not move it. An input that
    has ended says nothing of the others, idle ones included.

    >>> merge = WatermarkMerge(2)
    >>> merge.advance(0, 10), merge.advance(1, 7)
    (None, 7)
    >>> merge.set_idle(1)
    10
    """

    def __init__(self, inputs: int, start: int = START_OF_TIME) -> None:
        self._times = [START_OF_TIME] * inputs
        self._idle = [False] * inputs
        self.current = start

    @property
    def times(self) -> tuple[int, ...]:
        """The watermark of each input."""
        return tuple(self._times)

    @property
    def lowest(self) -> int | None:
        """The input that holds the watermark; None if all are idle."""
        active = [index for index, idle in enumerate(self._idle) if not idle]
        return min(active, key=self._times.__getitem__, default=None)

    @property
    def all_idle(self) -> bool:
        """Whether no input holds the watermark, and some may have rows yet."""
        waits = (idle or time == END_OF_TIME for time, idle in zip(self._times, self._idle, strict=True))
        return any(self._idle) and all(waits)

    def advance(self, index: int, time: int) -> int | None:
        """An input's watermark is now ``time``; return the new minimum if it rose."""
        self._times[index] = max(self._times[index], time)
        self._idle[index] = False
        return self._risen()

    def set_active(self, index: int) -> None:
        """An input has a row: it counts again."""
        self._idle[index] = False

    def set_idle(self, index: int) -> int | None:
        """An input no longer counts; return the new watermark if it rose.

        When all are idle it is the highest of theirs, as if those behind had fallen idle first (so does Flink's
        StatusWatermarkValve): in which order idle inputs say so must not decide whether windows fire.
        """
        self._idle[index] = True
        return self._risen()

    def _risen(self) -> int | None:
        going_on = [(t, idle) for t, idle in zip(self._times, self._idle, strict=True) if t < END_OF_TIME]
        active = [t for t, idle in going_on if not idle]
        time = min(active) if active else max((t for t, _ in going_on), default=END_OF_TIME)
        if time <= self.current:
            return None
        self.current = time
        return time
