"""What a pattern finds, by plain backtracking over dicts; and random patterns, conditions and streams."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr, col
from millstream.operators.match import Match
from millstream.operators.match_expressions import prev
from millstream.operators.row_pattern import Absent, Chain, Choice, Node, Repeat, Take, names_in, parse, show
from operator_kit import Advance, Restart, Step

SCHEMA = pa.schema({"k": pa.string(), "v": pa.string(), "n": pa.int64(), "t": pa.timestamp("us"), "seq": pa.int64()})
ACCEPT = None

Row = dict[str, Any]
Holds = Callable[[Row, Row | None, Row], bool]
"""(row, the row before, the row that the match begins with) -> whether a name may take the row."""


@dataclass(frozen=True)
class Case:
    """A pattern with its conditions, as expressions and as functions."""

    text: str
    define: tuple[tuple[str, Expr], ...]
    holds: dict[str, Holds]

    def __repr__(self) -> str:
        return f"Case({self.text!r}, {self.define!r})"


# -- the reference ---------------------------------------------------------------------------------------------

Way = tuple[str | None, frozenset[str], tuple[Node, ...]]


def ways(nodes: tuple[Node, ...], forbids: frozenset[str] = frozenset()) -> Iterator[Way]:
    """How a pattern may go on, best first: the next name, what must not come before it, and what is left then."""
    if not nodes:
        yield ACCEPT, forbids, ()
        return
    head, rest = nodes[0], nodes[1:]
    match head:
        case Take(name):
            yield name, forbids, rest
        case Absent(name):
            yield from ways(rest, forbids | {name})
        case Chain(parts):
            yield from ways((*parts, *rest), forbids)
        case Choice(options):
            for option in options:
                yield from ways((option, *rest), forbids)
        case Repeat(part, least, most):
            less = Repeat(part, max(0, least - 1), None if most is None else most - 1)
            if least > 0:
                yield from ways((part, less, *rest), forbids)
            else:
                if most is None or most > 0:
                    yield from ways((part, less, *rest), forbids)
                yield from ways(rest, forbids)


def reachable(left: list[Way]) -> list[Way]:
    """Without what comes after a way that always succeeds: to end here, without a condition."""
    ends = [number for number, (name, forbids, _) in enumerate(left) if name is ACCEPT and not forbids]
    return left[: ends[0] + 1] if ends else left


class Matcher:
    """Tries one way after the other over the rows of one key, in order."""

    def __init__(self, case: Case, rows: Sequence[Row], within: int, *, relaxed: bool) -> None:
        self.case, self.rows, self.within, self.relaxed = case, rows, within, relaxed
        self.pattern = parse(case.text)

    def holds(self, name: str, at: int, begin: int) -> bool:
        row = self.rows[at]
        before = self.rows[at - 1] if at and row["t"] - self.rows[at - 1]["t"] <= self.within else None
        return self.case.holds[name](row, before, self.rows[begin])

    def in_time(self, at: int, begin: int) -> bool:
        return at < len(self.rows) and self.rows[at]["t"] - self.rows[begin]["t"] <= self.within

    def attempt(self, begin: int) -> list[tuple[int, str]] | None:
        return self.go(list(ways((self.pattern,))), begin, begin, [])

    def go(self, left: list[Way], at: int, begin: int, taken: list[tuple[int, str]]) -> list[tuple[int, str]] | None:
        while self.in_time(at, begin):
            left = reachable([way for way in left if not any(self.holds(name, at, begin) for name in way[1])])
            takes = any(name is not ACCEPT and self.holds(name, at, begin) for name, _, _ in left)
            if takes or not self.relaxed or at == begin:
                return self.take(left, at, begin, taken)
            at += 1
        return taken if any(name is ACCEPT for name, _, _ in left) else None

    def take(self, left: list[Way], at: int, begin: int, taken: list[tuple[int, str]]) -> list[tuple[int, str]] | None:
        for name, forbids, rest in left:
            if name is ACCEPT:
                later = range(at + 1, len(self.rows))
                if not any(self.in_time(j, begin) and self.holds(f, j, begin) for j in later for f in forbids):
                    return taken
            elif self.holds(name, at, begin):
                found = self.go(list(ways(rest)), at + 1, begin, [*taken, (at, name)])
                if found is not None:
                    return found
        return None

    def all(self, *, past_last: bool) -> Iterator[list[tuple[int, str]]]:
        begin = 0
        while begin < len(self.rows):
            found = self.attempt(begin)
            if found is not None:
                yield found
            begin = found[-1][0] + 1 if found is not None and past_last else begin + 1


def expected(case: Case, rows: Sequence[Row], within: int, *, relaxed: bool, past_last: bool) -> list[tuple[Any, ...]]:
    """The matches of all keys: key, first and last time, the rows of the match, and those of each name."""
    by_key: dict[Any, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["t"], row["seq"])):
        by_key[row["k"]].append(row)
    made = []
    names = names_in(parse(case.text))
    for key, own in by_key.items():
        for match in Matcher(case, own, within, relaxed=relaxed).all(past_last=past_last):
            taken = [own[at]["seq"] for at, _ in match]
            named = [[own[at]["seq"] for at, name in match if name == wanted] for wanted in names]
            made.append((key, own[match[0][0]]["t"], own[match[-1][0]]["t"], taken, *named))
    return made


# -- random cases ----------------------------------------------------------------------------------------------

LETTERS = "abcd"


def letters(wanted: str) -> tuple[Expr, Holds]:
    return col("v").is_in(list(wanted)), lambda row, before, begin: row["v"] in set(wanted)


def below(name: str) -> tuple[Expr, Holds]:
    return (
        col("n") < prev("n"),
        lambda row, before, begin: (
            before is not None and row["n"] is not None and before["n"] is not None and row["n"] < before["n"]
        ),
    )


def above_begin(name: str) -> tuple[Expr, Holds]:
    return (
        (col("n") >= col(f"{name}.n") + 1) & (col("v") != "d"),
        lambda row, before, begin: (
            row["n"] is not None
            and begin["n"] is not None
            and row["n"] >= begin["n"] + 1
            and row["v"] not in {None, "d"}
        ),
    )


def other_text(name: str) -> tuple[Expr, Holds]:
    return col("v") != col(
        f"{name}.v"
    ), lambda row, before, begin: row["v"] is not None and begin["v"] is not None and row["v"] != begin["v"]


NAMES = st.sampled_from(["p", "q", "r", "s"])
NODES = st.recursive(
    NAMES.map(Take),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: Chain(tuple(parts))),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: Choice(tuple(parts))),
        st.tuples(inner, st.sampled_from([(0, 1), (0, None), (1, None), (2, None), (1, 3), (2, 2), (0, 2)])).map(
            lambda drawn: Repeat(drawn[0], *drawn[1])
        ),
    ),
    max_leaves=5,
)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """Texts of patterns that may be looked for."""
    parts: list[Node] = [Take("begin")] if draw(st.integers(0, 2)) == 0 else []
    parts.append(draw(NODES))
    if draw(st.booleans()):
        parts.append(Absent(draw(NAMES)))
    if draw(st.booleans()):
        parts.append(draw(NODES))
        if draw(st.booleans()):
            parts.append(Absent(draw(NAMES)))
    text = show(Chain(tuple(parts)))
    try:
        parse(text)
    except JobError:
        return draw(st.sampled_from(["p q", "p+ q", "p q* r", "p !q", "p !q r", "p (q | r)+ s?", "p{2,3} (q r)*"]))
    return text


@st.composite
def cases(draw: st.DrawFn) -> Case:
    text = draw(patterns())
    names = names_in(parse(text))
    begin = Match((), parse(text), (), (), col("t"), 1).begin
    define, holds = [], {}
    for name in names:
        kinds: list[Callable[[str], tuple[Expr, Holds]]] = [below] if draw(st.integers(0, 3)) == 0 else []
        if begin is not None and name != begin and draw(st.booleans()):
            kinds += [lambda _: above_begin(begin), lambda _: other_text(begin)]
        wanted = draw(st.text(LETTERS, min_size=1, max_size=3))
        condition = draw(st.sampled_from(kinds))(name) if kinds else letters(wanted)
        if draw(st.integers(0, 5)):
            define.append((name, condition[0]))
            holds[name] = condition[1]
        else:
            holds[name] = lambda row, before, begin: True
    return Case(text, tuple(define), holds)


@st.composite
def streams(draw: st.DrawFn) -> list[Step]:
    """Batches of random rows, with watermarks, barriers and restarts in between."""
    steps: list[Step] = []
    seq = 0
    about = 0
    for _ in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, 12))
        columns = [
            draw(st.lists(values, min_size=count, max_size=count))
            for values in (
                st.sampled_from(["x", "x", "x", None]),
                st.sampled_from([*LETTERS, *LETTERS, None]),
                st.none() | st.integers(-3, 3),
                st.sampled_from([None, *range(about - 8, about + 8)]),
            )
        ]
        arrays = [pa.array(values, SCHEMA.field(i).type) for i, values in enumerate(columns)]
        steps.append(pa.record_batch([*arrays, pa.array(range(seq, seq + count))], schema=SCHEMA))
        seq += count
        about += 5
        after = draw(st.sampled_from(["nothing", "advance", "advance", "restart", "advance, restart"]))
        if "advance" in after:
            steps.append(Advance(about + draw(st.integers(-16, 0))))
        if "restart" in after:
            steps.append(Restart(draw(st.integers(1, 3))))
    return steps


def on_time(steps: Sequence[Step]) -> list[Row]:
    """The rows that come before the watermark has passed them; times as microseconds."""
    rows, watermark = [], -(2**62)
    for step in steps:
        if isinstance(step, Advance):
            watermark = max(watermark, step.time)
        if isinstance(step, pa.RecordBatch):
            times = step.column("t").cast(pa.int64()).to_pylist()
            for row, time in zip(step.to_pylist(), times, strict=True):
                if time is not None and time >= watermark:
                    rows.append({**row, "t": time})
    return rows


# -- the same from a seed: less even than Hypothesis is thorough, and many times as fast -----------------------


def random_node(draw: random.Random, leaves: int) -> Node:
    """A pattern of at most so many names."""
    kind = draw.random()
    if leaves < 2 or kind < 0.2:
        return Take(draw.choice("pqrs"))
    if kind < 0.5:
        return Repeat(
            random_node(draw, leaves - 1), *draw.choice([(0, 1), (0, None), (1, None), (2, None), (1, 3), (2, 2)])
        )
    parts = tuple(random_node(draw, leaves // 2) for _ in range(draw.randint(2, 3)))
    return Chain(parts) if kind < 0.85 else Choice(parts)


def random_text(draw: random.Random) -> str:
    """The text of a pattern that may be looked for."""
    while True:
        parts: list[Node] = [Take("begin")] if draw.random() < 0.3 else []
        parts.append(random_node(draw, 4))
        for _ in range(draw.choice([0, 0, 1, 2])):
            parts += [Absent(draw.choice("pqrs"))] * (draw.random() < 0.5)
            parts += [random_node(draw, 2)] * (draw.random() < 0.7)
        text = show(Chain(tuple(parts)))
        try:
            parse(text)
        except JobError:
            continue
        return text


def random_case(draw: random.Random) -> Case:
    """A pattern with conditions that hold for about every second row."""
    text = random_text(draw)
    names = names_in(parse(text))
    begin = Match((), parse(text), (), (), col("t"), 1).begin
    define, holds = [], {}
    for name in names:
        kinds: list[tuple[Expr, Holds]] = [letters("".join(draw.sample(LETTERS, draw.choice([1, 1, 2, 3]))))] * 4
        kinds.append(below(name))
        if begin is not None and name != begin:
            kinds += [above_begin(begin), other_text(begin)]
        condition = draw.choice(kinds)
        holds[name] = condition[1]
        if draw.random() < 0.9:
            define.append((name, condition[0]))
        else:
            holds[name] = lambda row, before, begin: True
    return Case(text, tuple(define), holds)


def random_steps(draw: random.Random) -> list[Step]:
    """Batches with rows out of order, some late, with watermarks and restarts in between."""
    steps: list[Step] = []
    seq = about = 0
    for _ in range(draw.randint(2, 8)):
        rows = []
        for seq in range(seq, seq + draw.randint(1, 8)):  # noqa: B020  goes on where it was
            about += draw.choice([0, 0, 1, 1, 2])
            time = None if draw.random() < 0.03 else about + draw.randint(-3, 3)
            letter = draw.choice([*LETTERS, None])
            rows.append((draw.choice("xxy"), letter, draw.choice([None, 0, 1, 2, 3]), time, seq))
        seq += 1
        columns = list(zip(*rows, strict=True))
        steps.append(
            pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        )
        if draw.random() < 0.7:
            steps.append(Advance(about - draw.choice([2, 3, 3, 4, 8])))
        if draw.random() < 0.4:
            steps.append(Restart(draw.randint(1, 3)))
    return steps
