"""Lets people query a running job: a Unix socket beside the store, since no other process can open the file.

A request is a length (4 bytes, big-endian) and that many bytes of SQL in UTF-8. The answer is one byte (``+`` or
``!``), a length (8 bytes) and the result as an Arrow IPC stream, or what went wrong as text.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
from millstream.engine.errors import JobError, StoreError
from millstream.engine.logs import log

_MAX_SQL: Final = 1 << 20
_REQUEST: Final = struct.Struct(">I")
_ANSWER: Final = struct.Struct(">cQ")
_PATIENCE: Final = 30.0
"""Seconds a client may take to send its query or to take the result."""


def socket_path(store: Path) -> Path:
    """The socket beside a store."""
    return store.with_name(store.name + ".sock")


class QueryServer:
    """Answers queries on a thread of its own, one at a time, until closed.

    Args:
        store: the store's path; only its name is used.
        query: answers one SELECT from any thread, as ``CheckpointStore.query`` does.
        interrupt: ends a query that is running, with an error.
    """

    def __init__(self, store: Path, query: Callable[[str], pa.Table], interrupt: Callable[[], None]) -> None:
        self._path = socket_path(store)
        self._query = query
        self._interrupt = interrupt
        self._socket = _listen(self._path)
        self._thread = threading.Thread(target=self._serve, name="millstream-queries", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the socket. Call it before closing the store."""
        # Closing a socket does not wake a thread that waits in accept; shutting it down does.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=1.0)
        if self._thread.is_alive():
            # A long query must not keep a job from ending, and its store locked.
            self._interrupt()
            self._thread.join(timeout=5.0)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                try:
                    client.settimeout(_PATIENCE)
                    self._answer(client)
                except OSError as error:
                    log.info("store.query.client_gone", error=str(error))

    def _answer(self, client: socket.socket) -> None:
        (size,) = _REQUEST.unpack(_receive(client, _REQUEST.size))
        if size > _MAX_SQL:
            _send(client, b"!", f"the query has {size:,} bytes, at most {_MAX_SQL:,} are taken".encode())
            return
        try:
            result = self._query(_receive(client, size).decode())
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, result.schema) as writer:
                writer.write_table(result)
            kind, payload = b"+", sink.getvalue()
        except OSError:
            raise
        except Exception as error:
            # Whatever it is, it is the client's to see: the job goes on.
            kind, payload = b"!", str(error).encode()
        _send(client, kind, payload)


def ask(store: Path, sql: str) -> pa.Table | None:
    """Let the running job answer one SELECT; None if no job answers on this store.

    Raises:
        JobError: the job refused the query.
        StoreError: the connection broke.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, _address(socket_path(store)) as address:
        try:
            client.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise StoreError(f"cannot reach the job at {socket_path(store)} ({error.strerror})") from error
        try:
            text = sql.encode()
            client.sendall(_REQUEST.pack(len(text)) + text)
            kind, size = _ANSWER.unpack(_receive(client, _ANSWER.size))
            payload = _receive(client, size)
        except OSError as error:
            raise StoreError(f"the job at {socket_path(store)} stopped answering ({error}): ask again") from error
    if kind != b"+":
        raise JobError(payload.decode(errors="replace"))
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()


def _send(client: socket.socket, kind: bytes, payload: bytes | pa.Buffer) -> None:
    data = memoryview(payload)
    client.sendall(_ANSWER.pack(kind, len(data)))
    client.sendall(data)


def _receive(peer: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = peer.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionResetError(f"the other side closed after {len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)


def _listen(path: Path) -> socket.socket:
    _remove_leftover(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(path) as address:
            server.bind(address)
        # Nobody can connect before `listen`, so the socket is never open to others.
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        server.listen(8)
    except OSError as error:
        server.close()
        raise StoreError(f"cannot listen at {path} ({error}): queries need a short, writable path") from error
    return server


def _remove_leftover(path: Path) -> None:
    """A killed job leaves its socket; the caller holds the store's lock, so nobody listens there."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StoreError(f"{path} is in the way and is not a socket: move it, the job listens there for queries")
        path.unlink()


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """An address of at most 107 bytes, as the kernel wants it; a longer one goes by way of its folder's descriptor."""
    if len(os.fsencode(path)) < 104 or not Path("/proc/self/fd").exists():
        yield str(path)
        return
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield str(path)[:100]  # no such folder, no such socket: let `connect` say so
        return
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
