"""What expressions compute on text. Patterns are RE2's, as in DuckDB; positions and lengths count characters."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import byte_strings, validity
from millstream.engine.errors import JobError
from millstream.engine.expression_functions import Function, join_texts, same_text


@cache
def _kernels() -> Any:
    # Here, because loading numba takes a while.
    from millstream.engine import expression_kernels

    return expression_kernels


def _text(array: pa.Array) -> pa.Array:
    """Return an array of strings as such, without its dictionary or views; refuse other types."""
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return array
    if pa.types.is_dictionary(array.type):
        return _text(array.dictionary_decode())
    if pa.types.is_null(array.type) or pa.types.is_string_view(array.type):
        return array.cast(pa.string())
    raise pa.ArrowTypeError(f"expected a string, got {array.type}")


def _is_ascii(array: pa.Array) -> bool:
    offsets, data = byte_strings(array)
    used = data[offsets[0] : offsets[-1]]
    return len(used) == 0 or int(used.max()) < 0x80


def _lower(array: pa.Array) -> pa.Array:
    array = _text(array)
    return pc.ascii_lower(array) if _is_ascii(array) else pc.utf8_lower(array)


def _upper(array: pa.Array) -> pa.Array:
    array = _text(array)
    return pc.ascii_upper(array) if _is_ascii(array) else pc.utf8_upper(array)


def _counts(array: pa.Array, count: Callable[..., None]) -> pa.Array:
    counts = np.zeros(len(array), np.int32)
    if len(array):
        count(*byte_strings(array), counts)
    valid = validity(array)
    return pa.array(counts, mask=~valid if len(valid) else None).cast(pa.int64())


def _length(array: pa.Array) -> pa.Array:
    array = _text(array)
    return _counts(array, lambda *args: _kernels().count_characters(*args))


def _count(array: pa.Array, *, sub: str) -> pa.Array:
    array, wanted = _text(array), sub.encode()
    if len(wanted) > 1:
        return pc.count_substring(array, sub).cast(pa.int64())
    return _counts(array, lambda offsets, data, out: _kernels().count_byte(offsets, data, np.uint8(wanted[0]), out))


def _split_part(array: pa.Array, *, separator: str, index: int) -> pa.Array:
    array = _text(array)
    if len(array) == array.null_count:
        return array
    offsets, data = byte_strings(array)
    wanted = np.frombuffer(separator.encode(), np.uint8)
    starts = np.empty(len(array), np.int64)
    ends = np.empty(len(array) + 1, np.int64 if pa.types.is_large_string(array.type) else np.int32)
    _kernels().split_part(offsets, data, wanted, index, starts, ends)
    parts = np.empty(ends[-1], np.uint8)
    _kernels().gather(data, starts, ends, parts)
    valid = validity(array)
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little")) if len(valid) else None
    return pa.Array.from_buffers(array.type, len(array), [bitmap, pa.py_buffer(ends), pa.py_buffer(parts)])


def _extract(array: pa.Array, *, regex: str, group: int | str) -> pa.Array:
    return pc.struct_field(pc.extract_regex(_text(array), capture_one(regex, group)), _CAPTURED)


def _like(array: pa.Array, *, pattern: str, ignore_case: bool) -> pa.Array:
    return pc.match_like(_text(array), pattern, ignore_case=ignore_case)


def _contains(array: pa.Array, *, sub: str, ignore_case: bool) -> pa.Array:
    return pc.match_substring(_text(array), sub, ignore_case=ignore_case)


def _matches(array: pa.Array, *, regex: str, ignore_case: bool) -> pa.Array:
    return pc.match_substring_regex(_text(array), regex, ignore_case=ignore_case)


def _starts_with(array: pa.Array, *, prefix: str) -> pa.Array:
    return pc.starts_with(_text(array), prefix)


def _ends_with(array: pa.Array, *, suffix: str) -> pa.Array:
    return pc.ends_with(_text(array), suffix)


def _replace(array: pa.Array, *, old: str, new: str) -> pa.Array:
    return pc.replace_substring(_text(array), old, new)


def _replace_regex(array: pa.Array, *, regex: str, new: str) -> pa.Array:
    return pc.replace_substring_regex(_text(array), regex, new)


def _slice(array: pa.Array, *, start: int, stop: int | None) -> pa.Array:
    return pc.utf8_slice_codeunits(_text(array), start, stop)


def _strip(array: pa.Array, *, characters: str | None, side: str) -> pa.Array:
    if characters is None:
        return getattr(pc, f"utf8_{side}trim_whitespace")(_text(array))
    return getattr(pc, f"utf8_{side}trim")(_text(array), characters)


def _concat(*values: Any) -> pa.Array:
    plain = [value.cast(pa.string()) if isinstance(value, pa.Scalar) else _text(value) for value in values]
    return join_texts(same_text(*plain) or plain)


def _parse_time(array: pa.Array, *, format: str) -> pa.Array:
    return pc.strptime(_text(array), format, "us")


# -- patterns, checked when the expression is written ----------------------------------------------------------

_CAPTURED: Final = "captured"
# What may open a group, in the order it must be tried.
_TOKEN: Final = re.compile(
    r"(?P<quoted>\\Q.*?(?:\\E|$))|(?P<escaped>\\.)|(?P<set>\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\])"
    r"|(?P<named>\(\?P?<(?P<name>\w+)>)|(?P<special>\(\?)|(?P<group>\()",
    re.DOTALL,
)


def check_regex(regex: str) -> None:
    """Raise JobError unless RE2 understands the pattern.

    >>> check_regex("(?=look)ahead")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    millstream.engine.errors.JobError: '(?=look)ahead' is not a regular expression (RE2, so no look-around ...
    """
    try:
        pc.match_substring_regex(pa.array([""]), regex)
    except pa.ArrowInvalid as error:
        raise JobError(
            f"{regex!r} is not a regular expression (RE2, so no look-around or back-references): {error}"
        ) from None


def capture_one(regex: str, group: int | str) -> str:
    """Return the pattern with one named group: the wanted one; 0 is the whole match.

    Raises:
        JobError: there is no such group.

    >>> capture_one("(&|^)channel_id=([^&]*)", 2)
    '(?:&|^)channel_id=(?P<captured>[^&]*)'
    """
    groups: list[str] = []
    found = False

    def reopen(match: re.Match[str]) -> str:
        nonlocal found
        if not (match["named"] or match["group"]):
            return match[0]
        groups.append(match["name"] or str(len(groups) + 1))
        if group not in (len(groups), match["name"]):
            return "(?:"
        found = True
        return f"(?P<{_CAPTURED}>"

    rewritten = _TOKEN.sub(reopen, regex)
    if group == 0:
        return f"(?P<{_CAPTURED}>{rewritten})"
    if not found:
        raise JobError(f"{regex!r} has no group {group!r}; its groups are 0 (everything) {' '.join(groups)}".rstrip())
    return rewritten


_TEXT: Final = "use .cast('string') to make text of other columns"

TEXT_FUNCTIONS: Final[dict[str, Function]] = {
    "str.lower": Function(_lower, hint=_TEXT),
    "str.upper": Function(_upper, hint=_TEXT),
    "str.length": Function(_length, hint=_TEXT),
    "str.count": Function(_count, hint=_TEXT),
    "str.contains": Function(_contains, costly=True, hint=_TEXT),
    "str.matches": Function(_matches, costly=True, hint=_TEXT),
    "str.starts_with": Function(_starts_with, hint=_TEXT),
    "str.ends_with": Function(_ends_with, hint=_TEXT),
    "str.like": Function(_like, costly=True, hint=_TEXT),
    "str.replace": Function(_replace, costly=True, hint=_TEXT),
    "str.replace_regex": Function(_replace_regex, costly=True, hint=_TEXT),
    "str.extract": Function(_extract, costly=True, hint=_TEXT),
    "str.split_part": Function(_split_part, hint=_TEXT),
    "str.strip": Function(_strip, hint=_TEXT),
    "str.slice": Function(_slice, hint=_TEXT),
    "str.concat": Function(_concat, hint=_TEXT),
    "str.parse_time": Function(_parse_time, hint=_TEXT),
}
