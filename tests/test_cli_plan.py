"""``millstream plan``: the whole of its text, the flowchart, the picture."""

import re
from xml.etree import ElementTree as ET

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import call

JOB = """
import datetime as dt
import millstream as ms
from millstream import col

rows = [{"id": 1, "shop": "a", "amount": 5, "status": "paid", "at": dt.datetime(2026, 1, 1)}]
job = ms.Job("plan [bold] me")
orders = job.read(ms.memory_source(rows, name="orders"), event_time="at", max_delay="5s")
minutes = (
    orders.filter(col("status") == "paid")
    .with_columns(gross=col("amount") * 2)
    .group_by("shop")
    .window(ms.tumbling("1m"), lateness="1h")
    .agg(revenue=ms.sum("gross"), orders=ms.count())
)
minutes.select("shop", "revenue").write(ms.memory_sink(name="revenue"))
minutes.late.write(ms.print_sink(name='late "rows" #1'))
"""

TREE = """\
plan [bold] me: 2 stages, parallelism 2
├── stage 0 × 2, 3 operators fused
│   ├── source orders  ID
│   │   ├── columns: id, shop, amount, status, at
│   │   ├── event time: at, rows come at most 5s late
│   │   └── not pushed down, the source yields every row: status == 'paid'
│   ├── filter status == 'paid'  ID
│   └── project id, shop, amount, status, at, gross=amount * 2  ID
└── stage 1 × 2, 4 operators fused  ← stage 0 by hash of shop
    ├── window_aggregate revenue=sum(gross), orders=count() by shop every 1m, 1h of lateness  ID
    ├── project shop, revenue  ID
    ├── sink revenue (two-phase)  ID
    └── sink late "rows" #1 (at-least-once)  ← window_aggregate, late  ID

What is guaranteed
orders → revenue: exactly once
  ✓ source: replayable: positions are in the checkpoint
  ✓ sink: exactly once while the process lives; rows travel in the checkpoint until they are committed
orders → late "rows" #1: at least once
  ✓ source: replayable: positions are in the checkpoint
  ✗ sink: at least once: rows are printed as they come, and again after a crash if no checkpoint covers them
"""

MERMAID = """\
flowchart LR
  subgraph stage0["stage 0 × 2"]
    A["source orders"]
    B["filter status == 'paid'"]
    C["project id, shop, amount, status, at, gross=amount * 2"]
  end
  subgraph stage1["stage 1 × 2"]
    D["window_aggregate revenue=sum(gross), orders=count() by shop…"]
    E["project shop, revenue"]
    F["sink revenue"]
    G["sink late #quot;rows#quot; #35;1"]
  end
  A --> B
  B --> C
  C -->|"by hash of shop"| D
  D --> E
  E --> F
  D -->|"late"| G
"""

OPERATORS = ["source orders", "filter status == 'paid'", "sink revenue", 'sink late "rows" #1']


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


def test_the_tree_has_stages_exchanges_push_down_and_guarantees():
    result = call("plan", "job.py", "--parallelism", 2)
    assert re.sub(r"\bo[0-9a-f]{11}\b", "ID", result.stdout) == TREE
    assert result.stderr == ""


def test_the_flowchart_is_mermaid():
    text = call("plan", "job.py", "--parallelism", 2, "--mermaid").stdout
    for letter, id_ in zip("ABCDEFG", dict.fromkeys(re.findall(r"\bo[0-9a-f]{11}\b", text)), strict=True):
        text = text.replace(id_, letter)
    assert text == MERMAID


def test_the_picture_is_svg_with_every_operator_and_stage_and_edge():
    picture = ET.fromstring(call("plan", "job.py", "--parallelism", 2, "--svg").stdout)
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text for title in picture.iter(f"{space}title")]
    assert len(titles) == 7
    assert set(OPERATORS) <= set(titles)
    assert {text.text for text in picture.iter(f"{space}text")} >= {"stage 0 × 2", "stage 1 × 2", "orders"}
    assert len(list(picture.iter(f"{space}path"))) == 6
    width, height = (int(number) for number in picture.attrib["viewBox"].split()[2:])
    for box in picture.iter(f"{space}rect"):
        x, y, w, h = (int(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height


def test_columns_that_nobody_needs_are_shown_as_pruned_and_a_filter_as_pushed_down(folder):
    pq.write_table(pa.table({"id": [1], "shop": ["a"], "status": ["paid"]}), folder / "orders.parquet")
    (folder / "files.py").write_text(
        "import millstream as ms\njob = ms.Job('files')\norders = job.read(ms.files('./orders.parquet'))\n"
        "orders.filter(ms.col('status') == 'paid').select('shop').write(ms.parquet('out'))\n"
    )
    lines = call("plan", "files.py").stdout.splitlines()
    notes = {re.sub("^[│ ├└─]+", "", line) for line in lines}
    assert notes >= {"columns: shop, status", "pruned: id", "pruned: status", "pushed down: status == 'paid'"}
    assert not (folder / "out").exists()


def test_a_plan_reads_and_writes_nothing(folder):
    before = sorted(folder.iterdir())
    call("plan", "job.py")
    assert sorted(path for path in folder.iterdir() if path.name != "__pycache__") == before
