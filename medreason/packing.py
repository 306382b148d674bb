"""Documents of many lengths -> rows of one length, none of them cut, almost nothing wasted.

    lengths      A 3   B 2   C 4   D 1              row_tokens 6

    row 0        tokens      C C C C B B            row 1     A A A D . .
                 positions   0 1 2 3 0 1                      0 1 2 0 0 1
                 lengths     4 2                              3 1 2         (the padding is a document too)

Positions start again at each document: attention and rotary embedding read the borders from them (on a GPU, from
`lengths`), so no document sees another.
"""

import bisect
from collections.abc import Sequence


def pack(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's sum at most `row_tokens`, by best-fit decreasing.

    Every document goes into the fullest row that still has room, longest first: at most 11/9 of the fewest rows
    plus one (Johnson 1974), in O(n log n) comparisons. Equal lengths keep their order, so the result depends on
    nothing else. Raises ValueError for a document longer than a row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > row_tokens:
            raise ValueError(f"document {index} has {length} tokens, a row {row_tokens}")
        spot = bisect.bisect_left(free, (length, -1))
        if spot == len(free):
            rows.append([index])
            left, row = row_tokens, len(rows) - 1
        else:
            left, row = free.pop(spot)
            rows[row].append(index)
        if left > length:
            bisect.insort(free, (left - length, row))
    return rows


def fill(lengths: Sequence[int], rows: Sequence[Sequence[int]], row_tokens: int) -> float:
    """Share of the rows' tokens that are document, in (0, 1]."""
    return sum(lengths) / (len(rows) * row_tokens)
