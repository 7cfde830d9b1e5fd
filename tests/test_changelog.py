"""Changelogs: weights go through every operator that knows them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import millstream as ms
import pyarrow as pa
import pytest
from millstream import col
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.graph import Edge
from millstream.engine.operator import MAIN, Operator, OperatorSpec, Output
from millstream.stream import Stream


@dataclass(frozen=True)
class Weighing(OperatorSpec):
    """Makes a changelog of a stream with a column ``w``."""

    @property
    def kind(self) -> str:
        return "weighing"

    def identity(self) -> str:
        return "weighing()"

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        return {MAIN: weighted(inputs[0].remove(inputs[0].get_field_index("w")))}

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        return _Weighing()


class _Weighing(Operator):
    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        weights = batch.column("w")
        names = [name for name in batch.schema.names if name != "w"]
        schema = weighted(batch.schema.remove(batch.schema.get_field_index("w")))
        out.emit(pa.RecordBatch.from_arrays([*batch.select(names).columns, weights], schema=schema))


ROWS = [{"a": 1, "s": "x", "w": 1}, {"a": 2, "s": "y", "w": 1}, {"a": 1, "s": "x", "w": -1}, {"a": 3, "s": "x", "w": 2}]


def changelog(job: ms.Job, name: str = "in") -> Stream:
    rows = job.read(ms.memory_source(ROWS, name=name))
    node = rows._graph.operator(Weighing(), [rows._edge])
    return Stream(rows._graph, Edge(node.id), None)


def run(make: Callable[[Stream], Stream]) -> list[dict[str, object]]:
    job, out = ms.Job("j"), ms.memory_sink()
    make(changelog(job)).changes().write(out)
    job.run()
    return out.rows()


def test_the_weight_is_no_column_of_the_stream() -> None:
    stream = changelog(ms.Job("j"))
    assert stream.is_changelog
    assert stream.columns == ["a", "s"]
    assert stream.changes().columns == ["a", "s", "weight"]
    assert not stream.changes().is_changelog
    assert stream.changes("change").columns == ["a", "s", "change"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda s: s.select(b=col("a") * 10), [(10, 1), (20, 1), (10, -1), (30, 2)]),
        (lambda s: s.with_columns(b=col("a") + 1).drop("a", "s"), [(2, 1), (3, 1), (2, -1), (4, 2)]),
        (lambda s: s.rename(b="a").select("b"), [(1, 1), (2, 1), (1, -1), (3, 2)]),
        (lambda s: s.filter(col("s") == "x").select(b=col("a")), [(1, 1), (1, -1), (3, 2)]),
        (lambda s: s.map(lambda row: {"b": row["a"]}, schema={"b": int}), [(1, 1), (2, 1), (1, -1), (3, 2)]),
        (
            lambda s: s.flat_map(lambda row: [{"b": n} for n in range(row["a"] - 1)], schema={"b": int}),
            [(0, 1), (0, 2), (1, 2)],
        ),
    ],
)
def test_stateless_operators_carry_weights(make: Callable[[Stream], Stream], expected: list[tuple[int, int]]) -> None:
    assert [(row["b"], row["weight"]) for row in run(make)] == expected


def test_union_with_a_stream_of_rows_gives_these_the_weight_one() -> None:
    job, out = ms.Job("j"), ms.memory_sink()
    plain = job.read(ms.memory_source([{"a": 9, "s": "z"}], name="plain"))
    plain.union(changelog(job)).changes().write(out)
    job.run()
    assert sorted((row["a"], row["weight"]) for row in out.rows()) == [(1, -1), (1, 1), (2, 1), (3, 2), (9, 1)]


def test_split_parts_a_changelog() -> None:
    job, small, rest = ms.Job("j"), ms.memory_sink("small"), ms.memory_sink("rest")
    first, second = changelog(job).split(col("a") < 2)
    first.changes().write(small)
    second.changes().write(rest)
    job.run()
    assert [row["weight"] for row in small.rows()] == [1, -1]
    assert [row["weight"] for row in rest.rows()] == [1, 2]


def test_what_knows_no_weights_refuses_a_changelog() -> None:
    stream = changelog(ms.Job("j"))
    with pytest.raises(ms.JobError, match=r"sink 'memory' does not take a changelog.*changes\(\)"):
        stream.write(ms.memory_sink())
    with pytest.raises(ms.JobError, match="map_batches does not take a changelog"):
        stream.map_batches(lambda batch: batch)


def test_the_mistakes_of_changes() -> None:
    job = ms.Job("j")
    with pytest.raises(ms.JobError, match="no row of this stream is ever taken back"):
        job.read(ms.memory_source([{"a": 1}], name="plain")).changes()
    with pytest.raises(ms.SchemaError, match="there is a column 'weight' already"):
        changelog(job).with_columns(weight=col("a")).changes()
    with pytest.raises(ms.SchemaError, match=r"may be called '\$weight'"):
        job.read(ms.memory_source([{WEIGHT: 1, "b": 2}], name="other"))
