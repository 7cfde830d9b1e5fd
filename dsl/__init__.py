"""Millstream: exactly-once stream processing in Python.

Write a job with the names of this package, as in ``import millstream as ms``. Names are loaded when first used, so
that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from millstream.connectors.blackhole import blackhole
    from millstream.connectors.delta_sink import delta_sink
    from millstream.connectors.duckdb_sink import duckdb_sink
    from millstream.connectors.duckdb_source import duckdb_source
    from millstream.connectors.duckdb_table import duckdb_table
    from millstream.connectors.files_sink import csv, jsonl, parquet
    from millstream.connectors.files_source import files
    from millstream.connectors.generator import generator
    from millstream.connectors.http_sink import http_sink
    from millstream.connectors.http_source import http_source
    from millstream.connectors.iceberg_sink import iceberg_sink
    from millstream.connectors.kafka_sink import kafka_sink
    from millstream.connectors.kafka_source import kafka_source
    from millstream.connectors.memory import memory_sink, memory_source
    from millstream.connectors.polling import generate, poll
    from millstream.connectors.postgres_changes import postgres_changes
    from millstream.connectors.postgres_sink import postgres_sink
    from millstream.connectors.postgres_source import postgres_source
    from millstream.connectors.postgres_table import postgres_table
    from millstream.connectors.printing import print_sink
    from millstream.connectors.redis_source import redis_source
    from millstream.connectors.schema_values import avro_values, protobuf_values
    from millstream.engine.errors import (
        DataError,
        ExternalError,
        InternalError,
        JobError,
        JobFailed,
        MemoryExceeded,
        MillstreamError,
        SchemaError,
        StateMismatch,
        StoreCorrupt,
        StoreError,
        StoreLocked,
        TooManyDeadLetters,
        UserCodeError,
    )
    from millstream.engine.expression import Expr, call, col, lit, when
    from millstream.engine.retry import retry
    from millstream.engine.runtime.run import Control, JobResult
    from millstream.job import Job
    from millstream.operators.aggregates import count, first, last, max, mean, min, sum
    from millstream.operators.collecting import collect, count_distinct
    from millstream.operators.count_window import count_window
    from millstream.operators.match_expressions import prev
    from millstream.operators.over_functions import lag, lead, row_number
    from millstream.operators.paned_windows import cumulating, sliding
    from millstream.operators.picks import arg_max, arg_min
    from millstream.operators.process import Process
    from millstream.operators.process_states import list_state, map_state, side_output, value_state
    from millstream.operators.session_window import session
    from millstream.operators.sketches import approx_count_distinct, median, quantile
    from millstream.operators.spread import stddev, variance
    from millstream.operators.user_aggregate import aggregate
    from millstream.operators.windows import tumbling
    from millstream.stream import Stream

_HOMES = {
    "millstream.connectors.blackhole": ("blackhole",),
    "millstream.connectors.files_sink": ("csv", "jsonl", "parquet"),
    "millstream.connectors.delta_sink": ("delta_sink",),
    "millstream.connectors.duckdb_sink": ("duckdb_sink",),
    "millstream.connectors.duckdb_source": ("duckdb_source",),
    "millstream.connectors.duckdb_table": ("duckdb_table",),
    "millstream.connectors.files_source": ("files",),
    "millstream.connectors.generator": ("generator",),
    "millstream.connectors.http_sink": ("http_sink",),
    "millstream.connectors.http_source": ("http_source",),
    "millstream.connectors.iceberg_sink": ("iceberg_sink",),
    "millstream.connectors.kafka_sink": ("kafka_sink",),
    "millstream.connectors.kafka_source": ("kafka_source",),
    "millstream.connectors.schema_values": ("avro_values", "protobuf_values"),
    "millstream.connectors.memory": ("memory_sink", "memory_source"),
    "millstream.connectors.postgres_changes": ("postgres_changes",),
    "millstream.connectors.postgres_sink": ("postgres_sink",),
    "millstream.connectors.polling": ("generate", "poll"),
    "millstream.connectors.postgres_source": ("postgres_source",),
    "millstream.connectors.postgres_table": ("postgres_table",),
    "millstream.connectors.printing": ("print_sink",),
    "millstream.connectors.redis_source": ("redis_source",),
    "millstream.engine.errors": (
        "DataError",
        "ExternalError",
        "InternalError",
        "JobError",
        "JobFailed",
        "MillstreamError",
        "SchemaError",
        "StateMismatch",
        "StoreCorrupt",
        "StoreError",
        "MemoryExceeded",
        "StoreLocked",
        "TooManyDeadLetters",
        "UserCodeError",
    ),
    "millstream.engine.expression": ("Expr", "call", "col", "lit", "when"),
    "millstream.engine.retry": ("retry",),
    "millstream.engine.runtime.run": ("Control", "JobResult"),
    "millstream.job": ("Job",),
    "millstream.operators.aggregates": ("count", "first", "last", "max", "mean", "min", "sum"),
    "millstream.operators.collecting": ("collect", "count_distinct"),
    "millstream.operators.count_window": ("count_window",),
    "millstream.operators.match_expressions": ("prev",),
    "millstream.operators.over_functions": ("lag", "lead", "row_number"),
    "millstream.operators.paned_windows": ("cumulating", "sliding"),
    "millstream.operators.picks": ("arg_max", "arg_min"),
    "millstream.operators.process": ("Process",),
    "millstream.operators.process_states": ("list_state", "map_state", "side_output", "value_state"),
    "millstream.operators.session_window": ("session",),
    "millstream.operators.sketches": ("approx_count_distinct", "median", "quantile"),
    "millstream.operators.spread": ("stddev", "variance"),
    "millstream.operators.user_aggregate": ("aggregate",),
    "millstream.operators.windows": ("tumbling",),
    "millstream.stream": ("Stream",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Control",
    "DataError",
    "Expr",
    "ExternalError",
    "InternalError",
    "Job",
    "JobError",
    "JobFailed",
    "JobResult",
    "MemoryExceeded",
    "MillstreamError",
    "Process",
    "SchemaError",
    "StateMismatch",
    "StoreCorrupt",
    "StoreError",
    "StoreLocked",
    "Stream",
    "TooManyDeadLetters",
    "UserCodeError",
    "aggregate",
    "approx_count_distinct",
    "arg_max",
    "arg_min",
    "avro_values",
    "blackhole",
    "call",
    "col",
    "collect",
    "count",
    "count_distinct",
    "count_window",
    "csv",
    "cumulating",
    "delta_sink",
    "duckdb_sink",
    "duckdb_source",
    "duckdb_table",
    "files",
    "first",
    "generate",
    "generator",
    "http_sink",
    "http_source",
    "iceberg_sink",
    "jsonl",
    "kafka_sink",
    "kafka_source",
    "lag",
    "last",
    "lead",
    "list_state",
    "lit",
    "map_state",
    "max",
    "mean",
    "median",
    "memory_sink",
    "memory_source",
    "min",
    "parquet",
    "poll",
    "postgres_changes",
    "postgres_sink",
    "postgres_source",
    "postgres_table",
    "prev",
    "print_sink",
    "protobuf_values",
    "quantile",
    "redis_source",
    "retry",
    "row_number",
    "session",
    "side_output",
    "sliding",
    "stddev",
    "sum",
    "tumbling",
    "value_state",
    "variance",
    "when",
]


def __getattr__(name: str) -> Any:
    """Load a public name from where it lives, once."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'millstream' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
