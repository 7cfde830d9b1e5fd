"""The command line for tests: called in this process, or run in one of its own, with or without a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog
from click.testing import CliRunner, Result
from millstream.cli import commands

T = TypeVar("T")

PATIENCE = 120.0

ENDLESS = """
import millstream as ms
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema({"n": pa.int64(), "key": pa.int64(), "at": pa.timestamp("us")})

def numbers(start, stop):
    n = pa.array(range(start, stop), pa.int64())
    at = pc.multiply(n, 1000).cast(pa.timestamp("us"))
    return pa.RecordBatch.from_arrays([n, pc.bit_wise_and(n, 3), at], schema=SCHEMA)

job = ms.Job("endless")
source = ms.generator(numbers, schema=SCHEMA, rate=2000, name="numbers")
(
    job.read(source, event_time="at")
    .group_by("key")
    .window(ms.tumbling("1d"))
    .agg(rows=ms.count())
    .write(ms.blackhole(name="nowhere"))
)
"""
"""2000 rows a second without end; the window never closes, so that its count is in the state."""


def call(*words: object, code: int = 0) -> Result:
    """Run the command line in this process, without a terminal."""
    path = list(sys.path)
    try:
        result = CliRunner().invoke(commands, [str(word) for word in words])
    finally:
        sys.path[:] = path
        structlog.reset_defaults()
    assert result.exit_code == code, (result.output, result.exception)
    return result


def logged(text: str) -> list[dict[str, Any]]:
    """Lines of a log; fails unless each is a JSON object."""
    return [json.loads(line) for line in text.splitlines()]


class Process:
    """``millstream`` in a process of its own, without a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._folder = folder

    @property
    def out(self) -> str:
        return (self._folder / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "stderr").read_text()

    def until(self, found: Callable[[], T | None]) -> T:
        """Ask until there is an answer; fail if the process ends before or it takes too long."""
        end = time.monotonic() + PATIENCE
        while (answer := found()) is None:
            assert time.monotonic() < end, f"waited too long\n{self.out}{self.err}"
            assert self.process.poll() is None, f"exit {self.process.returncode}\n{self.out}{self.err}"
            self._pause()
        return answer

    def event(self, name: str, good: Callable[[dict[str, Any]], object] = bool) -> dict[str, Any] | None:
        """The first good log line of this event, if it is there; the last line may be half written."""
        complete = self.err.rpartition("\n")[0]
        return next((line for line in logged(complete) if line["event"] == name and good(line)), None)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def code(self) -> int:
        """Wait for the end."""
        return self.process.wait(PATIENCE)

    def _pause(self) -> None:
        select.select([], [], [], 0.02)


@contextmanager
def running(folder: Path, *words: object) -> Iterator[Process]:
    """Start ``millstream`` in a folder; kill it in the end."""
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "millstream", *map(str, words)],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        )  # fmt: skip
    with process:
        try:
            yield Process(process, folder)
        finally:
            process.kill()


class Terminal(Process):
    """``millstream`` on a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, screen: int) -> None:
        super().__init__(process, folder)
        self._screen = screen
        self._seen = b""

    @property
    def seen(self) -> str:
        """Everything written so far, without colours and the movements of the cursor."""
        while select.select([self._screen], [], [], 0)[0]:
            try:
                more = os.read(self._screen, 65_536)
            except OSError:  # the other end has been closed
                break
            if not more:
                break
            self._seen += more
        text = self._seen.decode(errors="replace").replace("\r", "")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)

    def _pause(self) -> None:
        select.select([self._screen], [], [], 0.02)

    def code(self) -> int:
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, self.seen
            self._pause()
            _ = self.seen  # a full terminal would keep the process from ending
        return self.process.returncode


@contextmanager
def on_terminal(folder: Path, columns: int, *words: object, out: Path | None = None) -> Iterator[Terminal]:
    """Start ``millstream`` on a terminal of so many columns; ``out`` takes standard output, if given."""
    screen, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    (folder / "stdout").touch()
    (folder / "stderr").touch()
    unwanted = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    environment["TERM"] = "xterm"
    with (out or Path(os.devnull)).open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "millstream", *map(str, words)],
            cwd=folder, stdin=inside, stdout=file if out else inside, stderr=inside, env=environment,
        )  # fmt: skip
    os.close(inside)
    with process:
        try:
            yield Terminal(process, folder, screen)
        finally:
            process.kill()
            os.close(screen)
