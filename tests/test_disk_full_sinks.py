"""A disk that fills up below each kind of sink, or below the store while a sink's rows wait there.

The job says what is full, and goes on exactly once there is room; see ``test_disk_full`` for the disks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from http_kit import Receiver, Sent
from millstream.engine.store.reader import StoreReader
from servers.kafka import Broker, kafka_broker
from servers.postgres import installed
from test_disk_full import failure, in_namespace

kafka = kafka_broker()

JOB = """
import os
import millstream as ms
import numpy as np
import pyarrow as pa

WORDS = pa.schema({{"n": pa.int64(), "text": pa.string()}})

def words(start, stop):
    n = np.arange(start, stop)
    odd = (7_046_029_254_386_353_131, 1_442_695_040_888_963_407, 6_364_136_223_846_793_005)
    keys = zip(*((n * factor % 2**61).tolist() for factor in odd))
    text = ["".join(f"{{key:016x}}" for key in row) for row in keys]  # is not to be packed
    return pa.RecordBatch.from_arrays([pa.array(n), pa.array(text)], schema=WORDS)

out = os.environ["OUT"]
job = ms.Job("words")
rows = job.read(ms.generator(words, schema=WORDS, rows={rows}, rate={rows}, batch_rows={rows} // 20, name="numbers"))
rows.write({sink})
"""
"""A second of some twenty epochs; numbers are there once, and their texts can hardly be packed."""

RUN = (sys.executable, "-m", "millstream", "run", "job.py", "--every", "5ms", "--restarts", "0")

GROWING = """
mount -t tmpfs -o size=16k none disk
for size in {sizes}; do
    mount -o remount,size=$size disk
    code=0; {run} --store {store} 2>log.$size || code=$?
    test $code = 0 && break
    test $code = 1
done
test $code = 0
{read}
"""

CATALOG = '{"type": "sql", "uri": f"sqlite:///{out}/catalog.db", "warehouse": f"file://{out}/warehouse"}'
SINKS = {
    "duckdb": 'ms.duckdb_sink(out + "/words.duckdb", "words", name="words")',
    "duckdb upsert": 'ms.duckdb_sink(out + "/words.duckdb", "words", key="n", name="words")',
    "delta": 'ms.delta_sink(out + "/lake", create=True, hold_bytes="200KB", patience="0s", name="words")',
    "delta upsert": 'ms.delta_sink(out + "/lake", key="n", create=True, hold_bytes=0, patience="0s", name="words")',
    "iceberg": f'ms.iceberg_sink({CATALOG}, "a.words", create=True, hold_bytes="200KB", patience="0s", name="words")',
}
READ = {
    "duckdb": "import duckdb; found = duckdb.connect(out + '/words.duckdb').execute('select n from words').fetchall()",
    "delta": "import deltalake; found = zip(deltalake.DeltaTable(out + '/lake').to_pyarrow_table()['n'].to_pylist())",
    "iceberg": f"""
from pyiceberg.catalog import load_catalog
found = zip(load_catalog("default", **{CATALOG}).load_table("a.words").scan().to_arrow()["n"].to_pylist())
""",
}
READER = """
import json, os
out = os.environ["OUT"]
{}
with open("read.json", "w") as file:
    json.dump([n for n, in found], file)
os._exit(0)  # threads of Arrow that still read may abort a Python that ends
"""


def run_on_growing_disks(folder: Path, sink: str, sizes: Sequence[str], rows: int, reader: str = "") -> list[Path]:
    """Run the job on a disk that becomes larger until it gets through; return the logs of those that did not.

    Args:
        reader: what reads a local destination, which is on the disk; without it the store is.
    """
    (folder / "disk").mkdir()
    (folder / "job.py").write_text(JOB.format(sink=sink, rows=rows))
    (folder / "read.py").write_text(READER.format(reader))
    script = GROWING.format(
        sizes=" ".join(sizes),
        run=" ".join(RUN),
        store="job.duckdb" if reader else "disk/job.duckdb",
        read=f"{sys.executable} read.py" if reader else "",
    )
    in_namespace(folder, script, out=str(folder / "disk"), timeout=1500)
    logs = [log for size in sizes if (log := folder / f"log.{size}").exists()]
    # The last that failed may have had only its commit left to do.
    assert json.loads(logs[-1].read_text().splitlines()[-1])["event"] in ("finished", "already finished")
    return logs[:-1]


def check_complaints(logs: Sequence[Path], what: str) -> None:
    """The job has failed, each time because of the disk, and says so."""
    assert logs, "the disk was never full"
    for log in logs:
        why = failure(log)
        assert why["error"] in ("JobFailed", "ExternalError", "StoreError"), why
        assert any(sign in why["message"] for sign in ("No space left", "disk is full")), why
        assert what in why["message"], why
        assert any(advice in why["message"] for advice in ("see that the disk has room", "make room")), why


def grown(first: int, last: int, factor: float) -> list[str]:
    """Sizes of a disk in kilobytes."""
    sizes = []
    while first < last:
        sizes.append(f"{first}k")
        first = int(first * factor) + 1
    return [*sizes, "400m"]


_slow = pytest.mark.slow


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("sink", "sizes"),
    [
        ("duckdb", ["700k", "400m"]),
        pytest.param("delta", ["250k", "400m"], marks=_slow),
        pytest.param("iceberg", ["250k", "400m"], marks=_slow),
        *(pytest.param(sink, grown(16, 12_000, 1.35), marks=_slow) for sink in SINKS),
    ],
)
def test_the_disk_of_a_table_is_full(sink: str, sizes: list[str], tmp_path: Path) -> None:
    rows = 12_000
    logs = run_on_growing_disks(tmp_path, SINKS[sink], sizes, rows, READ[sink.split(maxsplit=1)[0]])
    check_complaints(logs, "words")
    assert Counter(json.loads((tmp_path / "read.json").read_text())) == Counter(range(rows))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    def answer(sent: Sent, times: int) -> tuple[int, dict[str, str], str]:
        del times
        return (422, {}, "refused") if sent.body["n"] % 3 else (200, {}, "")

    running = Receiver(answer)
    yield running
    running.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sizes", [["1000k", "400m"], pytest.param(grown(400, 4_000, 1.1), marks=_slow)])
def test_the_disk_of_what_a_receiver_refuses_is_full(sizes: list[str], receiver: Receiver, tmp_path: Path) -> None:
    rows = 1_200
    sink = f'ms.http_sink({receiver.url!r}, on_error="dead_letter", name="words")'
    logs = run_on_growing_disks(tmp_path, sink, sizes, rows)
    check_complaints(logs, "disk/job.duckdb")
    taken = [body["n"] for body in receiver.effects if body["n"] % 3 == 0]
    with StoreReader.open(tmp_path / "kept" / "job.duckdb") as reader:
        refused = [json.loads(letter["raw"])["n"] for letter in reader.dead_letters().to_pylist()]
    assert Counter(taken + refused) == Counter(range(rows))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_disk_of_messages_for_kafka_is_full(kafka: Broker, tmp_path: Path) -> None:
    rows, topic = 12_000, kafka.create("words")
    sink = f'ms.kafka_sink({kafka.address!r}, {topic!r}, key="n", name="words")'
    logs = run_on_growing_disks(tmp_path, sink, grown(300, 12_000, 1.35), rows)
    check_complaints(logs, "disk/job.duckdb")
    assert Counter(json.loads(message.value())["n"] for message in kafka.consume(topic)) == Counter(range(rows))


SERVER = """
import os, subprocess, sys
import psycopg
from servers.postgres import PostgresServer

run, name, key = sys.argv[1].split(), "words", sys.argv[2]
subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=300k,mode=777", "none", "/mnt"])
server = PostgresServer()
try:
    server.start()
    owner = os.stat(server.folder)
    os.mkdir("/mnt/space")
    os.chown("/mnt/space", owner.st_uid, owner.st_gid)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("create tablespace small location '/mnt/space'")
        connection.execute("alter database postgres set default_tablespace = small")
    for size in sys.argv[3:]:
        subprocess.check_call(["mount", "-o", f"remount,size={size}", "/mnt"])
        with open(f"log.{size}", "w") as log:
            code = subprocess.call(run, stderr=log, env={**os.environ, "DSN": server.dsn()})
        if code == 0:
            break
        assert code == 1, code
    assert code == 0
    with psycopg.connect(server.dsn()) as connection:
        print([n for n, in connection.execute("select n from words").fetchall()])
finally:
    server.stop()
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("key", "sizes"),
    [
        pytest.param("n", ["900k", "400m"], marks=_slow),
        pytest.param("", grown(300, 8_000, 1.3), marks=_slow),
        pytest.param("n", grown(300, 12_000, 1.3), marks=_slow),
    ],
)
def test_the_disk_of_the_server_is_full(key: str, sizes: list[str], tmp_path: Path) -> None:
    if os.geteuid() != 0 or not installed():
        pytest.skip("only root can give a PostgreSQL server of its own a small disk; and it must be installed")
    rows = 12_000
    keyed = f", key={key!r}" if key else ""
    sink = f'ms.postgres_sink(os.environ["DSN"], "words", create=True, patience="0s", name="words"{keyed})'
    (tmp_path / "job.py").write_text(JOB.format(sink=sink, rows=rows))
    (tmp_path / "server.py").write_text(SERVER)
    command = [
        "unshare",
        "--mount",
        sys.executable,
        "server.py",
        " ".join([*RUN, "--store", "job.duckdb"]),
        key,
        *sizes,
    ]
    environment = {**os.environ, "OUT": "", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert Counter(json.loads(done.stdout)) == Counter(range(rows))
    logs = [log for size in sizes if (log := tmp_path / f"log.{size}").exists()][:-1]
    assert logs, "the disk was never full"
    for log in logs:
        why = failure(log)
        assert why["error"] == "JobFailed", why
        assert "words: writing epoch" in why["message"] or "words: registering" in why["message"], why
        assert "Check free disk space" in why["message"], why
