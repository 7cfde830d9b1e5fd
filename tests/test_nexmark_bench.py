"""The side-by-side runs: who is measured when, and what is made of the numbers."""

import io

import msgspec
import pytest
from millstream.benchmarks.nexmark_bench import NEVER, BenchOptions, Cost, as_json, bench, table
from millstream.benchmarks.nexmark_files import write_events
from millstream.benchmarks.nexmark_measure import DUCKDB, MILLSTREAM, Measurement, Task, measure, measure_here
from millstream.engine.errors import ExternalError
from rich.console import Console

EVENTS = 10_000
BIDS = 9_200


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    write_events(folder, EVENTS, 3)
    return folder


class Stopwatch:
    """Answers with made-up numbers and remembers what it was asked."""

    def __init__(self, seconds):
        self.tasks = []
        self.seconds = seconds

    def __call__(self, task):
        self.tasks.append(task)
        key = "never" if task.every == NEVER else task.engine
        runs = sum(t == task for t in self.tasks)
        return Measurement(BIDS, self.seconds[key][runs - 1], 1.0, 2**20, 7)


def test_variants_take_turns_and_the_first_round_does_not_count(events):
    watch = Stopwatch({MILLSTREAM: [9, 2, 4, 3], DUCKDB: [9, 6, 6, 1], "never": [9, 2, 2, 2]})

    (found,) = bench(["q0"], BenchOptions(events, threads=(1,), runs=3), watch)

    turn = [(MILLSTREAM, False), (DUCKDB, False), (MILLSTREAM, True)]
    assert [(t.engine, t.every == NEVER) for t in watch.tasks] == [*turn[::-1], *turn] * 2
    assert found.input_events == BIDS
    assert found.rate(found.millstream) == BIDS / 3
    assert found.ratio == 2.0
    assert found.checkpoint_cost == Cost(0.25, 0.5, 0.75)
    assert found.checkpoint_cpu == Cost(0.0, 0.0, 0.0)


def test_both_engines_get_the_same_number_of_threads(events):
    watch = Stopwatch({MILLSTREAM: [1] * 9, DUCKDB: [1] * 9, "never": [1] * 9})

    bench(["q0", "q2"], BenchOptions(events, threads=(1, 2), runs=1), watch)

    seen = {(t.query, t.engine, t.threads) for t in watch.tasks}
    assert seen == {(q, engine, n) for q in ("q0", "q2") for engine in (MILLSTREAM, DUCKDB) for n in (1, 2)}


def test_the_table_and_the_file_hold_what_was_measured(events):
    watch = Stopwatch({MILLSTREAM: [9, 0.5], DUCKDB: [9, 0.25], "never": [9, 0.4]})
    options = BenchOptions(events, threads=(1,), runs=1)
    comparisons = bench(["q0"], options, watch)
    console = Console(width=200, record=True, file=io.StringIO())

    console.print(table(comparisons))
    written = msgspec.json.decode(msgspec.json.encode(as_json(comparisons, options)))

    shown = console.export_text()
    assert all(word in shown for word in ("q0", "18,400", "36,800", "0.50", "+25.0%", "1 MiB", "7"))
    (comparison,) = written["comparisons"]
    assert comparison["events_per_s"] == 18_400
    assert comparison["runs"]["duckdb"] == [
        {"output_rows": BIDS, "seconds": 0.25, "cpu_s": 1.0, "peak_rss": 2**20, "checkpoints": 7}
    ]
    assert written["machine"]["versions"]["duckdb"]


@pytest.mark.parametrize("engine", [MILLSTREAM, DUCKDB])
def test_a_measurement_counts_every_row(events, engine):
    measured = measure_here(Task(engine, "q0", str(events)))

    assert measured.output_rows == BIDS
    assert measured.seconds > 0
    assert measured.peak_rss > 2**20
    assert (measured.checkpoints > 0) == (engine == MILLSTREAM)


def test_a_measurement_in_a_process_of_its_own_says_what_went_wrong(events, tmp_path):
    assert measure(Task(DUCKDB, "q22", str(events))).output_rows == BIDS
    with pytest.raises(ExternalError, match=r"there is no person\.parquet"):
        measure(Task(DUCKDB, "q22", str(tmp_path)))
