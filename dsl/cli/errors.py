"""How an error is told: what happened and where in the user's own files; Millstream's frames only for its own bugs."""

from __future__ import annotations

import functools
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import click
from millstream.engine.errors import InternalError, JobHangs, MemoryExceeded, MillstreamError

HANGS = 75
"""The exit code of a job that hangs, which a supervisor starts again: "temporary failure" in sysexits.h."""


OUTGROWN = 79
"""The exit code of a job whose state has outgrown its memory: started again with no more it would end likewise."""


def exit_code(error: BaseException) -> int:
    """Return what a process that ends by an error exits with."""
    match error:
        case JobHangs():
            return HANGS
        case MemoryExceeded():
            return OUTGROWN
    return 1


def tell(error: MillstreamError) -> None:
    """Print an error to standard error."""
    if isinstance(error, InternalError):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.secho(f"{type(error).__name__}: ", fg="red", bold=True, nl=False, err=True)
    click.echo(str(error), err=True)
    for note in notes(error):
        click.echo(f"  {note}", err=True)
    frames = user_frames(error)
    if frames:
        click.echo("".join(traceback.StackSummary.from_list(frames).format()), err=True, nl=False)


def notes(error: BaseException) -> list[str]:
    """What was noted on the error and on what caused it, the outermost first, nothing twice."""
    return list(dict.fromkeys(note for link in chain(error) for note in getattr(link, "__notes__", [])))


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames in files of the user's, of the innermost cause that has any; the call that failed is the last."""
    for link in reversed(list(chain(error))):
        frames = [
            summary
            for (frame, _), summary in zip(
                traceback.walk_tb(link.__traceback__), traceback.extract_tb(link.__traceback__), strict=True
            )
            if _is_users(frame.f_globals.get("__name__", ""), frame.f_code.co_filename)
        ]
        if frames:
            return frames
    return []


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _is_users(module: str, file: str) -> bool:
    if module.partition(".")[0] == "millstream" or file.startswith("<"):
        return False
    return not any(Path(file).is_relative_to(folder) for folder in _installed())


@functools.cache
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return tuple(Path(folder) for folder in folders if folder not in (sys.prefix, sys.base_prefix))
