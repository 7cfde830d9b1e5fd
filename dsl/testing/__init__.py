"""The kit the engine's own operators, sources, sinks and jobs are tested with; use it for yours.

``check_operator`` runs one operator through the same script row by row, at once, in parallel, and restored after
every barrier. ``check_source`` reads a source on from every position it can stop at. ``check_sink`` crashes a sink
before, between and after the steps of a checkpoint and looks at what others see. ``simulate`` runs a whole job on one
thread in an order drawn from a seed, and crashes it. What the kit does not cover: real threads, real kills, disks
that fill up.
"""

from __future__ import annotations

from millstream.engine.element import Watermark
from millstream.engine.time import ManualClock
from millstream.testing.operators import BARRIER, Ended, On, Tick, check_operator
from millstream.testing.rows import rows_of
from millstream.testing.simulation import SimulatedCrash, Simulation, simulate
from millstream.testing.sinks import check_sink
from millstream.testing.sources import check_source

__all__ = [
    "BARRIER",
    "Ended",
    "ManualClock",
    "On",
    "SimulatedCrash",
    "Simulation",
    "Tick",
    "Watermark",
    "check_operator",
    "check_sink",
    "check_source",
    "rows_of",
    "simulate",
]
