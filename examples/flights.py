"""Every flight that left New York in 2013, in the order in which they really left.

A flight's event time is when it should have left. Delayed flights therefore come out of order, by minutes or by a
day. Per hour, airport and carrier the job counts flights and measures their delays; flights that come more than two
hours behind the newest go to a second output, so that nothing is lost.

Run it, kill it with ``kill -9``, run it again: the output is the same as if nothing had happened.
"""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import millstream as ms
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from millstream import col

HERE = Path(__file__).parent
OUT = Path(os.environ.get("FLIGHTS_OUT", "out"))
RATE = float(os.environ.get("FLIGHTS_RATE", "30000"))  # rows a second, so that there is time to kill it; 0: no limit


def in_order_of_departure() -> pa.Table:
    """All flights, sorted by when they left (cancelled ones: by when they should have)."""
    flights = pq.read_table(HERE / "data" / "flights.parquet")
    delay = pc.cast(pc.fill_null(flights["dep_delay_min"], 0), pa.int64())
    left = pc.add(flights["scheduled_at"], pc.multiply(delay, 60_000_000).cast(pa.duration("us")))
    order = pc.sort_indices(
        pa.table({"left": left, "flight": flights["flight"], "carrier": flights["carrier"]}),
        sort_keys=[("left", "ascending"), ("carrier", "ascending"), ("flight", "ascending")],
    )
    return flights.take(order).combine_chunks()


flights = in_order_of_departure()


def departures(start: int, stop: int) -> pa.RecordBatch:
    """The flights number ``start`` to ``stop`` in order of departure."""
    return flights.slice(start, stop - start).combine_chunks().to_batches()[0]


job = ms.Job("flights")
hours = (
    job.read(
        ms.generator(departures, schema=flights.schema, rows=flights.num_rows, rate=RATE or None, name="departures"),
        event_time="scheduled_at",
        max_delay="2h",
    )
    .with_columns(late=(col("dep_delay_min") > 15).cast("int64"))
    .group_by("origin", "carrier")
    .window(ms.tumbling("1h"))
    .agg(
        flights=ms.count(),
        mean_delay=ms.mean("dep_delay_min"),
        worst_delay=ms.max("dep_delay_min"),
        late_share=ms.mean("late"),
    )
)
hours.write(ms.parquet(str(OUT / "flights_by_hour"), name="flights_by_hour"))
hours.late.drop("late").write(ms.parquet(str(OUT / "late_flights"), name="late_flights"))


def show() -> None:
    """Print what came out."""
    counted, worst = duckdb.sql(
        f"select sum(flights), max(worst_delay) from '{OUT}/flights_by_hour/**/*.parquet'"
    ).fetchall()[0]
    late = duckdb.sql(f"select count(*) from '{OUT}/late_flights/**/*.parquet'").fetchall()[0][0]
    print("\nThe ten worst hours of 2013 (with at least 8 flights of one carrier from one airport):\n")
    print(
        duckdb.sql(
            f"""select strftime(window_start, '%Y-%m-%d %H:%M') as hour, origin, a.name as carrier, flights,
                       round(mean_delay, 1) as mean_delay, worst_delay, round(late_share, 2) as late_share
                from '{OUT}/flights_by_hour/**/*.parquet' h join '{HERE}/data/airlines.csv' a using (carrier)
                where flights >= 8 order by mean_delay desc, hour limit 10"""
        )
    )
    print(f"{counted:,} flights counted by the hour + {late:,} that came too late = {counted + late:,}")
    print(
        f"of {flights.num_rows:,} read. Worst delay in time: {worst} min. "
        f"Files: {OUT}/flights_by_hour/, {OUT}/late_flights/"
    )


if __name__ == "__main__":
    import sys

    from millstream.cli import main

    OUT.mkdir(parents=True, exist_ok=True)
    print(
        f"This is process {os.getpid()}: kill -9 {os.getpid()}, run the same command again, "
        "and it goes on where it was."
    )
    sys.argv = ["millstream", "run", f"{__file__}:job", "--store", str(OUT / "flights.duckdb"), "--every", "1s"]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    show()
    print(f"Again from the start: rm -r {OUT}")
