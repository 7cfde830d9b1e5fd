"""The job as it is tortured: its sinks are files, and its sources give rows at a steady rate."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.connectors.files_sink import FileSink, parquet
from millstream.engine.changelog import WEIGHT, is_changelog
from millstream.engine.errors import JobError
from millstream.engine.expression import col
from millstream.engine.graph import Graph, Node, Read, Write
from millstream.engine.operator import MAIN
from millstream.engine.sink import Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.operators.project import Project
from millstream.torture.pace import paced

if TYPE_CHECKING:
    from millstream.engine.state import StateTable
    from millstream.job import Job


@dataclass(frozen=True, slots=True)
class _Captured(Sink):
    """Parquet files in place of a sink: every epoch visible at once, a changelog with its weights."""

    original: Sink
    files: FileSink

    @property
    def name(self) -> str:
        return self.original.name

    def identity(self) -> str:
        return self.original.identity()

    @property
    def kind(self) -> SinkKind:
        return self.files.kind

    @property
    def takes_changelog(self) -> bool:
        return self.original.takes_changelog

    def check(self, schema: pa.Schema) -> None:
        self.files.check(schema)

    def running(self, context: SinkContext) -> AbstractContextManager[None]:
        return self.files.running(context)

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        return self.files.writer(schema, context)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        return self.files.committer(schema, context)

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        return self.files.state_tables(schema)

    def folders(self) -> tuple[str, ...]:
        return self.files.folders()


def sink_folders(graph: Graph) -> dict[str, str]:
    """The name of the folder of each sink, by the sink's.

    >>> import millstream as ms
    >>> job = ms.Job("j")
    >>> job.read(ms.memory_source([{"n": 1}])).write(ms.parquet("a/b"))
    >>> sink_folders(job.graph)
    {'parquet:a/b': '1-parquet_a_b'}
    """
    return {
        node.name: f"{number}-" + "".join(c if c.isalnum() or c in "-." else "_" for c in node.name)[:60]
        for number, node in enumerate(graph.sinks(), start=1)
    }


def weight_columns(graph: Graph) -> dict[str, str]:
    """By sink: the column that says whether a row comes or is taken back, if it is given what ``.changes()`` makes.

    How often a row comes and goes depends on how the input is cut into batches; what is left of it does not.

    >>> import millstream as ms
    >>> job = ms.Job("j")
    >>> totals = job.read(ms.memory_source([{"n": 1}])).group_by("n").agg(rows=ms.count())
    >>> totals.changes("sign").write(ms.memory_sink("out"))
    >>> weight_columns(job.graph)
    {'out': 'sign'}
    """
    found: dict[str, str] = {}
    for sink in graph.sinks():
        schema = graph.schema(sink.inputs[0])
        waiting = [edge.node for edge in sink.inputs]
        while waiting:
            node = graph.nodes[waiting.pop()]
            waiting.extend(edge.node for edge in node.inputs)
            name = _weight_given_by(graph, node)
            if is_changelog(schema):
                found[sink.name] = WEIGHT
            elif name in schema.names:
                found[sink.name] = name
    return found


def _weight_given_by(graph: Graph, node: Node) -> str:
    """The name under which a node makes the weight an ordinary column; empty if it does not."""
    if not isinstance(node.body, Project) or is_changelog(node.schemas[MAIN]):
        return ""
    if not is_changelog(graph.schema(node.inputs[0])):
        return ""
    return next((name for name, expr in node.body.exprs if str(expr) == str(col(WEIGHT))), "")


def check_tortureable(job: Job) -> None:
    """Raise JobError unless the job can be run twice over the same input, to its end."""
    for node in job.graph.sources():
        assert isinstance(node.body, Read)
        if not node.body.source.bounded:
            raise JobError(
                f"source {node.name!r} of job {job.name!r} has no end, so no two runs could be compared: torture the "
                "job over input that ends, such as files without follow=True, or a generator with rows="
            )
        if not node.body.source.replayable:
            raise JobError(
                f"source {node.name!r} of job {job.name!r} cannot be read again, so after a kill its rows are gone: "
                "torture the job over input that is kept, such as files"
            )


def captured(job: Job, output: Path, rows: Mapping[str, int] | None = None, seconds: float = 0.0) -> Job:
    """Return the job with files below ``output`` in place of its sinks; operators keep their ids.

    Args:
        rows: how many rows each source has, by its name; None: they are read as fast as they come.
        seconds: over how long they are spread then.
    """
    folders = sink_folders(job.graph)
    graph = Graph()
    for id_, node in job.graph.nodes.items():
        graph.nodes[id_] = _in_place_of(node, output / folders.get(node.name, ""), rows, seconds)
    return job.with_graph(graph)


def _in_place_of(node: Node, folder: Path, rows: Mapping[str, int] | None, seconds: float) -> Node:
    match node.body:
        case Write(sink):
            files = parquet(folder, hold_bytes=0, compression="none", name=node.name)
            return replace(node, body=Write(_Captured(sink, files)))
        case Read() as read if rows is not None:
            rate = max(1.0, rows.get(node.name, 0)) / seconds
            return replace(node, body=replace(read, source=paced(read.source, rate)))
        case _:
            return node
