"""Which columns of its row a function reads, where its code leaves no doubt: the others need not even be read.

A row is a dict, and a function may do with a dict whatever it likes. But most only write ``row["amount"]`` and
``row.get("amount")``; if the row is used in no other way, nothing else of it can ever matter.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FunctionType
from typing import Any, Final

_SEES_LOCALS: Final = frozenset(["locals", "vars", "dir", "eval", "exec", "_getframe", "currentframe", "stack"])
_FILLERS: Final = frozenset(["RESUME", "COPY_FREE_VARS", "NOP", "CACHE", "PRECALL", "EXTENDED_ARG"])
_LOADS: Final = frozenset(["LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_LOAD_FAST", "STORE_FAST_LOAD_FAST"])
_GETS: Final = [["LOAD_METHOD", "LOAD_CONST"], ["LOAD_ATTR", "LOAD_CONST"]]
_SIMPLE: Final = frozenset(["LOAD_CONST", "LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF"])


def columns_read(functions: Iterable[Callable[..., Any]], argument: int = 0) -> frozenset[str] | None:
    """Return the columns that functions read of the row they get as an argument.

    Args:
        functions: Python functions; of methods give the plain function, and count ``self``.
        argument: which argument is the row.

    Returns:
        The names, or None if it cannot be told: the row is handed on, changed or gone through as a whole.

    >>> columns_read([lambda row: {"a": row["x"] + row.get("y", 0)}]) == {"x", "y"}
    True
    >>> columns_read([lambda row: {**row, "a": 1}])
    """
    names: set[str] = set()
    for function in functions:
        found = _read_by(function, argument)
        if found is None:
            return None
        names |= found
    return frozenset(names)


def _read_by(function: Callable[..., Any], argument: int) -> set[str] | None:
    while isinstance(function, functools.partial):
        argument += len(function.args)
        function = function.func
    if inspect.ismethod(function):
        function, argument = function.__func__, argument + 1
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    if argument >= code.co_argcount or code.co_varnames[argument] in (*code.co_cellvars, *code.co_freevars):
        return None
    return _read_in(code, code.co_varnames[argument])


def _read_in(code: CodeType, row: str) -> set[str] | None:
    if _SEES_LOCALS & set(code.co_names):
        return None
    names: set[str] = set()
    steps = [step for step in dis.get_instructions(code) if step.opname not in _FILLERS]
    for place, step in enumerate(steps):
        if row in _locals_of(step):
            name = _column(steps[place + 1 : place + 5]) if _loads_last(step, row) else None
            if name is None:
                return None
            names.add(name)
    return names


def _locals_of(step: dis.Instruction) -> tuple[str, ...]:
    """The local variables that an instruction loads, stores or deletes: there are some that do two such things."""
    if "_FAST" not in step.opname:
        return ()
    return step.argval if isinstance(step.argval, tuple) else (step.argval,)


def _loads_last(step: dis.Instruction, row: str) -> bool:
    """Whether all that an instruction does with the row is to put it on top of the stack."""
    return step.opname in _LOADS and _locals_of(step).index(row) == len(_locals_of(step)) - 1


def _column(steps: Sequence[dis.Instruction]) -> str | None:
    """The column that is read by what follows the loading of a row; None if it is something else."""
    names = [step.opname for step in steps]
    if names[:2] == ["LOAD_CONST", "BINARY_SUBSCR"]:
        return steps[0].argval if isinstance(steps[0].argval, str) else None
    if names[:2] not in _GETS or steps[0].argval != "get" or not isinstance(steps[1].argval, str):
        return None
    # The name must be the whole of the first argument: row.get("a" + suffix) reads another column.
    one = names[2:3] == ["CALL"] and steps[2].arg == 1
    two = names[3:4] == ["CALL"] and steps[3].arg == 2 and names[2] in _SIMPLE
    return steps[1].argval if one or two else None
