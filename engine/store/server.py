"""Lets people query a running job: a Unix socket beside the store, since no other process can open the file.

A request is a length (4 bytes, big-endian) and that many bytes of msgpack: a map with ``ask``, what is asked, and its
arguments. The answer is one byte (``+`` or ``!``), a length (8 bytes) and the result as an Arrow IPC stream, or what
went wrong as text.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgpack
import pyarrow as pa
from millstream.engine.errors import JobError, StoreError
from millstream.engine.logs import log

_MAX_REQUEST: Final = 1 << 20
_MOST_CLIENTS: Final = 16
_REQUEST: Final = struct.Struct(">I")
_ANSWER: Final = struct.Struct(">cQ")
_PATIENCE: Final = 30.0
"""Seconds a client may take to send its request or to take the result."""


def socket_path(store: Path) -> Path:
    """The socket beside a store."""
    return store.with_name(store.name + ".sock")


class QueryServer:
    """Answers each client on a thread of its own, until closed.

    Args:
        store: the store's path; only its name is used.
        answer: given what is asked and its arguments, returns the answer; called from several threads.
        interrupt: ends whatever is being answered, with an error.
    """

    def __init__(
        self,
        store: Path,
        answer: Callable[[str, Mapping[str, Any]], pa.Table],
        interrupt: Callable[[], None],
    ) -> None:
        self._path = socket_path(store)
        self._answer_to = answer
        self._interrupt = interrupt
        self._socket = _listen(self._path)
        self._clients: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._serve, name="millstream-queries", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the socket. Call it before closing the store."""
        # Closing a socket does not wake a thread that waits in accept; shutting it down does.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        until = time.monotonic() + 1.0
        for client in self._clients:
            client.join(max(0.0, until - time.monotonic()))
        if any(client.is_alive() for client in self._clients):
            # A long query must not keep a job from ending, and its store locked.
            self._interrupt()
            until = time.monotonic() + 5.0
            for client in self._clients:
                client.join(max(0.0, until - time.monotonic()))
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self._clients = [thread for thread in self._clients if thread.is_alive()]
            if len(self._clients) >= _MOST_CLIENTS:
                client.close()
                continue
            thread = threading.Thread(target=self._attend, args=(client,), name="millstream-query", daemon=True)
            self._clients.append(thread)
            thread.start()

    def _attend(self, client: socket.socket) -> None:
        with client:
            try:
                client.settimeout(_PATIENCE)
                self._answer(client)
            except OSError as error:
                log.info("store.query.client_gone", error=str(error))

    def _answer(self, client: socket.socket) -> None:
        (size,) = _REQUEST.unpack(_receive(client, _REQUEST.size))
        if size > _MAX_REQUEST:
            _send(client, b"!", f"the query has {size:,} bytes, at most {_MAX_REQUEST:,} are taken".encode())
            return
        try:
            arguments = msgpack.unpackb(_receive(client, size))
            result = self._answer_to(arguments.pop("ask"), arguments)
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


def ask(store: Path, what: str, **arguments: object) -> pa.Table | None:
    """Let the running job answer; None if no job answers on this store.

    Raises:
        JobError: the job refused.
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
            request = msgpack.packb({**arguments, "ask": what})
            client.sendall(_REQUEST.pack(len(request)) + request)
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
