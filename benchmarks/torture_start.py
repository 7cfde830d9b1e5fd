"""One start of a job that is tortured between real servers, and the words for what is tortured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import millstream as ms
import msgspec
from millstream.benchmarks.torture_inputs import FolderInput, Input, TopicInput
from millstream.benchmarks.torture_outputs import FolderOutput, Output, TablesOutput, TopicOutput
from millstream.benchmarks.torture_rows import SCHEMA

PATHS: Final = ("kafka-kafka", "kafka-postgres", "files-files")
EVERY: Final = "100ms"


class Setting(msgspec.Struct, frozen=True):
    """What is tortured, and where.

    Attributes:
        path: one of ``PATHS``.
        name: of the job; topics and tables are called after it.
        folder: for the store, the log, and files.
    """

    path: str
    name: str
    folder: str
    brokers: str = ""
    postgres: str = ""

    def input(self) -> Input:
        """Where rows come from."""
        if self.path == "files-files":
            return FolderInput(Path(self.folder) / "input")
        return TopicInput(self.brokers, f"{self.name}-in")

    def output(self) -> Output:
        """Where they go to."""
        if self.path == "files-files":
            return FolderOutput(Path(self.folder) / "output")
        if self.path == "kafka-postgres":
            return TablesOutput(self.postgres, self.name.replace("-", "_"))
        return TopicOutput(self.brokers, f"{self.name}-out")

    @property
    def store(self) -> Path:
        """The checkpoint file."""
        return Path(self.folder) / "job.duckdb"

    @property
    def stop(self) -> Path:
        """Once this file is there, the job stops by itself."""
        return Path(self.folder) / "stop"


class Start(msgspec.Struct, frozen=True):
    """How to start it."""

    setting: Setting
    parallelism: int


def once(row: dict[str, Any], state: dict[str, Any]) -> dict[str, Any] | None:
    """Pass over a row that its key has had."""
    if row["s"] <= state.get("s", -1):
        return None
    state["s"] = row["s"]
    return row


def run(text: str) -> None:
    """Run the job until it is killed or asked to stop; prints how it has ended."""
    start = msgspec.json.decode(text, type=Start)
    setting, control = start.setting, ms.Control()
    job = ms.Job(setting.name)
    rows = job.read(setting.input().source())
    setting.output().write(rows.group_by("k").process(once, schema=SCHEMA))

    def look(_: ms.JobStatus) -> None:
        if setting.stop.exists():
            control.stop()

    result = job.run(
        setting.store,
        every=EVERY,
        parallelism=start.parallelism,
        exactly_once=True,
        control=control,
        on_status=look,
    )
    print(result.outcome, flush=True)  # noqa: T201 - its output is a log that is read
