"""``.str`` and ``.dt``: what can be asked of text and of times. Every method returns an expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.engine.errors import JobError
from millstream.engine.expression_text import capture_one, check_regex
from millstream.engine.expression_times import check_format, check_unit

if TYPE_CHECKING:
    from millstream.engine.expression_tree import Expr


class TextMethods:
    """Text. Null stays null; positions and lengths count characters, patterns are RE2's.

    >>> from millstream.engine.expression import col
    >>> col("url").str.split_part("/", 4)
    str.split_part(url, separator='/', index=4)
    """

    def __init__(self, expr: Expr) -> None:
        self._expr = expr

    def lower(self) -> Expr:
        """Lower-case it."""
        return self._expr.apply("str.lower")

    def upper(self) -> Expr:
        """Upper-case it."""
        return self._expr.apply("str.upper")

    def length(self) -> Expr:
        """Count the characters (int64)."""
        return self._expr.apply("str.length")

    def count(self, sub: str) -> Expr:
        """Count how often a text occurs without overlapping (int64)."""
        return self._expr.apply("str.count", sub=_not_empty("count", sub))

    def contains(self, sub: str, *, ignore_case: bool = False) -> Expr:
        """Whether a text occurs in it."""
        return self._expr.apply("str.contains", sub=_literal("contains", sub), ignore_case=bool(ignore_case))

    def matches(self, regex: str, *, ignore_case: bool = False) -> Expr:
        """Whether a regular expression matches anywhere in it."""
        check_regex(_literal("matches", regex))
        return self._expr.apply("str.matches", regex=regex, ignore_case=bool(ignore_case))

    def like(self, pattern: str, *, ignore_case: bool = False) -> Expr:
        """Whether SQL's LIKE holds: ``%`` stands for any text, ``_`` for any character."""
        return self._expr.apply("str.like", pattern=_literal("like", pattern), ignore_case=bool(ignore_case))

    def starts_with(self, prefix: str) -> Expr:
        """Whether it begins with a text."""
        return self._expr.apply("str.starts_with", prefix=_literal("starts_with", prefix))

    def ends_with(self, suffix: str) -> Expr:
        """Whether it ends with a text."""
        return self._expr.apply("str.ends_with", suffix=_literal("ends_with", suffix))

    def replace(self, old: str, new: str) -> Expr:
        """Replace a text wherever it occurs."""
        return self._expr.apply("str.replace", old=_not_empty("replace", old), new=_literal("replace", new))

    def replace_regex(self, regex: str, new: str) -> Expr:
        r"""Replace every match of a regular expression; ``\1`` in ``new`` is its first group."""
        check_regex(_literal("replace_regex", regex))
        return self._expr.apply("str.replace_regex", regex=regex, new=_literal("replace_regex", new))

    def extract(self, regex: str, group: int | str = 0) -> Expr:
        """Return what a group of the first match holds; 0 is the whole match. Null when nothing matches.

        Args:
            regex: as RE2 understands it.
            group: the number or the name of the group; one that takes no part in the match holds ''.

        Raises:
            JobError: the pattern is wrong or has no such group.
        """
        check_regex(_literal("extract", regex))
        capture_one(regex, group)
        return self._expr.apply("str.extract", regex=regex, group=group)

    def split_part(self, separator: str, index: int) -> Expr:
        """Return one part of the text between separators; the first is 1; '' when there are fewer.

        >>> import pyarrow as pa
        >>> from millstream.engine.expression import col
        >>> batch = pa.record_batch({"url": ["https://shop/a/b"]})
        >>> col("url").str.split_part("/", 4).evaluate(batch).to_pylist()
        ['a']
        """
        if not isinstance(index, int) or index < 1:
            raise JobError(f"split_part() counts parts from 1, got {index!r}")
        return self._expr.apply("str.split_part", separator=_not_empty("split_part", separator), index=index)

    def strip(self, characters: str | None = None) -> Expr:
        """Cut white space (or any of these characters) off both ends."""
        return self._strip(characters, "")

    def lstrip(self, characters: str | None = None) -> Expr:
        """Cut white space (or any of these characters) off the beginning."""
        return self._strip(characters, "l")

    def rstrip(self, characters: str | None = None) -> Expr:
        """Cut white space (or any of these characters) off the end."""
        return self._strip(characters, "r")

    def _strip(self, characters: str | None, side: str) -> Expr:
        if characters is not None:
            _literal("strip", characters)
        return self._expr.apply("str.strip", characters=characters, side=side)

    def slice(self, start: int, stop: int | None = None) -> Expr:
        """Return the characters from ``start`` up to ``stop``, as Python's ``text[start:stop]``."""
        return self._expr.apply("str.slice", start=int(start), stop=None if stop is None else int(stop))

    def concat(self, *others: Any) -> Expr:
        """Append texts: literals or expressions. Null if one of them is."""
        return self._expr.apply("str.concat", *others)

    def parse_time(self, format: str) -> Expr:
        """Read a timestamp[us] written as a ``strptime`` format says; for ISO dates ``.cast`` is enough."""
        return self._expr.apply("str.parse_time", format=_literal("parse_time", format))


