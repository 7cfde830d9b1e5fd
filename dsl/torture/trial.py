"""Runs a user's job undisturbed, then again under kills, and compares what both have left."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from millstream.cli.loading import load_job
from millstream.engine.errors import JobError
from millstream.engine.failpoints import ENVIRONMENT
from millstream.torture.capture import check_tortureable, sink_folders, weight_columns
from millstream.torture.disturber import Disturber
from millstream.torture.job_on_disk import JobOnDisk
from millstream.torture.killer import Ended, Process, Tortured
from millstream.torture.ledger import Ledger
from millstream.torture.outputs import count_rows, differences, letters_differ
from millstream.torture.start import Report, Start

AT_WORK: Final = 0.4
"""Seconds a start is at work, about, before its first new epoch and while a kill waits for a checkpoint."""

ALREADY_FINISHED: Final = "already finished"


@dataclass(frozen=True, slots=True)
class TortureOptions:
    """How to torture.

    Attributes:
        job: ``FILE.py`` or ``FILE.py:name``.
        parallelism: what each start draws one of.
        every: time between checkpoints.
        longest: seconds a start is left alive at most, once it has committed an epoch.
    """

    job: str
    kills: int = 100
    seed: int = 1
    parallelism: tuple[int, ...] = (1, 2)
    every: str = "100ms"
    longest: float = 0.5


@dataclass
class Trial:
    """One torture run in a folder of its own.

    Args:
        tell: called with a line whenever there is something to say.
    """

    options: TortureOptions
    folder: Path
    tell: Callable[[str], None] = lambda _: None
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        job = load_job(self.options.job)
        check_tortureable(job)
        self._sinks = sink_folders(job.graph)
        self._weights = weight_columns(job.graph)
        self.ledger = Ledger(job.name, self.options.seed, self.options.kills)
        self._draw = random.Random(self.options.seed)  # noqa: S311 - repeatable on purpose
        self._log = self.folder / "job.log"
        self._killed = self.folder / "killed"
        self._job = JobOnDisk(self._killed / "job.duckdb", self._killed / "output", tuple(self._sinks.values()))
        self._rows: dict[str, int] = {}
        self._seconds = 0.0

    def run(self) -> Ledger:
        """Run it undisturbed, kill it so often, let it end, and compare.

        Raises:
            JobError: it fails undisturbed, or reads nothing.
        """
        began = time.monotonic()
        whole = self._undisturbed("undisturbed")
        self._rows, self._seconds = whole.rows_read, self.options.kills * (self.options.longest + AT_WORK)
        if not sum(self._rows.values()):
            raise JobError(f"the sources of job {self.ledger.job!r} bring no rows: there is nothing to torture it with")
        self.ledger.rows = {name: count_rows(self._output("undisturbed") / f) for name, f in self._sinks.items()}
        self.tell(f"undisturbed: {sum(self._rows.values()):,} rows in {whole.seconds:.1f} s")
        try:
            self._kill()
            self._finish()
            self._compare()
        except Tortured as error:
            self.ledger.violations.append(str(error))
        self.ledger.seconds = round(time.monotonic() - began, 1)
        return self.ledger

    # -- starts ------------------------------------------------------------------------------------------------

    def _output(self, which: str) -> Path:
        return self.folder / which / "output"

    def _start(self, which: str, *, paced: bool, armed: str = "") -> Process:
        (self.folder / which).mkdir(parents=True, exist_ok=True)
        start = Start(
            job=self.options.job,
            store=str(self.folder / which / "job.duckdb"),
            output=str(self._output(which)),
            parallelism=self._draw.choice(self.options.parallelism),
            every=self.options.every,
            rows=self._rows if paced else None,
            seconds=self._seconds,
        )
        command = [sys.executable, "-m", "millstream.torture.start", msgspec.json.encode(start).decode()]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, ENVIRONMENT: armed}
            )

    def _to_the_end(self, which: str) -> Report | None:
        """Let it end at full speed; None if it failed."""
        self._log.touch()
        at = self._log.stat().st_size
        code = self._start(which, paced=False).wait()
        if code:
            return None
        return msgspec.json.decode(self._log.read_bytes()[at:].splitlines()[-1], type=Report)

    def _undisturbed(self, which: str) -> Report:
        report = self._to_the_end(which)
        if report is None:
            said = self._log.read_text(errors="replace").strip()[-2000:]
            raise JobError(f"the job fails without being disturbed, so there is nothing to compare with:\n{said}")
        return report

    # -- the disturbed run -------------------------------------------------------------------------------------

    def _kill(self) -> None:
        disturber = Disturber(
            self._job,
            lambda: self._start("killed", paced=True),
            self._draw,
            self.options.longest,
            str(self._log),
            start_armed=lambda armed: self._start("killed", paced=True, armed=armed),
        )
        try:
            for number in range(1, self.options.kills + 1):
                kill = disturber.disturb()
                self.ledger.kills.append(kill)
                self.tell(f"kill {number} of {self.options.kills}: {kill.how}, {kill.where}, epoch {kill.epoch}")
        except Ended:
            self.tell(f"the input has come to its end after {len(self.ledger.kills)} kills")
        finally:
            self.ledger.violations += disturber.violations
            self.ledger.zombies, self.ledger.unreached = disturber.zombies, dict(disturber.unreached)

    def _finish(self) -> None:
        report = self._to_the_end("killed")
        if report is None:
            raise Tortured(f"after the kills the job fails, which it does not undisturbed; see {self._log}")
        self.ledger.left = sum(report.rows_read.values())
        again = self._to_the_end("killed")
        if again is None or again.outcome != ALREADY_FINISHED:
            outcome = again.outcome if again else "a failure"
            raise Tortured(f"a start after the end was {outcome!r}, not {ALREADY_FINISHED!r}; see {self._log}")

    def _compare(self) -> None:
        found = self._differences("undisturbed", "killed")
        if found:
            self.tell("the output differs; running undisturbed once more, to see whether it always does")
            self._undisturbed("once-more")
            self.ledger.repeatable = not self._differences("undisturbed", "once-more")
            shutil.rmtree(self.folder / "once-more")
        self.ledger.violations += found
        self.ledger.violations += [f"{orphan} is left over" for orphan in self._job.orphans()]

    def _differences(self, one: str, other: str) -> list[str]:
        found = []
        for name, folder in self._sinks.items():
            here, there = self._output(one) / folder, self._output(other) / folder
            found += differences(name, here, there, self._weights.get(name))
        return found + letters_differ(self.folder / one / "job.duckdb", self.folder / other / "job.duckdb")
