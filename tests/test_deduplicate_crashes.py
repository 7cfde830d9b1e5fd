"""Messages that are sent several times, in a job that is crashed, killed and resumed: each has its effect once."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.testing import simulate
from nursery import Nursery, Start
from operator_kit import canonical

START = dt.datetime(2026, 1, 1)

SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "text": pa.string(),
        "number": pa.float64(),
        "price": pa.decimal128(10, 2),
        "raw": pa.binary(3),
        "day": pa.date32(),
        "hour": pa.time64("ns"),
        "zoned": pa.timestamp("ms", "Europe/Zurich"),
        "at": pa.timestamp("us"),
    }
)


def message(n: int) -> dict[str, Any]:
    """Ten ids, used again after two hours; every other column is as good a key."""
    id_ = n % 10
    return {
        "id": None if id_ == 9 else id_,
        "text": None if id_ == 0 else "é" * id_,
        "number": [float("nan"), None, *map(float, range(8))][id_],
        "price": None if id_ == 5 else Decimal(id_) / 4,
        "raw": None if id_ == 2 else bytes([id_, 0, 0]),
        "day": None if id_ == 1 else dt.date(1969, 12, 25) + dt.timedelta(id_),
        "hour": None if id_ == 3 else dt.time(id_),
        "zoned": None if id_ == 4 else dt.datetime(2026, 1, 1, id_, tzinfo=dt.UTC),
        "at": START + dt.timedelta(hours=2) * (n // 10),
    }


def sent(count: int) -> list[pa.RecordBatch]:
    """Every message three times, up to twenty minutes late."""
    draw = random.Random(count)
    deliveries = sorted((n // 10 * 120 + draw.random() * 20, n) for n in range(count) for _ in range(3))
    rows = [message(n) for _, n in deliveries]
    return [pa.RecordBatch.from_pylist(rows[at : at + 4], SCHEMA) for at in range(0, len(rows), 4)]


def check(seed: int, folder: Path, keys: tuple[str, ...], within: str | None) -> int:
    out, again, late = (ms.memory_sink(name=name) for name in ("out", "again", "late"))

    def make() -> ms.Job:
        job = ms.Job("messages")
        stream = job.read(
            ms.memory_source(sent(120), splits=3, name="sent"), event_time="at" if within else None, max_delay="2h"
        )
        unique = stream.deduplicate(*keys, within=within)
        unique.write(out)
        unique.duplicates.write(again)
        if within:
            unique.late.write(late)
        return job

    done = simulate(make, folder / f"{seed}.duckdb", seed)
    columns = [*keys, "at"] if within else keys

    def seen(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
        return Counter(tuple(canonical(row[name]) for name in columns) for row in rows)

    everything = seen([row for batch in sent(120) for row in batch.to_pylist()])
    where = f"seed {seed} reproduces it"
    assert seen(out.rows()) == Counter(set(everything)), where
    assert seen(out.rows()) + seen(again.rows()) == everything, where
    assert late.rows() == [], where
    return done.crashes


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("within", [None, "1h"])
def test_a_seed(seed: int, within: str | None, tmp_path: Path) -> None:
    keys = [("id",), ("text",), ("number", "price"), ("raw",), ("day",), ("hour", "zoned"), ("zoned",)][seed % 7]
    assert check(seed, tmp_path, keys, within) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("within", [None, "1h"])
def test_two_hundred_seeds(within: str | None, tmp_path: Path) -> None:
    keys = tuple(name for name in SCHEMA.names if name != "at")
    assert sum(check(seed, tmp_path, (keys[seed % 8],), within) for seed in range(3000, 3200)) > 400


JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa

MESSAGES = pa.schema({"id": pa.string(), "n": pa.int64(), "at": pa.timestamp("us")})

def messages(start, stop):
    # Every message is sent twice in a row, and again a while later.
    n = np.arange(start, stop) // 2 * 7 % 1000
    ids = pa.array(np.char.add("message-", n.astype(str)))
    columns = [ids, pa.array(n), pa.array(n * 10_000).cast(pa.timestamp("us"))]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGES)

job = ms.Job("messages")
source = ms.generator(messages, schema=MESSAGES, rows=3_000, batch_rows=50, splits=2, name="messages")
unique = job.read(source, event_time="at", max_delay="1m").deduplicate("id", within="1h")
unique.select("n").write(ms.jsonl("output", hold_bytes=0))
unique.duplicates.select("n").write(ms.jsonl("again", hold_bytes=0))
"""


def numbers(folder: Path) -> list[int]:
    """What a reader of the folder sees."""
    return sorted(json.loads(line)["n"] for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines())


@pytest.mark.parametrize(
    "point",
    [
        "store.before_commit=kill@4",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in ("store.after_commit=kill@3", "subtask.snapshot=kill@9")
        ),
    ],
)
def test_a_process_killed_again_and_again(point: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for parallelism in (2, 1, 3):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=point)).killed
            assert len(set(numbers(tmp_path / "output"))) == len(numbers(tmp_path / "output")), "a message came twice"
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    assert numbers(tmp_path / "output") == list(range(1_000))
    assert len(numbers(tmp_path / "again")) == 2_000
