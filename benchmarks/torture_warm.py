"""Imported by the process that starts of a tortured job are forked from: it loads what they need, and starts nothing.

Not even a thread: a fork of a process with threads may wait for ever for one that it does not have.
"""

import confluent_kafka  # noqa: F401
import millstream as ms
import millstream.benchmarks.torture_start
import millstream.operators.process_operator
import psycopg  # noqa: F401
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from millstream.engine.hashing import exchange_hash, partition

for name in ms.__all__:
    getattr(ms, name)

# What numba has compiled is loaded by the first call.
_rows = pa.record_batch({"k": ["a", "b", None]})
partition(_rows, exchange_hash([_rows["k"]]), 2)
