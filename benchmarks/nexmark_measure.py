"""One measurement, in a process of its own: a query by this engine or by DuckDB, its rows counted and dropped.

Both read only the columns the query needs, write the result nowhere, and hand over every row of it: this engine
to the ``blackhole`` sink, DuckDB as a stream of Arrow record batches. This engine takes checkpoints meanwhile.
Loading code is not counted, for either: each first does the query over a few events. Making the job, opening the
files and making the store are counted.
"""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from millstream.benchmarks.nexmark_files import write_events
from millstream.engine.errors import ExternalError

MILLSTREAM: Final = "millstream"
DUCKDB: Final = "duckdb"
BATCH_ROWS: Final = 65_536
WARM_UP_EVENTS: Final = 5_000
"""Modules, and kernels compiled earlier, are read from disk where they are first used: once per process."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure.

    Attributes:
        engine: ``millstream`` or ``duckdb``.
        threads: this engine's parallelism, or DuckDB's threads.
        every: time between checkpoints; DuckDB takes none.
    """

    engine: str
    query: str
    events: str
    threads: int = 1
    every: str = "1s"
    delay: str = "4s"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    Attributes:
        output_rows: rows handed over; of a changelog, changes.
        cpu_s: processor time of all threads, user and system, in the measured ``seconds``.
        peak_rss: the most memory the process ever had, bytes.
    """

    output_rows: int
    seconds: float
    cpu_s: float
    peak_rss: int
    checkpoints: int = 0


def measure(task: Task) -> Measurement:
    """Measure in a fresh process, so that no measurement leaves anything to the next.

    Raises:
        ExternalError: that process failed; the message ends with what it said.
    """
    command = [sys.executable, "-m", __name__, msgspec.json.encode(task).decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ExternalError(f"measuring {task} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measurement)


def measure_here(task: Task) -> Measurement:
    """Measure in this process; ``peak_rss`` then covers all it has done before."""
    measured = _measure_duckdb if task.engine == DUCKDB else _measure_millstream
    with tempfile.TemporaryDirectory(prefix="nexmark-") as folder:
        write_events(Path(folder), WARM_UP_EVENTS, seed=1)
        measured(dataclasses.replace(task, events=folder))
    return measured(task)


def _measure_millstream(task: Task) -> Measurement:
    import millstream as ms
    from millstream.benchmarks.nexmark_run import RunOptions, run_query

    with tempfile.TemporaryDirectory(prefix="nexmark-") as folder:
        options = RunOptions(Path(folder) / "job.duckdb", task.threads, task.every, task.delay)
        began, cpu = time.perf_counter(), _cpu_seconds()
        report = run_query(task.query, Path(task.events), ms.blackhole(), options)
        seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    return Measurement(report.output_rows, seconds, cpu, _peak_rss(), report.checkpoints)


def _measure_duckdb(task: Task) -> Measurement:
    from millstream.benchmarks.nexmark_sql import SQL
    from millstream.benchmarks.nexmark_verify import opened

    began, cpu = time.perf_counter(), _cpu_seconds()
    with opened(Path(task.events), threads=task.threads) as connection:
        rows = sum(batch.num_rows for batch in connection.sql(SQL[task.query]).to_arrow_reader(BATCH_ROWS))
        seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    return Measurement(rows, seconds, cpu, _peak_rss())


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak_rss() -> int:
    """Return the process's highest memory use; Linux's ``ru_maxrss`` would include its parent's at the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Measure the task given as JSON and print the measurement as JSON."""
    task = msgspec.json.decode(sys.argv[1], type=Task)
    sys.stdout.write(msgspec.json.encode(measure_here(task)).decode() + "\n")


if __name__ == "__main__":
    main()