class TimeMethods:
    """Dates and times. Parts are those of the column's time zone; a column without one is in UTC.

    >>> from millstream.engine.expression import col
    >>> col("t").dt.hour()
    dt.hour(t)
    """

    def __init__(self, expr: Expr) -> None:
        self._expr = expr

    def year(self) -> Expr:
        """The year (int64)."""
        return self._expr.apply("dt.year")

    def month(self) -> Expr:
        """The month, 1 to 12 (int64)."""
        return self._expr.apply("dt.month")

    def day(self) -> Expr:
        """The day of the month, from 1 (int64)."""
        return self._expr.apply("dt.day")

    def hour(self) -> Expr:
        """The hour, 0 to 23 (int64)."""
        return self._expr.apply("dt.hour")

    def minute(self) -> Expr:
        """The minute, 0 to 59 (int64)."""
        return self._expr.apply("dt.minute")

    def second(self) -> Expr:
        """The second, 0 to 59 (int64)."""
        return self._expr.apply("dt.second")

    def weekday(self) -> Expr:
        """The day of the week, Monday is 0 as in Python (int64)."""
        return self._expr.apply("dt.weekday")

    def epoch_us(self) -> Expr:
        """Microseconds since 1970-01-01 UTC (int64)."""
        return self._expr.apply("dt.epoch_us")

    def date(self) -> Expr:
        """The day (date32)."""
        return self._expr.apply("dt.date")

    def truncate(self, unit: str) -> Expr:
        """Round down.

        Args:
            unit: ``second``, ``minute``, ``hour``, ``day``, ``week`` (from Monday), ``month``, ``quarter``, ``year``
                of the column's time zone, or a duration such as ``"10s"``, counted from 1970-01-01 UTC.

        >>> import pyarrow as pa
        >>> from datetime import datetime
        >>> from millstream.engine.expression import col
        >>> batch = pa.record_batch({"t": [datetime(2024, 1, 31, 12, 30, 15)]})
        >>> str(col("t").dt.truncate("10s").evaluate(batch)[0])
        '2024-01-31 12:30:10'
        """
        check_unit(_literal("truncate", unit))
        return self._expr.apply("dt.truncate", unit=unit)

    def strftime(self, format: str) -> Expr:
        """Write it as a ``strftime`` format says, such as ``"%Y-%m-%d"``; seconds are whole."""
        check_format(_literal("strftime", format))
        return self._expr.apply("dt.strftime", format=format)


def _literal(method: str, value: Any) -> str:
    if not isinstance(value, str):
        raise JobError(f"{method}() takes a str here, got {value!r}; a pattern cannot come from a column")
    return value


def _not_empty(method: str, value: Any) -> str:
    if not _literal(method, value):
        raise JobError(f"{method}() needs at least one character to look for, got ''")
    return str(value)
