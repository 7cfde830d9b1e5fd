"""What a Kafka message brings besides its value, as columns."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

METADATA_TYPES: Final[dict[str, pa.DataType]] = {
    "key": pa.binary(),
    "timestamp": pa.timestamp("us"),
    "headers": pa.list_(pa.struct({"key": pa.string(), "value": pa.binary()})),
    "topic": pa.string(),
    "partition": pa.int32(),
    "offset": pa.int64(),
}
"""The type of the column for each; of the key, unless something else is asked for."""

KEY_TYPES: Final[dict[str, pa.DataType]] = {
    "binary": pa.binary(),
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
}
"""As what keys can be decoded."""
