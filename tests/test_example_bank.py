"""examples/bank.py, killed again and again: every answer of the database has all the money, and each transfer once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from nursery import Nursery, Start
from servers.kafka import Broker, kafka_broker
from servers.postgres import dsn

__all__ = ["dsn"]

kafka = kafka_broker()

EXAMPLE = Path(__file__).parent.parent / "examples" / "bank.py"
TOGETHER = "select count(distinct epoch) from millstream_progress where job = 'bank'"
BALANCES = "select account, balance from balances where balance <> 0 order by account"
LEDGER = "select account, sum(cents)::bigint from ledger group by account having sum(cents) <> 0 order by account"
HALVES = "select count(*) from (select from ledger group by transfer having count(*) <> 2 or sum(cents) <> 0) t"
POISON = [
    b"no json", b'{"id": 7, "from": "world", "to": "ann", "cents": 1}', b'{"id": "x", "from": "world", "cents": 1}',
    b'{"id": "x", "from": "world", "to": "ann", "cents": -1}', b'{"id": null, "from": "a", "to": "b", "cents": 1}',
    b'{"id": "x", "from": "a\\u0000", "to": "b", "cents": 1}',
    b'{"id": "x", "from": "a", "to": "b", "cents": 9999999999999}',
]  # fmt: skip
"""What is no transfer; none of it may stop the job, or take an id from a transfer that comes later."""


class Customers:
    """Those who send transfers, some of them again and some after poison; in an order that a seed decides."""

    def __init__(self, kafka: Broker, seed: int) -> None:
        self.kafka = kafka
        self.topic = kafka.create("transfers", 3)
        self.poisoned = 0
        self.balances: Counter[str] = Counter()
        self.transfers: list[dict[str, Any]] = []
        self._chance = random.Random(seed)

    def send(self, count: int) -> None:
        """Send so many new transfers, and repeats of old and of new ones."""
        chance, messages = self._chance, []
        for _ in range(count):
            payer, payee = chance.sample(["world", *(f"account {n}" for n in range(9))], 2)
            transfer = {"id": f"t-{len(self.transfers)}", "from": payer, "to": payee, "cents": chance.randint(1, 10**6)}
            self.transfers.append(transfer)
            self.balances[payer] -= transfer["cents"]
            self.balances[payee] += transfer["cents"]
            messages.append(json.dumps(transfer).encode())
        messages += [json.dumps(chance.choice(self.transfers)).encode() for _ in range(count // 3)]
        messages += [chance.choice(POISON) for _ in range(count // 10)]
        self.poisoned += count // 10
        chance.shuffle(messages)
        self.kafka.produce(self.topic, *({"value": m, "partition": chance.randrange(3)} for m in messages))

    def expected(self) -> list[tuple[str, int]]:
        """The accounts that have money, or owe some."""
        return sorted((account, cents) for account, cents in self.balances.items() if cents)


class Reader:
    """Somebody who asks for all money all the time, in a thread; a context manager."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.looks = 0
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self._over.is_set():
                try:
                    self._look(connection)
                except psycopg.errors.UndefinedTable:
                    time.sleep(0.01)  # before the first start has made them
                except BaseException as error:
                    self.wrong.append(repr(error))
                    raise

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        for sql in ("select coalesce(sum(balance), 0) from balances", HALVES):
            found = connection.execute(sql).fetchall()
            if found != [(0,)]:
                self.wrong.append(f"{sql}: {found}")
        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            together, balances, ledger = (connection.execute(sql).fetchall() for sql in (TOGETHER, BALANCES, LEDGER))
            if together == [(1,)] and balances != ledger:
                self.wrong.append(f"{balances} is not what {ledger} amounts to")
        self.looks += 1


