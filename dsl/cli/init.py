"""``millstream init``: a starter job that runs as it is."""

from __future__ import annotations

from pathlib import Path

import click

STARTER = '''\
"""Revenue per shop and minute.

    millstream plan {name}    shows what the job will do
    millstream run {name}     runs it; kill it, run it again, and every order still counts once
"""

import datetime as dt

import millstream as ms
import pyarrow as pa
from millstream import col

# Orders made up on the spot, so that this runs as it is. To read your own, put ms.files("orders/*.csv") in the place
# of ms.generator(...) below.
SHOPS = ["north", "south", "harbour"]
OPENING = dt.datetime(2026, 1, 1, 9)
SCHEMA = pa.schema(
    {{
        "order_id": pa.int64(),
        "shop": pa.string(),
        "amount": pa.int64(),
        "status": pa.string(),
        "paid_at": pa.timestamp("us"),
    }}
)


def orders(start: int, stop: int) -> pa.RecordBatch:
    """Make the orders number start to stop - 1: always the same ones, for after a crash they are asked for again."""
    rows = [
        {{
            "order_id": n,
            "shop": SHOPS[n % 3],
            "amount": 5 + n % 40,
            "status": "cancelled" if n % 10 == 0 else "paid",
            "paid_at": OPENING + dt.timedelta(seconds=n),
        }}
        for n in range(start, stop)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


job = ms.Job("{job}")

minutes = (
    job.read(
        # rows=None never ends; rate=100 makes 100 orders a second.
        ms.generator(orders, schema=SCHEMA, rows=6_000, name="orders"),
        event_time="paid_at",  # windows are cut by this column, not by when a row happens to arrive
        max_delay="5s",  # an order may come so long after a newer one; later ones go to minutes.late
    )
    .filter(col("status") == "paid")
    .group_by("shop")
    .window(ms.tumbling("1m"))
    .agg(revenue=ms.sum("amount"), orders=ms.count())
)

# Files show whole checkpoints only, so what is in them is there once, whatever happens.
minutes.write(ms.jsonl("{folder}"))

# Printing is for looking: after a crash some lines may come twice.
minutes.write(ms.print_sink(limit=6))
'''


@click.command()
@click.argument("file", default="revenue.py", type=click.Path(path_type=Path, dir_okay=False))
def init(file: Path) -> None:
    """Write a starter job to FILE (revenue.py if left out). It runs as it is; nothing is overwritten."""
    if file.suffix != ".py":
        raise click.BadParameter(f"{str(file)!r} should end in .py, as in revenue.py", param_hint="FILE")
    if not file.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(file.parent)!r}", param_hint="FILE")
    text = STARTER.format(name=file.name, job=file.stem, folder=f"{file.stem}/")
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise click.ClickException(
            f"{file} exists and was left as it is: give another name, as in millstream init other.py"
        ) from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from None
    click.echo(f"Wrote {file}. Next:\n  millstream plan {file}\n  millstream run {file}")
