"""``millstream nexmark``: generate events, run a query, verify its result, measure.

``millstream --help`` imports this module for its first line: what commands need they import when they run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def nexmark() -> None:
    """The Nexmark benchmark: an auction site's persons, auctions and bids."""


@nexmark.command()
@click.option(
    "--events",
    type=click.IntRange(min=1),
    required=True,
    help="How many: 1 person, 3 auctions, 46 bids of 50.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Another seed, other events.")
@click.option("--out", type=FOLDER, required=True, help="Folder for person, auction and bid.parquet.")
@click.option("--disorder", default="0s", show_default=True, help="How far a row may be behind a newer one.")
@click.option(
    "--rate",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="Events per second of event time.",
)
def generate(events: int, seed: int, out: Path, disorder: str, rate: int) -> None:
    """Write events to Parquet files, the same for the same words."""
    from millstream.benchmarks.nexmark_events import Timing
    from millstream.benchmarks.nexmark_files import write_events
    from millstream.engine.time import micros

    written = write_events(out, events, seed, Timing(rate=rate, disorder=micros(disorder)))
    click.echo(", ".join(f"{rows:,} {stream}s" for stream, rows in written.items()) + f" in {out}")


@nexmark.command()
@click.argument("query")
@click.option("--events", type=FOLDER, required=True, help="Folder with the events' Parquet files.")
@click.option("--results", type=FOLDER, required=True, help="The result goes to QUERY/*.parquet in this folder.")
@click.option("--store", type=FILE, required=True, help="Checkpoint file; run again with the same one to resume.")
@click.option("--parallelism", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--every", default="1s", show_default=True, help="Time between checkpoints.")
@click.option("--delay", default="4s", show_default=True, help="How far a row may be behind a newer one.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Events a second; as fast as they are read, if it is not given.",
)
@click.option(
    "--pause-after",
    type=click.IntRange(min=1),
    help="With --rate: read about so many events, then wait, to be stopped or killed.",
)
@click.option(
    "--hold-bytes",
    default="8MB",
    show_default=True,
    help="Up to so much waits in the checkpoint for files that are worth it; 0B: each epoch is visible at once.",
)
def run(  # noqa: PLR0913, PLR0917 - an option each
    query: str,
    events: Path,
    results: Path,
    store: Path,
    parallelism: int,
    every: str,
    delay: str,
    rate: float | None,
    pause_after: int | None,
    hold_bytes: str,
) -> None:
    """Run QUERY to the end of the events; the last line printed is a JSON report."""
    import millstream as ms
    import msgspec
    from millstream.benchmarks.nexmark_queries import PARTITIONS
    from millstream.benchmarks.nexmark_run import ALREADY_FINISHED, RunOptions, known_query, run_query
    from millstream.cli.run import install_signal_handlers

    # Flat, since `verify` and everyone else look for RESULTS/QUERY/*.parquet.
    folder, by = results / known_query(query), PARTITIONS.get(query, ())
    sink = ms.parquet(folder, partition_by=by, atomic_epochs=False, hold_bytes=hold_bytes)
    store.parent.mkdir(parents=True, exist_ok=True)
    control = ms.Control()
    install_signal_handlers(control)
    options = RunOptions(store, parallelism, every, delay, rate, pause_after)
    report = run_query(query, events, sink, options, control)
    if report.outcome == ALREADY_FINISHED:
        click.echo(f"{query} had already finished; nothing was changed", err=True)
    click.echo(msgspec.json.encode(report).decode())


@nexmark.command()
@click.argument("query")
@click.option("--events", type=FOLDER, required=True, help="Folder with the events' Parquet files.")
@click.option("--results", type=FOLDER, required=True, help="Folder the query's result was written to.")
def verify(query: str, events: Path, results: Path) -> None:
    """Compare the result of QUERY with DuckDB's over the same events; exit 0 if they are the same."""
    from millstream.benchmarks.nexmark_verify import verify as compare

    verdict = compare(query, events, results)
    if verdict.same:
        click.echo(f"{query}: the same {verdict.expected_rows:,} rows as DuckDB")
        return
    click.echo(f"{query}: {verdict.complaint or f'{verdict.different_rows:,} rows differ from DuckDB, such as'}")
    for difference in verdict.differences:
        what = "too many" if difference.copies > 0 else "missing"
        click.echo(f"  {abs(difference.copies)} {what}: {difference.row}")
    sys.exit(1)


@nexmark.command()
@click.argument("queries", nargs=-1)
@click.option("--events", type=FOLDER, required=True, help="Folder with the events' Parquet files.")
@click.option("--kills", type=click.IntRange(min=0), default=20, show_default=True, help="How many, of each trial.")
@click.option(
    "--parallelism",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 2, 3),
    show_default=True,
    help="May be given several times: a trial of each query begins at each, and moves among them.",
)
@click.option("--every", default="200ms", show_default=True, help="Time between checkpoints.")
@click.option("--delay", default="4s", show_default=True, help="How far a row may be behind a newer one.")
@click.option("--longest", default="600ms", show_default=True, help="How long a start lives at most, once at work.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Another seed, other moments.")
@click.option("--folder", type=FOLDER, help="Where trials run; what was wrong stays there.  [default: a temporary one]")
@click.option("--json", "json_file", type=FILE, help="Write every kill to this file.")
def torture(  # noqa: PLR0913, PLR0917 - an option each
    queries: tuple[str, ...],
    events: Path,
    kills: int,
    parallelism: tuple[int, ...],
    every: str,
    delay: str,
    longest: str,
    seed: int,
    folder: Path | None,
    json_file: Path | None,
) -> None:
    """Kill QUERIES (all, if none is given), resume them, compare with DuckDB; exit 0 if all are the same."""
    import tempfile

    import msgspec
    from millstream.benchmarks import nexmark_kills
    from millstream.benchmarks.nexmark_queries import QUERIES
    from millstream.benchmarks.nexmark_run import known_query
    from millstream.engine.time import micros
    from rich.console import Console

    names = [known_query(query) for query in queries] or list(QUERIES)
    alive = micros(longest) / 1_000_000
    options = nexmark_kills.KillOptions(events, kills, parallelism, every, delay, alive, seed)
    where = folder or Path(tempfile.mkdtemp(prefix="nexmark-"))
    trials = nexmark_kills.kill_queries(names, options, where, lambda trial: click.echo(trial.line()))
    Console().print(nexmark_kills.table(trials))
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(trials)))
    if any(trial.violations for trial in trials):
        click.echo(f"what was wrong is in {where}", err=True)
        sys.exit(1)


