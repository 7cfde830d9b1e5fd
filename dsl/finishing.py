"""What ``Stream.final`` gives."""

from __future__ import annotations

from millstream.engine.graph import Edge
from millstream.stream import Stream

LATE = "late"


class FinalStream(Stream):
    """What was left in the end, and beside it what has changed since."""

    @property
    def late(self) -> Stream:
        """Changes after the end, a changelog: those of rows that were given and cannot be taken back any more.

        There are such when dead letters are replayed into a job that has ended. What was given and these changes
        together come to what is left now.
        """
        return Stream(self._graph, Edge(self._edge.node, LATE), None)
