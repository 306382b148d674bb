"""Which examples repeat others: the same question and answer, or nearly the same question.

Near is measured on the questions' runs of three words (Jaccard similarity), found by MinHash: the runs of all pairs
need not be compared, only those of pairs whose sketches collide. Sketches are cut into bands; those that are the same
in a band collide. Memory holds one band at a time, and of each example a few numbers.

    example          0   1   2   3   4
    a band's key     A   B   A   A   B
    the one before   .   .   0   2   1        of the same key: from 3 the chain leads to 2 and on to 0
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medreason.core.cache import array_on_disk
from medreason.data.normalize import words

SHINGLE = 3  # words
PERMUTATIONS = 126  # length of a sketch; it has many divisors, so many ways to cut it into bands
RECALL = 0.995  # least probability with which a pair of the similarity asked for is found
AT_ONCE = 1024  # questions
PAIRS_AT_ONCE = 1 << 20  # collisions, of which those of several bands are the same pairs
MARGIN = 0.1  # 2.8 standard deviations of a sketch's estimate at similarity 0.8
KEPT_RUNS = 4096  # questions whose runs are kept: all of a large corpus's would take as much memory as its texts

Repeats = tuple[NDArray[np.int64], NDArray[np.int64]]  # examples, and for each the first one that it repeats


def exact_duplicates(keys: NDArray[np.uint64]) -> Repeats:
    """Examples whose key, (examples, 2) uint64, an earlier one has, in order."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    same = np.zeros(len(order), bool)
    same[1:] = np.all(keys[order[1:]] == keys[order[:-1]], axis=1)
    firsts = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    repeats = order[same]
    by_number = np.argsort(repeats)
    return repeats[by_number], firsts[same][by_number]


def near_duplicates(
    questions: Sequence[str], similarity: float, progress: Callable[[int], None] = lambda done: None
) -> Repeats:
    """Examples whose question is at least so similar to an earlier one's, in the order in which that shows.

    Texts are normal (normalize.normal); they are read again and again. Chains count: where b is near a, and c near b
    alone, c leads to a too. `progress` is told how many have a sketch, which takes the most time.
    """
    count = len(questions)
    keys = np.zeros((count, 2), np.uint64)  # the same for the same runs; one column would do
    sketches = array_on_disk(np.uint32, (count, PERMUTATIONS), sketched(questions, keys[:, 0], progress))
    runs: Callable[[int], frozenset[str]] = lru_cache(KEPT_RUNS)(lambda number: shingles(questions[number]))
    parents, found = array("q", range(count)), array("q")
    for numbers, others in colliding(sketches, exact_duplicates(keys), bands(similarity)):
        estimate = np.empty(len(numbers))
        for start in range(0, len(numbers), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            estimate[part] = np.mean(sketches[others[part]] == sketches[numbers[part]], axis=1)
        alike = estimate >= similarity - MARGIN
        for number, other in zip(numbers[alike].tolist(), others[alike].tolist(), strict=True):
            low, high = sorted((root(parents, number), root(parents, other)))
            if low != high and jaccard(runs(number), runs(other)) >= similarity:
                parents[high] = low
                found.append(high)
    firsts = array("q", (root(parents, number) for number in found))
    return np.array(found, np.int64), np.array(firsts, np.int64)


def sketched(
    questions: Sequence[str], keys: NDArray[np.uint64], progress: Callable[[int], None]
) -> Iterator[NDArray[np.uint32]]:
    """MinHash sketches, (questions, PERMUTATIONS) uint32, so many at a time; fills `keys` with a hash of the runs."""
    from rensa import RMinHash

    for start in range(0, len(questions), AT_ONCE):
        runs = [shingles(question) for question in questions[start : start + AT_ONCE]]
        keys[start : start + AT_ONCE] = np.array([hash(each) for each in runs]).view(np.uint64)
        sketches = RMinHash.from_token_sets(list(map(list, runs)), num_perm=PERMUTATIONS, seed=0)
        yield np.array([sketch.digest() for sketch in sketches], np.uint32)
        progress(start + len(runs))


def colliding(
    sketches: NDArray[np.uint32], same: Repeats, bands: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of an example and an earlier one that are the same in a band, each once, sorted; so many at a time.

    One that is the `same` as an earlier one is paired with the first of its kind alone, which collides with whatever
    it would collide with: a question that comes a thousand times would else make half a million pairs.
    """
    count = len(sketches)
    first = np.full(count, -1)
    first[same[0]] = same[1]
    kinds = np.flatnonzero(first < 0)
    collisions = (first >= 0).astype(np.int64)  # of each example with earlier ones
    found = (chain(sketches, band, bands, kinds, collisions) for band in range(bands))
    chains = array_on_disk(np.int64, (bands, count), found)
    numbers = np.flatnonzero(collisions)
    blocks = np.cumsum(collisions[numbers]) // PAIRS_AT_ONCE
    for block in np.split(numbers, np.flatnonzero(np.diff(blocks)) + 1) if len(numbers) else ():
        reached = []  # number * count + earlier number
        for before in (first, *chains):
            holders, at = block, before[block]
            while len(holders := holders[at >= 0]):
                at = at[at >= 0]
                reached.append(holders * count + at)
                at = before[at]
        pairs = np.unique(np.concatenate(reached))
        yield pairs // count, pairs % count


def chain(
    sketches: NDArray[np.uint32], band: int, bands: int, kinds: NDArray[np.int64], collisions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each example of `kinds` the last one before it that is the same in this band, -1 for none.

    Adds to `collisions` how many there are.
    """
    width = PERMUTATIONS // bands
    keys = np.zeros(len(kinds), np.uint64)
    for column in range(band * width, (band + 1) * width):
        keys = (keys ^ sketches[:, column][kinds]) * np.uint64(0x9E3779B97F4A7C15)  # odd: no two become one
        keys ^= keys >> np.uint64(32)
    order = np.argsort(keys, kind="stable")
    keys, numbers, places = keys[order], kinds[order], np.arange(len(order))
    again = np.zeros(len(order), bool)
    again[1:] = keys[1:] == keys[:-1]
    collisions[numbers] += places - np.maximum.accumulate(np.where(again, 0, places))
    before = np.full(len(sketches), -1)
    before[numbers[again]] = numbers[np.flatnonzero(again) - 1]
    return before


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


def shingles(question: str) -> frozenset[str]:
    """Runs of three words; a shorter text is one run."""
    parts = words(question)
    runs = frozenset(map(" ".join, zip(*(parts[start:] for start in range(SHINGLE)), strict=False)))
    return runs or frozenset([" ".join(parts)])


def root(parents: "array[int]", number: int) -> int:
    """The first member of a number's group, to which those on the way then lead directly."""
    first = number
    while parents[first] != first:
        first = parents[first]
    while parents[number] != first:
        parents[number], number = first, parents[number]
    return first
