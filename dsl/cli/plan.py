"""``millstream plan``: what a job does, in which stages, and what it guarantees."""

from __future__ import annotations

import click
from millstream.cli.options import JOB, PARALLELISM


@click.command()
@JOB
@PARALLELISM
@click.option("--mermaid", "form", flag_value="mermaid", help="Print a Mermaid flowchart instead.")
@click.option("--svg", "form", flag_value="svg", help="Print an SVG picture instead.")
def plan(job: str, parallelism: int, form: str | None) -> None:
    """Show how the job in FILE would run, and what it guarantees. Nothing is read or written.

    NAME says which job is meant if FILE makes several.

    Shown are the stages (operators of a stage are fused: batches go through them without a queue between), the
    exchanges between stages, columns that are pruned since nobody needs them, what is pushed down into sources, and
    for every path from a source to a sink the guarantee and why.

    \b
    millstream plan revenue.py --parallelism 2
    millstream plan revenue.py --svg > revenue.svg
    """
    from millstream.cli.loading import load_job

    loaded = load_job(job)
    made = loaded.plan(parallelism)
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
