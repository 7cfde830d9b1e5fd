"""Kills a Nexmark job again and again at random moments, and checks that nobody could have noticed.

``python -m millstream.benchmarks.torture_q7 --kills 200`` starts the job, kills it by SIGKILL after a random time,
starts it again, and so on. Meanwhile another process reads the output folders without a pause. At the end the job
is let finish, and the output must be what DuckDB computes from the same bids in one batch. Exit code 1 if anything
was ever wrong. A seed gives the same bids and the same moments; what the machine makes of them differs.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import msgspec
from millstream.benchmarks.nexmark_events import event_of_row, rows_of
from millstream.benchmarks.nexmark_files import write_events
from millstream.benchmarks.nexmark_verify import verify
from millstream.benchmarks.torture_job import BATCH_ROWS, PARALLELISM, QUERIES_RUN, TIMING, output_of, store_of
from millstream.benchmarks.torture_ledger import Kill, Ledger, generations, last_epoch, orphans, tables, where_it_died
from millstream.benchmarks.torture_reader import Findings
from millstream.engine.store.reader import StoreReader
from rich.console import Console

LOOK: Final = 0.001
"""Seconds between two looks at what the job is doing."""

PATIENCE: Final = 120.0
"""Seconds after which a start without a new epoch is a violation: the job has to get on between two kills."""

EARLY: Final = 0.25
AIMED: Final = 0.4
"""The parts of the kills that may hit before there is a new epoch, and that wait until files are staged."""


class Tortured(Exception):
    """The run cannot go on; the text says why."""


@dataclass
class Torture:
    """One run.

    Args:
        longest: seconds a start is left alive at most, once it is at work.
    """

    folder: Path
    seed: int
    longest: float
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.seed, [])
        self._draw = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        self._log = (self.folder / "job.log").open("ab")

    def run(self, kills: int) -> Ledger:
        """Kill it so often, let it finish, and compare."""
        began = time.monotonic()
        with self._reader() as reader:
            try:
                for _ in range(kills):
                    self.ledger.kills.append(self._kill_once())
                events = self._finish()
            except Tortured as error:
                self.ledger.violations.append(str(error))
                events = None
            found, _ = reader.communicate()
        self.ledger.readers = msgspec.json.decode(found, type=dict[str, Findings])
        for seen in self.ledger.readers.values():
            self.ledger.violations += seen.violations
        if events is not None:
            self._compare(events)
        self.ledger.seconds = time.monotonic() - began
        return self.ledger

    def _reader(self) -> subprocess.Popen[bytes]:
        folders = [str(output_of(self.folder) / query) for query in QUERIES_RUN]
        command = [sys.executable, "-m", "millstream.benchmarks.torture_reader", *folders]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "millstream.benchmarks.torture_job", str(self.folder)]
        command += ["--seed", str(self.seed), *words]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def _kill_once(self) -> Kill:
        """Start it, kill it at a random moment, and see what it had come to."""
        known, epoch = generations(self.folder), last_epoch(self.folder)
        kind, moment, delay = self._draw.random(), self._draw.uniform(0, self.longest), self._draw.random()
        early, aimed = kind < EARLY, kind > 1 - AIMED
        recovery = None
        with self._start() as job:
            began = time.monotonic()
            if not early:
                self._watch(job, lambda: last_epoch(self.folder) > epoch)
                recovery = time.monotonic() - began
            time.sleep(moment)
            if aimed:
                self._watch(job, lambda: bool(orphans(self.folder)))
                time.sleep(delay / 100)
            self._demand_alive(job)
            job.kill()
            after = time.monotonic() - began
        if last_epoch(self.folder) < epoch:
            self.ledger.violations.append(f"epoch {epoch} was acknowledged, and is not any more")
        where = where_it_died(self.folder, known, epoch)
        return Kill(round(after, 3), where, last_epoch(self.folder), recovery and round(recovery, 3))

    def _watch(self, job: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
        """Look again and again until it is so."""
        end = time.monotonic() + PATIENCE
        while not until():
            self._demand_alive(job)
            if time.monotonic() > end:
                raise Tortured(f"the job did not get on within {PATIENCE:g} s; see {self._log.name}")
            time.sleep(LOOK)

    def _demand_alive(self, job: subprocess.Popen[bytes]) -> None:
        if job.poll() is not None:
            raise Tortured(f"the job ended by itself with exit code {job.returncode}; see {self._log.name}")

    def _finish(self) -> int:
        """Let the job end after the bids it has begun; return how many events those are of."""
        events = self._events_begun()
        self.ledger.rows = rows_of("bid", events)
        for wanted in ("finished", "already finished"):
            self._log.flush()
            at = self._log.tell()
            code = self._start("--rows", str(self.ledger.rows)).wait()
            said = Path(self._log.name).read_bytes()[at:].decode(errors="replace").strip()
            if code != 0 or said.splitlines()[-1:] != [wanted]:
                raise Tortured(f"the last run should have been {wanted!r}; exit code {code}: {said}")
        return events

    def _events_begun(self) -> int:
        """Events in whole rounds, a little beyond the furthest position of any split."""
        furthest = 0
        if store_of(self.folder).exists():
            with StoreReader.open(store_of(self.folder)) as reader:
                for manifest in reader.manifests()[-1:]:
                    furthest = max((p.position or 0) for p in reader.positions(manifest.epoch))
        return event_of_row("bid", furthest + BATCH_ROWS * PARALLELISM * 10) // 50 * 50

    def _compare(self, events: int) -> None:
        """Compare with DuckDB, and look for what nobody needs any more."""
        batch = self.folder / "events"
        write_events(batch, events, self.seed, TIMING)
        for query in QUERIES_RUN:
            verdict = verify(query, batch, output_of(self.folder))
            if verdict.complaint:
                self.ledger.violations.append(f"{query}: {verdict.complaint}")
            if verdict.different_rows:
                first = "; ".join(f"{d.copies:+d} × {d.row}" for d in verdict.differences[:3])
                self.ledger.violations.append(f"{query}: {verdict.different_rows} rows are lost or doubled: {first}")
        self.ledger.violations += [f"{orphan} is left over" for orphan in orphans(self.folder)]


@click.command()
@click.option("--kills", default=200, show_default=True, type=click.IntRange(min=0))
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--longest", default=1.0, show_default=True, help="Seconds a start is left alive at most, once it is at work."
)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where it runs, and where ledger.json stays."
)
def main(kills: int, seed: int, longest: float, folder: Path | None) -> None:
    """Torture Nexmark q7."""
    where = folder or Path(tempfile.mkdtemp(prefix="torture-"))
    where.mkdir(parents=True, exist_ok=True)
    if any(where.iterdir()):
        raise click.UsageError(f"{where} is not empty; give a new folder")
    ledger = Torture(where, seed, longest).run(kills)
    (where / "ledger.json").write_bytes(msgspec.json.format(msgspec.json.encode(ledger)))
    console = Console()
    for table in tables(ledger):
        console.print(table)
    for violation in ledger.violations:
        console.print(f"VIOLATION: {violation}", style="red", highlight=False)
    console.print(f"ledger and job.log: {where}", highlight=False)
    sys.exit(1 if ledger.violations else 0)


if __name__ == "__main__":
    main()
