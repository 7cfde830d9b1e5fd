"""Files in an S3-compatible store: read as local ones are, to the row, and noticed when they change."""

from __future__ import annotations

import gzip
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from millstream.connectors.object_store import ObjectPath, ObjectStore
from millstream.connectors.reading_plan import FileChanged
from millstream.engine.errors import DataError, ExternalError, JobError
from millstream.engine.source import ReadContext, Source, SplitEnd, SplitReader
from millstream.testing import check_source
from nursery import Nursery, Start
from pyarrow.fs import S3FileSystem
from servers.objects import ObjectStore as Server
from servers.objects import object_store
from test_files_source import FORMATS, write

s3 = object_store()

ROWS = [{"n": n, "text": f"t {n}", "x": n / 4, "at": None} for n in range(12)]
QUICK = ("parquet", "jsonl.gz")
SCHEMA = {"n": int, "text": str, "x": float}
CONTEXT = ReadContext(dead_letter=print)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_KEY", "wide open")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


class Bucket:
    """A bucket of its own."""

    def __init__(self, server: Server) -> None:
        self.address = server.address
        self.name = server.bucket()
        self.options = {
            "AWS_ENDPOINT_URL": server.address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "shop",
            "AWS_SECRET_ACCESS_KEY": "${env:LAKE_KEY}",
            "AWS_REGION": "us-east-1",
        }

        host = server.address.removeprefix("http://")
        self._there = S3FileSystem(access_key="shop", secret_key="wide open", endpoint_override=host, scheme="http")

    def put(self, name: str, data: bytes) -> None:
        with self._there.open_output_stream(f"{self.name}/{name}", compression=None) as stream:
            stream.write(data)

    def delete(self, name: str) -> None:
        self._there.delete_file(f"{self.name}/{name}")

    def files(self, pattern: str, **more: Any) -> Source:
        return ms.files(f"s3://{self.name}/{pattern}", **{"options": self.options} | more)


@pytest.fixture
def bucket(s3: Server) -> Bucket:
    return Bucket(s3)


def rows_of(source: Source, parallelism: int = 1, **options: Any) -> list[dict[str, Any]]:
    job, out = ms.Job("read"), ms.memory_sink()
    job.read(source).write(out)
    job.run(parallelism=parallelism, restarts=0, **options)
    return sorted(out.rows(), key=lambda row: row["n"])


def made(kind: str, *numbers: int) -> bytes:
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"n": numbers}), sink, row_group_size=70_000, use_dictionary=False, compression="none")
        return bytes(sink.getvalue())
    return gzip.compress(lines(*numbers)) if kind.endswith("gz") else lines(*numbers)


def rows_in(reader: SplitReader) -> int:
    count = 0
    while not isinstance(got := reader.read(), SplitEnd):
        count += got.num_rows if isinstance(got, pa.RecordBatch) else got.rows_read
    return count


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"n": n}).encode() + b"\n" for n in numbers)


# -- what is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FORMATS])
def test_rows_are_those_of_local_files_from_any_position(format_: str, bucket: Bucket, tmp_path: Path) -> None:
    for part in range(2):
        path = tmp_path / f"part {part}.{format_}"
        write(path, ROWS[part::2])
        bucket.put(f"in/{path.name}", path.read_bytes())
    suffix = format_.rpartition("/")[2]
    read = check_source(lambda: bucket.files(f"in/*.{suffix}", schema=SCHEMA))
    assert read == check_source(lambda: ms.files(tmp_path / f"*.{suffix}", schema=SCHEMA))
    assert rows_of(bucket.files("in/", schema=SCHEMA), parallelism=2) == sorted(read, key=lambda row: row["n"])


def test_the_schema_is_looked_up_and_long_objects_are_read_piece_by_piece(bucket: Bucket) -> None:
    text = b"".join(json.dumps({"n": n, "filling": "x" * 200}).encode() + b"\n" for n in range(40_000))
    assert len(text) > 2 * (4 << 20)
    bucket.put("1.jsonl", text)
    table = pa.table({"n": range(200_000)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=70_000)
    bucket.put("1.parquet", sink.getvalue().to_pybytes())
    source = bucket.files("*.jsonl")
    assert source.schema.names == ["n", "filling"]
    assert [row["n"] for row in rows_of(source)] == list(range(40_000))
    parquet = bucket.files("1.parquet")
    assert [split.info["groups"] for split in parquet.discover()] == [[0, 1], [1, 2], [2, 3]]
    assert [row["n"] for row in rows_of(parquet, 2)] == list(range(200_000))


TREE = [
    "a.csv", "b.csv", "b.txt", "part-10.csv", "part-2.csv", "x/a.csv", "x/y/a.csv", "x/y/z/b.csv", "x/_tmp/a.csv",
    "x/.hidden.csv", "_under.csv", "w.csv.tmp", "é 1.csv", "x y/a.csv",
]  # fmt: skip
PATTERNS = [
    "*.csv", "**/*.csv", "x/**", "x/*/a.csv", "part-[0-9]*.csv", "x", "", "a.csv", "_*.csv", "x/.h*.csv", "?.csv",
    "**/a.csv", "x/**/y/*.csv", "x */*.csv", "none/*.csv", "x/",
]  # fmt: skip


def test_patterns_name_what_they_name_among_local_files(bucket: Bucket, tmp_path: Path) -> None:
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"n\n1\n")
        bucket.put(name, b"n\n1\n")
    for pattern in PATTERNS:
        local = ms.files(f"{tmp_path}/{pattern}", schema=SCHEMA, format="csv")
        found = bucket.files(pattern, schema=SCHEMA, format="csv").discover()
        there = [split.info["file"] for split in found]
        base = Path(local.folders()[0])
        here = [(base if base.is_file() else base / split.info["file"]) for split in local.discover()]
        assert there == [f"{bucket.name}/{path.relative_to(tmp_path)}" for path in here], pattern


