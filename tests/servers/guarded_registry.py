"""A guard before a schema registry: TLS, and a login, a token or a certificate without which nobody is let through."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import ClassVar
from urllib.parse import urlsplit

from servers.guarded_kafka import certificates

USER, PASSWORD, TOKEN, KEY_PASSWORD = "me", "registrys-secret", "a-secret-token", "keys-secret"
LOGIN = f"{USER}:{PASSWORD}"


class GuardedRegistry:
    """Listens on a port of its own and passes requests on that prove who sends them; a context manager.

    Attributes:
        url: what clients ask instead of the registry.
        authority: the certificate that clients have to trust.
        certificate, key: a client's, signed by that authority; the key needs ``KEY_PASSWORD``.
        refused: how many requests were not let through, other than by TLS.
    """

    def __init__(self, registry: str, folder: Path, needs: str) -> None:
        """Prepare to start; ``needs``: "login", "token" or "certificate"."""
        self.authority = certificates(folder)
        self.certificate, self.key = folder / "broker.crt", folder / "client.key"
        command = [
            "openssl",
            "rsa",
            "-aes256",
            "-in",
            "broker.key",
            "-out",
            self.key,
            "-passout",
            f"pass:{KEY_PASSWORD}",
        ]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        self.refused = 0
        guard = self

        class Guarded(_Handler):
            target = registry
            wanted = {"login": f"Basic {base64.b64encode(LOGIN.encode()).decode()}", "token": f"Bearer {TOKEN}"}.get(
                needs
            )

            def refuse(self) -> None:
                guard.refused += 1
                super().refuse()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
        self._server.daemon_threads = True
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "broker.pem")
        if needs == "certificate":
            tls.verify_mode = ssl.CERT_REQUIRED
            tls.load_verify_locations(self.authority)
        # The handshake is done by the request's thread: one that fails holds up no other.
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"https://127.0.0.1:{self._server.server_port}{urlsplit(registry).path}"

    def __enter__(self) -> GuardedRegistry:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    target: ClassVar[str]
    wanted: ClassVar[str | None]
    timeout = 30

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # a handshake that failed, or a client that has gone
            self.close_connection = True

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else None
        if self.wanted is not None and self.headers.get("Authorization") != self.wanted:
            self.refuse()
            return
        there = urlsplit(self.target)
        url = f"{there.scheme}://{there.netloc}{self.path}"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                self._answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                self._answer(error.code, error.read())

    do_POST = do_GET  # noqa: N815

    def refuse(self) -> None:
        # What was sent comes back, as careless servers have it.
        said = f"{self.headers.get('Authorization')} is nobody we know"
        self._answer(401, json.dumps({"error_code": 401, "message": said}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""
