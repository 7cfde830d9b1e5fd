"""Tables in an S3-compatible store: the same guarantees, and secrets that are read where they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.errors import JobError
from millstream.engine.sink import Sink, SinkContext
from millstream.testing import check_sink
from servers.objects import ObjectStore, object_store

deltalake = pytest.importorskip("deltalake", reason="pip install 'millstream[delta]'")
pytest.importorskip("pyiceberg", reason="pip install 'millstream[iceberg]'")

s3 = object_store()
ROWS = pa.RecordBatch.from_pylist([{"id": n, "name": f"n {n}"} for n in range(12)])


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_KEY", "wide open")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.slow
def test_a_crash_at_any_step_changes_nothing_in_delta(s3: ObjectStore) -> None:
    options = {
        "AWS_ENDPOINT_URL": s3.address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "shop",
        "AWS_SECRET_ACCESS_KEY": "${env:LAKE_KEY}",
        "AWS_REGION": "us-east-1",
    }
    plain = options | {"AWS_SECRET_ACCESS_KEY": "wide open"}

    def seen(uri: str) -> list[dict[str, Any]]:
        if not deltalake.DeltaTable.is_deltatable(uri, storage_options=plain):
            return []
        rows: list[dict[str, Any]] = deltalake.DeltaTable(uri, storage_options=plain).to_pyarrow_table().to_pylist()
        return rows

    def make(uri: str) -> Sink:
        return ms.delta_sink(uri, create=True, hold_bytes=0, options=options)

    rows = check_sink(lambda: f"s3://{s3.bucket()}/lake/t", make, seen, [ROWS])
    assert sorted(row["id"] for row in rows) == list(range(12))
    assert make("s3://b/t").folders() == ()


@pytest.mark.slow
def test_a_crash_at_any_step_changes_nothing_in_iceberg(s3: ObjectStore, tmp_path: Path) -> None:
    from pyiceberg.catalog import load_catalog

    def settings(bucket: str, key: str) -> dict[str, str]:
        return {
            "type": "sql",
            "uri": f"sqlite:///{tmp_path}/{bucket}.db",
            "warehouse": f"s3://{bucket}/warehouse",
            "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO",
            "s3.endpoint": s3.address,
            "s3.access-key-id": "shop",
            "s3.secret-access-key": key,
            "s3.region": "us-east-1",
        }

    def seen(bucket: str) -> list[dict[str, Any]]:
        catalog = load_catalog("default", **settings(bucket, "wide open"))
        if not catalog.table_exists("shop.t"):
            return []
        rows: list[dict[str, Any]] = catalog.load_table("shop.t").scan().to_arrow().to_pylist()
        return rows

    def make(bucket: str) -> Sink:
        return ms.iceberg_sink(settings(bucket, "${env:LAKE_KEY}"), "shop.t", create=True, hold_bytes=0)

    rows = check_sink(s3.bucket, make, seen, [ROWS])
    assert sorted(row["id"] for row in rows) == list(range(12))


def test_a_secret_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAKE_KEY")
    sink = ms.delta_sink("s3://bucket/t", options={"AWS_SECRET_ACCESS_KEY": "${env:LAKE_KEY}"})
    with pytest.raises(JobError, match="LAKE_KEY is not set"):
        sink.writer(ROWS.schema, SinkContext("shop", "j1", "s1", 1, 0, 1))
