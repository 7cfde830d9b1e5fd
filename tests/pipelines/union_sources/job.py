"""Two sources of different formats put together."""

import millstream as ms
import pyarrow as pa
from millstream import lit

COLUMNS = ["scheduled_at", "carrier", "flight", "origin", "dest"]
FLIGHTS = pa.schema(
    {
        "scheduled_at": pa.timestamp("us"),
        "carrier": pa.string(),
        "flight": pa.int64(),
        "origin": pa.string(),
        "dest": pa.string(),
    }
)

job = ms.Job("union_sources")
jersey = job.read(ms.files("input/flights_jersey/*.parquet")).select(*COLUMNS, state=lit("NJ"))
york = job.read(ms.files("input/flights_york/*.csv", schema=FLIGHTS)).select(*COLUMNS, state=lit("NY"))
jersey.union(york).write(ms.parquet("output/flights", hold_bytes=0))
