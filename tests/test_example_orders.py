"""examples/orders.py, killed again and again: each order is in Kafka once, and revenue is the exact sum of them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from http_kit import Sender, free_port
from http_proxy import UnreliableProxy
from servers.kafka import Broker, kafka_broker

kafka = kafka_broker()

EXAMPLE = Path(__file__).parent.parent / "examples" / "orders.py"
POINTS = ("store.before_commit", "store.after_commit", "sink.commit", "sink.committed", "source.committed")
KILLS = 5


def start(folder: Path, port: int, broker: str, failpoint: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "ORDERS_PORT": str(port),
        "ORDERS_BROKERS": broker,
        "MILLSTREAM_FAILPOINTS": failpoint,
    }
    command = [sys.executable, "-m", "millstream", "run", EXAMPLE, "--store", "orders.duckdb", "--every", "30ms"]
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_order_is_in_kafka_once_and_counts_once(kafka: Broker, tmp_path: Path) -> None:
    from confluent_kafka.admin import NewTopic

    compacted = {"cleanup.policy": "compact"}
    admin = kafka.admin
    made = admin.create_topics([NewTopic("orders", 2, 1), NewTopic("revenue", 1, 1, config=compacted)])
    for topic in made.values():
        topic.result(30)
    draw, port = random.Random(7), free_port()
    sent = [{"order": f"o-{n}", "shop": f"shop {n % 3}", "cents": n} for n in range(300)]
    with ExitStack() as held:
        proxy = held.enter_context(closing(UnreliableProxy(7, port)))
        sender = held.enter_context(closing(Sender(7, proxy.port, "/orders")))
        for life in range(KILLS):
            sender.send(sent[life * 50 : (life + 1) * 50])
            point = draw.choice(POINTS)
            # Epochs that have something to send are few when the machine is slow; others come by themselves.
            failpoint = f"{point}=kill@{draw.randint(1, 2 if point.startswith('sink') else 6)}"
            process = start(tmp_path, port, kafka.address, failpoint)
            held.callback(process.kill)
            assert process.wait(120) == -signal.SIGKILL, f"not killed by {failpoint}: {tmp_path / 'run.log'}"
        sender.send(sent[KILLS * 50 :])
        last = start(tmp_path, port, kafka.address, "")
        held.callback(last.kill)
        for waiting in sender.waiting:
            waiting.result(120)
        last.send_signal(signal.SIGTERM)
        assert last.wait(60) == 0, (tmp_path / "run.log").read_text()
    written = [json.loads(message.value()) for message in kafka.consume("orders")]
    assert Counter(order["order"] for order in written) == Counter(order["order"] for order in sent)
    assert sorted(order["cents"] for order in written) == list(range(300))
    revenue = {}
    for message in kafka.consume("revenue"):
        revenue[message.key().decode()] = json.loads(message.value())
    assert {shop: (found["cents"], found["orders"]) for shop, found in revenue.items()} == {
        f"shop {shop}": (sum(range(shop, 300, 3)), 100) for shop in range(3)
    }
    assert max(sender.sent.values()) > 1, "nothing was ever sent again"
