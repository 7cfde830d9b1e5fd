"""The version of a function: tells whether its own code is still the same."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, Final

_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes)


def code_version(fn: Callable[..., Any]) -> str:
    """Return 12 hex digits that change when the function's own code does; "" for one that is not written in Python.

    It goes by the compiled code, its constants, and defaults, bound arguments and enclosed variables that are plain
    values: comments, formatting and the place in the file do not count. It says nothing of the functions that this one
    calls, and another version of Python compiles the same text to another number.

    >>> code_version(lambda row: row["a"] + 1) == code_version(lambda row: row["a"] + 1)
    True
    >>> code_version(lambda row: row["a"] + 1) == code_version(lambda row: row["a"] + 2)
    False
    """
    parts = list(_parts(fn))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12] if parts else ""


def _parts(fn: Callable[..., Any]) -> Iterator[str]:
    if isinstance(fn, functools.partial):
        inner = list(_parts(fn.func))
        if inner:
            yield from (
                _constant(value) for value in (*fn.args, *(part for item in fn.keywords.items() for part in item))
            )
            yield from inner
        return
    plain = inspect.unwrap(fn)
    if not hasattr(plain, "__code__"):
        plain = inspect.getattr_static(type(plain), "__call__", None)  # an object that can be called
    code = getattr(plain, "__code__", None)
    if not isinstance(code, CodeType):
        return
    yield _code(code)
    yield _constant(getattr(plain, "__defaults__", None) or ())
    yield _constant(tuple(sorted((getattr(plain, "__kwdefaults__", None) or {}).items())))
    for cell in getattr(plain, "__closure__", None) or ():
        try:
            yield _constant(cell.cell_contents)
        except ValueError:  # not filled yet
            yield "empty"


def _code(code: CodeType) -> str:
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)
    return f"{code.co_code.hex()} {names!r} {[_constant(value) for value in code.co_consts]!r}"


def _constant(value: Any) -> str:
    """The text of a constant: the same in every process, so nothing with an address or in the order of a set."""
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__
