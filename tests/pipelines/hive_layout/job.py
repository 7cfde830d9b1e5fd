"""The plain Hive layout, every partition handed over at its own pace; partition values that are null or odd."""

import millstream as ms
import pyarrow as pa

VISITS = pa.schema({"site": pa.string(), "page": pa.string(), "seconds": pa.int64(), "at": pa.timestamp("us")})

job = ms.Job("hive_layout")
(
    job.read(ms.files("input/visits/*.jsonl", schema=VISITS)).write(
        ms.jsonl(
            "output/visits",
            partition_by=["site"],
            atomic_epochs=False,
            compression="gzip",
            hold_bytes=300,
            roll_rows=40,
        )
    )
)
