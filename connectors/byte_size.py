"""Sizes as users write them."""

from __future__ import annotations

import re
from typing import Final

from millstream.engine.errors import JobError

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?)?B")
_UNITS: Final = {None: 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def byte_size(size: int | str) -> int:
    """Return a size as bytes.

    >>> byte_size("128MB"), byte_size("1.5 KiB"), byte_size(10)
    (128000000, 1536, 10)
    """
    if isinstance(size, int):
        if size < 0:
            raise JobError(f"a size cannot be negative, got {size}")
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise JobError(f"{size!r} is not a size: write a number and a unit (B, KB, MB, GB, KiB …), as in '128MB'")
    return round(float(match[1]) * _UNITS[match[2]])
