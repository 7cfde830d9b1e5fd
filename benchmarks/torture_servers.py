"""Kills a job between real servers again and again at random moments, and checks that nobody could have noticed.

``python -m millstream.benchmarks.torture_servers --path kafka-kafka --brokers HOST:PORT --kills 300`` makes topics,
keeps sending rows to one, runs a job that copies them to the other without repeats, and kills it by SIGKILL after a
random time, again and again. Some starts are stopped first while a second one comes by; after some the job stays away
for longer than a transaction may be open, and its group's offsets are deleted. Another process reads the output all the
time: of each key the numbers 0, 1, 2 ... must come, in order. After every kill what it has seen must be exactly the
last epoch in the store, or the one before. At the end the job is let come to the end of what there is, and all rows
must be there. Exit code 1 if anything was ever wrong. Rows keep coming until the last kill, so that no machine is too
fast for it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import msgspec
from millstream.benchmarks.torture_cut import JobAtServers, Rows
from millstream.benchmarks.torture_fork import Forked
from millstream.benchmarks.torture_ledger import Ledger, tables
from millstream.benchmarks.torture_outputs import TIMEOUT_MS
from millstream.benchmarks.torture_reader import Findings
from millstream.benchmarks.torture_rows import distinct
from millstream.benchmarks.torture_start import PATHS, Setting, Start, run
from millstream.benchmarks.torture_watch import Seen
from millstream.torture.disturber import Disturber
from millstream.torture.killer import PATIENCE, Tortured
from rich.console import Console

ZOMBIES: Final = 0.08
"""The part of the starts that are stopped while a second one comes by."""

ABSENCE: Final = 25
"""After so many kills the job stays away for longer than a transaction may be open."""

TICK: Final = 0.02
"""Seconds between two helpings of rows."""


class Feeder:
    """Adds rows to the input at a steady rate, in a thread; a context manager."""

    def __init__(self, feed: Callable[[], int], rate: float) -> None:
        self._feed, self._rate = feed, rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        began, fed = time.monotonic(), 0
        try:
            while not self._over.wait(TICK):
                while fed < (time.monotonic() - began) * self._rate:
                    fed += self._feed()
        except BaseException as error:
            self._failure = error


class Watching:
    """The process that watches the output; a context manager."""

    def __init__(self, setting: Setting) -> None:
        command = [sys.executable, "-m", "millstream.benchmarks.torture_watch", msgspec.json.encode(setting).decode()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self) -> Rows:
        """What can be seen now."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"look\n")
        self._process.stdin.flush()
        return self._answer().rows

    def close(self) -> Seen:
        """Let it look a last time, and end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        seen = self._answer()
        self._process.stdout.close()
        return seen

    def _answer(self) -> Seen:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that watches the output has failed with exit code {self._process.wait()}")
        return msgspec.json.decode(line, type=Seen)


@dataclass
class Torture:
    """One run.

    Args:
        rate: rows a second that are added to the input.
        longest: seconds a start is left alive at most, once it has committed an epoch.
        bounce: kills the servers and starts them again, if they are ours to kill; called at every ``ABSENCE``-th start.
    """

    setting: Setting
    seed: int
    rate: float = 600.0
    longest: float = 0.5
    bounce: Callable[[], None] | None = None
    tell: Callable[[str], None] = lambda _: None
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.seed, [], others={"zombies": 0, "servers killed": 0, "long absences": 0})
        self._draw = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        self._log = Path(self.setting.folder) / "job.log"
        self._input = self.setting.input()

    def run(self, kills: int) -> Ledger:
        """Kill it so often, let it finish, and compare."""
        began = time.monotonic()
        self._input.make()
        self.setting.output().make()
        with Watching(self.setting) as watching:
            job = JobAtServers(self.setting.store, self._input, watching.ask)
            start = self._start
            disturber = Disturber(job, start, self._draw, self.longest, str(self._log), start_armed=lambda _: start())
            try:
                with Feeder(self._input.feed, self.rate):
                    for number in range(1, kills + 1):
                        self._disturb(disturber, job, number)
                        if job.violations or disturber.violations:
                            break
                self._finish(watching)
            except Tortured as error:
                self.ledger.violations.append(str(error))
            seen = watching.close()
        self.ledger.others["zombies"] = disturber.zombies
        self.ledger.violations += [*disturber.violations, *job.violations, *seen.violations]
        self.ledger.rows = self._input.fed.total()
        self.ledger.readers["output"] = Findings(looks=seen.looks, rows=sum(seen.rows.values()))
        self.ledger.seconds = round(time.monotonic() - began, 1)
        return self.ledger

    def _start(self) -> Forked:
        start = Start(self.setting, self._draw.randint(1, 2))
        return Forked(run, msgspec.json.encode(start).decode(), self._log)

    def _disturb(self, disturber: Disturber, job: JobAtServers, number: int) -> None:
        """Kill one start, in one way or another, and check what is seen then."""
        others = self.ledger.others
        if self.bounce is not None and number % ABSENCE == ABSENCE // 2:
            kill = disturber.kill_after(self.bounce, "servers killed, then SIGKILL")
            others["servers killed"] += 1
        elif self._draw.random() < ZOMBIES:
            kill = disturber.stop_and_kill()
        else:
            kill = disturber.kill_once()
        if job.check():
            kill = msgspec.structs.replace(kill, where="committed, not visible yet")
        self.ledger.kills.append(kill)
        self.tell(f"kill {number}: {kill.how}, {kill.where}, epoch {kill.epoch}")
        if number % ABSENCE == 0:
            time.sleep(1.3 * TIMEOUT_MS / 1_000)
            self._input.forget()
            others["long absences"] += 1

    def _finish(self, watching: Watching) -> None:
        """Let the job come to the end of what there is, stop it, and demand that all of it is there."""
        self._input.flush()
        wanted = {split: distinct(rows) for split, rows in self._input.fed.items()}
        process = self._start()
        try:
            until = time.monotonic() + PATIENCE
            while watching.ask() != wanted and time.monotonic() < until and process.poll() is None:
                time.sleep(0.05)
        finally:
            self.setting.stop.touch()
            code = process.wait()
        seen = watching.ask()
        for split, rows in wanted.items():
            if seen.get(split, 0) != rows:
                there = f"{seen.get(split, 0):,} rows of split {split} have come out instead of {rows:,}"
                self.ledger.violations.append(there)
        if code:
            raise Tortured(f"the last start ended with exit code {code}; see {self._log}")


@click.command()
@click.option("--path", type=click.Choice(PATHS), required=True, help="From where to where.")
@click.option("--brokers", default="", help="host:port of Kafka brokers where topics may be made.")
@click.option("--postgres", default="", help="A PostgreSQL database where tables may be made: postgresql://…")
@click.option("--kills", default=100, show_default=True, type=click.IntRange(min=0))
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--rate", default=600.0, show_default=True, help="Rows a second.")
@click.option(
    "--longest", default=0.5, show_default=True, help="Seconds a start is left alive at most, once it is at work."
)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where it runs, and where ledger.json stays."
)
def main(  # noqa: PLR0913 - all by name
    *, path: str, brokers: str, postgres: str, kills: int, seed: int, rate: float, longest: float, folder: Path | None
) -> None:
    """Torture a job between real servers."""
    for system, option, given in (("kafka", "--brokers", brokers), ("postgres", "--postgres", postgres)):
        if system in path and not given:
            raise click.UsageError(f"--path {path} needs {option}")
    where = folder or Path(tempfile.mkdtemp(prefix="torture-"))
    where.mkdir(parents=True, exist_ok=True)
    if any(where.iterdir()):
        raise click.UsageError(f"{where} is not empty; give a new folder")
    setting = Setting(path, f"torture-{uuid.uuid4().hex[:8]}", str(where.absolute()), brokers, postgres)
    ledger = Torture(setting, seed, rate, longest, tell=click.echo).run(kills)
    sys.exit(report(ledger, where))


def report(ledger: Ledger, where: Path) -> int:
    """Print a ledger and keep it; return the exit code."""
    (where / "ledger.json").write_bytes(msgspec.json.format(msgspec.json.encode(ledger)))
    console = Console()
    for table in tables(ledger):
        console.print(table)
    for violation in ledger.violations:
        console.print(f"VIOLATION: {violation}", style="red", highlight=False)
    console.print(f"ledger and job.log: {where}", highlight=False)
    return 1 if ledger.violations else 0


if __name__ == "__main__":
    main()
