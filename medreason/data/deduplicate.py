"""Which examples repeat others: the same question and answer, or nearly the same question.

Near is measured on the questions' runs of three words (Jaccard similarity), found by MinHash: the runs of all pairs
need not be compared, only those of pairs whose sketches collide.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from medreason.data.normalize import words

SHINGLE = 3  # words
PERMUTATIONS = 126  # length of a sketch; it has many divisors, so many ways to cut it into bands
RECALL = 0.995  # least probability with which a pair of the similarity asked for is found
AT_ONCE = 1024  # questions
MARGIN = 0.1  # 2.8 standard deviations of a sketch's estimate at similarity 0.8


def exact_duplicates(questions: Sequence[str], answers: Sequence[str]) -> dict[int, int]:
    """Example -> the first one with the same question and answer. Texts are normal (wording.normal)."""
    first: dict[tuple[str, str], int] = {}
    repeats = {}
    for number, key in enumerate(zip(questions, answers, strict=True)):
        if first.setdefault(key, number) != number:
            repeats[number] = first[key]
    return repeats


def near_duplicates(questions: Sequence[str], similarity: float) -> dict[int, int]:
    """Example -> the first one whose question is at least so similar to its own. Texts are normal.

    Chains count: where b is near a, and c near b alone, c leads to a too.
    """
    from rensa import RMinHash, RMinHashLSH

    sketches = []
    for start in range(0, len(questions), AT_ONCE):
        runs = [list(shingles(question)) for question in questions[start : start + AT_ONCE]]
        sketches += RMinHash.from_token_sets(runs, num_perm=PERMUTATIONS, seed=0)
    digests = np.array([sketch.digest() for sketch in sketches], np.uint32).reshape(-1, PERMUTATIONS)
    index = RMinHashLSH(threshold=similarity, num_perm=PERMUTATIONS, num_bands=bands(similarity))
    first: dict[int, int] = {}
    for number, sketch in enumerate(sketches):
        earlier = np.sort(np.array(index.query(sketch), np.int64))
        estimate = np.mean(digests[earlier] == digests[number], axis=1)
        for other in earlier[estimate >= similarity - MARGIN].tolist():
            alike = root(first, other) == root(first, number)
            if not alike and jaccard(shingles(questions[number]), shingles(questions[other])) >= similarity:
                merge(first, number, other)
        index.insert(number, sketch)
    return {number: root(first, number) for number in first}


def bands(similarity: float) -> int:
    """The fewest bands of a sketch in which a pair so similar collides with probability RECALL."""
    for rows in (9, 7, 6, 3, 2):
        count = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** count >= RECALL:
            return count
    return PERMUTATIONS


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared members over all members."""
    shared = len(one & other)
    return shared / max(1, len(one) + len(other) - shared)


@lru_cache(4096)  # all of a large corpus's would take as much memory as its texts
def shingles(question: str) -> frozenset[str]:
    """Runs of three words; a shorter text is one run."""
    parts = words(question)
    runs = frozenset(map(" ".join, zip(*(parts[start:] for start in range(SHINGLE)), strict=False)))
    return runs or frozenset([" ".join(parts)])


def root(first: dict[int, int], number: int) -> int:
    while number in first:
        number = first[number]
    return number


def merge(first: dict[int, int], one: int, other: int) -> None:
    """Leads the later of two groups to the earlier one's first member."""
    low, high = sorted((root(first, one), root(first, other)))
    if low != high:
        first[high] = low
