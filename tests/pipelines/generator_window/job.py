"""Rows made by a function, in three splits, into windows."""

import millstream as ms
import numpy as np
import pyarrow as pa

CLICKS = pa.schema({"n": pa.int64(), "button": pa.string(), "at": pa.timestamp("us")})


def clicks(start: int, stop: int) -> pa.RecordBatch:
    """Click n on one of eleven buttons, every 2.5 s, out of order by up to 12 s."""
    n = np.arange(start, stop)
    at = pa.array(n * 2_500_000 - (n * 7919 % 13) * 1_000_000 + 12_000_000).cast(pa.timestamp("us"))
    buttons = pa.array([f"b{i}" for i in n * n % 11])
    return pa.RecordBatch.from_arrays([pa.array(n), buttons, at], schema=CLICKS)


job = ms.Job("generator_window")
(
    job.read(
        ms.generator(clicks, schema=CLICKS, rows=1_500, batch_rows=50, splits=3, name="clicks"),
        event_time="at",
        max_delay="12s",
    )
    .group_by("button")
    .window(ms.tumbling("2m"))
    .agg(clicks=ms.count(), newest=ms.max("n"), total=ms.sum("n"))
    .write(ms.parquet("output/clicks", hold_bytes=0))
)
