"""One stream into three sinks of three formats."""

import millstream as ms
from millstream import col

job = ms.Job("split_sinks")
flights = job.read(ms.files("input/flights/*.parquet")).select("carrier", "flight", "dest", "dep_delay_min")
late, early, rest = flights.split(col("dep_delay_min") > 15, col("dep_delay_min") < 0)
late.write(ms.parquet("output/late", hold_bytes=0))
early.write(ms.csv("output/early", compression="gzip", hold_bytes=0))
rest.write(ms.jsonl("output/rest", hold_bytes="1KB"))
