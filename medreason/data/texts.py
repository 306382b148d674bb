"""Columns of a table that lies on the disk, as sequences of texts, of examples, and as an array."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medreason.models.prompts import Example

PARTS = ("question", "reasoning", "answer")  # of an example
Item = TypeVar("Item")


class Lazy(Sequence[Item]):
    """A sequence whose items are made when they are asked for, by `at`."""

    def at(self, place: int) -> Item:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(len(self))[index]  # also counts from the end, and raises IndexError beyond it
        return self.at(places) if isinstance(places, int) else [self.at(place) for place in places]


class Texts(Lazy[str]):
    """A column of texts, each read from the disk when it is asked for."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.chunks = column.chunks
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def at(self, place: int) -> str:
        chunk = bisect_right(self.ends, place)
        text: str = self.chunks[chunk][place - self.ends[chunk]].as_py()  # counted from the chunk's end
        return text

    def __iter__(self) -> Iterator[str]:
        for chunk in self.chunks:
            yield from chunk.to_pylist()


class Examples(Lazy[Example]):
    """Examples of a corpus, all or those of some indices, each read from the disk when it is asked for."""

    def __init__(self, table: pa.Table, indices: NDArray[np.int64] | None = None) -> None:
        self.parts = [Texts(table[name]) for name in PARTS]
        self.indices = indices

    def __len__(self) -> int:
        return len(self.parts[0] if self.indices is None else self.indices)

    def at(self, place: int) -> Example:
        row = place if self.indices is None else int(self.indices[place])
        return Example(*(texts.at(row) for texts in self.parts))

    def __iter__(self) -> Iterator[Example]:
        return map(Example, *self.parts) if self.indices is None else super().__iter__()


def cells(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Cells of one width as an array, (rows, bytes) uint8, in memory."""
    width = column.type.byte_width
    parts = [np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
             for chunk in column.chunks if len(chunk)]  # fmt: skip
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, width)
