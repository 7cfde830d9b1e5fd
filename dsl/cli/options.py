"""What several commands take, and the types of options click does not know."""

from __future__ import annotations

from pathlib import Path

import click
from millstream.engine.errors import JobError

FILE = click.Path(path_type=Path, dir_okay=False)
"""A file that may be there or not."""


def positive_time(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Refuse what is not a duration above zero; for options with a time such as 200ms, 10s or 1m30s."""
    from millstream.engine.time import micros

    try:
        length = micros(value)
    except JobError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    if length == 0:
        raise click.BadParameter(f"{value!r} is no time at all: give more, as in 200ms, 10s or 1m", ctx, param)
    return value


def positive_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Refuse what is not a size in bytes above zero."""
    from millstream.engine.memory import parse_bytes

    try:
        return None if value is None else parse_bytes(value)
    except JobError as error:
        raise click.BadParameter(str(error), ctx, param) from None


JOB = click.argument("job", metavar="FILE[:NAME]")
PARALLELISM = click.option(
    "--parallelism",
    metavar="N",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Subtasks per stage, and worker threads. May differ from start to start.",
)
STORE = click.argument("store", type=FILE)
FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default=None,
    help="A table for people, or a JSON object per line.  [default: table on a terminal, else json]",
)
