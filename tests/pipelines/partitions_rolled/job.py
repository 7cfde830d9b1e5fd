"""A partitioned sink whose rows wait in the checkpoint over several epochs until they make a file."""

import millstream as ms

job = ms.Job("partitions_rolled")
(
    job.read(ms.files("input/flights/*.parquet"))
    .select("scheduled_at", "carrier", "flight", "origin")
    .write(ms.parquet("output/by_origin", partition_by=["origin"], hold_bytes="4KB", roll_bytes="12KB", roll_rows=120))
)
