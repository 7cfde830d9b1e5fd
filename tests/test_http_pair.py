"""Sender, proxy, job, proxy, receiver; proxies lose, repeat and reorder, the job is killed: each message counts once.

For all i, count(f(M_i)) = 1. The receiver passes over keys it knows, as receivers do; the keys are made by the job, so
a message that the job itself processed twice would come under two of them.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from http_kit import Receiver, Sender, free_port
from http_proxy import UnreliableProxy

JOB = """
import os
import millstream as ms

job = ms.Job("pair")
orders = job.read(ms.http_source(int(os.environ["PORT"]), schema={"order": str, "amount": int}, id="order"))
doubled = orders.with_columns(amount=ms.col("amount") * 2)
doubled.write(ms.http_sink(os.environ["HOOK"], retry=ms.retry(40, wait="2ms", longest="40ms"), name="hook"))
"""

POINTS = (
    "store.before_commit",
    "store.after_commit",
    "sink.prepared",
    "sink.commit",
    "http.confirmed",
    "http.confirmed",
    "sink.committed",
    "source.committed",
    "recovery.commit_again",
)


def start(folder: Path, port: int, hook: str, failpoint: str, parallelism: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PORT": str(port), "HOOK": hook, "MILLSTREAM_FAILPOINTS": failpoint}
    command = [sys.executable, "-m", "millstream", "run", "job.py", "--store", "pair.duckdb", "--every", "20ms"]
    command += ["--parallelism", str(parallelism)]
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def messages(life: int) -> list[dict[str, Any]]:
    return [{"order": f"{life}/{n}", "amount": n} for n in range(40)]


def check(seed: int, kills: int, folder: Path) -> Counter[str]:
    draw = random.Random(seed)
    (folder / "job.py").write_text(JOB)
    port = free_port()
    told = f"seed {seed} reproduces it; {folder / 'run.log'}"
    with ExitStack() as held:
        receiver = held.enter_context(closing(Receiver()))
        into_job = held.enter_context(closing(UnreliableProxy(seed, port)))
        out_of_job = held.enter_context(closing(UnreliableProxy(seed + 1, receiver.port)))
        sender = held.enter_context(closing(Sender(seed, into_job.port)))
        hook = f"http://127.0.0.1:{out_of_job.port}/hook"
        for life in range(kills):
            sender.send(messages(life))
            point = draw.choice(POINTS if life else POINTS[:-1])
            # Epochs that have something to send are few when the machine is slow; others come by themselves.
            hits = draw.randint(1, 1 if point in ("recovery.commit_again", "sink.commit", "sink.committed") else 8)
            process = start(folder, port, hook, f"{point}=kill@{hits}", draw.randint(1, 3))
            held.callback(process.kill)
            assert process.wait(60) == -signal.SIGKILL, f"not killed at {point}: {told}"
        sender.send(messages(kills))
        last = start(folder, port, hook, "", 2)
        held.callback(last.kill)
        for waiting in sender.waiting:
            waiting.result(60)
        last.send_signal(signal.SIGTERM)
        assert last.wait(60) == 0, told
        expected = {m["order"]: 2 * m["amount"] for life in range(kills + 1) for m in messages(life)}
        assert Counter(body["order"] for body in receiver.effects) == Counter(expected.keys()), told
        assert {body["order"]: body["amount"] for body in receiver.effects} == expected, told
        assert max(sender.sent.values()) > 1, "nothing was ever sent again"
        assert len(receiver.requests) > len(receiver.effects), "nothing was ever repeated to the receiver"
        return into_job.did + out_of_job.did


FAULTS = {"drop the request", "drop the answer", "repeat", "delay", "pass", "nobody there"}


def test_each_message_counts_once(tmp_path: Path) -> None:
    assert check(seed=int(os.environ.get("PAIR_SEED", "1")), kills=3, folder=tmp_path).keys() == FAULTS


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(100, 104))
def test_each_message_counts_once_through_many_kills(seed: int, tmp_path: Path) -> None:
    check(seed, kills=15, folder=tmp_path)
