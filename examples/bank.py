"""Transfers come in by Kafka, each is booked once, and the sum of money never changes.

A transfer takes from one account what it gives to another. It becomes two bookings, which go into the table ``ledger``
of a PostgreSQL database, and what they amount to into the table ``balances``. A transfer that is sent again, with the
same id, is booked once; one that makes no sense is put aside: see ``millstream deadletters ls bank.duckdb``.

Money that comes from outside comes from an account, too, so that all balances together are zero; not only in the end,
but in every answer of the database at any moment, however often this process is killed::

    select sum(balance) from balances

It holds because both bookings of a transfer come out of the same row, before the same barrier, and so belong to one
epoch; because the sink writes an epoch's rows, of all subtasks, in one transaction; and because no epoch is written
twice. The ledger is a sink of its own, whose transaction comes a moment before or after that of the balances: each
table is always right by itself, and ``millstream_progress`` says which epoch it is at.

It needs ``pip install 'millstream[kafka,postgres]'``, a broker with a topic, and a database::

    kafka-topics.sh --bootstrap-server localhost:9092 --create --topic transfers --partitions 3
    createdb bank
    export BANK_DSN=postgresql://localhost/bank
    millstream run examples/bank.py --store bank.duckdb --every 100ms
    echo '{"id": "t-1", "from": "world", "to": "ann", "cents": 1250}' |
        kafka-console-producer.sh --bootstrap-server localhost:9092 --topic transfers
"""

from __future__ import annotations

import os
from typing import Any

import millstream as ms
from millstream import col

BROKERS = os.environ.get("BANK_BROKERS", "localhost:9092")
TOPIC = os.environ.get("BANK_TOPIC", "transfers")
DSN = "${env:BANK_DSN}"
MOST_CENTS = 10**12
TRANSFER = {"id": str, "from": str, "to": str, "cents": int}


def checked(transfer: dict[str, Any]) -> dict[str, Any]:
    """Return a transfer as it is; raise if it must not be booked."""
    for name in ("id", "from", "to"):
        if not (transfer[name] and transfer[name].isprintable()):
            raise ValueError(f"a transfer needs a printable {name!r}, got {transfer[name]!r}")
    if transfer["cents"] is None or not 0 < transfer["cents"] <= MOST_CENTS:
        raise ValueError(f"a transfer is of 1 to {MOST_CENTS} cents, got {transfer['cents']}")
    return transfer


job = ms.Job("bank")
sent = job.read(ms.kafka_source(BROKERS, TOPIC, schema=TRANSFER, on_error="dead_letter"))

# Checked before repeats go, so that a transfer can be sent again, mended, with the id it had.
transfers = sent.map(checked, schema=TRANSFER, on_error="dead_letter").deduplicate("id")

paid = transfers.select(transfer=col("id"), account=col("from"), cents=-col("cents"))
received = transfers.select(transfer=col("id"), account=col("to"), cents=col("cents"))
bookings = paid.union(received)
bookings.write(ms.postgres_sink(DSN, "ledger", create=True))

balances = bookings.group_by("account").agg(balance=ms.sum("cents"))
balances.write(ms.postgres_sink(DSN, "balances", key="account", create=True))
