"""A real PostgreSQL server in a folder of its own, which tests may kill and start again."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

INSTALL = "apt-get install -y postgresql"
SETTINGS = """
listen_addresses = '127.0.0.1'
wal_level = logical
fsync = off
max_wal_senders = 10
max_replication_slots = 10
logging_collector = off
"""
ACCESS = """
host all guarded 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""
"""Who may come in: the role ``guarded``, once a test has made it, with a password; everybody else without."""
PATIENCE_SECONDS = 30
WATCH = 'read _; kill -QUIT "$1"; sleep 1; rm -rf "$2"'
"""What ends a server whose test process has gone without a word: it then reads the end of a pipe."""

_databases = itertools.count(1)


def program(name: str) -> str | None:
    """Where one of PostgreSQL's programs is; Debian keeps them out of the PATH."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return str(kept[0]) if kept else shutil.which(name)


def installed() -> bool:
    """Whether there is a server to start."""
    return program("postgres") is not None and program("initdb") is not None


class PostgresServer:
    """One server process; ``fsync`` is off, which a killed process does not notice."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="millstream-postgres-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            owner = next(entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            self._as = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self._call("initdb", "-U", "millstream", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D", "data")
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"{SETTINGS}port = {self.port}\nunix_socket_directories = '{self.folder}'\n")
        (self.folder / "data" / "pg_hba.conf").write_text(ACCESS)

    def dsn(self, database: str = "postgres") -> str:
        """How to reach a database of it."""
        return f"postgresql://millstream@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it answers; after a kill, until the remains of the last one have gone."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [program("postgres"), "-D", "data"], cwd=self.folder, stdout=log, stderr=log, **self._as
                )
            self._watched(self._process.pid)
            while self._process.poll() is None:
                try:
                    psycopg.connect(self.dsn(), connect_timeout=2).close()
                    return
                except psycopg.OperationalError:
                    time.sleep(0.02)
            assert time.monotonic() < until, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the server process, whose children follow it."""
        assert self._process is not None
        self._unwatched()
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop it and remove its folder."""
        self._unwatched()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(PATIENCE_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make a database, give the way to it, and drop it afterwards."""
        name = f"test_{next(_databases)}"
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(f"create database {name}")
        yield self.dsn(name)
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(f"drop database if exists {name} with (force)")

    def _watched(self, pid: int) -> None:
        self._unwatched()
        command = ["sh", "-c", WATCH, "sh", str(pid), str(self.folder)]
        self._watch = subprocess.Popen(command, stdin=subprocess.PIPE)

    def _unwatched(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.kill()
            watch.communicate()

    def _call(self, name: str, *words: str) -> None:
        command = [program(name), *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, **self._as)
        assert done.returncode == 0, done.stderr


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def running_server() -> PostgresServer:
    """The server that the tests of this process share; stopped when the process ends."""
    if not installed():
        pytest.skip(f"PostgreSQL is not installed: {INSTALL}")
    server = PostgresServer()
    atexit.register(server.stop)
    server.start()
    return server


@pytest.fixture
def dsn() -> Iterator[str]:
    """The way to an empty database."""
    with running_server().database() as way:
        yield way
