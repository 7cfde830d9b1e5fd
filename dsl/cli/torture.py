"""``millstream torture``: kills a job again and again, and shows that nobody could have noticed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from millstream.cli.options import JOB, positive_time


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    del context, parameter
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{text!r}: write numbers from 1 on, as in 1,2,3")
    return numbers


@click.command()
@JOB
@click.option("--kills", default=100, show_default=True, metavar="N", type=click.IntRange(min=1))
@click.option(
    "--seed", default=1, show_default=True, metavar="N", help="Draws how and when; the machine does the rest."
)
@click.option(
    "--parallelism",
    default="1,2",
    show_default=True,
    metavar="N,N",
    callback=_numbers,
    help="Each start draws one of them.",
)
@click.option(
    "--every", default="100ms", show_default=True, metavar="TIME", callback=positive_time, help="Between checkpoints."
)
@click.option(
    "--longest",
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=0.01),
    help="A start is left alive so long at most, once it has taken a checkpoint.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where it runs, and where ledger.json and job.log stay.  [default: a new one for temporary files]",
)
def torture(
    job: str, kills: int, seed: int, parallelism: tuple[int, ...], every: str, longest: float, folder: Path | None
) -> None:
    """Kill the job in FILE again and again; its output must be that of a run that nobody disturbed.

    The job runs to its end once, then once more under kills: SIGKILL at random moments, at fail points in the middle of
    checkpoints, commits and recoveries, and after SIGSTOP with a second start beside the stopped process. Its input
    must end, and comes more slowly than usual, so that it lasts. Nothing reaches its sinks: what they would be given
    goes to files in the folder, and is compared there, and so are its dead letters.

    Exit code: 0 the output is the same, 1 it is not, or the job did not get on.

    \b
    millstream torture revenue.py --kills 100
    millstream torture jobs.py:revenue --kills 1000 --parallelism 1,2,3 --seed 7
    """
    import msgspec
    from millstream.cli.tables import console
    from millstream.torture.ledger import tables
    from millstream.torture.trial import TortureOptions, Trial

    where = folder or Path(tempfile.mkdtemp(prefix="millstream-torture-"))
    where.mkdir(parents=True, exist_ok=True)
    if any(where.iterdir()):
        raise click.UsageError(f"{where} is not empty; give a new folder")
    options = TortureOptions(job, kills, seed, parallelism, every, longest)
    ledger = Trial(options, where.resolve(), lambda line: click.echo(line, err=True)).run()
    (where / "ledger.json").write_bytes(msgspec.json.format(msgspec.json.encode(ledger)))
    for table in tables(ledger):
        console().print(table)
    for violation in ledger.violations:
        click.echo(f"VIOLATION: {violation}")
    click.echo(f"{ledger.verdict}. Ledger and logs: {where}")
    sys.exit(1 if ledger.violations else 0)
