"""What the operators of a job hold together, and what is said when it is too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from millstream.engine.store.types import Memory


def merge_memory(subtasks: Iterable[Memory]) -> dict[str, dict[str, int]]:
    """Add up what the subtasks of each operator hold.

    >>> merge_memory([{"o1": {"keys": 3}}, {"o1": {"keys": 4, "rows": 1}}])
    {'o1': {'keys': 7, 'rows': 1}}
    """
    whole: dict[str, dict[str, int]] = {}
    for held in subtasks:
        for id_, parts in held.items():
            of = whole.setdefault(id_, {})
            for name, size in parts.items():
                of[name] = of.get(name, 0) + size
    return whole


def total_memory(memory: Memory) -> int:
    """Return the bytes of all operators together."""
    return sum(size for parts in memory.values() for size in parts.values())


def explain_memory(memory: Memory, names: Mapping[str, str], limit: int, epoch: int) -> str:
    """Say which operator holds the most, and what of.

    >>> explain_memory({"o1": {"keys": 3_000_000}}, {"o1": "deduplicate 'once'"}, 2_000_000, 7).partition(":")[0]
    "the job's state holds 3.0 MB, more than the 2.0 MB it may (--memory)"
    """
    id_, parts = max(memory.items(), key=lambda item: sum(item[1].values()))
    part, size = max(parts.items(), key=lambda item: item[1])
    total = _megabytes(total_memory(memory))
    return (
        f"the job's state holds {total}, more than the {_megabytes(limit)} it may (--memory): "
        f"{names.get(id_, id_)} holds {_megabytes(sum(parts.values()))}, of which {_megabytes(size)} is its {part!r}. "
        f"Everything up to epoch {epoch} is committed and visible: run the job again with more memory to go on, or "
        f"have it remember less (a shorter window, within= or time-to-live)"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
