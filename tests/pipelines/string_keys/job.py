"""Windows by two text keys, some of them null, some empty, some that look alike when put together."""

import millstream as ms
import pyarrow as pa

VISITS = pa.schema({"site": pa.string(), "page": pa.string(), "seconds": pa.int64(), "at": pa.timestamp("us")})

job = ms.Job("string_keys")
(
    job.read(ms.files("input/visits/*.jsonl", schema=VISITS), event_time="at", max_delay="25s")
    .group_by("site", "page")
    .window(ms.tumbling("10m"))
    .agg(visits=ms.count(), timed=ms.count("seconds"), seconds=ms.sum("seconds"), longest=ms.max("seconds"))
    .write(ms.parquet("output/visits", hold_bytes=0))
)
