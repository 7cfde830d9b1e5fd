"""Messages in Kafka: what readers of what is committed find after each epoch, whatever happens, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.sink import Sink
from millstream.testing import check_sink
from servers.kafka import Broker, kafka_broker

kafka = kafka_broker()

ROWS = pa.RecordBatch.from_pylist([{"id": n, "name": f"n {n}"} for n in range(12)])


def values(kafka: Broker, topic: str) -> list[dict[str, Any]]:
    return [json.loads(message.value()) for message in kafka.consume(topic)]


@pytest.mark.parametrize("options", [{}, {"key": "id"}, {"key": "id", "mode": "upsert"}, {"transaction_bytes": 100}])
def test_a_crash_at_any_step_changes_nothing(options: dict[str, Any], kafka: Broker) -> None:
    def make(topic: str) -> Sink:
        # Every place has a progress topic of its own, since all have one job's id.
        return ms.kafka_sink(kafka.address, topic, progress=f"{topic}.progress", **options)

    rows = check_sink(lambda: kafka.create("t", 2), make, lambda topic: values(kafka, topic), [ROWS])
    assert sorted(row["id"] for row in rows) == list(range(12))
