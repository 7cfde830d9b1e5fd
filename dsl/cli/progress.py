"""Shows a job while it runs: a live view on a terminal, JSON lines otherwise."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

import structlog
from millstream.cli.logs import configure_logging
from millstream.cli.recent import Recent
from millstream.cli.summary import details, fields, sentence
from millstream.cli.text import show_time
from millstream.cli.view import Look, render
from millstream.engine.plan import Plan
from millstream.engine.runtime.monitor import JobStatus
from millstream.engine.runtime.run import Control, JobResult
from rich.console import Console
from rich.live import Live
from rich.text import Text

log = structlog.get_logger("millstream")

FIRST_LOG = 1.0
"""Seconds until the first status line when nobody watches."""
LOG_EVERY = 10.0
"""Seconds between two status lines."""


class Progress:
    """Shows a job's status while it runs; a context manager."""

    def __init__(self, plan: Plan, store: Path, control: Control) -> None:
        self._plan = plan
        self._title = f"{plan.job} · {store}"
        self._control = control
        self._terminal = sys.stderr.isatty()
        self._console = Console(stderr=True, force_terminal=self._terminal)
        self._logs = configure_logging(self._terminal, plan.job)
        self._live: Live | None = None
        self._recent = Recent()
        self._began = time.monotonic()
        self._next_log = self._began + FIRST_LOG
        self._committed = 0
        self._committed_at: float | None = None
        self._said_stopping = False

    def __enter__(self) -> Progress:
        for path in self._plan.guarantees:
            holds = "exactly once" if path.exactly_once else "at least once"
            if self._terminal:
                self._console.print(Text(f"{path.source} → {path.sink}: {holds}", style="dim"), soft_wrap=True)
            else:
                log.info("guarantee", source=path.source, sink=path.sink, holds=holds, reason=path.reason)
        if self._terminal:
            # What a job prints to a file must go there, and only what it prints to this terminal above the view.
            self._live = Live(
                console=self._console, refresh_per_second=4, transient=True, redirect_stdout=sys.stdout.isatty()
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, status: JobStatus) -> None:
        """Show the latest numbers."""
        now = time.monotonic()
        self._recent.add(now, status)
        self._note_checkpoint(now, status)
        if self._live is not None:
            age = None if self._committed_at is None else now - self._committed_at
            look = Look(self._title, status, self._recent, age, self._control.stop_requested)
            self._live.update(render(look, self._console.width))
            return
        if self._control.stop_requested and not self._said_stopping:
            self._said_stopping = True
            log.info("stopping after a last checkpoint")
        if now >= self._next_log:
            self._next_log = now + LOG_EVERY
            self._log(status, now)

    def finish(self, result: JobResult) -> None:
        """Say how it ended. Call it after the context has been left."""
        self._logs.epoch = result.epoch
        if not self._terminal:
            log.info(result.outcome, **fields(result))
            return
        self._console.print(Text(sentence(self._plan.job, result), style="bold"), soft_wrap=True)
        for line in details(result):
            self._console.print(Text(f"  {line}"), soft_wrap=True)

    def _note_checkpoint(self, now: float, status: JobStatus) -> None:
        stats = status.checkpoints
        self._logs.epoch = stats.last_epoch
        if stats.committed != self._committed:
            self._committed_at = now
        self._committed = stats.committed

    def _log(self, status: JobStatus, now: float) -> None:
        stats = status.checkpoints
        log.info(
            "status",
            generation=status.generation,
            rows_read=dict(status.rows_read),
            rows_read_per_second=_rounded(self._recent.read_rates()),
            rows_written=dict(status.rows_written),
            rows_written_per_second=_rounded(self._recent.written_rates()),
            watermarks={name: show_time(time) for name, time in status.watermarks.items() if time is not None},
            checkpoint_seconds=round(stats.last_seconds, 4),
            checkpoint_rows=stats.last_rows,
            checkpoint_age=None if self._committed_at is None else round(now - self._committed_at, 1),
            failed_checkpoints=stats.failed,
            back_pressure={name: round(share, 2) for name, share in self._recent.back_pressure().items()},
            counters={name: dict(counts) for name, counts in status.counters.items()},
            dead_letters=dict(status.dead_letters),
            memory=dict(status.memory),
        )


def _rounded(rates: dict[str, float]) -> dict[str, int]:
    return {name: round(rate) for name, rate in rates.items()}
