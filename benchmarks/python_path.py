"""What rows cost in Python: ``map``, ``flat_map`` and ``process`` beside a plain loop over the same dicts.

``python -m millstream.benchmarks.python_path`` runs operators alone, without sources, sinks and checkpoints, on one
core, and prints the best of several runs in processor time, so that a busy machine disturbs it less. The loop does
what ``process`` with one value does, over dicts that are there already, into a list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click
import millstream as ms
import numpy as np
import pyarrow as pa
from millstream.engine.expression import col
from millstream.engine.operator import MAIN, OperatorContext, OperatorSpec
from millstream.operators.process import ProcessSpec, process_from_function, schema_for
from millstream.operators.python import FlatMap, Map

BATCH_ROWS: Final = 65_536
USERS: Final = 10_000
_TOTALS: Final = {"user": str, "total": float}

Row = dict[str, Any]


def payments(batches: int) -> list[pa.RecordBatch]:
    """Return payments of many users, five columns wide, an event each millisecond."""
    draw = np.random.default_rng(7)
    made = []
    for number in range(batches):
        users = draw.integers(0, USERS, BATCH_ROWS)
        at = (np.arange(BATCH_ROWS) + number * BATCH_ROWS) * 1_000
        columns = {
            "user": pa.array(np.char.add("user-", users.astype(str))),
            "amount": pa.array(draw.random(BATCH_ROWS)),
            "n": pa.array(np.arange(BATCH_ROWS)),
            "note": pa.array(["a note"] * BATCH_ROWS),
            "at": pa.array(at, pa.timestamp("us")),
        }
        made.append(pa.record_batch(columns))
    return made


def _touch_one(row: Row) -> Row:
    return {"n": row["n"] + 1}


def _touch_all(row: Row) -> Row:
    return {**row, "n": row["n"] + 1}


def _some(row: Row) -> Iterator[Row]:
    if row["n"] % 2:
        yield {"n": row["n"]}


def _total(row: Row, state: Row) -> Row:
    state["total"] = state.get("total", 0.0) + row["amount"]
    return {"user": row["user"], "total": state["total"]}


class _Total(ms.Process):
    schema = _TOTALS
    total = ms.value_state(float, default=0.0)

    def on_row(self, row: Row, ctx: Any) -> Iterator[Row]:  # noqa: ARG002
        self.total += row["amount"]
        yield {"user": row["user"], "total": self.total}


class _Kept(ms.Process):
    schema = _TOTALS
    total = ms.value_state(float, default=0.0)

    def on_row(self, row: Row, ctx: Any) -> None:  # noqa: ARG002
        self.total += row["amount"]


class _Map(ms.Process):
    schema = _TOTALS
    seen = ms.map_state(int, int)

    def on_row(self, row: Row, ctx: Any) -> None:  # noqa: ARG002
        self.seen[row["n"] % 16] = self.seen.get(row["n"] % 16, 0) + 1


class _Timer(ms.Process):
    schema = _TOTALS
    total = ms.value_state(float, default=0.0)

    def on_row(self, row: Row, ctx: Any) -> None:
        self.total += row["amount"]
        ctx.timer(after="10s", name="silence")

    def on_timer(self, time: Any, ctx: Any) -> Row:  # noqa: ARG002
        return {"user": ctx.key, "total": self.total}


def contenders(schema: pa.Schema) -> dict[str, OperatorSpec]:
    """Return what is measured, by name."""
    function = process_from_function(_total, None, {})
    keys = ("user",)
    return {
        "map, one field": Map(_touch_one, {"n": int}),
        "map, all fields": Map(_touch_all, schema),
        "flat_map, half of the rows": FlatMap(_some, {"n": int}),
        "process, function": ProcessSpec(keys, function, schema_for(function, _TOTALS)),
        "process, one value": ProcessSpec(keys, _Total, schema_for(_Total, None)),
        "process, no rows out": ProcessSpec(keys, _Kept, schema_for(_Kept, None)),
        "process, a map": ProcessSpec(keys, _Map, schema_for(_Map, None)),
        "process, a timer per row": ProcessSpec(keys, _Timer, schema_for(_Timer, None), col("at")),
    }


class _Counted:
    rows = 0

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        del port
        self.rows += batch.num_rows

    def dead_letter(self, rows: pa.RecordBatch, faults: Any, **more: Any) -> None:
        del faults, more
        raise AssertionError(f"{rows.num_rows} rows could not be processed")


def run_once(spec: OperatorSpec, batches: Sequence[pa.RecordBatch]) -> Callable[[], None]:
    """Return one run of a new copy of an operator, warm, over all batches."""
    operator, out = spec.build([batches[0].schema]), _Counted()
    operator.open(OperatorContext("benchmark", spec.kind, 0, 1))
    operator.process(batches[0].slice(0, 1_000), out)

    def run() -> None:
        for batch in batches:
            operator.process(batch, out)
            operator.on_watermark(batch.column("at")[-1].value, out)

    return run


def plain_loop(batches: Sequence[pa.RecordBatch]) -> Callable[[], None]:
    """Return a loop that keeps a total per user, in the shortest Python."""
    rows = [row for batch in batches for row in batch.select(["user", "amount"]).to_pylist()]

    def run() -> None:
        totals: dict[str, float] = {}
        made = []
        for row in rows:
            total = totals[row["user"]] = totals.get(row["user"], 0.0) + row["amount"]
            made.append({"user": row["user"], "total": total})

    return run


def seconds(prepare: Callable[[], Callable[[], None]], repeat: int) -> float:
    """Return the least processor time of several runs."""
    best = float("inf")
    for _ in range(repeat):
        run = prepare()
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best


@click.command()
@click.option("--batches", default=8, show_default=True, help=f"Batches of {BATCH_ROWS} rows.")
@click.option("--repeat", default=3, show_default=True, help="The best of so many runs counts.")
def main(batches: int, repeat: int) -> None:
    """Measure what rows cost in Python."""
    given = payments(batches)
    rows = batches * BATCH_ROWS
    loop = seconds(lambda: plain_loop(given), repeat)
    click.echo(f"{'plain loop over dicts':28}{rows / loop / 1e3:8,.0f} k rows/s")
    for name, spec in contenders(given[0].schema).items():
        took = seconds(lambda spec=spec: run_once(spec, given), repeat)  # type: ignore[misc]
        click.echo(f"{name:28}{rows / took / 1e3:8,.0f} k rows/s   {loop / took:.2f} of the loop")


if __name__ == "__main__":
    main()
