"""Parquet to Parquet without state: filter, compute, rename."""

import millstream as ms
from millstream import col

job = ms.Job("filter_parquet")
(
    job.read(ms.files("input/flights/*.parquet"))
    .filter((col("dep_delay_min") > 0) & (col("origin") != "LGA"))
    .select(
        "carrier", "flight", "tailnum", day=col("scheduled_at").dt.truncate("day"), hours=col("dep_delay_min") / 60.0
    )
    .write(ms.parquet("output/delayed", hold_bytes=0))
)
