"""The automaton of a pattern: a table of transitions, filled in as rows ask for them.

An attempt at a match is a list of *threads* in the order in which a backtracking matcher would try them (Pike's
construction; Cox, "Regular Expression Matching: the Virtual Machine Approach"). What a row does to such a list depends
only on the list and on which conditions hold for the row, the row's *mask*. So each list that occurs becomes a state of
a table (lazily, as in RE2), and the kernels step through that, one look-up per row, whatever the pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from millstream.engine.codes import Ints
from millstream.operators.row_pattern import Absent, Chain, Choice, Node, Repeat, Take

DEAD: Final = 0
"""The state of an attempt that can match no more."""
DONE: Final = 1
"""The state of an attempt whose match is certain."""
START: Final = 2
"""The state before the first row."""

KEEP: Final = 0
MARK: Final = 1
CLEAR: Final = 2
"""What a transition does with the last row of the best match so far: leave it, make it this row, there is none."""

STAYED: Final = -1
"""The label of a thread that has passed over the row."""

_ACCEPT: Final = -1
_UNKNOWN: Final = -1


class Edge(NamedTuple):
    """One way on from a thread's place.

    Attributes:
        target: the instruction that takes a row; _ACCEPT: the pattern is at its end.
        needs: the bits of a mask that must be set to take the row.
        forbids: the way ends at a row that has one of these bits.
        label: which name takes the row.
    """

    target: int
    needs: int
    forbids: int
    label: int


Thread: TypeAlias = tuple[Edge, ...]
"""The ways on from where a thread is, best first."""


class _Made(NamedTuple):
    """A thread after a row, where it comes from, and how."""

    thread: Thread
    parent: int
    label: int


class Automaton:
    """The states and transitions seen so far.

    Args:
        pattern: as parsed.
        bits: the bit of each name's condition in masks; a name that is not in here takes any row.
        labels: the number of each name.
        relaxed: whether rows that nothing takes are passed over.

    Attributes:
        table: int32, shape (states, masks): the number of the transition, -1 if it is not known yet: ``add`` it.
        transitions: int64, shape (transitions, 4): next state, what to do with the mark, which thread is at the mark,
            where in ``trail`` the threads begin.
        trail: int64, shape (n, 2), per thread after a transition: the thread it comes from, the label.
    """

    def __init__(self, pattern: Node, bits: Mapping[str, int], labels: Mapping[str, int], *, relaxed: bool) -> None:
        self._code = _compile(pattern)
        self._bits = bits
        self._labels = labels
        self._relaxed = relaxed
        self._width = 1 << max((bit.bit_length() for bit in bits.values()), default=0)
        self._ways: dict[int, Thread] = {}
        self._threads: list[tuple[Thread, ...]] = [(), (), (self._ways_from(0),)]
        # The beginning has no number by its threads: after some rows the same threads mean something else.
        self._numbers: dict[tuple[Thread, ...], int] = {}
        self._transitions = 0
        self._trails = 0
        self.table: npt.NDArray[np.int32] = np.full((8, self._width), _UNKNOWN, np.int32)
        self.transitions: Ints = np.empty((64, 4), np.int64)
        self.trail: Ints = np.empty((64, 2), np.int64)

    @property
    def size(self) -> int:
        """Entries of the table."""
        return len(self._threads) * self._width

    def add(self, state: int, mask: int) -> None:
        """Make the transition from a state by a row with this mask."""
        made, held = self._step(self._threads[state], mask, first=state == START)
        holder = next((i for i, new in enumerate(made) if _accepts(new.thread)), -1)
        moved = MARK if made and made[holder].label != STAYED else KEEP
        action = moved if holder >= 0 else CLEAR
        threads = tuple(new.thread for new in made)
        number = self._number(threads, certain=held)
        self._write(state, mask, (number, action, holder, self._trails), made)

    def keep(self, states: Ints) -> Ints:
        """Forget all transitions, and all states but these; return their new numbers."""
        kept = [self._threads[state] for state in states.tolist()]
        self._threads = self._threads[: START + 1]
        self._numbers = {}
        self._transitions = self._trails = 0
        self.table = np.full((8, self._width), _UNKNOWN, np.int32)
        terminal = [state if state < START else -1 for state in states.tolist()]
        numbers = [n if n >= 0 else self._intern(threads) for n, threads in zip(terminal, kept, strict=True)]
        return np.array(numbers, np.int64)

    # -- what a row does ---------------------------------------------------------------------------------------

    def _step(self, threads: tuple[Thread, ...], mask: int, *, first: bool) -> tuple[list[_Made], bool]:
        """Return the threads after a row, and whether a match is certain that none of them can better."""
        made: list[_Made] = []
        seen: set[Thread] = set()
        for parent, thread in enumerate(threads):
            for new in self._moves(thread, parent, mask, first=first):
                if new.thread not in seen:
                    seen.add(new.thread)
                    made.append(new)
                if _certain(new.thread):  # nothing after it will ever be asked
                    return made, made[0].thread == new.thread and len(new.thread) == 1
        return made, False

    def _moves(self, thread: Thread, parent: int, mask: int, *, first: bool) -> list[_Made]:
        alive = tuple(edge for edge in thread if not edge.forbids & mask)
        taken = any(edge.target != _ACCEPT and edge.needs & mask == edge.needs for edge in alive)
        if not taken and self._relaxed and not first:
            return [_Made(alive, parent, STAYED)] if alive else []
        moves = []
        for edge in alive:
            if edge.target == _ACCEPT:
                moves.append(_Made((edge,), parent, STAYED))
            elif edge.needs & mask == edge.needs:
                moves.append(_Made(self._ways_from(edge.target + 1), parent, edge.label))
        return moves

    def _ways_from(self, place: int) -> Thread:
        if place not in self._ways:
            self._ways[place] = self._follow(place)
        return self._ways[place]

    def _follow(self, place: int) -> Thread:
        edges: list[Edge] = []
        seen: set[int] = set()
        waiting = [(place, 0)]
        while waiting:
            at, forbids = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            match self._code[at]:
                case Take(name):
                    edges.append(Edge(at, self._bits.get(name, 0), forbids, self._labels[name]))
                case Absent(name):
                    waiting.append((at + 1, forbids | self._bits[name]))
                case _Fork(ways):
                    waiting += [(way, forbids) for way in reversed(ways)]
                case None:
                    edges.append(Edge(_ACCEPT, 0, forbids, STAYED))
                    if not forbids:
                        break  # it will always be right to end here, so what is left is never asked
        return tuple(edges)

    # -- the table ---------------------------------------------------------------------------------------------

    def _number(self, threads: tuple[Thread, ...], *, certain: bool) -> int:
        if certain:
            return DONE
        return self._intern(threads) if threads else DEAD

    def _intern(self, threads: tuple[Thread, ...]) -> int:
        if threads not in self._numbers:
            self._numbers[threads] = len(self._threads)
            self._threads.append(threads)
            if len(self._threads) > len(self.table):
                self.table = _doubled(self.table, _UNKNOWN)
        return self._numbers[threads]

    def _write(self, state: int, mask: int, transition: tuple[int, ...], made: list[_Made]) -> None:
        while self._trails + len(made) > len(self.trail):
            self.trail = _doubled(self.trail, 0)
        if self._transitions == len(self.transitions):
            self.transitions = _doubled(self.transitions, 0)
        for row, new in enumerate(made, self._trails):
            self.trail[row] = new.parent, new.label
        self.transitions[self._transitions] = transition
        self.table[state, mask] = self._transitions
        self._transitions += 1
        self._trails += len(made)


def _accepts(thread: Thread) -> bool:
    return any(edge.target == _ACCEPT for edge in thread)


def _certain(thread: Thread) -> bool:
    """Whether the thread has a match that nothing can take away."""
    return any(edge.target == _ACCEPT and not edge.forbids for edge in thread)


# -- from the tree to instructions -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fork:
    """Go on at one of several instructions, the best first."""

    ways: tuple[int, ...]


_Instruction: TypeAlias = Take | Absent | _Fork | None
"""None: the pattern is at its end."""


def _compile(pattern: Node) -> list[_Instruction]:
    code: list[_Instruction] = []
    _emit(pattern, code)
    return [*code, None]


def _emit(node: Node, code: list[_Instruction]) -> None:
    match node:
        case Take() | Absent():
            code.append(node)
        case Chain(parts):
            for part in parts:
                _emit(part, code)
        case Choice(options):
            _emit_choice(options, code)
        case Repeat(part, least, None):
            for _ in range(least - 1):
                _emit(part, code)
            _emit_loop(part, code, at_least_once=least > 0)
        case Repeat(part, least, most):
            for _ in range(least):
                _emit(part, code)
            _emit_optional(part, (most or 0) - least, code)


def _emit_choice(options: tuple[Node, ...], code: list[_Instruction]) -> None:
    fork = len(code)
    code.append(None)
    begins, ends = [], []
    for option in options:
        begins.append(len(code))
        _emit(option, code)
        ends.append(len(code))
        code.append(None)
    code[fork] = _Fork(tuple(begins))
    for end in ends:
        code[end] = _Fork((len(code),))


def _emit_loop(part: Node, code: list[_Instruction], *, at_least_once: bool) -> None:
    begin = len(code)
    if at_least_once:
        _emit(part, code)
        code.append(_Fork((begin, len(code) + 1)))
        return
    code.append(None)
    _emit(part, code)
    code.append(_Fork((begin,)))
    code[begin] = _Fork((begin + 1, len(code)))


def _emit_optional(part: Node, times: int, code: list[_Instruction]) -> None:
    forks = []
    for _ in range(times):
        forks.append(len(code))
        code.append(None)
        _emit(part, code)
    for fork in forks:
        code[fork] = _Fork((fork + 1, len(code)))


def _doubled(array: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
    return np.concatenate([array, np.full_like(array, fill)])
