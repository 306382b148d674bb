"""Documents of many lengths -> rows of one length, none of them cut, almost nothing wasted.

    lengths      A 3   B 2   C 4   D 1              row_tokens 6

    row 0        tokens      C C C C B B            row 1     A A A D . .
                 positions   0 1 2 3 0 1                      0 1 2 0 0 1
                 lengths     4 2                              3 1 2         (the padding is a document too)

Positions start again at each document: attention and rotary embedding read the borders from them (on a GPU, from
`lengths`), so no document sees another.
"""

import bisect
import random
from collections.abc import Sequence

import numpy as np

Rows = list[list[int]]  # indices of documents
CLOSING = 2.6  # documents of mean length that still fit a row when its last ones are looked for: tried, 1.6 to 3.2


def pack(lengths: Sequence[int], row_tokens: int) -> Rows:
    """Rows of indices into `lengths`, each row's sum at most `row_tokens`, almost as few as can be.

    The better of two ways: `draw_and_close` where a row holds more than about four documents, `best_fit` below.
    Deterministic. Raises ValueError for a document longer than a row.
    """
    for index, length in enumerate(lengths):
        if length > row_tokens:
            raise ValueError(f"document {index} has {length} tokens, a row {row_tokens}")
    return min(draw_and_close(lengths, row_tokens), best_fit(lengths, row_tokens), key=len)


def draw_and_close(lengths: Sequence[int], row_tokens: int) -> Rows:
    """Documents drawn at random until a row has room for two or three more, then the one or two that fill it best.

    While many documents wait, some pair of them fills a row to the last few tokens. Rows are mixed as by chance: an
    optimizer step sees long documents and short ones.
    """
    shuffled = random.Random(0).sample(range(len(lengths)), len(lengths))
    waiting = Waiting(lengths, shuffled, row_tokens)
    enough = CLOSING * sum(lengths) / max(1, len(lengths))
    draws = iter(shuffled)
    rows: Rows = []
    while waiting.longest(row_tokens):
        row: list[int] = []
        room = row_tokens
        while longest := waiting.longest(room):
            drawn = next((lengths[i] for i in draws if waiting.counts[lengths[i]]), 0) if room > enough else 0
            chosen = (drawn,) if 0 < drawn <= room else waiting.best_pair(room) or (longest,)
            row += map(waiting.take, chosen)
            room -= sum(chosen)
        rows.append(row)
    return rows


class Waiting:
    """Documents that no row has yet, by length: documents of one length are as good as each other."""

    def __init__(self, lengths: Sequence[int], order: Sequence[int], row_tokens: int) -> None:
        self.counts = np.bincount(np.array(lengths, int), minlength=row_tokens + 1)
        self.members: dict[int, list[int]] = {}
        for index in order:
            self.members.setdefault(lengths[index], []).append(index)
        self.tabulate()

    def tabulate(self) -> None:
        """The lengths there are, and for every room the longest of them that fits."""
        self.there = np.flatnonzero(self.counts)
        self.fits = np.maximum.accumulate(np.where(self.counts > 0, np.arange(len(self.counts)), 0))

    def longest(self, room: int) -> int:
        """The longest length that fits, 0 for none."""
        return int(self.fits[room])

    def best_pair(self, room: int) -> tuple[int, int] | None:
        """Two lengths that fill the room best; None where one document alone fills it as well."""
        shorter = self.there[self.there <= room // 2]
        longer = self.fits[room - shorter]
        both = np.where((longer == shorter) & (self.counts[shorter] < 2), 0, shorter + longer)
        if not len(both) or both.max() <= self.longest(room):
            return None
        best = int(both.argmax())
        return int(longer[best]), int(shorter[best])

    def take(self, length: int) -> int:
        """A document of this length, gone from here."""
        self.counts[length] -= 1
        if not self.counts[length]:
            self.tabulate()
        return self.members[length].pop()


def best_fit(lengths: Sequence[int], row_tokens: int) -> Rows:
    """Every document into the fullest row that still has room, longest first.

    At most 11/9 of the fewest rows possible plus one (Johnson 1974), in O(n log n) comparisons. The longest documents
    stand together, and so do the shortest.
    """
    rows: Rows = []
    free: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
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
