"""Packed JSON lines to CSV: texts with quotes, newlines and nothing in them."""

import millstream as ms
import pyarrow as pa
from millstream import col

NOTES = pa.schema({"id": pa.int64(), "user": pa.string(), "note": pa.string(), "amount": pa.int64()})

job = ms.Job("jsonl_gz_to_csv")
(
    job.read(ms.files("input/notes/*.jsonl.gz", schema=NOTES))
    .with_columns(amount=col("amount").fill_null(-1), long=col("note").str.length() > 5)
    .write(ms.csv("output/notes", hold_bytes=0))
)
