"""A local S3 server for tests: moto, in a process of its own, on a free port of 127.0.0.1.

s3 = object_store()

def test_it(s3):
    bucket = s3.bucket()
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

LONGEST_SECONDS = 60
_START = "from moto.server import main; import sys; main(sys.argv[1:])"


@dataclass
class ObjectStore:
    """A running server."""

    process: subprocess.Popen[bytes]
    address: str
    numbers: Iterator[int]

    def bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"bucket-{next(self.numbers)}"
        with urllib.request.urlopen(urllib.request.Request(f"{self.address}/{name}", method="PUT")):
            return name


def object_store() -> Callable[..., Any]:
    """Return a fixture of a server that lasts as long as the module."""

    @pytest.fixture(scope="module")
    def running() -> Iterator[ObjectStore]:
        pytest.importorskip("moto", reason="pip install 'moto[server]'")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-c", _START, "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, process)
            yield ObjectStore(process, address, itertools.count(1))
        finally:
            process.kill()
            process.wait()

    return running


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + LONGEST_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/moto-api/"):
                return
        except urllib.error.URLError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
        time.sleep(0.05)
