"""Text made alike, so that what differs only in writing compares as equal."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# a Chinese character counts as a word: nothing parts the words there
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")

PREAMBLE_PARAGRAPHS = 3  # at most
MANY, SHARE = 4, 0.1  # texts that begin alike, at least so many and such a share of all: a context has few questions


def normal(text: str) -> str:
    """Text with case, Unicode form and spacing made alike."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def without_preamble(texts: Sequence[str]) -> list[str]:
    """Texts without the paragraphs that many of them begin with: a system text, an instruction.

    With them, questions that have nothing else in common would seem nearly the same.
    """
    texts = list(texts)
    for _ in range(PREAMBLE_PARAGRAPHS):
        heads = [text.partition("\n\n")[0] for text in texts]
        shared = {head for head, count in Counter(heads).items() if count >= max(MANY, SHARE * len(texts))}
        cut = [text.partition("\n\n")[2] if head in shared else "" for head, text in zip(heads, texts, strict=True)]
        if not any(cut):
            break
        texts = [rest or text for rest, text in zip(cut, texts, strict=True)]
    return texts


def words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text))


def folded(name: str) -> str:
    """A column's name as it is compared: `Complex CoT` and `complex-cot` are `complex_cot`."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())
