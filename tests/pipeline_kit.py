"""The pipelines under ``pipelines/``: their input, what they must yield, and what is in their output.

Run as a program it writes the golden outputs anew.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import duckdb

FOLDER = Path(__file__).parent / "pipelines"
FINISHED = re.compile(r"part-[0-9a-f]{8}-[0-9a-f]{16}\.(parquet|csv|csv\.gz|jsonl|jsonl\.gz)")
KEPT = re.compile(r"committed|publishing|job-[0-9a-f]{8}")
EPOCH = re.compile(r"epoch-\d{12}-[0-9a-f]{8}")

Rows = Counter[str]
"""A multiset of rows, each as one line of JSON."""


@dataclass(frozen=True)
class Pipeline:
    """One folder under ``pipelines/``."""

    name: str

    @property
    def folder(self) -> Path:
        """Where it is."""
        return FOLDER / self.name

    @cached_property
    def golden(self) -> dict[str, Rows]:
        """What must be in each output folder."""
        files = sorted((self.folder / "golden").glob("*.jsonl"))
        return {file.stem: Counter(file.read_text().splitlines()) for file in files}

    def lay_out(self, folder: Path, inputs: Path) -> Path:
        """Make ``folder`` ready for the first start."""
        shutil.copytree(inputs, folder / "input", copy_function=shutil.copyfile)
        shutil.copyfile(self.folder / "job.py", folder / "job.py")
        return folder

    def expected(self, inputs: Path) -> dict[str, Rows]:
        """What DuckDB makes of the same input."""
        with self._batch(inputs) as connection:
            return {name: _lines(connection, f'select * from "{name}"') for name in self.outputs}

    @cached_property
    def outputs(self) -> list[str]:
        """The names of its output folders: those of the views that its job writes."""
        return re.findall(r'"output/(\w+)"', (self.folder / "job.py").read_text())

    def found(self, folder: Path, inputs: Path) -> dict[str, Rows]:
        """What is in the output folders, read with the types that are expected."""
        with self._batch(inputs) as connection:
            return {name: _found(connection, name, folder / "output" / name) for name in self.outputs}

    def _batch(self, inputs: Path) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(config={"threads": 1})
        connection.execute("set timezone = 'UTC'")
        sql = (self.folder / "expected.sql").read_text()
        connection.execute(sql.replace("'input/", f"'{inputs}/"))
        return connection


@cache
def pipelines() -> tuple[Pipeline, ...]:
    """All of them, by name."""
    return tuple(Pipeline(path.parent.name) for path in sorted(FOLDER.glob("*/job.py")))


def leftovers(folder: Path) -> list[str]:
    """Everything below a job's folder that should not be there once the job has finished."""
    found = []
    for path in (folder / "output").rglob("*"):
        if path.relative_to(folder / "output").parts[0] == ".millstream":
            if path.is_file() and not KEPT.fullmatch(path.name):
                found.append(path)
        elif path.is_file():
            if not FINISHED.fullmatch(path.name):
                found.append(path)
        elif not any(path.iterdir()):
            found.append(path)
    stores = {f"job.duckdb{suffix}" for suffix in ("", ".lock", ".witness")}
    known = {"input", "output", "job.py", "__pycache__", "run.log", "result.json", *stores}
    found += [path for path in folder.iterdir() if path.name not in known]
    return sorted(str(path.relative_to(folder)) for path in found)


def _lines(connection: duckdb.DuckDBPyConnection, sql: str) -> Rows:
    return Counter(line for (line,) in connection.execute(f"select to_json(t)::varchar from ({sql}) t").fetchall())


def _found(connection: duckdb.DuckDBPyConnection, name: str, folder: Path) -> Rows:
    files = [str(path) for path in sorted(folder.rglob("part-*"))]
    if not files:
        return Counter()
    types = {column: type_ for column, type_, *_ in connection.execute(f'describe "{name}"').fetchall()}
    reader = _reader(files, types)
    have = {column: type_ for column, type_, *_ in connection.execute(f"describe from {reader}").fetchall()}
    assert have == types, f"{name}: the columns are {have}, expected {types}"
    columns = ", ".join(f'"{column}"' for column in types)
    return _lines(connection, f"select {columns} from {reader}")


def _reader(files: list[str], types: dict[str, str]) -> str:
    """The table function that reads the files with the types that are expected."""
    partitions = [part.partition("=")[0] for part in Path(files[0]).parts if "=" in part]
    hive = "hive_partitioning = false"
    if partitions:
        hive = f"hive_partitioning = true, hive_types = {_struct({name: types[name] for name in partitions})}"
    columns = _struct({name: type_ for name, type_ in types.items() if name not in partitions})
    if files[0].endswith(".parquet"):
        return f"read_parquet({files}, {hive})"
    if ".csv" in files[0]:
        return f"read_csv({files}, header = true, columns = {columns}, allow_quoted_nulls = false, {hive})"
    return f"read_json({files}, format = 'newline_delimited', columns = {columns}, {hive})"


def _struct(texts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"'{name}': '{text}'" for name, text in texts.items()) + "}"


def write_golden() -> None:
    """Write every golden output anew."""
    import tempfile

    sys.path.insert(0, str(FOLDER))
    from inputs import write_inputs

    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "input"
        write_inputs(inputs)
        for pipeline in pipelines():
            shutil.rmtree(pipeline.folder / "golden", ignore_errors=True)
            (pipeline.folder / "golden").mkdir()
            for name, rows in pipeline.expected(inputs).items():
                text = "".join(line + "\n" for line in sorted(rows.elements()))
                (pipeline.folder / "golden" / f"{name}.jsonl").write_text(text)


if __name__ == "__main__":
    write_golden()
