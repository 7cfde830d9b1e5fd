"""Orders come in by HTTP; each is processed once, and goes to Kafka.

Whoever sends an order is answered when it is in a checkpoint, and sends it again until then; the job drops repeats by
their number. It puts each order into the topic ``orders`` and keeps what every shop has earned in the topic
``revenue``, both in transactions: however often this process is killed, a reader of what is committed finds each order
once, and revenue that is their exact sum.

It needs ``pip install 'millstream[http,kafka]'``, a broker, and two topics::

    kafka-topics.sh --bootstrap-server localhost:9092 --create --topic orders
    kafka-topics.sh --bootstrap-server localhost:9092 --create --topic revenue --config cleanup.policy=compact
    millstream run examples/orders.py --store orders.duckdb --every 100ms
    curl localhost:8080/orders --json '{"order": "o-1", "shop": "north", "cents": 1250}'
"""

from __future__ import annotations

import os

import millstream as ms

PORT = int(os.environ.get("ORDERS_PORT", "8080"))
BROKERS = os.environ.get("ORDERS_BROKERS", "localhost:9092")

job = ms.Job("orders")
orders = job.read(ms.http_source(PORT, path="/orders", schema={"order": str, "shop": str, "cents": int}, id="order"))
orders.write(ms.kafka_sink(BROKERS, "orders", key="order"))

revenue = orders.group_by("shop").agg(cents=ms.sum("cents"), orders=ms.count())
revenue.write(ms.kafka_sink(BROKERS, "revenue", key="shop"))
