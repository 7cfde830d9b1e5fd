"""Folder names of partitions: any text goes in, the same text is read back, and no path leaves the root."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path, PurePosixPath

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from millstream.connectors.durable import make_folder_below
from millstream.connectors.partition_path import NULL_NAME, folder_name, split_by_folder
from millstream.engine.errors import DataError, ExternalError

NASTY = [
    "a/b", "..", ".", "", "../../etc/passwd", "quote'\"", "new\nline", "Zürich 東京", "%41", "a=b", "NULL", "null",
    " x ", "\x00", "*?[x]", "~", "-1", "a\\b", "#{}", "day=1/day=2", None,
]  # fmt: skip


def write_partitions(root: Path, batch: pa.RecordBatch, columns: list[str]) -> None:
    for folder, rows in split_by_folder(batch, columns):
        path = make_folder_below(root, folder)
        pq.write_table(pa.Table.from_batches([rows.drop_columns(columns)]), path / "part.parquet")


@pytest.fixture
def nasty_folder(tmp_path: Path) -> Path:
    batch = pa.RecordBatch.from_pydict({"text": pa.array(NASTY), "id": range(len(NASTY))})
    write_partitions(tmp_path, batch, ["text"])
    return tmp_path


def test_duckdb_reads_every_text_back(nasty_folder: Path) -> None:
    found = duckdb.execute(
        "SELECT text FROM read_parquet(?, hive_partitioning = true, hive_types = {'text': VARCHAR}) ORDER BY id",
        [f"{nasty_folder}/**/*.parquet"],
    ).fetchall()
    assert [row[0] for row in found] == NASTY


def test_pyarrow_reads_every_text_back(nasty_folder: Path) -> None:
    by_text = ds.partitioning(pa.schema([("text", pa.string())]), flavor="hive")
    found = ds.dataset(nasty_folder, partitioning=by_text).to_table().sort_by("id")
    assert found.column("text").to_pylist() == NASTY


@given(st.text(max_size=10), st.text(max_size=10))
def test_a_name_is_one_safe_path_component(column: str, value: str) -> None:
    name = folder_name(column, value)
    assert PurePosixPath(name).parts == (name,)
    assert name not in (".", "..")
    assert name.isascii()
    assert name.isprintable()
    assert name.count("=") == 1


@given(st.sets(st.one_of(st.none(), st.text(max_size=8), st.sampled_from([NULL_NAME, "%2E", ".", "null"]))))
def test_different_values_have_different_names(values: set[str | None]) -> None:
    assert len({folder_name("c", value) for value in values}) == len(values)


def test_a_value_too_long_for_a_name_is_refused_and_not_cut() -> None:
    with pytest.raises(DataError, match=r"column 'shop': the value 'xxx.*264 bytes, at most 255"):
        folder_name("shop", "x" * 253 + "é")
    assert len(folder_name("shop", "x" * 250)) == 255


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1, 2, None]), st.booleans()), min_size=1))
def test_every_row_comes_once_in_order_in_its_own_folder(rows: list[tuple[str | None, int | None, bool]]) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "s": pa.array([r[0] for r in rows], pa.string()),
            "n": pa.array([r[1] for r in rows], pa.int8()),
            "b": [r[2] for r in rows],
            "id": range(len(rows)),
        }
    )
    expected: dict[str, list[int]] = {}
    for index, (text, number, flag) in enumerate(rows):
        n = NULL_NAME if number is None else number
        expected.setdefault(f"s={text or NULL_NAME}/n={n}/b={str(flag).lower()}", []).append(index)
    parts = list(split_by_folder(batch, ["s", "n", "b"]))
    assert {folder: part.column("id").to_pylist() for folder, part in parts} == expected
    assert len(parts) == len(expected)


def test_names_of_other_types() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "d": [dt.date(2026, 1, 31)],
            "t": [dt.datetime(2026, 1, 31, 12, 30, tzinfo=dt.UTC)],
            "x": [Decimal("1.50")],
            "id": [1],
        }
    )
    ((folder, _),) = split_by_folder(batch, ["d", "t", "x"])
    assert folder == "d=2026-01-31/t=2026-01-31%2012%3A30%3A00.000000Z/x=1.50"


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "shop=a").symlink_to(outside)
    with pytest.raises(ExternalError, match=r"shop=a is in the way.*symbolic link"):
        make_folder_below(root, "shop=a/day=1")
    assert list(outside.iterdir()) == []
