"""``millstream plan``: what a job does, in which stages, and what it guarantees."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from millstream.cli.options import FILE, JOB, PARALLELISM


@click.command()
@JOB
@PARALLELISM
@click.option("--mermaid", "form", flag_value="mermaid", help="Print a Mermaid flowchart instead.")
@click.option("--svg", "form", flag_value="svg", help="Print an SVG picture instead.")
@click.option(
    "--against",
    metavar="STORE",
    type=FILE,
    help="Compare the job with the last checkpoint in STORE instead: what is kept, new, migrated, refused or dropped.",
)
@click.option("--json", "as_lines", is_flag=True, help="With --against: print a JSON object per line.")
def plan(job: str, parallelism: int, form: str | None, against: Path | None, as_lines: bool) -> None:
    """Show how the job in FILE would run, and what it guarantees. Nothing is read or written.

    NAME says which job is meant if FILE makes several.

    Shown are the stages (operators of a stage are fused: batches go through them without a queue between), the
    exchanges between stages, columns that are pruned since nobody needs them, what is pushed down into sources, and
    for every path from a source to a sink the guarantee and why.

    With --against the exit code is 0 if the job would go on from the checkpoint, and 3 if it would refuse to, since
    state would be lost.

    \b
    millstream plan revenue.py --parallelism 2
    millstream plan revenue.py --svg > revenue.svg
    millstream plan revenue.py --against revenue.duckdb
    """
    from millstream.cli.loading import load_job

    loaded = load_job(job)
    made = loaded.plan(parallelism)
    if against is not None:
        from millstream.cli.against import show_against

        sys.exit(show_against(made, against, as_lines))
    if as_lines:
        raise click.UsageError("--json goes with --against STORE")
    match form:
        case "mermaid":
            from millstream.cli.mermaid import mermaid_text

            click.echo(mermaid_text(made))
        case "svg":
            from millstream.cli.svg import svg_text

            click.echo(svg_text(made))
        case _:
            from millstream.cli.plan_tree import guarantees, plan_tree
            from millstream.cli.tables import console

            out = console()
            out.print(plan_tree(made, loaded.graph))
            out.print(guarantees(made))
