"""A plan as text: stages, operators, what is pruned and pushed down, guarantees."""

from __future__ import annotations

from millstream.cli.describe import bare, exchange_text, label
from millstream.cli.text import counted
from millstream.engine.graph import Graph, Node, OperatorId, Read, Write
from millstream.engine.operator import MAIN, OperatorSpec
from millstream.engine.plan import Guarantee, Plan, Stage
from millstream.engine.sink import EXACTLY_ONCE_KINDS
from millstream.engine.time import show_duration
from rich.text import Text
from rich.tree import Tree


def plan_tree(plan: Plan, written: Graph) -> Tree:
    """Draw the stages of a plan.

    Args:
        written: the graph before planning: what is gone from it was pruned.
    """
    stages = counted(len(plan.stages), "stage")
    tree = Tree(Text.assemble((plan.job, "bold"), f": {stages}, parallelism {plan.parallelism}"))
    for stage in plan.stages:
        branch = tree.add(_stage(plan, stage))
        for id_ in stage.nodes:
            leaf = branch.add(_operator(plan, written.nodes[id_]))
            for line in _notes(plan, written, id_):
                leaf.add(Text(line, "dim"))
    return tree


def guarantees(plan: Plan) -> Text:
    """Say for every path what holds and why."""
    text = Text("\nWhat is guaranteed\n", style="")
    for path in plan.guarantees:
        text.append_text(_guarantee(plan, path))
    text.rstrip()
    return text


def _stage(plan: Plan, stage: Stage) -> Text:
    text = Text.assemble((f"stage {stage.index}", "bold"), f" × {stage.parallelism}")
    if len(stage.nodes) > 1:
        text.append(f", {len(stage.nodes)} operators fused", "dim")
    for into in stage.inputs:
        combined = ", aggregated in part before" if into.combiner is not None else ""
        producer = plan.stage_of(into.edge.node).index
        text.append(f"  ← stage {producer} {exchange_text(into.exchange)}{combined}", "cyan")
    return text


def _operator(plan: Plan, node: Node) -> Text:
    match node.body:
        case Read():
            what = Text.assemble("source ", (node.name, "green"))
        case Write(sink):
            what = Text.assemble("sink ", (node.name, "green"), f" ({sink.kind.value})")
        case OperatorSpec():
            what = Text(label(node))
    port = node.inputs[0].port if node.inputs else MAIN
    if port != MAIN:
        what.append(f"  ← {plan.graph.nodes[node.inputs[0].node].name}, {port}", "cyan")
    return what.append(f"  {node.id}", "dim")


def _notes(plan: Plan, graph: Graph, id_: OperatorId) -> list[str]:
    """What planning made of a node of the graph as written."""
    node, written = plan.graph.nodes[id_], graph.nodes[id_]
    lines = []
    if isinstance(node.body, Read):
        assert isinstance(written.body, Read)
        lines.append(f"columns: {', '.join(node.schemas[MAIN].names)}")
        if node.body.event_time is not None:
            lines.append(f"event time: {node.body.event_time}, {_lateness(node.body)}")
    for port, schema in written.schemas.items():
        gone = [
            name for name in schema.names if name not in {*node.schemas[port].names, *_gone_before(plan, graph, node)}
        ]
        if gone:
            where = "" if port == MAIN else f" from {port}"
            lines.append(f"pruned{where}: {', '.join(gone)}")
    if node.id in plan.predicates:
        assert isinstance(node.body, Read)
        predicate = node.body.source.filters_by
        took = "not pushed down, the source yields every row" if predicate is None else "pushed down"
        lines.append(f"{took}: {bare(plan.predicates[node.id])}")
    return lines


def _gone_before(plan: Plan, written: Graph, node: Node) -> set[str]:
    """The columns that do not even come to a node."""
    return {
        name for edge in node.inputs for name in written.schema(edge).names if name not in plan.graph.schema(edge).names
    }


def _lateness(read: Read) -> str:
    told = "rows come in order" if read.markers is None else f"told by rows with {bare(read.markers.rows)}"
    parts = [f"rows come at most {show_duration(read.max_delay)} late" if read.max_delay else told]
    if read.max_delay and read.markers is not None:
        parts.append(told)
    if read.idle_timeout:
        parts.append(f"idle after {show_duration(read.idle_timeout)}")
    if read.max_ahead is not None:
        parts.append(f"at most {show_duration(read.max_ahead)} ahead of others")
    return ", ".join(parts)


def _guarantee(plan: Plan, path: Guarantee) -> Text:
    word = ("exactly once", "green") if path.exactly_once else ("at least once", "yellow")
    text = Text.assemble((f"{path.source} → {path.sink}", "bold"), ": ", word, "\n")
    source, sink = _ends(plan, path)
    assert isinstance(source.body, Read)
    assert isinstance(sink.body, Write)
    from_source, from_sink = source.body.source, sink.body.sink
    text.append(f"  {_sign(from_source.replayable)} source: {from_source.guarantee()}\n")
    text.append(f"  {_sign(from_sink.kind in EXACTLY_ONCE_KINDS)} sink: {from_sink.guarantee()}\n")
    return text


def _sign(holds: bool) -> str:
    return "✓" if holds else "✗"


def _ends(plan: Plan, path: Guarantee) -> tuple[Node, Node]:
    source = next(node for node in plan.graph.sources() if node.name == path.source)
    return source, next(node for node in plan.graph.sinks() if node.name == path.sink)
