"""Starts a job as a process and kills it by SIGKILL at a random moment, again and again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol

import msgspec

LOOK: Final = 0.001
"""Seconds between two looks at what the job is doing."""

PATIENCE: Final = 120.0
"""Seconds after which a start without a new epoch is a violation: the job has to get on between two kills."""

EARLY: Final = 0.25
STAGED: Final = 0.2
COMMITTED: Final = 0.2
"""The parts of the kills that may hit before there is a new epoch, that wait until files are staged or become visible,
and that wait until the store writes a checkpoint."""


class Process(Protocol):
    """A start of a job, as ``subprocess.Popen`` has it; to leave it as a context manager waits for its end."""

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None before ``poll`` or ``wait`` has seen the end."""

    def poll(self) -> int | None:
        """Look whether it has ended, and return its exit code then."""

    def wait(self) -> int:
        """Wait for its end and return its exit code."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal."""

    def __enter__(self) -> Process: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Watched(Protocol):
    """A job as it shows from outside; ``JobOnDisk`` is one."""

    def last_epoch(self) -> int:
        """The last epoch that was acknowledged."""

    def generations(self) -> set[str]:
        """A name for each start of which there is a trace; asked while no start lives."""

    def log_written(self) -> object:
        """What changes when the store writes a checkpoint."""

    def moment(self) -> object:
        """What changes when sinks prepare or publish, and when the store writes a checkpoint."""

    def where_it_died(self, before: set[str], epoch_before: int, /) -> str:
        """Say what a killed or stopped start had come to; ``before`` are the generations before it."""


class Tortured(Exception):
    """The run cannot go on; the text says why."""


class Ended(Tortured):
    """The job has come to its end before it could be killed."""


class Kill(msgspec.Struct, frozen=True):
    """One start that was killed.

    Attributes:
        after: seconds from its start to the SIGKILL.
        where: what it had come to, as the disk shows it.
        restored: the last epoch acknowledged before it was started; 0: it began anew.
        epoch: the last epoch acknowledged when it had died.
        recovery: seconds from its start to its first new epoch; None if it did not live to see one.
        how: by what it was killed.
    """

    after: float
    where: str
    restored: int
    epoch: int
    recovery: float | None
    how: str = "SIGKILL"


@dataclass
class Killer:
    """Kills starts of one job.

    Args:
        start: starts the job as a process.
        draw: makes the moments.
        longest: seconds a start is left alive at most, once it has committed an epoch.
        log: where the job's output is, for messages.
    """

    job: Watched
    start: Callable[[], Process]
    draw: random.Random
    longest: float
    log: str
    violations: list[str] = field(default_factory=list)
    _usual: float | None = None  # seconds from a start to its first new epoch

    def kill_once(self) -> Kill:
        """Start the job, kill it at a random moment, and see what it had come to.

        Raises:
            Tortured: it ended by itself, or did not get on.
        """
        known, epoch = self.job.generations(), self.job.last_epoch()
        kind, part, delay = self.draw.random(), self.draw.random(), self.draw.random()
        recovery = None
        with self.start() as process:
            began = time.monotonic()
            if kind < EARLY and self._usual is not None:
                time.sleep(self._usual * (0.5 + 0.6 * part))
            else:
                self._watch(process, lambda: self.job.last_epoch() > epoch)
                self._usual = recovery = time.monotonic() - began
                time.sleep(part * self.longest)
            if kind > 1 - STAGED - COMMITTED:
                look = self.job.moment if kind > 1 - STAGED else self.job.log_written
                before = look()
                self._watch(process, lambda: look() != before)
                time.sleep(delay / 100)
            self._demand_alive(process)
            process.kill()
            after = time.monotonic() - began
        last = self.job.last_epoch()
        if last < epoch:
            self.violations.append(f"epoch {epoch} was acknowledged, and is not any more")
        where = self.job.where_it_died(known, epoch)
        return Kill(round(after, 3), where, epoch, last, recovery and round(recovery, 3))

    def _watch(self, process: Process, until: Callable[[], bool]) -> None:
        """Look again and again until it is so."""
        end = time.monotonic() + PATIENCE
        while not until():
            self._demand_alive(process)
            if time.monotonic() > end:
                process.kill()
                raise Tortured(f"the job did not get on within {PATIENCE:g} s; see {self.log}")
            time.sleep(LOOK)

    def _demand_alive(self, process: Process) -> None:
        code = process.poll()
        if code is not None:
            kind = Tortured if code else Ended
            raise kind(f"the job ended by itself with exit code {code}; see {self.log}")
