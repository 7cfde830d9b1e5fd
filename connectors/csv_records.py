"""Where the records of CSV text end: a newline inside quotes ends none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from millstream.engine.jit import kernel


@kernel
def quoted_record_ends(text: npt.NDArray[np.uint8], delimiter: int, quote: int) -> npt.NDArray[np.int64]:
    """Return the offset after each newline that ends a record, and last whether the text stops inside quotes (0 or 1).

    As in Arrow's parser, a quote opens quotes only at the start of a field, and two quotes inside stand for one.

    >>> text = np.frombuffer(b'a,"x\\ny"\\nb"c,d\\n"open', np.uint8)
    >>> quoted_record_ends(text, ord(","), ord('"')).tolist()
    [8, 14, 1]
    """
    ends = np.empty(16, np.int64)
    count = 0
    at_field_start, quoted = True, False
    i = 0
    while i < len(text):
        byte = text[i]
        if quoted:
            if byte == quote:
                if i + 1 < len(text) and text[i + 1] == quote:
                    i += 1
                else:
                    quoted = False
        elif byte == quote and at_field_start:
            quoted, at_field_start = True, False
        elif byte == 10:
            at_field_start = True
            if count + 1 == len(ends):
                longer = np.empty(2 * len(ends), np.int64)
                longer[:count] = ends[:count]
                ends = longer
            ends[count] = i + 1
            count += 1
        else:
            at_field_start = byte == delimiter or byte == 13  # noqa: PLR1714 - quicker once compiled
        i += 1
    ends[count] = 1 if quoted else 0
    return ends[: count + 1]