@nexmark.command()
@click.argument("queries", nargs=-1)
@click.option("--events", type=FOLDER, required=True, help="Folder with the events' Parquet files.")
@click.option(
    "--parallelism",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 2),
    show_default=True,
    help="May be given several times.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Measurements of each; the median is shown.",
)
@click.option("--every", default="1s", show_default=True, help="Time between checkpoints.")
@click.option("--delay", default="4s", show_default=True, help="How far a row may be behind a newer one.")
@click.option("--json", "json_file", type=FILE, help="Write everything measured to this file.")
def bench(
    queries: tuple[str, ...],
    events: Path,
    parallelism: tuple[int, ...],
    runs: int,
    every: str,
    delay: str,
    json_file: Path | None,
) -> None:
    """Measure QUERIES (all, if none is given) beside DuckDB on this machine."""
    import msgspec
    from millstream.benchmarks import nexmark_bench
    from millstream.benchmarks.nexmark_measure import measure
    from millstream.benchmarks.nexmark_queries import QUERIES
    from millstream.benchmarks.nexmark_run import known_query
    from rich.console import Console

    names = [known_query(query) for query in queries] or list(QUERIES)
    options = nexmark_bench.BenchOptions(events, parallelism, runs, every, delay)
    with Console(stderr=True).status("measuring") as status:
        comparisons = nexmark_bench.bench(names, options, measure, status.update)
    # Without a terminal it would be cut to 80 columns.
    Console(width=None if sys.stdout.isatty() else 160).print(nexmark_bench.table(comparisons))
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(nexmark_bench.as_json(comparisons, options))))


@nexmark.command()
@click.argument("queries", nargs=-1)
@click.option("--events", type=FOLDER, multiple=True, required=True, help="Folders of several sizes, one option each.")
@click.option("--parallelism", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=2, show_default=True, help="Of each; the best one counts.")
@click.option("--every", default="1s", show_default=True, help="Time between checkpoints.")
@click.option("--delay", default="4s", show_default=True, help="How far a row may be behind a newer one.")
@click.option("--json", "json_file", type=FILE, help="Write everything measured to this file.")
def growth(
    queries: tuple[str, ...],
    events: tuple[Path, ...],
    parallelism: int,
    runs: int,
    every: str,
    delay: str,
    json_file: Path | None,
) -> None:
    """Measure what an event costs QUERIES (those of bounded state, if none is given) as the input grows."""
    import msgspec
    from millstream.benchmarks import nexmark_growth
    from millstream.benchmarks.nexmark_measure import MILLSTREAM, Task, measure
    from millstream.benchmarks.nexmark_run import known_query
    from rich.console import Console

    names = [known_query(query) for query in queries] or list(nexmark_growth.BOUNDED)
    task = Task(MILLSTREAM, "", "", parallelism, every, delay)
    with Console(stderr=True).status("measuring") as status:
        grown = nexmark_growth.grow(names, events, task, runs, measure, status.update)
    Console().print(nexmark_growth.table(grown))
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(nexmark_growth.as_json(grown))))
