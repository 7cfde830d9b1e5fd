"""What the code of users plainly does with ``ctx``; what cannot be told here is found when it runs."""

from __future__ import annotations

import dis
from collections.abc import Callable
from inspect import CO_VARARGS
from itertools import pairwise
from typing import Any


def says(function: Callable[..., Any], attribute: str, argument: int = 2) -> bool:
    """Whether a function says ``ctx.<attribute>`` where its code leaves no doubt.

    >>> says(lambda self, row, ctx: ctx.timer(after="1h"), "timer")
    True
    """
    steps, ctx = _steps(function, argument)
    return any(
        after.argval == attribute
        and before.opname.startswith("LOAD_FAST")
        and ctx in (before.argval, *_last(before.argval))
        for before, after in pairwise(steps)
        if after.opname in {"LOAD_ATTR", "LOAD_METHOD"}
    )


def looks_at(function: Callable[..., Any], argument: int = 2) -> bool:
    """Whether a function may do anything with ``ctx``; not, if it has no such argument or never names it.

    >>> looks_at(lambda row, state, ctx: helper(ctx)), looks_at(lambda row, state: None)
    (True, False)
    """
    code = getattr(function, "__code__", None)
    if code is None or code.co_flags & CO_VARARGS:
        return True
    steps, ctx = _steps(function, argument)
    reads = (step for step in steps if step.opname.startswith("LOAD_"))
    return ctx is not None and (ctx in code.co_cellvars or any(ctx in _names(step.argval) for step in reads))


def _steps(function: Callable[..., Any], argument: int) -> tuple[list[dis.Instruction], str | None]:
    """The instructions of a function, and what it calls the argument; None if it has none."""
    code = getattr(function, "__code__", None)
    if code is None or argument >= code.co_argcount:
        return [], None
    steps = [step for step in dis.get_instructions(code) if step.opname not in {"CACHE", "EXTENDED_ARG"}]
    return steps, code.co_varnames[argument]


def _names(loaded: Any) -> tuple[Any, ...]:
    """Newer Pythons load two variables at once."""
    return loaded if isinstance(loaded, tuple) else (loaded,)


def _last(loaded: Any) -> tuple[Any, ...]:
    """Of two variables loaded at once, the one an attribute is that of."""
    return loaded[-1:] if isinstance(loaded, tuple) else ()