def test_objects_that_come_later_are_read_when_they_come(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("in/1.jsonl", lines(1, 2))
    control, out, later = ms.Control(), ms.memory_sink(), iter([lines(3)])
    job = ms.Job("follow")
    job.read(bucket.files("in/*.jsonl", schema={"n": int}, follow=True)).write(out)

    def look(status: Any) -> None:
        if len(out.rows()) == 2:
            for data in later:  # once: a second time it would be another object
                bucket.put("in/2.jsonl", data)
        if len(out.rows()) == 3:
            control.stop()

    job.run(tmp_path / "job.duckdb", every="20ms", control=control, on_status=look, restarts=0)
    assert [row["n"] for row in out.rows()] == [1, 2, 3]


def test_a_damaged_object_is_put_aside(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("1.jsonl.gz", gzip.compress(lines(*range(9000)))[:-2000])
    bucket.put("2.jsonl.gz", gzip.compress(lines(-1)))
    bucket.put("3.jsonl.gz", b"none of it")
    with pytest.raises(DataError, match=r"s3://.*1.jsonl.gz.*cannot be unpacked"):
        rows_of(bucket.files("*.gz", schema={"n": int}))
    out, job = ms.memory_sink(), ms.Job("read")
    job.read(bucket.files("*.gz", schema={"n": int}, on_error="dead_letter")).write(out)
    assert job.run().status.dead_letters == {f"s3://{bucket.name}/*.gz": 2}
    assert -1 in [row["n"] for row in out.rows()]


# -- objects that change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["replaced", "gone"])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_an_object_that_is_another_one_now_is_refused(kind: str, change: str, bucket: Bucket) -> None:
    for name in ("1", "2"):
        bucket.put(f"{name}.{kind}", made(kind, 1, 2, 3))
    source = bucket.files(f"*.{kind}", schema={"n": int})
    readers = [source.open(split, None, CONTEXT) for split in source.discover()]
    if change == "gone":
        bucket.delete(f"2.{kind}")
    else:
        time.sleep(1.1)  # the store tells seconds
        bucket.put(f"2.{kind}", made(kind, 4, 5, 6))
    assert rows_in(readers[0]) == 3
    said = "it is gone" if change == "gone" else "it was last changed at .* when it was found, and at .* now"
    with pytest.raises(DataError, match=rf"s3://{bucket.name}/2.{kind}: {said}, so no position in it can be trusted"):
        rows_in(readers[1])


def test_a_parquet_object_that_is_replaced_while_it_is_read_is_refused(bucket: Bucket) -> None:
    """Its second part is read by what was opened for the first, so the time of the change is not looked at again."""
    bucket.put("1.parquet", made("parquet", *range(140_000)))
    source = bucket.files("1.parquet")
    first, second = (source.open(split, None, CONTEXT) for split in source.discover())
    assert rows_in(first) == 70_000
    first.close()
    bucket.put("1.parquet", made("parquet", *range(1, 140_001)))
    with pytest.raises(DataError, match=r"1.parquet: it was (replaced while it was read|last changed)"):
        rows_in(second)
    second.close()


@pytest.mark.parametrize("change", ["replaced", "gone"])
def test_an_object_that_is_replaced_while_it_is_read_is_never_mixed_with_the_other(change: str, bucket: Bucket) -> None:
    bucket.put("1.csv", b"a" * 100)
    with ObjectPath(ObjectStore(bucket.options), f"{bucket.name}/1.csv").open() as file:
        assert file.read(50) == b"a" * 50
        bucket.put("1.csv", b"b" * 100) if change == "replaced" else bucket.delete("1.csv")
        with pytest.raises(FileChanged, match="while it was read" if change == "replaced" else "gone"):
            file.read(50)


# -- what goes wrong -------------------------------------------------------------------------------------------


def test_mistakes_are_explained(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (JobError, "no bucket 'nowhere'", lambda: ms.files("s3://nowhere/*.csv", options=bucket.options)),
        (JobError, "no such file; looked in s3://bucket-", lambda: bucket.files("*.csv")),
        (JobError, "names no bucket", lambda: ms.files("s3:///a.csv")),
        (JobError, "no part of an object's name", lambda: ms.files("s3://bucket/a/../b.csv")),
        (JobError, "'AWS_KEY' is none of the options", lambda: bucket.files("*.csv", options={"AWS_KEY": "x"})),
        (JobError, "options= are for objects", lambda: ms.files("a.csv", options=bucket.options)),
        (JobError, "a source has one of both", lambda: ms.files(["a.csv", "s3://bucket/a.csv"])),
        (
            JobError,
            "not encrypted: say so with 'AWS_ALLOW_HTTP'",
            lambda: bucket.files("*.csv", options={"AWS_ENDPOINT_URL": bucket.address}),
        ),
    ]
    for kind, text, make in mistakes:
        with pytest.raises(kind, match=text):
            make()
    monkeypatch.delenv("LAKE_KEY")
    with pytest.raises(JobError, match="LAKE_KEY is not set"):
        bucket.files("*.csv")


def test_a_store_that_is_away_may_come_back(bucket: Bucket) -> None:
    with pytest.raises(ExternalError, match=r"cannot be reached.*NETWORK_CONNECTION during ListObjectsV2"):
        bucket.files("*.csv", options=bucket.options | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})


def test_no_rights_are_said_to_be_that(s3: Server, bucket: Bucket) -> None:
    bucket.put("1.csv", b"n\n1\n")
    source = bucket.files("*.csv", schema={"n": int})
    source.discover()
    _guard(s3, after=0)
    try:
        with pytest.raises(JobError, match=r"the store does not allow it .*s3:ListBucket") as listing:
            bucket.files("*.csv")
        with pytest.raises(JobError, match=r"s3://bucket-\d+/1.csv: the store does not allow it .*s3:GetObject"):
            ObjectPath(ObjectStore(bucket.options), f"{bucket.name}/1.csv").open()
    finally:
        _guard(s3, after=10**9)
    assert "wide open" not in str(listing.value)


def _guard(server: Server, after: int) -> None:
    """Let the server look at keys, of which it knows none, after so many requests."""
    url = f"{server.address}/moto-api/reset-auth"
    kind = {"Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(url, str(after).encode(), kind, method="POST")):
        pass


def test_secrets_are_nowhere(bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bucket.put("1.jsonl", lines(1))
    source = bucket.files("*.jsonl", schema={"n": int}, options=bucket.options | {"AWS_SECRET_ACCESS_KEY": "plain one"})
    job = ms.Job("secret")
    job.read(source).write(ms.blackhole())
    job.read(bucket.files("1.jsonl", schema={"n": int})).write(ms.blackhole(name="second"))
    job.run(tmp_path / "job.duckdb")
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    shown = f"{source!r} {source.identity()} {job.plan(1)!r} {capfd.readouterr()}"
    for secret in ("wide open", "plain one"):
        assert secret not in shown
        assert secret.encode() not in kept


# -- kills -----------------------------------------------------------------------------------------------------

JOB = """
import millstream as ms

options = {options!r}
job = ms.Job("lake")
rows = job.read(ms.files("s3://{bucket}/in/*.jsonl.gz", options=options, name="text"))
rows.write(ms.jsonl("text", hold_bytes=0))
job.read(ms.files("s3://{bucket}/in/*.parquet", options=options, name="parquet")).write(ms.jsonl("rows", hold_bytes=0))
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    os.environ |= {"LAKE_KEY": "wide open", "AWS_EC2_METADATA_DISABLED": "true"}
    with Nursery() as running:
        yield running


def test_a_job_killed_anywhere_has_read_each_row_once(bucket: Bucket, tmp_path: Path, nursery: Nursery) -> None:
    for part in range(4):
        bucket.put(f"in/{part}.jsonl.gz", gzip.compress(lines(*range(part, 48, 4))))
        bucket.put(f"in/{part}.parquet", made("parquet", *range(part, 48, 4)))
    (tmp_path / "job.py").write_text(JOB.format(options=bucket.options, bucket=bucket.name))
    points = ("store.before_commit@2", "store.after_commit@2", "sink.commit@2", "recovery.done@1")
    for number, point in enumerate(points):
        name, _, hits = point.partition("@")
        end = nursery.run(Start(str(tmp_path), parallelism=1 + number % 2, failpoint=f"{name}=kill@{hits}"))
        assert end.killed, (point, end)
    assert nursery.run(Start(str(tmp_path))).outcome == "finished"
    for folder in ("text", "rows"):
        files = (tmp_path / folder).rglob("part-*.jsonl")
        read = sorted(json.loads(line)["n"] for file in files for line in file.read_text().splitlines())
        assert read == list(range(48)), folder
