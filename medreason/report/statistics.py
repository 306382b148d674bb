"""What scores can be trusted to say: intervals, paired tests, calibration. Pure functions over plain numbers.

Two models are compared on the same questions, pair by pair:

                     second right   second wrong
    first right           both        only first     the two discordant cells decide who is better;
    first wrong      only second        neither      questions that both get right, or both wrong, say nothing
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
DRAWN_AT_ONCE = 1_000_000  # values; 10,000 resamples of MedMCQA at once would be 670 MB


def wilson(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a share, within [0, 1]; (0, 1) for 0 of 0. E. B. Wilson 1927, JASA 22:209.

    Raises ValueError unless 0 <= correct <= total and 0 < level < 1.
    """
    from scipy.stats import binomtest

    if not 0 <= correct <= total or not 0 < level < 1:
        raise ValueError(f"{correct} correct of {total} at level {level}")
    if total == 0:
        return 0.0, 1.0
    found = binomtest(correct, total).proportion_ci(level, method="wilson")
    # exact at the ends, where rounding would leave 1e-17
    return (0.0 if correct == 0 else float(found.low)), (1.0 if correct == total else float(found.high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test, 1 where no question tells the two apart. McNemar 1947, Psychometrika 12:153.

    Discordant pairs are a fair coin's throws if neither is better.
    Raises ValueError for sequences of different length.
    """
    from scipy.stats import binomtest

    _, only_first, only_second, _ = pairs(first, second)
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def pairs(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, int, int]:
    """How many questions both got right, only the first, only the second, neither."""
    counts = Counter((bool(one), bool(other)) for one, other in zip(first, second, strict=True))
    return counts[True, True], counts[True, False], counts[False, True], counts[False, False]


def paired_difference(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> tuple[float, float, float]:
    """Accuracy of the first less the second's, and its interval; shares of 1. (0, -1, 1) without a question.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10: the Wilson intervals of both shares, squared and added,
    less what their correlation takes away. Unlike Wald's it is not empty where the two never differ.
    Raises ValueError for sequences of different length.
    """
    both, only_first, only_second, neither = pairs(first, second)
    total = both + only_first + only_second + neither
    if total == 0:
        return 0.0, -1.0, 1.0
    right, other_right = both + only_first, both + only_second
    share, other_share = right / total, other_right / total
    low, high = wilson(right, total, level)
    other_low, other_high = wilson(other_right, total, level)
    margins = right * (total - right) * other_right * (total - other_right)
    excess: float = both * neither - only_first * only_second
    if excess > 0:
        excess = max(excess - total / 2, 0)  # Newcombe's continuity correction; negative correlation is left alone
    phi = excess / math.sqrt(margins) if margins else 0.0

    def added(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = (right - other_right) / total
    below = added(share - low, other_high - other_share)
    above = added(high - share, other_share - other_low)
    return difference, difference - below, difference + above


def in_words(first: Sequence[bool], second: Sequence[bool], name: str = "it", level: float = 0.95) -> str:
    """Whether `name`, which answered `first`, answers more of the questions correctly than `second`: one clause.

    A difference counts only if the exact test and the interval agree on it.
    """
    if not first and not second:
        return "no question was answered by both"
    difference, low, high = (100 * share for share in paired_difference(first, second, level))
    p = mcnemar(first, second)
    told = f"p < 0.001, {len(first):,} questions" if p < 0.001 else f"p = {p:.2g}, {len(first):,} questions"
    if p >= 1 - level or low <= 0 <= high:
        within = f"{100 * level:g}% interval {low:+.1f} to {high:+.1f}"
        return f"no significant difference ({difference:+.1f} points, {within}; {told})"
    if difference < 0:
        difference, low, high = -difference, -high, -low
        word = "fewer"
    else:
        word = "more"
    return (
        f"{name} answers {difference:.1f} points {word} of the questions correctly "
        f"({100 * level:g}% interval {low:.1f} to {high:.1f}; {told})"
    )


def cohens_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Agreement beyond chance of two who said yes or no to the same: 1 all, 0 what chance brings.

    Cohen 1960, Educational and Psychological Measurement 20:37. None where both said one and the same to all, or to
    nothing: chance alone would agree, then. Raises ValueError for sequences of different length.
    """
    both, only_first, only_second, neither = pairs(first, second)
    total = both + only_first + only_second + neither
    chance = (both + only_first) * (both + only_second) + (neither + only_first) * (neither + only_second)
    if chance == total * total:
        return None
    return (total * (both + neither) - chance) / (total * total - chance)


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[bool], bins: int = 10) -> float:
    """Mean distance of confidence and accuracy over equal-width bins, weighted by size; a share of 1, nan of nothing.

    Guo et al. 2017 (arXiv 1706.04599), equation 3; bins are closed above. Raises ValueError for confidence outside
    [0, 1] or sequences of different length.
    """
    sure, right = confidences(confidence, correct)
    if not len(sure):
        return math.nan
    places = np.digitize(sure, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.bincount(places, weights=sure - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))  # a bin's |mean gap| times its size is |sum of gaps|


def confidences(confidence: Sequence[float], correct: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    sure, right = np.asarray(confidence, float), np.asarray(correct, float)
    if len(sure) != len(right):
        raise ValueError(f"{len(sure)} confidences for {len(right)} answers")
    if not ((sure >= 0) & (sure <= 1)).all():  # nan, too
        raise ValueError("confidence must lie between 0 and 1")
    return sure, right


def brier(probabilities: Sequence[Sequence[float]], gold: Sequence[int]) -> float:
    """Mean squared distance of a question's probabilities from the truth, summed over options: 0 best, 2 worst.

    Brier 1950, Monthly Weather Review 78:1, equation 2. `gold` holds the index of each right option; questions may
    have different numbers of options. nan of nothing. Raises ValueError for sequences of different length, IndexError
    for a gold option that has no probability.
    """
    if not probabilities and not gold:
        return math.nan
    scores = []
    for shares, index in zip(probabilities, gold, strict=True):
        if not 0 <= index < len(shares):
            raise IndexError(f"gold option {index} of {len(shares)}")
        scores.append(sum((share - (place == index)) ** 2 for place, share in enumerate(shares)))
    return math.fsum(scores) / len(scores)


def accuracy_at_coverage(
    confidence: Sequence[float], correct: Sequence[bool], coverages: Sequence[float]
) -> list[float]:
    """For each coverage the accuracy of that share of the answers, surest first, at least one; nan of nothing.

    Selective accuracy: El-Yaniv and Wiener 2010, JMLR 11:1605. Answers as sure as the last one taken are taken in part,
    at their mean, so their order says nothing. Raises ValueError for a coverage outside (0, 1].
    """
    for coverage in coverages:
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage must lie in (0, 1], got {coverage}")
    sure, right = confidences(confidence, correct)
    if not len(sure):
        return [math.nan for _ in coverages]
    # round: 0.07 of 100 is 7.000000000000001
    taken = [max(1, math.ceil(round(coverage * len(sure), 9))) for coverage in coverages]
    last = [np.sort(sure)[-count] for count in taken]
    return [
        float((right[sure > least].sum() + (count - (sure > least).sum()) * right[sure == least].mean()) / count)
        for count, least in zip(taken, last, strict=True)
    ]


def bootstrap_mean(values: Sequence[float], seed: int, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and its BCa bootstrap interval (10,000 resamples), infinite below two values. Efron 1987, JASA 82:171.

    Corrected for bias and skewness, which the percentile interval of a few scores is not. The same seed, the same
    interval.
    """
    each = np.asarray(values, float)
    if len(each) < 2:
        return (float(each[0]) if len(each) else math.nan), -math.inf, math.inf
    mean = float(each.mean())
    if (each == each[0]).all():
        return mean, mean, mean
    from scipy.stats import bootstrap

    batch = max(1, DRAWN_AT_ONCE // len(each))
    found = bootstrap(
        (each,), np.mean, n_resamples=RESAMPLES, batch=batch, confidence_level=level, method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return mean, float(found.low), float(found.high)


def majority(answers: Sequence[str | None]) -> tuple[str | None, float]:
    """The answer most given, and its share of all, no answer (None) counted among them; (None, 0) where there is none.

    Self-consistency: Wang et al. 2022 (arXiv 2203.11171). Of equal answers the one that got there first wins, so a
    tie is broken as if sampling had stopped a little earlier.
    """
    counts: Counter[str] = Counter()
    winner, most = None, 0
    for answer in answers:
        if answer is not None:
            counts[answer] += 1
            if counts[answer] > most:
                winner, most = answer, counts[answer]
    return winner, most / len(answers) if answers else 0.0
