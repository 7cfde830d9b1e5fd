"""A real Redis server for tests, in a folder of its own and on a free port of 127.0.0.1.

redis = redis_server()

def test_it(redis):
    redis.client.xadd("orders", {"n": 1})
    job.read(ms.redis_source(redis.url, "orders", schema={"n": int}))
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

INSTALL = "apt-get install -y redis-server"
PATIENCE_SECONDS = 30


class RedisServer:
    """One server process, which writes every command down before it answers."""

    def __init__(self, folder: Path) -> None:
        import redis

        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.client = redis.Redis.from_url(self.url)
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it, with what it had before."""
        import redis

        options = f"--bind 127.0.0.1 --port {self._port} --appendonly yes --appendfsync always --save ''".split()
        self._process = subprocess.Popen(
            ["redis-server", *options[:-1], "", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.client.ping()
                return
            except redis.RedisError:
                assert self._process.poll() is None, "the server has ended"
                assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()


def redis_server() -> Callable[..., Any]:
    """Return a fixture of a server that lasts as long as the module; each test finds it empty."""

    @pytest.fixture(scope="module")
    def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
        pytest.importorskip("redis", reason="pip install 'millstream[redis]'")
        if shutil.which("redis-server") is None:
            pytest.skip(f"there is no Redis server: {INSTALL}")
        server = RedisServer(tmp_path_factory.mktemp("redis"))
        server.start()
        try:
            yield server
        finally:
            server.client.close()
            server.kill()

    return running
