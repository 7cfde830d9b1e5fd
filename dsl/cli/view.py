"""What a running job looks like on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from millstream.cli.recent import Recent
from millstream.cli.text import counted, noteworthy, show_bytes, show_time
from millstream.engine.runtime.coordinator import CheckpointStats
from millstream.engine.runtime.monitor import JobStatus
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

NARROW = 64
"""Columns of a terminal on which watermarks go without their date."""


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to see of a job at one moment.

    Attributes:
        checkpoint_age: seconds since the last checkpoint; None: there has been none since the start.
        stopping: whether it has been told to stop.
    """

    title: str
    status: JobStatus
    recent: Recent
    checkpoint_age: float | None
    stopping: bool


def render(look: Look, width: int) -> RenderableType:
    """Draw a job for a terminal of so many columns."""
    status, recent = look.status, look.recent
    rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    # Names give way on a narrow terminal, numbers do not.
    rows.add_column("", no_wrap=True, overflow="ellipsis", ratio=1, min_width=6)
    for heading in ("rows", "rows/s", "watermark"):
        rows.add_column(heading, justify="right", no_wrap=True)
    rates = recent.read_rates()
    for name, read in status.rows_read.items():
        watermark = status.watermarks.get(name)
        time = "" if watermark is None else show_time(watermark).partition(".")[0]
        time = time.rpartition(" ")[2] if width < NARROW else time
        rows.add_row(Text(f"← {name}"), f"{read:,}", f"{rates[name]:,.0f}", time)
    rates = recent.written_rates()
    for name, written in status.rows_written.items():
        rows.add_row(Text(f"→ {name}"), f"{written:,}", f"{rates[name]:,.0f}", "")
    lines = [
        *_counters(status.counters, status.dead_letters),
        _line("checkpoint: ", _checkpoint(status.checkpoints, look.checkpoint_age, status.waiting_for)),
        *([_line("memory: ", _memory(status.memory))] if status.memory else []),
        _line("back-pressure: ", _waiting(recent.back_pressure())),
    ]
    if look.stopping:
        lines.append(Text("stopping after a last checkpoint; Ctrl-C again stops at once", style="yellow"))
    return Group(_line("", look.title, style="bold"), rows, *lines)


def _line(label: str, text: str, style: str = "") -> Text:
    return Text.assemble((label, "dim"), (text, style), no_wrap=True, overflow="ellipsis")


def _counters(counters: Mapping[str, Mapping[str, int]], dead_letters: Mapping[str, int]) -> list[Text]:
    found = [
        _line(f"{key.replace('_', ' ')}: ", f"{number:,} ({operator})", style="yellow")
        for operator, counts in noteworthy(counters).items()
        for key, number in counts.items()
    ]
    dead = [(source, number) for source, number in dead_letters.items() if number]
    return found + [_line("dead letters: ", f"{number:,} ({source})", style="yellow") for source, number in dead]


def _checkpoint(stats: CheckpointStats, age: float | None, waiting_for: tuple[str, ...]) -> str:
    if age is None:
        text = f"none yet, resumed from {stats.last_epoch}" if stats.last_epoch else "none yet"
    else:
        took = f"{stats.last_seconds * 1000:.0f} ms, {counted(stats.last_rows, 'row')} of state"
        text = f"{stats.last_epoch}, {age:.0f} s ago ({took})"
    if stats.failed:
        text += f"; {stats.failed} failed"
    if waiting_for:
        text += f"; the next waits for {', '.join(name.partition(':')[2] for name in waiting_for)}"
    return text


def _memory(held: Mapping[str, int]) -> str:
    largest = sorted(held.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in largest[:3])
    return f"{show_bytes(sum(held.values()))} ({parts})"


def _waiting(shares: Mapping[str, float]) -> str:
    if not shares:
        return "none"
    return ", ".join(f"{name} waits for room {share:.0%} of the time" for name, share in shares.items())
