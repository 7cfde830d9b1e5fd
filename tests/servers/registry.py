"""A real schema registry for tests: Apicurio Registry, which speaks Confluent's API, in memory, on a free port.

``python tests/servers/registry.py`` fetches it from Maven Central, once, into the cache folder that Kafka's jars are
in. A test module asks for one with ``registry = schema_registry()``::

    registry = schema_registry()

    def test_it(registry):
        registry.register("orders-value", {"type": "record", ...})
        ms.kafka_source(..., value="avro", registry=registry.url)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from servers.kafka import CACHE, INSTALL, LONGEST_SECONDS, free_ports

POM = Path(__file__).with_name("registry.pom.xml")
VERSION = re.search(r"<registry>([^<]+)</registry>", POM.read_text())[1]  # type: ignore[index]
FOLDER = CACHE / f"apicurio-registry-{VERSION}"


def missing() -> str | None:
    """Say what is not installed; None: all there."""
    if shutil.which("java") is None:
        return "there is no Java; install Java 17 or newer and Maven, then: " + INSTALL
    return None if FOLDER.is_dir() else f"Apicurio Registry {VERSION} is not in {CACHE}: {INSTALL}"


def install() -> None:
    """Fetch it, unless it is there; a folder that is there is complete."""
    if FOLDER.is_dir():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy", f"-DoutputDirectory={scratch}"]
        subprocess.run(command, check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(Path(scratch) / "app", filter="data")
        (Path(scratch) / "app").rename(FOLDER)


class RegistryServer:
    """One registry process.

    Attributes:
        url: of the API that is Confluent's; the same after a restart.
    """

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self._folder = folder
        self.url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with what it had, and wait until it answers."""
        (jar,) = FOLDER.glob("*-runner.jar")
        command = ["java", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-jar", str(jar)]
        settings = {
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(self._port),
            # Without a delay: otherwise what was registered just before it is killed is gone.
            "REGISTRY_DATASOURCE_URL": f"jdbc:h2:file:{self._folder / 'data'};WRITE_DELAY=0",
        }
        with (self._folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | settings, cwd=self._folder
            )
        until = time.monotonic() + LONGEST_SECONDS
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                raise AssertionError((self._folder / "registry.log").read_text()[-4000:])
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; nothing if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def register(self, subject: str, schema: Any, kind: str = "AVRO", references: Any = ()) -> int:
        """Register a schema under a subject and return its id."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        body = {"schema": text, "schemaType": kind, "references": list(references)}
        return int(self.ask(f"/subjects/{subject}/versions", body)["id"])

    def ask_to_keep_compatible(self, subject: str) -> None:
        """Let a subject take only schemas that read what its latest wrote; from its first schema on."""
        self.ask(f"/config/{subject}", {"compatibility": "BACKWARD"}, "PUT")

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """GET, or POST a body as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _answers(self) -> bool:
        try:
            return isinstance(self.ask("/subjects"), list)
        except (OSError, ValueError):
            return False


def schema_registry() -> Callable[..., Iterator[RegistryServer]]:
    """Return a fixture: a registry for all tests of a module."""
    import pytest

    @pytest.fixture(scope="module", name="registry")
    def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
        reason = missing()
        if reason:
            pytest.skip(reason)
        started = RegistryServer(tmp_path_factory.mktemp("registry"))
        started.start()
        try:
            yield started
        finally:
            started.kill()

    return server


if __name__ == "__main__":
    install()
    sys.stdout.write(f"Apicurio Registry {VERSION} is in {FOLDER}\n")
