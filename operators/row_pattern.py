"""Patterns over rows as text and as a tree: ``"start down+ up{2,}"``.

The grammar is that of SQL's MATCH_RECOGNIZE (ISO/IEC 19075-5), less what needs more than names, and with ``!name``::

    pattern  := sequence ("|" sequence)*
    sequence := (part | "!" name)+
    part     := (name | "(" pattern ")") ["?" | "*" | "+" | "{" n "}" | "{" [n] "," [n] "}"]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

from millstream.engine.errors import JobError

MOST_ROWS: Final = 1_000
"""A pattern that spells out more rows than this is refused: every counted repetition is written out."""

_TOKEN: Final = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<count>\d+)|(?P<sign>[()|?*+{},!])|(?P<wrong>\S))")


@dataclass(frozen=True, slots=True)
class Take:
    """One row for which the condition of a name is true."""

    name: str


@dataclass(frozen=True, slots=True)
class Absent:
    """No row of a name until the next row of the match or, at the end of the pattern, until the time is over."""

    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several; the first that leads to a match."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part as often as possible, at least ``least`` and at most ``most`` times (None: any number)."""

    part: Node
    least: int
    most: int | None


Node: TypeAlias = Take | Absent | Chain | Choice | Repeat


def parse(text: str) -> Node:
    """Return the tree of a pattern.

    Raises:
        JobError: it is not a pattern, and where not; or it can match without any row, or repeats what can.

    >>> parse("a b{2,}")
    Chain(parts=(Take(name='a'), Repeat(part=Take(name='b'), least=2, most=None)))
    """
    if not isinstance(text, str) or not text.strip():
        raise JobError(f"a pattern is a text such as 'start down+ up+', got {text!r}")
    return _Parser(text).pattern()


def names_in(node: Node) -> tuple[str, ...]:
    """Return the names of a pattern, each once, in order.

    >>> names_in(parse("a (b | c)+ !d"))
    ('a', 'b', 'c', 'd')
    """
    match node:
        case Take(name) | Absent(name):
            return (name,)
        case Chain(nodes) | Choice(nodes):
            return tuple(dict.fromkeys(name for part in nodes for name in names_in(part)))
        case Repeat(part):
            return names_in(part)


def show(node: Node) -> str:
    """Return the canonical text of a pattern.

    >>> show(parse(" a(b|c) {1,} !d"))
    'a (b | c)+ !d'
    """
    match node:
        case Take(name):
            return name
        case Absent(name):
            return f"!{name}"
        case Chain(parts):
            return " ".join(f"({show(p)})" if isinstance(p, Choice | Chain) else show(p) for p in parts)
        case Choice(options):
            return " | ".join(map(show, options))
        case Repeat(part, least, most):
            inner = f"({show(part)})" if not isinstance(part, Take) else show(part)
            counts = {(0, 1): "?", (0, None): "*", (1, None): "+"}
            exactly = f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
            return inner + counts.get((least, most), exactly)


def may_be_empty(node: Node) -> bool:
    """Whether a pattern can match without taking a row."""
    match node:
        case Take():
            return False
        case Absent():
            return True
        case Chain(parts):
            return all(map(may_be_empty, parts))
        case Choice(options):
            return any(map(may_be_empty, options))
        case Repeat(part, least):
            return least == 0 or may_be_empty(part)


def _rows_spelled_out(node: Node) -> int:
    match node:
        case Take() | Absent():
            return 1
        case Chain(nodes) | Choice(nodes):
            return sum(map(_rows_spelled_out, nodes))
        case Repeat(part, least, most):
            return _rows_spelled_out(part) * max(1, least if most is None else most)


