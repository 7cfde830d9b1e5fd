"""From old and new results to the changes of a changelog. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.operators.row_numbers import same_values


def result_changes(
    was: Bools, there: Bools, old: Sequence[pa.Array], new: Sequence[pa.Array]
) -> tuple[Bools, Bools, list[pa.Array]]:
    """Find out whose results are to be taken back, and whose to be emitted: where old and new ones differ.

    Args:
        was: which of n groups had a result, ``there`` which have one now, shape (n,) each.
        old: the columns of the results of those that had one.
        new: likewise of those that have one.

    Returns:
        Which groups' old results go, and which groups' new ones come, shape (n,) each; and the columns, those that go
        before those that come.

    >>> yes = np.array([True, True])
    >>> gone, come, columns = result_changes(~yes | [False, True], yes, [pa.array([5])], [pa.array([1, 6])])
    >>> gone.tolist(), come.tolist(), columns[0].to_pylist()
    ([False, True], [True, True], [5, 1, 6])
    """
    gone, come = was.copy(), there.copy()
    both = was & there
    left = pa.array((np.cumsum(was) - 1)[both])
    right = pa.array((np.cumsum(there) - 1)[both])
    same = np.ones(len(left), np.bool_)
    for a, b in zip(old, new, strict=True):
        same &= same_values(a.take(left), b.take(right))
    gone[both] = come[both] = ~same
    leaving, coming = pa.array(gone[was]), pa.array(come[there])
    columns = [pa.concat_arrays([a.filter(leaving), b.filter(coming)]) for a, b in zip(old, new, strict=True)]
    return gone, come, columns


def change_weights(gone: Bools, come: Bools) -> Ints:
    """Return the weights of rows that go and of rows that come after them: -1 and 1."""
    leaving, coming = int(gone.sum()), int(come.sum())
    return np.repeat(np.array([-1, 1]), [leaving, coming])
