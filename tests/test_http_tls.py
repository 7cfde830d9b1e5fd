"""HTTPS: a source with a certificate, and a sink that trusts no certificate that nobody vouches for."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import millstream as ms
import pytest
from http_kit import free_port, insist, running

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="apt-get install openssl")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that it has signed itself, and its key."""
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=millstream", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


def test_a_source_speaks_https_and_a_sink_asks_who_it_is(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    port, out = free_port(), ms.memory_sink()
    url = f"https://127.0.0.1:{port}/ingest"
    job = ms.Job("secure")
    job.read(ms.http_source(port, schema={"n": int}, id="key", token="t", tls=certificate)).write(out)
    wary = ms.Job("wary")
    wary.read(ms.memory_source([{"n": 2}])).write(
        ms.http_sink(url, headers={"Authorization": "Bearer t"}, retry=ms.retry(1))
    )
    with running(job, tmp_path / "in.duckdb"):
        sent = {"Authorization": "Bearer t", "Idempotency-Key": "k"}
        assert insist(port, {"n": 1}, sent, tls=ssl.create_default_context(cafile=str(certificate[0]))).status == 200
        with pytest.raises(ms.JobFailed, match="certificate verify failed"):
            wary.run(tmp_path / "out.duckdb", restarts=0)
    assert out.rows() == [{"n": 1, "key": "k"}]
