"""``millstream run``: runs a job until its sources end or a signal comes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
from millstream.cli.options import FILE, JOB, PARALLELISM, positive_size, positive_time

if TYPE_CHECKING:
    from millstream.engine.runtime.run import Control

INTERRUPTED = 130
"""The exit code of a job that was stopped without a last checkpoint."""

GRACE = 2.0
"""Seconds a job that is to stop at once has to close its files."""


@click.command()
@JOB
@click.option(
    "--store",
    type=FILE,
    help="The checkpoint file; made if it is not there.  [default: the job's name and .duckdb, in this folder]",
)
@click.option(
    "--every",
    metavar="TIME",
    callback=positive_time,
    default="10s",
    show_default=True,
    help="Time between checkpoints: 200ms, 10s, 1m. Output becomes visible with a checkpoint.",
)
@click.option(
    "--checkpoint-timeout",
    metavar="TIME",
    callback=positive_time,
    default="10m",
    show_default=True,
    help="Time after which a checkpoint that is not complete fails, and the job restarts.",
)
@PARALLELISM
@click.option(
    "--restarts",
    metavar="N",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Restarts in a row after failures that may pass, before the job gives up.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=positive_size,
    help="What the operators' state may hold: 500MB, 2GB. Beyond it the job ends at a checkpoint.  [default: any]",
)
@click.option(
    "--exactly-once", is_flag=True, help="Refuse to run unless every path from source to sink is exactly-once."
)
@click.option(
    "--moved-from",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where store, input and output were before all of it was moved; needed once.",
)
@click.option(
    "--drop-state",
    metavar="NAME",
    multiple=True,
    help="Give up the state of an operator, source or sink that is gone or means something else; may be repeated.",
)
@click.option(
    "--from",
    "start_from",
    metavar="STORE@NAME",
    help="Begin a new --store with a savepoint of another one (or STORE@EPOCH, or a savepoint's FILE).",
)
@click.option(
    "--max-dead-letters",
    metavar="N",
    type=click.IntRange(min=0),
    default=10_000,
    show_default=True,
    help="Dead letters the store may hold; with more the job fails. millstream deadletters shows, replays, drops them.",
)
@click.option("--supervise", "supervised", is_flag=True, help="Start the job again whenever something kills it.")
def run(  # noqa: PLR0913, PLR0917 - one parameter per option
    job: str,
    store: Path | None,
    every: str,
    checkpoint_timeout: str,
    parallelism: int,
    restarts: int,
    memory: int | None,
    exactly_once: bool,
    moved_from: Path | None,
    drop_state: tuple[str, ...],
    start_from: str | None,
    max_dead_letters: int,
    supervised: bool,
) -> None:
    """Run the job in FILE. Killed at any moment and run again, it goes on where it was.

    NAME says which job is meant if FILE makes several.

    Ctrl-C and SIGTERM take a last checkpoint and stop; a second one stops at once, which loses nothing.

    Progress goes to standard error: a live view on a terminal, lines of JSON otherwise. Exit code: 0 finished or
    stopped, 1 failed, 2 wrong options, 75 something in it hangs, 79 state has outgrown --memory, 130 stopped at once.

    \b
    millstream run revenue.py --store revenue.duckdb --every 1s
    millstream run jobs.py:revenue --parallelism 4 --supervise
    """
    if supervised:
        from millstream.cli.supervise import supervise

        sys.exit(supervise(job, [argument for argument in sys.argv[1:] if argument != "--supervise"], restarts))
    from millstream.cli.loading import load_job
    from millstream.cli.progress import Progress
    from millstream.engine.runtime.run import Control

    with _failures_as_json(job):
        loaded = load_job(job)
        path = store or Path(re.sub(r"[^\w.-]+", "-", loaded.name) + ".duckdb")
        control = Control()
        with _stopped_by_signals(control):
            with Progress(loaded.plan(parallelism), path, control) as progress:
                result = loaded.run(
                    path,
                    every=every,
                    checkpoint_timeout=checkpoint_timeout,
                    parallelism=parallelism,
                    restarts=restarts,
                    memory=memory,
                    exactly_once=exactly_once,
                    drop_state=drop_state,
                    start_from=start_from,
                    max_dead_letters=max_dead_letters,
                    control=control,
                    on_status=progress.update,
                    moved_from=moved_from,
                )
            progress.finish(result)
    if result.outcome == "interrupted":
        sys.exit(INTERRUPTED)


def install_signal_handlers(control: Control) -> None:
    """SIGTERM and SIGINT ask for a last checkpoint; the second one stops at once, even if user code hangs."""

    def stop(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        if control.stop_now_requested:
            _leave()
        if not control.stop_requested:
            control.stop()
        else:
            control.stop_now()
            timer = threading.Timer(GRACE, _leave)
            timer.daemon = True
            timer.start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _leave() -> None:
    """End the process here and now: whatever is unfinished is what a crash would leave, and recovery expects it."""
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")  # the live view hides the cursor
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def _stopped_by_signals(control: Control) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    install_signal_handlers(control)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _failures_as_json(job: str) -> Iterator[None]:
    """When nobody watches, a failure is a line of JSON like all else; on a terminal it is told as usual."""
    from millstream.cli.errors import exit_code
    from millstream.cli.logs import configure_logging, log_failure

    if sys.stderr.isatty():
        yield
        return
    configure_logging(terminal=False, job=job)
    try:
        yield
    except Exception as error:
        log_failure(error)
        sys.exit(exit_code(error))
