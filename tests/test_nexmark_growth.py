"""What an event costs as the input grows: what is measured, and what is made of the numbers."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from millstream.benchmarks.nexmark_files import write_events
from millstream.benchmarks.nexmark_growth import BOUNDED, as_json, grow, table
from millstream.benchmarks.nexmark_measure import MILLSTREAM, Measurement, Task
from millstream.benchmarks.nexmark_queries import QUERIES
from millstream.engine.errors import JobError
from rich.console import Console

ROWS = {"large": 27_600, "small": 920, "middle": 9_200}  # bids of 30,000, 1,000 and 10,000 events


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("events")
    for name, rows in ROWS.items():
        write_events(home / name, rows * 50 // 46, 1)
    return [home / name for name in ROWS]


class Meter:
    """Answers with a fixed cost of 1 s, and so much per event; the second run of each costs less."""

    def __init__(self, per_event: dict[str, float]) -> None:
        self.tasks: list[Task] = []
        self.per_event = per_event

    def __call__(self, task: Task) -> Measurement:
        self.tasks.append(task)
        size = Path(task.events).name
        again = task in self.tasks[:-1]
        return Measurement(1, 1.0, 1.0 + ROWS[size] * self.per_event[size] + (not again), 2**20, 3)


def test_sizes_take_turns_and_the_best_run_counts(folders: list[Path]) -> None:
    meter = Meter({"small": 1e-3, "middle": 1e-3, "large": 2e-3})
    (growth,) = grow(["q0"], folders, Task(MILLSTREAM, "", "", 2, "5s"), 2, meter)

    assert [Path(task.events).name for task in meter.tasks] == ["small", "middle", "large"] * 2
    assert {(task.query, task.threads, task.every) for task in meter.tasks} == {("q0", 2, "5s")}
    assert [size.input_events for size in growth.sizes] == [920, 9_200, 27_600]
    assert growth.sizes[0].nanoseconds == pytest.approx(1.92 / 920 * 1e9)
    assert growth.further(1) == pytest.approx(1e6), "the second of fixed cost should not be in it"
    assert growth.further(2) == pytest.approx((2 * 27.6 - 9.2) / 18.4 * 1e6)


def test_the_table_and_the_file_show_the_growth(folders: list[Path]) -> None:
    grown = grow(["q0"], folders, Task(MILLSTREAM, "", ""), 1, Meter({"small": 1e-3, "middle": 1e-3, "large": 2e-3}))
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table(grown))
    written = msgspec.json.decode(msgspec.json.encode(as_json(grown)))

    last = next(line for line in console.export_text().splitlines() if "27,600" in line)
    assert [cell.strip() for cell in last.strip("│ ").split("│")] == [
        "27,600",
        "2,072,464",
        "0.65",
        "2,500,000",
        "2.50",
        "1 MiB",
    ]
    assert [size["ratio"] for size in written[0]["sizes"]] == [1.0, 0.384, 0.653]
    assert [size["cpu_ns_per_further_event"] for size in written[0]["sizes"]] == [None, 1_000_000.0, 2_500_000.0]


def test_folders_of_one_size_are_refused(folders: list[Path]) -> None:
    with pytest.raises(JobError, match=r"small and .*small are of one size"):
        grow(["q0"], [folders[1], folders[1]], Task(MILLSTREAM, "", ""), 1, Meter({"small": 1e-3}))


def test_queries_of_bounded_state_are_queries() -> None:
    assert set(BOUNDED) < set(QUERIES)
