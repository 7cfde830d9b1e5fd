"""What operators hold is counted, shown, and kept below a limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from cli_kit import call, logged
from millstream.cli.errors import OUTGROWN
from millstream.engine.errors import JobError, MemoryExceeded
from millstream.engine.memory import bytes_by_part, bytes_held, parse_bytes
from millstream.engine.operator import OperatorSpec
from millstream.engine.store.reader import StoreReader
from millstream.engine.time import START_OF_TIME
from operator_kit import Collected

KEYS = 60_000


class Holder:
    __slots__ = ("__dict__", "slot")

    def __init__(self, **parts: object) -> None:
        self.slot = np.zeros(100, np.int64)
        for name, value in parts.items():
            setattr(self, name, value)


def test_every_buffer_is_counted_once_however_many_slices_there_are() -> None:
    array = np.zeros(10_000, np.int64)
    batch = pa.record_batch({"a": np.arange(10_000)})
    held = bytes_held([array, array[5:], array.reshape(100, 100), batch, batch.slice(7)])
    assert held == pytest.approx(160_000, 0.01)
    assert bytes_held([batch.slice(9_999)]) == pytest.approx(80_000, 0.01), "a slice keeps the whole buffer"
    assert bytes_by_part(Holder(_index=array, same=array, small=1)) == {"index": 80_000, "slot": 800}


@pytest.mark.parametrize("make", [dict, list])
def test_a_long_container_is_counted_from_a_sample(make: Callable[[Any], Any]) -> None:
    values = make((n, np.zeros(125)) for n in range(5_000))
    assert bytes_held(values) == pytest.approx(5_000 * 1_100, rel=0.2)


def test_rings_and_shared_things_end_the_count() -> None:
    ring: list[Any] = [np.zeros(1_000)]
    ring.append(ring)
    assert bytes_held(ring) < 9_000
    assert bytes_held([ms.memory_sink(), np, int, len, pa.int64()]) < 200


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("500MB", 500_000_000), ("2 GiB", 2 << 30), ("1.5k", 1_500)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1MB", "2 PB", "much", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(JobError, match="is not a size"):
        parse_bytes(text)


OPERATORS: dict[str, Callable[[ms.Stream], ms.Stream]] = {
    "sum": lambda stream: stream.group_by("n").window(ms.tumbling("1h")).agg(total=ms.sum("n")),
    "collect": lambda stream: stream.group_by("n").window(ms.tumbling("1h")).agg(all=ms.collect("n")),
    "distinct": lambda stream: stream.group_by("n").window(ms.tumbling("1h")).agg(about=ms.count_distinct("n")),
    "session": lambda stream: stream.group_by("n").window(ms.session("1h")).agg(rows=ms.count()),
    "sliding": lambda stream: stream.group_by("n").window(ms.sliding("1h", "30m")).agg(rows=ms.count()),
    "dedup": lambda stream: stream.deduplicate("n"),
    "top": lambda stream: stream.group_by("n").window(ms.tumbling("1h")).top(1, by="n"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_with_state_holds_at_least_its_keys_and_not_a_hundred_times_as_much(name: str) -> None:
    at = pa.array(np.arange(KEYS), pa.timestamp("us"))
    batch = pa.record_batch({"n": np.arange(KEYS), "at": at})
    job = ms.Job("held")
    OPERATORS[name](job.read(ms.memory_source([batch]), event_time="at")).write(ms.blackhole())
    specs = [node.body for node in job.graph.nodes.values() if isinstance(node.body, OperatorSpec)]
    (spec,) = [spec for spec in specs if spec.state_tables([batch.schema])]
    operator = spec.build([batch.schema])
    empty = sum(operator.memory().values())
    operator.process(batch, Collected())
    operator.on_watermark(START_OF_TIME + 1, Collected())
    held = sum(operator.memory().values()) - empty
    assert held + empty >= 8 * KEYS
    assert held < 800 * KEYS


JOB = """
import millstream as ms
import pyarrow as pa

def numbers(start, stop):
    return pa.record_batch({"n": pa.array(range(start, stop), pa.int64())})

job = ms.Job("growing")
schema = pa.schema({"n": pa.int64()})
source = ms.generator(numbers, schema=schema, rows=ROWS, rate=400_000, batch_rows=2_000, name="numbers")
job.read(source).deduplicate("n", name="once").write(ms.jsonl("output", hold_bytes=0))
"""


def test_a_job_that_outgrows_its_memory_ends_at_a_checkpoint_and_goes_on_with_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = 800_000
    Path("job.py").write_text(JOB.replace("ROWS", str(rows)))
    run = ("run", "job.py", "--store", "job.duckdb", "--every", "20ms")
    failure = logged(call(*run, "--memory", "2MB", code=OUTGROWN).stderr)[-1]
    assert failure["error"] == "MemoryExceeded"
    assert "more than the 2.0 MB it may (--memory): deduplicate 'once' holds" in failure["message"]

    def shown() -> list[int]:
        return sorted(
            json.loads(line)["n"] for file in Path("output").rglob("*.jsonl") for line in file.read_text().splitlines()
        )

    with StoreReader.open(Path("job.duckdb")) as reader:
        assert reader.facts().unpublished == {}, "what is committed is visible"
        epoch = reader.facts().last.epoch
        counted = reader.query("SELECT count(*) AS n FROM state.once_seen").to_pylist()[0]["n"]
    assert f"Everything up to epoch {epoch} is committed and visible" in failure["message"]
    assert shown() == list(range(counted))
    relation = json.loads(call("state", "ls", "job.duckdb").stdout.splitlines()[-1])
    assert (relation["operator"], relation["rows"]) == ("once", counted)
    assert 2_000_000 < relation["memory"] < 100 * counted

    # With no more it ends at its next checkpoint; with more it goes on.
    call(*run, "--memory", "2MB", code=OUTGROWN)
    ended = logged(call(*run, "--memory", "1GB").stderr)[-1]
    assert (ended["event"], ended["restored_from"] > epoch) == ("finished", True)
    assert shown() == list(range(rows))


def test_from_a_program(tmp_path: Path) -> None:
    batches = [pa.record_batch({"n": np.arange(n, n + 1_000)}) for n in range(0, 100_000, 1_000)]
    seen = {}
    job = ms.Job("growing")
    job.read(ms.memory_source(batches, bounded=False)).deduplicate("n", name="once").write(ms.blackhole())

    def look(status: Any) -> None:
        seen.update(status.memory)

    with pytest.raises(MemoryExceeded, match=r"deduplicate 'once' holds .* of which .* is its 'seen'"):
        job.run(tmp_path / "job.duckdb", every="1ms", memory="1MB", on_status=look)
    with pytest.raises(JobError, match="'lots' is not a size"):
        job.run(memory="lots")
