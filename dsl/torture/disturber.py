"""More ways to die than by chance: at a fail point, and stopped while a second start comes by."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from millstream.engine import failpoints
from millstream.torture.killer import PATIENCE, Ended, Kill, Killer, Process, Tortured

ZOMBIES: Final = 0.15
FAIL_POINTS: Final = 0.3
"""The parts of the disturbances that stop the process first, and that arm a fail point."""

HITS: Final = 4
"""A fail point kills at one of its first hits."""

_OF_EVERY_JOB: Final = ("barrier.", "subtask.", "sink.", "source.", "store.", "files.", "recovery.")
_ONCE: Final = ("recovery.", "store.generation")
POINTS: Final = tuple(name for name in failpoints.NAMES if name.startswith(_OF_EVERY_JOB))


@dataclass
class Disturber(Killer):
    """A killer with imagination.

    Args:
        start_armed: starts the job with fail points armed.
        patience: seconds a start has to come to its fail point, or a second one to be refused.
    """

    start_armed: Callable[[str], Process] = field(kw_only=True)
    patience: float = PATIENCE
    zombies: int = 0
    unreached: Counter[str] = field(default_factory=Counter)

    def disturb(self) -> Kill:
        """Start the job and kill it, in one way or another.

        Raises:
            Ended: it came to its end before that.
            Tortured: it failed by itself, or did not get on.
        """
        kind = self.draw.random()
        if kind < ZOMBIES:
            return self.stop_and_kill()
        if kind < ZOMBIES + FAIL_POINTS:
            name, hit = self.draw.choice(POINTS), self.draw.randint(1, HITS)
            return self._kill_at(name, 1 if name.startswith(_ONCE) else hit)
        return self.kill_once()

    def _kill_at(self, name: str, hit: int) -> Kill:
        """Let it run into a fail point; one that it does not come to in its time is killed by chance."""
        epoch = self.job.last_epoch()
        with self.start_armed(f"{name}=kill@{hit}") as process:
            began, until = time.monotonic(), None
            while process.poll() is None and (until is None or time.monotonic() < until):
                if until is None and self.job.last_epoch() > epoch:
                    until = time.monotonic() + self.longest
                if time.monotonic() - began > self.patience:
                    process.kill()
                    raise Tortured(
                        f"with {name} armed the job did not get on within {self.patience:g} s; see {self.log}"
                    )
                time.sleep(0.002)
            reached = process.poll() is not None
            process.kill()
            after = time.monotonic() - began
        if reached and process.returncode == 0:
            raise Ended(f"the job ended by itself with {name} armed")
        if reached and process.returncode != -signal.SIGKILL:
            raise Tortured(f"with {name} armed the job ended with exit code {process.returncode}; see {self.log}")
        if not reached:
            self.unreached[name] += 1
        return self._died(epoch, after, f"at {name}" if reached else f"{name} not reached", "fail point")

    def stop_and_kill(self) -> Kill:
        """Stop it in mid-run, start it again beside that, which must be refused; then kill it, now or later."""
        epoch, part = self.job.last_epoch(), self.draw.random()
        with self.start() as process:
            began = time.monotonic()
            self._watch(process, lambda: self.job.last_epoch() > epoch)
            recovery = time.monotonic() - began
            time.sleep(part * self.longest)
            self._demand_alive(process)
            process.send_signal(signal.SIGSTOP)
            where = self.job.where_it_died(set(), epoch)
            try:
                self._demand_refusal()
                if part < 0.5:
                    # The process comes back to life, as after a long pause of its machine, and must get on.
                    process.send_signal(signal.SIGCONT)
                    last = self.job.last_epoch()
                    self._watch(process, lambda: self.job.last_epoch() > last)
            finally:
                process.kill()
            after = time.monotonic() - began
        return self._died(epoch, after, where, "SIGSTOP, then SIGKILL", recovery)

    def kill_after(self, disturb: Callable[[], None], how: str) -> Kill:
        """Let it get to work, disturb what it works with, demand that it gets on all the same, and kill it."""
        epoch = self.job.last_epoch()
        with self.start() as process:
            began = time.monotonic()
            self._watch(process, lambda: self.job.last_epoch() > epoch)
            recovery = time.monotonic() - began
            disturb()
            last = self.job.last_epoch()
            self._watch(process, lambda: self.job.last_epoch() > last + 1)
            process.kill()
            after = time.monotonic() - began
        return self._died(epoch, after, "between epochs", how, recovery)

    def _demand_refusal(self) -> None:
        with self.start() as second:
            until = time.monotonic() + self.patience
            while second.poll() is None and time.monotonic() < until:
                time.sleep(0.01)
            second.kill()
        if second.returncode in (0, -signal.SIGKILL):
            self.violations.append("a second start beside a stopped process was not refused: both would have written")
        self.zombies += 1

    def _died(self, epoch: int, after: float, where: str, how: str, recovery: float | None = None) -> Kill:
        last = self.job.last_epoch()
        if last < epoch:
            self.violations.append(f"epoch {epoch} was acknowledged, and is not any more")
        return Kill(round(after, 3), where, epoch, last, recovery and round(recovery, 3), how)
