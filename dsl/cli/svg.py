"""A plan as an SVG picture: one column per step from the sources, one frame per stage."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from millstream.cli.describe import doing, label, shortened
from millstream.engine.graph import Node, OperatorId
from millstream.engine.operator import OperatorSpec
from millstream.engine.plan import Plan, Stage

BOX = (190, 44)
GAP = (70, 26)
MARGIN = 30
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b1f24}.small{font-size:11px;fill:#57606a}"
    "rect.node{fill:#fff;stroke:#1f6feb}rect.source{fill:#e6ffec}rect.sink{fill:#fff1e5}"
    "rect.stage{fill:#f6f8fa;stroke:#d0d7de;stroke-dasharray:4 3}path{fill:none;stroke:#57606a;marker-end:url(#arrow)}"
)

Place = dict[OperatorId, tuple[int, int]]


def svg_text(plan: Plan) -> str:
    """Draw a plan."""
    places = _places(plan)
    width = MARGIN * 2 + max(x for x, _ in places.values()) + BOX[0]
    height = MARGIN * 2 + max(y for _, y in places.values()) + BOX[1]
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=str(width))
    ET.SubElement(svg, "style").text = STYLE
    _arrowhead(svg)
    for stage in plan.stages:
        _frame(svg, stage, places)
    for node in plan.graph.nodes.values():
        for edge in node.inputs:
            _arrow(svg, places[edge.node], places[node.id])
    for node in plan.graph.nodes.values():
        _box(svg, node, places[node.id])
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode")


def _places(plan: Plan) -> Place:
    """Columns by the longest way from a source; rows in the order the job was written."""
    depth: dict[OperatorId, int] = {}
    rows: dict[int, int] = {}
    places: Place = {}
    for node in plan.graph.nodes.values():
        column = max((depth[edge.node] + 1 for edge in node.inputs), default=0)
        depth[node.id] = column
        above = max((places[edge.node][1] // (BOX[1] + GAP[1]) for edge in node.inputs), default=0)
        row = max(rows.get(column, 0), above)
        rows[column] = row + 1
        places[node.id] = (MARGIN + column * (BOX[0] + GAP[0]), MARGIN + row * (BOX[1] + GAP[1]))
    return places


def _arrowhead(svg: ET.Element) -> None:
    marker = ET.SubElement(
        ET.SubElement(svg, "defs"), "marker", id="arrow", viewBox="0 0 8 8", refX="8", refY="4", orient="auto",
        markerWidth="8", markerHeight="8",
    )  # fmt: skip
    ET.SubElement(marker, "polygon", points="0 0 8 4 0 8", fill="#57606a")


def _frame(svg: ET.Element, stage: Stage, places: Place) -> None:
    xs = [places[id_][0] for id_ in stage.nodes]
    ys = [places[id_][1] for id_ in stage.nodes]
    x, y = min(xs) - 12, min(ys) - 18
    size = {"width": str(max(xs) + BOX[0] + 12 - x), "height": str(max(ys) + BOX[1] + 8 - y)}
    ET.SubElement(svg, "rect", {"class": "stage", "x": str(x), "y": str(y), "rx": "8", **size})
    label = ET.SubElement(svg, "text", {"class": "small", "x": str(x + 8), "y": str(y + 13)})
    label.text = f"stage {stage.index} × {stage.parallelism}"


def _box(svg: ET.Element, node: Node, place: tuple[int, int]) -> None:
    x, y = place
    box = ET.SubElement(svg, "g")
    ET.SubElement(box, "title").text = label(node)  # shown when the pointer rests on the box
    shape = {"x": str(x), "y": str(y), "width": str(BOX[0]), "height": str(BOX[1]), "rx": "6"}
    ET.SubElement(box, "rect", {"class": f"node {node.kind}", **shape})
    named = node.name if not isinstance(node.body, OperatorSpec) or node.name != node.kind else doing(node.body)
    for line, (text, class_) in enumerate([(node.kind, "small"), (shortened(named, 25), "name")]):
        at = {"x": str(x + 10), "y": str(y + 16 + 18 * line), "class": class_}
        ET.SubElement(box, "text", at).text = text


def _arrow(svg: ET.Element, start: tuple[int, int], end: tuple[int, int]) -> None:
    x1, y1 = start[0] + BOX[0], start[1] + BOX[1] // 2
    x2, y2 = end[0], end[1] + BOX[1] // 2
    middle = (x1 + x2) // 2
    ET.SubElement(svg, "path", d=f"M {x1} {y1} C {middle} {y1}, {middle} {y2}, {x2} {y2}")
