"""Starts of a tortured job as forks of a process that has imported everything: a start costs no second of imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import TracebackType

WARM = "millstream.benchmarks.torture_warm"


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WARM])
    return context


class Forked:
    """A process that calls a function; what it prints goes to a log. As ``millstream.torture.killer.Process``.

    As a context manager it waits for its end, and kills it if something has gone wrong.

    Args:
        call: a function of a module, called with ``text``; it raises to fail.
        log: a file that is added to.
    """

    def __init__(self, call: Callable[[str], None], text: str, log: Path) -> None:
        self._process = _context().Process(target=_be, args=(call, text, str(log)))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code; None while it lives."""
        return self._process.exitcode

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        return code

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, sig)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.wait()


def _be(call: Callable[[str], None], text: str, log: str) -> None:
    """In the fork: let what is printed go to the log, and call."""
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    call(text)
