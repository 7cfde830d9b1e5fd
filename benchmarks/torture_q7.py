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
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec
from millstream.benchmarks.nexmark_events import event_of_row, rows_of
from millstream.benchmarks.nexmark_files import write_events
from millstream.benchmarks.nexmark_verify import verify
from millstream.benchmarks.torture_job import BATCH_ROWS, PARALLELISM, QUERIES_RUN, TIMING, output_of, store_of
from millstream.benchmarks.torture_ledger import Ledger, tables
from millstream.benchmarks.torture_reader import Findings
from millstream.engine.store.reader import StoreReader
from millstream.torture.job_on_disk import JobOnDisk
from millstream.torture.killer import Killer, Tortured
from rich.console import Console


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
        self._log = (self.folder / "job.log").open("ab")
        self._job = JobOnDisk(store_of(self.folder), output_of(self.folder), QUERIES_RUN)
        draw = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        self._killer = Killer(self._job, self._start, draw, self.longest, self._log.name)

    def run(self, kills: int) -> Ledger:
        """Kill it so often, let it finish, and compare."""
        began = time.monotonic()
        with self._reader() as reader:
            try:
                for _ in range(kills):
                    self.ledger.kills.append(self._killer.kill_once())
                events = self._finish()
            except Tortured as error:
                self.ledger.violations.append(str(error))
                events = None
            found, _ = reader.communicate()
        self.ledger.violations += self._killer.violations
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
        self.ledger.violations += [f"{orphan} is left over" for orphan in self._job.orphans()]


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
