"""Text made alike, so that what differs only in writing compares as equal."""

import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

# a Chinese character counts as a word: nothing parts the words there
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")

PREAMBLE_PARAGRAPHS = 3  # at most
MANY, SHARE = 4, 0.1  # texts that begin alike, at least so many and such a share of all: a context has few questions


def normal(text: str) -> str:
    """Text with case, Unicode form and spacing made alike."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def preambles(count: int, texts: Callable[[], Iterable[str]]) -> NDArray[np.int32]:
    """Characters of each of so many texts that are paragraphs with which many begin: a system text, an instruction.

    With them, questions that have nothing else in common would seem nearly the same. `texts` gives the texts anew.
    """
    cuts = np.zeros(count, np.int32)
    for _ in range(PREAMBLE_PARAGRAPHS):
        # hashes, not the paragraphs: most texts have a single one, which is all of it
        hashes = (hash(head(text, int(cut))) for text, cut in zip(texts(), cuts, strict=True))
        heads = np.fromiter(hashes, np.int64, count)
        found, counts = np.unique(heads, return_counts=True)
        shared = np.isin(heads, found[counts >= max(MANY, SHARE * count)])
        if not shared.any():
            break
        before = cuts.copy()
        for place, text in enumerate(texts()):
            begins = int(cuts[place]) + len(head(text, int(cuts[place]))) + 2
            if shared[place] and begins < len(text):
                cuts[place] = begins
        if np.array_equal(before, cuts):
            break
    return cuts


def head(text: str, start: int) -> str:
    """The paragraph of a text that begins there."""
    end = text.find("\n\n", start)
    return text[start:] if end < 0 else text[start:end]


def words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text))


def folded(name: str) -> str:
    """A column's name as it is compared: `Complex CoT` and `complex-cot` are `complex_cot`."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())
