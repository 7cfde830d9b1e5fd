"""The command line: ``millstream run``, ``plan`` and, from other packages, whatever they register.

Further commands are found through the entry point group ``millstream.commands``, so that nothing here imports what
stands above it. The modules of commands import what they need when they run: ``--help`` must not wait for Arrow.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

import click
from millstream import __version__
from millstream.cli.checkpoints import checkpoints
from millstream.cli.deadletters import deadletters
from millstream.cli.explain_stuck import explain_stuck
from millstream.cli.fork import fork
from millstream.cli.init import init
from millstream.cli.plan import plan
from millstream.cli.run import run
from millstream.cli.savepoint import savepoint
from millstream.cli.state import state
from millstream.cli.store import store
from millstream.cli.torture import torture
from millstream.engine.errors import MillstreamError


class _Commands(click.Group):
    """The built-in commands and those of installed packages; errors raised on purpose are told without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(e.name for e in entry_points(group="millstream.commands"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in entry_points(group="millstream.commands", name=cmd_name):
            command = entry.load()
            assert isinstance(command, click.Command), f"{entry.value} is not a click command"
            return command
        return None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MillstreamError as error:
            from millstream.cli.errors import exit_code, tell

            tell(error)
            sys.exit(exit_code(error))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="millstream")
def commands() -> None:
    """Exactly-once stream processing in Python.

    \b
    millstream init revenue.py            a first job
    millstream run revenue.py             run it; run it again and it goes on where it was
    millstream state ls revenue.duckdb    look at what it keeps
    """


for command in (checkpoints, deadletters, explain_stuck, fork, init, plan, run, savepoint, state, store, torture):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on these arguments, or the process's own, and exit."""
    commands(args=arguments)
