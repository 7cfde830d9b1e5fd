"""Runs jobs in processes of their own and lets fail points kill them, without paying for the imports each time.

A nursery process imports everything and loads the compiled kernels once, and never runs a job; each start of a job
is a fork of it. So a start is a real process: it dies by a real SIGKILL, and the operating system takes its locks and
files away. Forking is safe as long as neither Arrow nor DuckDB has made a thread or opened a file in the parent.

Sources are paced: each subtask reads a batch or two per epoch. Without that a small job would be over before its
second epoch, and how many epochs there are would depend on the machine.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

LONGEST_SECONDS = 150
"""After so long a start is taken to hang by itself: it prints the stacks of its threads and fails."""

NEVER = 1_000_000_000


@dataclass(frozen=True)
class Start:
    """One start of a job.

    Attributes:
        folder: the current folder of the process; the job file, its input, its output and the store are there.
        failpoint: armed as in MILLSTREAM_FAILPOINTS; "" for none. ``hang`` is followed by a SIGKILL.
        batches: how many batches a source subtask reads per epoch.
        stop_after: so many epochs are committed, then the job is asked to stop; 0: never.
    """

    folder: str
    job: str = "job.py"
    parallelism: int = 2
    failpoint: str = ""
    batches: int = 1
    every: float = 0.002
    restarts: int = 3
    store: str = "job.duckdb"
    stop_after: int = 0
    drop_state: tuple[str, ...] = ()
    start_from: str | None = None


@dataclass(frozen=True)
class End:
    """How a start ended.

    Attributes:
        status: the exit code; negative: minus the signal that killed it.
        outcome: the job's, or ``""``.
        epoch: the last committed one; 0 if the process died.
        hits: how often each fail point was come by; only known if the process lived.
        log: everything it printed.
    """

    status: int
    outcome: str = ""
    epoch: int = 0
    restored_from: int = 0
    restarts: int = 0
    hits: Mapping[str, int] = field(default_factory=dict)
    log: str = ""

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL


class Nursery:
    """The parent of all starts; a context manager.

    Args:
        modules: are imported as well, so that no start has to; none may start a thread.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules

    def __enter__(self) -> Nursery:
        # One thread for OpenBLAS, which would start its own at import.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environment.pop("MILLSTREAM_FAILPOINTS", None)
        self._process = subprocess.Popen(
            [sys.executable, __file__, *self._modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)

    def run(self, start: Start) -> End:
        """Run a start to its end, whatever that is."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(start)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery itself has died"
        log = (Path(start.folder) / "run.log").read_text(errors="replace")
        return End(**json.loads(answer), log=log)


def serve() -> None:
    """The nursery: import, then fork for every line of standard input."""
    warm_up()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        start = Start(**json.loads(line))
        result = Path(start.folder) / "result.json"
        result.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            be_the_job(start, result)
        _, status = os.waitpid(pid, 0)
        told: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
        answers.write(json.dumps({"status": os.waitstatus_to_exitcode(status), **told}) + "\n")


def warm_up() -> None:
    """Import what jobs import, running nothing."""
    import millstream as ms
    import millstream.cli
    import millstream.engine.hashing
    import millstream.engine.key_index
    import millstream.operators.window_aggregate_operator
    import millstream.operators.window_top_operator
    import pyarrow.csv
    import pyarrow.dataset
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401

    for name in ms.__all__:
        try:
            getattr(ms, name)
        except ImportError:
            continue  # a connector that is still to come
    before = threads()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    load_kernels()
    assert threads() == before, "forking is not safe any more"


def threads() -> int:
    """How many threads this process has."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 0


def load_kernels() -> None:
    """Call what numba has compiled, so that no start has to load it."""
    import millstream as ms
    import pyarrow as pa
    from millstream.engine.hashing import exchange_hash, partition
    from millstream.engine.operator import OperatorSpec
    from millstream.testing import check_operator

    at = pa.array([0, 1_000_000, 90_000_000], pa.timestamp("us"))
    rows = pa.RecordBatch.from_arrays([pa.array(["a", "b", None]), pa.array([1, 2, 3]), at], names=["k", "n", "at"])
    partition(rows, exchange_hash([rows["k"], rows["n"]]), 2)
    job = ms.Job("kernels")
    read = job.read(ms.memory_source([rows]), event_time="at")
    read.group_by("k").window(ms.tumbling("1m")).agg(a=ms.count(), b=ms.sum("n"), c=ms.mean("n"), d=ms.max("n"))
    read.window(ms.tumbling("10s")).top(1, by="n", ties=True)
    for node in job.graph.nodes.values():
        if isinstance(node.body, OperatorSpec):
            check_operator(node.body, [rows])


def be_the_job(start: Start, result: Path) -> None:
    """In the child: run the job and leave without returning."""
    code = 1
    try:
        os.chdir(start.folder)
        log = os.open("run.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        code = run_here(start, result)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def run_here(start: Start, result: Path) -> int:
    """Run the job in this process."""
    import faulthandler

    from millstream.cli.loading import load_job
    from millstream.engine import failpoints
    from millstream.engine.errors import MillstreamError
    from millstream.engine.runtime.coordinator import CheckpointSettings
    from millstream.engine.runtime.run import Control, RunSettings, run_job

    faulthandler.dump_traceback_later(LONGEST_SECONDS, exit=True)
    name, action, hits = parse(start.failpoint)
    # All of them are armed, since only those count.
    failpoints.arm(";".join(f"{name}=raise@{NEVER}" for name in failpoints.NAMES))
    failpoints.arm(start.failpoint)
    if action == "hang":
        kill_when_hanging(name, hits)
    control = Control()

    def look(status: Any) -> None:
        if start.stop_after and status.checkpoints.committed >= start.stop_after:
            control.stop()

    settings = RunSettings(
        store=Path(start.store),
        checkpoints=CheckpointSettings(every=start.every),
        restarts=start.restarts,
        backoff=0.001,
        on_status=look,
        status_every=0.0,
        drop_state=tuple(start.drop_state),
        start_from=start.start_from,
    )
    plan = load_job(start.job).plan(start.parallelism)
    try:
        done = run_job(
            plan, settings, control=control, scheduler=lambda plan: paced_scheduler(plan.parallelism, start.batches)
        )
    except MillstreamError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    told = {
        "outcome": done.outcome,
        "epoch": done.epoch,
        "restored_from": done.restored_from,
        "restarts": done.restarts,
        "hits": {name: failpoints.hits(name) for name in failpoints.NAMES},
    }
    result.write_text(json.dumps(told))
    return 0


def parse(failpoint: str) -> tuple[str, str, int]:
    """The parts of ``name=action@hits``."""
    name, _, rest = failpoint.partition("=")
    action, _, hits = rest.partition("@")
    return name, action, int(hits or 1)


def kill_when_hanging(name: str, hits: int) -> None:
    """Wait, in a thread, until the fail point hangs; let the others go on a little; then SIGKILL."""
    import threading
    import time

    from millstream.engine import failpoints

    def watch() -> None:
        while failpoints.hits(name) < hits:
            time.sleep(0.001)
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def paced_scheduler(workers: int, batches: int) -> Any:
    """The production scheduler, with sources that read ``batches`` batches per epoch and subtask."""
    from millstream.engine.runtime.scheduler import ThreadedScheduler
    from millstream.engine.runtime.subtask import Progress

    class PacedScheduler(ThreadedScheduler):
        def run(self, running: Any, coordinator: Any, **callbacks: Any) -> Any:
            first = coordinator.stats.last_epoch
            for source in running.sources:
                source.step = pace(source, coordinator, first)
            return super().run(running, coordinator, **callbacks)

    def pace(source: Any, coordinator: Any, first: int) -> Any:
        step, read = source.step, 0

        def paced() -> Any:
            nonlocal read
            epochs = coordinator.stats.last_epoch - first
            requested = source._requested
            if read >= (epochs + 1) * batches:
                return Progress.IDLE if requested is None else step()
            # The batches of an epoch come before its barrier, so that a run has as many epochs as another.
            source._requested = None
            before = source.rows_read
            progress = step()
            read += source.rows_read > before
            source._requested = source._requested or requested
            return step() if requested and progress is Progress.IDLE else progress

        return paced

    return PacedScheduler(workers)


if __name__ == "__main__":
    serve()
