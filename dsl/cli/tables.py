"""Rows on standard output: a table for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from millstream.engine.as_json import as_json
from rich.console import Console
from rich.table import Table
from rich.text import Text


def wants_table(form: str | None) -> bool:
    """Whether to print for people: as asked for, else when they are there to see it."""
    return sys.stdout.isatty() if form is None else form == "table"


def show_rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], form: str | None) -> None:
    """Print rows as a table, or as a JSON object per line."""
    if wants_table(form):
        print_table(columns, rows)
        return
    for row in rows:
        click.echo(as_json(row))


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows as a table."""
    table = Table(title=Text(title, "bold") if title else None, title_justify="left")
    for name in columns:
        numbers = bool(rows) and all(_is_number(row[name]) for row in rows)
        table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    console().print(table)


def console() -> Console:
    """Standard output; without a terminal lines are as long as they are."""
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, force_terminal=terminal, width=None if terminal else 10_000)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> Text:
    match value:
        case None | []:
            return Text("")
        case str():
            return Text(value)
        case dict() | list() | bytes():
            return Text(as_json(value))
        case _:
            return Text(str(value))
