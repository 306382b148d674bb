"""Columns of a table that lies on the disk, as sequences of texts, of examples, and as an array."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medreason.models.prompts import Example

PARTS = ("question", "reasoning", "answer")  # of an example


class Texts(Sequence[str]):
    """A column of texts, each read from the disk when it is asked for."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.chunks = column.chunks
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        chunk = bisect_right(self.ends, index)
        text: str = self.chunks[chunk][index - self.ends[chunk]].as_py()  # counted from the chunk's end
        return text

    def __iter__(self) -> Iterator[str]:
        for chunk in self.chunks:
            yield from chunk.to_pylist()


class Examples(Sequence[Example]):
    """Examples of a corpus, all or those of some indices, each read from the disk when it is asked for."""

    def __init__(self, table: pa.Table, indices: NDArray[np.int64] | None = None) -> None:
        self.parts = [Texts(table[name]) for name in PARTS]
        self.indices = indices

    def __len__(self) -> int:
        return len(self.parts[0] if self.indices is None else self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index if self.indices is None else int(self.indices[index])
        return Example(*(texts[place] for texts in self.parts))

    def __iter__(self) -> Iterator[Example]:
        if self.indices is None:
            return map(Example, *self.parts)
        return (self[place] for place in range(len(self)))


def cells(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Cells of one width as an array, (rows, bytes) uint8, in memory."""
    width = column.type.byte_width
    parts = [np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
             for chunk in column.chunks if len(chunk)]  # fmt: skip
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, width)
