"""Protobuf descriptors and Arrow types."""

from __future__ import annotations

from typing import Any

from millstream.engine.errors import JobError


def protobuf_driver() -> Any:
    """Import protobuf. Raises JobError if it is not installed."""
    try:
        import google.protobuf.message
    except ImportError as error:
        raise JobError(
            f"Protobuf needs protobuf, which cannot be loaded ({error}): pip install 'millstream[kafka-schemas]'"
        ) from None
    return google.protobuf
