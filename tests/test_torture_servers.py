"""Kills at random moments between real servers, which are killed as well; and the watcher does notice mistakes.

``MILLSTREAM_KILLS=350 pytest -s -m slow tests/test_torture_servers.py`` kills each path so often and prints the
ledgers; ``MILLSTREAM_SEED`` gives other moments.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from millstream.benchmarks.torture_cut import JobAtServers
from millstream.benchmarks.torture_rows import Oracle, row
from millstream.benchmarks.torture_servers import Torture, report
from millstream.benchmarks.torture_start import PATHS, Setting
from servers import kafka
from servers.kafka import Broker
from servers.postgres import INSTALL, PostgresServer, installed

KILLS = int(os.environ.get("MILLSTREAM_KILLS", "26"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def setting(path: str, folder: Path, held: ExitStack) -> tuple[Setting, Callable[[], None] | None]:
    """What to torture, between servers of its own, and what kills these."""
    brokers, postgres, kills = "", "", []
    if "kafka" in path:
        reason = kafka.missing()
        if reason:
            pytest.skip(reason)
        broker = held.enter_context(Broker())
        brokers = broker.address
        kills.append(broker.restart)
    if "postgres" in path:
        if not installed():
            pytest.skip(f"PostgreSQL is not installed: {INSTALL}")
        server = PostgresServer()
        held.callback(server.stop)
        server.start()
        postgres = server.dsn()
        kills.append(lambda: (server.kill(), server.start()))

    def bounce() -> None:
        kills.append(kills.pop(0))
        kills[-1]()

    return Setting(path, "torture", str(folder), brokers, postgres), bounce if kills else None


@pytest.mark.slow
@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize("path", PATHS)
def test_nobody_could_have_noticed(path: str, tmp_path: Path, held: ExitStack) -> None:
    what, bounce = setting(path, tmp_path, held)
    ledger = Torture(what, SEED, bounce=bounce).run(KILLS)
    assert report(ledger, tmp_path) == 0, ledger.violations
    assert len(ledger.kills) == KILLS
    assert ledger.others["long absences"] == KILLS // 25
    assert ledger.others["servers killed"] == (0 if bounce is None else (KILLS + 13) // 25)
    assert ledger.readers["output"].rows > 0


def test_files_killed_a_few_times(tmp_path: Path, held: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    what, _ = setting("files-files", tmp_path, held)
    ledger = Torture(what, SEED).run(3)
    assert report(ledger, tmp_path) == 0, ledger.violations
    assert len(ledger.kills) == 3
    check_cuts(what, monkeypatch)


def check_cuts(what: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a store knows, all may be seen, and nothing between two epochs."""
    monkeypatch.setattr("millstream.benchmarks.torture_cut.SETTLED", 0)
    files = len(list((Path(what.folder) / "input").iterdir()))
    everything = dict.fromkeys(range(files), 90)
    for seen, complaints in ((everything, 0), (everything | {0: 89}, 1), (everything | {files: 90}, 1)):
        job = JobAtServers(what.store, what.input(), lambda seen=seen: seen)
        assert not job.check()
        assert len(job.violations) == complaints


# -- it would be noticed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ([0, 1, 1], "after row 1 came row 1"),
        ([0, 2], "after row 0 came row 2"),
        ([1, 0], "after row -1 came row 1"),
    ],
)
def test_rows_that_are_doubled_lost_or_out_of_order_are_told(numbers: list[int], complaint: str) -> None:
    oracle = Oracle()
    oracle.see(("0-1", number) for number in numbers)
    assert any(complaint in sentence for sentence in oracle.violations)


def test_rows_of_a_split_are_those_the_oracle_waits_for() -> None:
    oracle, before = Oracle(), None
    for number in range(1_000):
        new = row(4, number)
        if new != before:
            oracle.see([(new["k"], new["s"])])
        before = new
    assert oracle.violations == []
    assert oracle.seen == {4: 900}
