"""What flows through a channel: batches, watermarks, barriers, and the word that an input is idle."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType, TypeAlias

import pyarrow as pa

Epoch = NewType("Epoch", int)
"""The number of a checkpoint; the first is 1."""

Generation = NewType("Generation", int)
"""One start of the job; the first is 1."""


@dataclass(frozen=True, slots=True)
class Watermark:
    """No row with an event time below ``time`` (microseconds) is still to come, save late ones."""

    time: int


class BarrierKind(enum.Enum):
    """What follows the barrier's checkpoint."""

    CHECKPOINT = "checkpoint"  # the job goes on
    STOP = "stop"  # sources read nothing more in this generation; the job can be resumed
    FINAL = "final"  # every source has ended: sinks hold nothing back


@dataclass(frozen=True, slots=True)
class Barrier:
    """Cuts the stream: rows before it belong to ``epoch``, rows after it to the next one."""

    epoch: Epoch
    kind: BarrierKind = BarrierKind.CHECKPOINT


@dataclass(frozen=True, slots=True)
class Idle:
    """This input has had nothing for a while: it no longer holds the watermark back, until its next element."""


Element: TypeAlias = pa.RecordBatch | Watermark | Barrier | Idle
