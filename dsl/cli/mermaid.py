"""A plan as a Mermaid flowchart."""

from __future__ import annotations

from millstream.cli.describe import exchange_text, label, shortened
from millstream.engine.operator import MAIN
from millstream.engine.plan import Plan

LONGEST = 60
"""Characters of a label."""


def mermaid_text(plan: Plan) -> str:
    """Draw a plan: one box per stage, a label where rows change subtasks or leave by a port of their own."""
    lines = ["flowchart LR"]
    for stage in plan.stages:
        lines.append(f'  subgraph stage{stage.index}["stage {stage.index} × {stage.parallelism}"]')
        lines += [f'    {id_}["{_escaped(shortened(label(plan.graph.nodes[id_]), LONGEST))}"]' for id_ in stage.nodes]
        lines.append("  end")
    exchanges = {(stage.root, i.edge): exchange_text(i.exchange) for stage in plan.stages for i in stage.inputs}
    for node in plan.graph.nodes.values():
        for edge in node.inputs:
            words = [edge.port] if edge.port != MAIN else []
            words += [exchanges[node.id, edge]] if (node.id, edge) in exchanges else []
            arrow = f'-->|"{_escaped(", ".join(words))}"|' if words else "-->"
            lines.append(f"  {edge.node} {arrow} {node.id}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Mermaid reads some characters as its own, even in quotes; ``#`` begins its codes for them."""
    for character, code in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("`", "#96;")):
        text = text.replace(character, code)
    return text.replace("\n", " ")
