"""A TCP proxy that cuts connections when it sees certain bytes go by."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

Cut = Callable[[bytes], str]
"""Looks at bytes from the client; answers ``pass``, ``before`` (cut, nothing sent) or ``after`` (sent, answer lost)."""
Let = Callable[[bytes], int]
"""Looks at bytes from the server; answers how many of them to pass on. If that is not all, the connection is cut."""


class Proxy:
    """Listens on a port of its own and passes everything on; a context manager."""

    def __init__(self, port: int, cut: Cut = lambda _: "pass", let: Let = len) -> None:
        self._target = port
        self._cut = cut
        self._let = let
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._open: list[socket.socket] = []

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        for connection in self._open:
            hang_up(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                hang_up(client)
                continue
            self._open += [client, server]
            threading.Thread(target=self._from_client, args=(client, server), daemon=True).start()
            threading.Thread(target=self._from_server, args=(server, client), daemon=True).start()

    def _from_client(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                verdict = self._cut(data)
                if verdict == "after":
                    # The answer must have nowhere to go before the server can give it.
                    hang_up(client)
                if verdict != "before":
                    server.sendall(data)
                if verdict != "pass":
                    break
        hang_up(client)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _from_server(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                most = self._let(data)
                client.sendall(data[:most])
                if most < len(data):
                    break
        hang_up(client)
        hang_up(server)


def hang_up(connection: socket.socket) -> None:
    """Close both ways, and wake whoever reads."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