class Bank:
    """The example, started again and again in a folder."""

    def __init__(self, folder: Path, customers: Customers, dsn: str) -> None:
        self.folder, self.customers, self.dsn = folder, customers, dsn
        self.settings = {"BANK_BROKERS": customers.kafka.address, "BANK_TOPIC": customers.topic, "BANK_DSN": dsn}

    def booked(self) -> int:
        """How many transfers are in the ledger; 0 before there is one."""
        with psycopg.connect(self.dsn) as connection:
            if connection.execute("select to_regclass('ledger')").fetchone() == (None,):
                return 0
            return int(connection.execute("select count(distinct transfer) from ledger").fetchall()[0][0])

    @contextmanager
    def running(self, parallelism: int) -> Iterator[subprocess.Popen[bytes]]:
        """Run it as a user does; it is killed at the end if it is still there."""
        command = [sys.executable, "-m", "millstream", "run", str(EXAMPLE), "--store", "job.duckdb", "--every", "30ms"]
        command += ["--parallelism", str(parallelism)]
        with (self.folder / "bank.log").open("ab") as log, ExitStack() as held:
            process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **self.settings}, stdout=log, stderr=log
            )
            held.callback(process.wait)
            held.callback(process.kill)
            yield process

    def wait_until_booked(self, process: subprocess.Popen[bytes], count: int) -> None:
        while self.booked() < count:
            assert process.poll() is None, (self.folder / "bank.log").read_text()[-3000:]
            time.sleep(0.02)

    def finish(self) -> None:
        """Let it book the rest, stop it, and compare everything."""
        with self.running(2) as process:
            self.wait_until_booked(process, len(self.customers.transfers))
            # Poison may come after the last transfer: what is behind both is booked after it.
            self.customers.send(3)
            self.wait_until_booked(process, len(self.customers.transfers))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (self.folder / "bank.log").read_text()[-3000:]
        with psycopg.connect(self.dsn) as connection:
            assert connection.execute(BALANCES).fetchall() == self.customers.expected()
            ledger = connection.execute("select transfer, account, cents from ledger").fetchall()
        assert Counter(ledger) == Counter(
            booking
            for t in self.customers.transfers
            for booking in ((t["id"], t["from"], -t["cents"]), (t["id"], t["to"], t["cents"]))
        )
        with duckdb.connect(str(self.folder / "job.duckdb"), read_only=True) as store:
            assert store.execute("select count(*) from dead_letters").fetchall() == [(self.customers.poisoned,)]


POINTS = [
    "sink.commit@1", "postgres.written@1", "postgres.visible@1", "sink.commit@2", "postgres.begun@2",
    "postgres.written@2", "postgres.visible@2", "sink.committed@2", "sink.prepared@3", "store.before_commit@2",
    "store.after_commit@3",
]  # fmt: skip


def test_the_sum_of_money_never_changes_wherever_it_is_killed(
    kafka: Broker, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start has new transfers to book, so it comes by every point; the second commit is the other table's."""
    customers = Customers(kafka, 7)
    bank = Bank(tmp_path, customers, dsn)
    for name, value in bank.settings.items():
        monkeypatch.setenv(name, value)
    with Nursery() as nursery, Reader(dsn) as reader:
        for number, point in enumerate(POINTS):
            customers.send(30)
            name, _, hits = point.partition("@")
            end = nursery.run(Start(str(tmp_path), str(EXAMPLE), 1 + number % 3, f"{name}=kill@{hits}"))
            assert end.killed, (point, end)
            assert reader.wrong == [], point
        bank.finish()
        looks = reader.looks
    assert reader.wrong == []
    assert looks > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sum_of_money_never_changes_whenever_it_is_killed(kafka: Broker, dsn: str, tmp_path: Path) -> None:
    """Every one of 40 starts is killed, while customers go on sending, after it has booked something or before."""
    customers, chance = Customers(kafka, 11), random.Random(11)
    bank, over = Bank(tmp_path, customers, dsn), threading.Event()

    def pay() -> None:
        while not over.wait(0.02):
            customers.send(20)

    payments = threading.Thread(target=pay)
    with Reader(dsn) as reader:
        payments.start()
        try:
            for life in range(40):
                with bank.running(chance.randint(1, 3)) as process:
                    if life % 4:
                        bank.wait_until_booked(process, bank.booked() + 1)
                    time.sleep(chance.uniform(0, 0.5))
                    process.kill()
                    assert process.wait() == -signal.SIGKILL
        finally:
            over.set()
            payments.join()
        bank.finish()
    assert reader.wrong == []
