"""Kills Nexmark queries again and again while they read real files, and compares what is left with DuckDB.

A trial is one query started at one parallelism: ``millstream nexmark run`` as a process, killed by SIGKILL at random
moments and started again on the same store, now and then at another parallelism. Then it is let finish, and its files
must hold exactly DuckDB's batch answer.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pyarrow.parquet as pq
from millstream.benchmarks.nexmark_files import STREAMS, events_file
from millstream.benchmarks.nexmark_run import ALREADY_FINISHED, RunReport
from millstream.benchmarks.nexmark_verify import verify
from millstream.engine.errors import JobError
from millstream.torture.job_on_disk import STARTING, JobOnDisk
from millstream.torture.killer import Kill, Killer, Process, Tortured
from rich.table import Table

AT_WORK: Final = 0.3
"""Seconds a start is at work, about, before its first new epoch and while a kill waits for a checkpoint."""

ELSEWHERE: Final = 1 / 3
"""The part of the starts that draw their parallelism anew."""

STARTS: Final = 3
"""So many times the kills wanted are tried: those that hit a process before it is at work do not count."""

RESTARTING: Final = "restarting"
"""What a job logs when it starts anew after a failure of its own."""


@dataclass(frozen=True, slots=True)
class KillOptions:
    """How to kill.

    Attributes:
        kills: how many that hit a query at work.
        parallelism: what trials begin at, each at one of them; and what a start may draw instead.
        every: time between two checkpoints.
        longest: seconds a start is left alive at most, once it has committed an epoch.
        seed: draws the moments and the parallelism of each start.
    """

    events: Path
    kills: int = 20
    parallelism: tuple[int, ...] = (1, 2, 3)
    every: str = "200ms"
    delay: str = "4s"
    longest: float = 0.6
    seed: int = 1

    def pace(self) -> tuple[float, int]:
        """Events a second, and events of a start at most, with which the input outlasts all kills."""
        rows: int = sum(pq.read_metadata(events_file(self.events, stream)).num_rows for stream in STREAMS)
        share = rows / (max(1, self.kills) + 1)
        # Not the whole share: when it is used up, each subtask has another batch under way.
        return max(1.0, share / (self.longest + AT_WORK)), max(1, int(share * 0.75))


class Trial(msgspec.Struct):
    """What became of a query.

    Attributes:
        parallelism: what it began at.
        kills: those that hit it at work.
        missed: how many hit a process that was only starting.
        starts: the parallelism of every start, the last one included.
        rows: rows of DuckDB's answer.
        left: events that were still to be read after the last kill.
        violations: a sentence each.
    """

    query: str
    parallelism: int
    kills: list[Kill] = msgspec.field(default_factory=list)
    missed: int = 0
    starts: list[int] = msgspec.field(default_factory=list)
    rows: int = 0
    left: int = 0
    seconds: float = 0.0
    violations: list[str] = msgspec.field(default_factory=list)

    @property
    def recoveries(self) -> int:
        """How many starts began from a checkpoint; the last one is not a kill."""
        last = bool(self.kills and self.kills[-1].epoch)
        return sum(kill.restored > 0 for kill in self.kills) + last

    def line(self) -> str:
        """Say it in a line, and each violation in another.

        >>> Trial("q5", 2, starts=[2, 1], rows=108, seconds=3.0).line()
        'q5 at 2: 0 kills at work, 0 missed; 0 recoveries, 1 moves; 0 events left, 108 rows, 3 s: same'
        """
        line = (
            f"{self.query} at {self.parallelism}: {len(self.kills)} kills at work, {self.missed} missed; "
            f"{self.recoveries} recoveries, {self.moves} moves; {self.left:,} events left, {self.rows:,} rows, "
            f"{self.seconds:.0f} s: {self.verdict}"
        )
        return "\n  ".join([line, *self.violations])

    @property
    def verdict(self) -> str:
        """Whether nobody could have noticed the kills."""
        return "WRONG" if self.violations else "same"

    @property
    def moves(self) -> int:
        """How many starts had another parallelism than the one before."""
        return sum(a != b for a, b in zip(self.starts, self.starts[1:], strict=False))


def kill_queries(
    queries: Iterable[str], options: KillOptions, folder: Path, done: Callable[[Trial], None] = lambda _: None
) -> list[Trial]:
    """Make a trial of each query at each parallelism, one after the other.

    Args:
        folder: each trial has a folder of its own in it, which is removed if nothing was wrong.
        done: called with each trial.

    Raises:
        JobError: a folder of a trial is there already.
    """
    places = {(query, n): folder / f"{query}-{n}" for query in queries for n in options.parallelism}
    for place in places.values():
        if place.exists():
            raise JobError(f"{place} is there already: remove it, or give another folder")
    trials = []
    for (query, parallelism), place in places.items():
        trials.append(_Execution(query, parallelism, options, place).run())
        done(trials[-1])
    return trials


def table(trials: Sequence[Trial]) -> Table:
    """Return the trials for people."""
    shown = Table(title="Nexmark, killed", caption=CAPTION, caption_justify="left")
    for heading in ("query", "at", "kills", "early", "resumed", "moved", "epochs", "rows", "verdict"):
        shown.add_column(heading, justify="left" if heading in {"query", "verdict"} else "right")
    for trial in trials:
        early = sum(kill.epoch == kill.restored for kill in trial.kills)
        epochs = max((kill.epoch for kill in trial.kills), default=0)
        numbers = (len(trial.kills), early, trial.recoveries, trial.moves, epochs, trial.rows)
        shown.add_row(trial.query, str(trial.parallelism), *(f"{n:,}" for n in numbers), trial.verdict)
    return shown


CAPTION: Final = (
    "Each line is a query started at one parallelism and killed so often by SIGKILL while at work. Early: before "
    "the first new epoch of that start. Resumed: starts from a checkpoint; moved: starts at another parallelism than "
    "the one before; epochs: committed at the last kill. Rows: those of DuckDB's batch answer, which the committed "
    "files must be equal to as a multiset."
)


class _Execution:
    def __init__(self, query: str, parallelism: int, options: KillOptions, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._options = options
        self._trial = Trial(query, parallelism)
        self._job = JobOnDisk(folder / "job.duckdb", folder / "results", (query,))
        self._log = folder / "job.log"
        self._draw = random.Random(f"{options.seed} {query} {parallelism}")  # noqa: S311 - repeatable on purpose
        self._rate, self._most = options.pace()

    def run(self) -> Trial:
        trial = self._trial
        began = time.monotonic()
        try:
            self._kill()
            self._finish()
            self._compare()
        except Tortured as error:
            trial.violations.append(str(error))
        trial.seconds = round(time.monotonic() - began, 1)
        if not trial.violations:
            shutil.rmtree(self._folder)
        return trial

    def _kill(self) -> None:
        trial, wanted = self._trial, self._options.kills
        killer = Killer(self._job, self._start_paced, self._draw, self._options.longest, str(self._log))
        try:
            while len(trial.kills) < wanted and len(trial.kills) + trial.missed < wanted * STARTS:
                kill = killer.kill_once()
                if kill.where == STARTING:
                    trial.missed += 1
                else:
                    trial.kills.append(kill)
        finally:
            trial.violations += killer.violations
        if len(trial.kills) < wanted:
            raise Tortured(f"only {len(trial.kills)} of {wanted} kills hit the query at work")

    def _start_paced(self) -> Process:
        parallelism = self._trial.parallelism
        if self._draw.random() < ELSEWHERE:
            parallelism = self._draw.choice(self._options.parallelism)
        # Half of the starts show each epoch at once; with the others rows wait in the checkpoint.
        held = ["--hold-bytes", "0B"] if self._draw.random() < 1 / 2 else []
        return self._start(parallelism, "--rate", f"{self._rate:.3f}", "--pause-after", str(self._most), *held)

    def _start(self, parallelism: int, *words: str) -> Process:
        self._trial.starts.append(parallelism)
        options, job = self._options, self._job
        command = [sys.executable, "-m", "millstream", "nexmark", "run", self._trial.query]
        command += ["--events", str(options.events), "--results", str(job.output), "--store", str(job.store)]
        command += ["--parallelism", str(parallelism), "--every", options.every, "--delay", options.delay, *words]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _finish(self) -> None:
        """Let it end, at full speed; a start after that must find nothing to do."""
        report = self._run_to_end()
        self._trial.left = report.input_events
        if report.outcome != "finished" or not report.input_events:
            raise Tortured(f"the input did not outlast the kills: the last start was {report.outcome!r}")
        again = self._run_to_end()
        self._trial.starts.pop()
        if again.outcome != ALREADY_FINISHED:
            raise Tortured(f"a start after the end was {again.outcome!r}, not {ALREADY_FINISHED!r}")

    def _run_to_end(self) -> RunReport:
        at = self._log.stat().st_size if self._log.exists() else 0
        code = self._start(self._draw.choice(self._options.parallelism)).wait()
        said = self._log.read_bytes()[at:].decode(errors="replace")
        if code != 0:
            raise Tortured(f"the last start failed with exit code {code}; see {self._log}: {said[-2000:]}")
        return msgspec.json.decode(said.splitlines()[-1], type=RunReport)

    def _compare(self) -> None:
        trial = self._trial
        verdict = verify(trial.query, self._options.events, self._job.output)
        trial.rows = verdict.expected_rows
        if verdict.complaint:
            trial.violations.append(verdict.complaint)
        if verdict.different_rows:
            first = "; ".join(f"{d.copies:+d} × {d.row}" for d in verdict.differences[:3])
            trial.violations.append(f"{verdict.different_rows} rows are lost or doubled: {first}")
        trial.violations += [f"{orphan} is left over" for orphan in self._job.orphans()]
        # A start that fails and tries again may end well all the same.
        said = self._log.read_text(errors="replace").splitlines()
        trial.violations += [f"a start failed by itself: {line}" for line in said if RESTARTING in line]
