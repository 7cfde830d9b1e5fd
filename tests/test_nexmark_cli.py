"""The command's contract: generate, run, verify, and their exit codes and last lines."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from millstream.benchmarks.cli import nexmark
from millstream.engine.errors import JobError


def call(*words, code=0):
    result = CliRunner().invoke(nexmark, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    out = call("generate", "--events", "20_000", "--seed", 2, "--out", folder, "--disorder", "2s")
    assert "400 persons, 1,200 auctions, 18,400 bids" in out
    return folder


def files(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_generating_again_gives_the_same_bytes(events, tmp_path):
    call("generate", "--events", 20_000, "--seed", 2, "--out", tmp_path, "--disorder", "2s")

    for stream in ("person", "auction", "bid"):
        assert (tmp_path / f"{stream}.parquet").read_bytes() == (events / f"{stream}.parquet").read_bytes()


def test_run_reports_and_verify_agrees(events, tmp_path):
    where = ("--events", events, "--results", tmp_path / "results")

    report = json.loads(call("run", "q2", *where, "--store", tmp_path / "q2.duckdb").splitlines()[-1])

    assert report["query"] == "q2"
    assert report["input_events"] == 18_400
    assert report["checkpoints"] >= 1
    assert report["restored_from"] == 0
    assert report["events_per_s"] == pytest.approx(18_400 / report["seconds"], rel=0.05)
    assert "the same" in call("verify", "q2", *where)


def test_a_finished_query_changes_nothing(events, tmp_path):
    words = ("run", "q2", "--events", events, "--results", tmp_path / "results", "--store", tmp_path / "q2.duckdb")
    call(*words)
    before = files(tmp_path / "results")

    again = call(*words)

    assert "already finished" in again
    report = json.loads(again.splitlines()[-1])
    assert report["outcome"] == "already finished"
    assert report["input_events"] == 0
    assert files(tmp_path / "results") == before


def test_verify_fails_with_the_rows_that_differ(events, tmp_path):
    (tmp_path / "q2").mkdir()
    pq.write_table(pa.table({"auction": [123], "price": [-5]}), tmp_path / "q2" / "x.parquet")

    out = call("verify", "q2", "--events", events, "--results", tmp_path, code=1)

    assert "rows differ" in out
    assert "1 too many: {'auction': 123, 'price': -5}" in out
    assert "missing" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("run q99 --events {e} --results {t} --store {t}/s", "there is no Nexmark query 'q99'"),
        ("verify q99 --events {e} --results {t}", "no batch definition"),
        ("bench q0 q99 --events {e}", "there is no Nexmark query 'q99'"),
        ("generate --events 1 --out {t} --disorder soon", "not a duration"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(events, tmp_path, words, complaint):
    result = CliRunner().invoke(nexmark, words.format(e=events, t=tmp_path).split())

    assert isinstance(result.exception, JobError)
    assert complaint in str(result.exception)
    assert not list(tmp_path.iterdir())
