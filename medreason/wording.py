"""Text made alike, so that what differs only in writing compares as equal."""

import re
import unicodedata

# a Chinese character counts as a word: nothing parts the words there
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")


def normal(text: str) -> str:
    """Text with case, Unicode form and spacing made alike."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text))


def folded(name: str) -> str:
    """A column's name as it is compared: `Complex CoT` and `complex-cot` are `complex_cot`."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())