class _Parser:
    """Reads a pattern from left to right, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [(m[m.lastgroup or ""], m.lastgroup, m.start(m.lastgroup or "")) for m in _TOKEN.finditer(text)]
        self._tokens.append(("", "end", len(text)))
        self._next = 0

    def pattern(self) -> Node:
        """The whole text."""
        node = self._choice(outermost=True)
        if not self._is_at("end"):
            self._fail("there is nothing to close here" if self._sees(")") else "unexpected")
        if may_be_empty(node):
            self._refuse("it can match without any row: let it begin with a name that is not optional", 0)
        if _rows_spelled_out(node) > MOST_ROWS:
            self._refuse(f"written out it has more than {MOST_ROWS:,} rows: make the counts smaller", 0)
        return node

    def _choice(self, *, outermost: bool) -> Node:
        options = [self._chain(outermost=outermost)]
        while self._accept("|"):
            options.append(self._chain(outermost=False))
        if len(options) == 1:
            return options[0]
        if any(isinstance(part, Absent) for option in options for part in _parts(option)):
            self._refuse("! stands outside of alternatives: write 'a (b | c) !d'", self._text.index("!"))
        return Choice(tuple(options))

    def _chain(self, *, outermost: bool) -> Node:
        parts: list[Node] = []
        while not (self._is_at("end") or self._sees("|") or self._sees(")")):
            at = self._at
            if self._accept("!"):
                parts.append(self._absent(parts, at, outermost=outermost))
                continue
            part = self._part()
            if parts and isinstance(parts[-1], Absent) and may_be_empty(part):
                self._refuse("what comes after a name with ! must not be optional", at)
            parts.append(part)
        if not parts:
            self._fail("a name is missing")
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def _absent(self, before: list[Node], at: int, *, outermost: bool) -> Node:
        if not outermost:
            self._refuse("! stands outside of parentheses and alternatives: write 'a (b | c) !d'", at)
        if all(map(may_be_empty, before)):
            self._refuse(
                "! says that no such row comes after another one: put a name that is not optional before it", at
            )
        if not self._is_at("name"):
            self._fail("a name must follow !")
        absent = Absent(self._take())
        if self._token in {"?", "*", "+", "{"}:
            self._fail("a name with ! is not repeated")
        return absent

    def _part(self) -> Node:
        at = self._at
        if self._is_at("name"):
            node: Node = Take(self._take())
        elif self._accept("("):
            node = self._choice(outermost=False)
            if not self._accept(")"):
                self._refuse("this parenthesis is not closed", at)
        else:
            self._fail("expected a name or a parenthesis")
        return self._repeated(node, at)

    def _repeated(self, node: Node, at: int) -> Node:
        counts = self._counts()
        if counts is None:
            return node
        least, most = counts
        if most is None and may_be_empty(node):
            self._refuse("this can be without any row, and is repeated without end: leave out ? or * inside", at)
        if self._token in {"?", "*", "+", "{"}:
            self._fail("one of ? * + {m,n} is enough; repetitions take as many rows as they can")
        return Repeat(node, least, most)

    def _counts(self) -> tuple[int, int | None] | None:
        for sign, counts in (("?", (0, 1)), ("*", (0, None)), ("+", (1, None))):
            if self._accept(sign):
                return counts
        at = self._at
        if not self._accept("{"):
            return None
        least = int(self._take()) if self._is_at("count") else None
        most = least
        if self._accept(","):
            most = int(self._take()) if self._is_at("count") else None
        elif least is None:
            self._fail("a number is missing")
        if not self._accept("}"):
            self._fail("expected }, as in up{2}, up{2,} or up{2,5}")
        if most is not None and (most < (least or 0) or most == 0):
            self._refuse("the second number must be at least 1 and not smaller than the first", at)
        return least or 0, most

    # -- tokens ------------------------------------------------------------------------------------------------

    @property
    def _token(self) -> str:
        return self._tokens[self._next][0]

    @property
    def _at(self) -> int:
        return self._tokens[self._next][2]

    def _is_at(self, kind: str) -> bool:
        return self._tokens[self._next][1] == kind

    def _sees(self, sign: str) -> bool:
        return self._token == sign

    def _accept(self, sign: str) -> bool:
        if not self._sees(sign):
            return False
        self._next += 1
        return True

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1][0]

    def _fail(self, why: str) -> NoReturn:
        what = "the end" if self._is_at("end") else repr(self._token)
        self._refuse(f"at {what}: {why}", self._at)

    def _refuse(self, why: str, at: int) -> NoReturn:
        shown = "".join(" " if c.isspace() else c for c in self._text)
        raise JobError(f"the pattern is not right, {why}\n    {shown}\n    {' ' * at}^")


def _parts(node: Node) -> tuple[Node, ...]:
    return node.parts if isinstance(node, Chain) else (node,)
