"""Tumbling windows over rows out of order; those too late go to a second sink.

Which rows are too late depends on the order of rows, so there is one split.
"""

import millstream as ms
import pyarrow.parquet as pq

READINGS = pq.read_table("input/readings.parquet").combine_chunks()


def readings(start, stop):
    return READINGS.slice(start, stop - start).combine_chunks().to_batches()[0]


job = ms.Job("late_rows")
minutes = (
    job.read(
        ms.generator(readings, schema=READINGS.schema, rows=READINGS.num_rows, batch_rows=80),
        event_time="at",
        max_delay="30s",
    )
    .group_by("sensor")
    .window(ms.tumbling("1m"))
    .agg(rows=ms.count(), total=ms.sum("value"), lowest=ms.min("value"), mean=ms.mean("value"))
)
minutes.write(ms.parquet("output/minutes", hold_bytes=0))
minutes.late.write(ms.parquet("output/late", hold_bytes=0))
