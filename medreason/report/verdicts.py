"""Whether one model answers better than another: a call for each benchmark, or how many questions one would take.

    interval of the difference, in points        call
    -3 [   |---|   ] 3                           same: all of it within the margin
    -3 [       ] 3  |-------|                    better, or worse: McNemar's test says so after Holm's correction
    -3 [     |--------] 3 ---|                   unclear: too few questions; how many it would take

Of several benchmarks, differences are corrected by Holm, and intervals by Bonferroni.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from medreason.report.statistics import mcnemar, paired_difference, pairs

POWER = 0.8  # chance of a call, where it is said how many questions it would take


class Call(Enum):
    better = "better"
    worse = "worse"
    same = "the same"
    unclear = "not enough questions"


@dataclass(frozen=True)
class Verdict:
    """What can be said of one benchmark; shares of 1."""

    call: Call
    questions: int  # that both answered
    tuned: float  # accuracy
    base: float
    difference: float
    interval: tuple[float, float]  # of the difference, wide enough for all benchmarks together
    p: float  # of McNemar's exact test, corrected by Holm
    needed: int | None  # questions that would do, where these do not and any would


def judge(
    answers: Mapping[str, tuple[Sequence[bool], Sequence[bool]]], margin: float, level: float = 0.95
) -> dict[str, Verdict]:
    """By benchmark: whether the first model, of which the first answers tell, is better than the second.

    `margin` is the difference that does not matter, a share of 1. A difference within it for sure is called the same,
    significant or not. Raises ValueError for a benchmark without questions, or answers of different number.
    """
    corrected = holm({name: mcnemar(*both) for name, both in answers.items()})
    alpha = (1 - level) / max(1, len(answers))
    found = {}
    for name, (tuned, base) in answers.items():
        if not tuned:
            raise ValueError(f"{name}: no questions")
        difference, low, high = paired_difference(tuned, base, 1 - alpha)
        if -margin < low and high < margin:
            call = Call.same
        elif corrected[name] < 1 - level:
            call = Call.better if difference > 0 else Call.worse
        else:
            call = Call.unclear
        found[name] = Verdict(
            call,
            len(tuned),
            sum(tuned) / len(tuned),
            sum(base) / len(base),
            difference,
            (low, high),
            corrected[name],
            needed(tuned, base, margin, alpha) if call is Call.unclear else None,
        )
    return found


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number. Holm 1979, Scandinavian Journal of Statistics 6:65."""
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda one: p[one])):
        highest = max(highest, min(1.0, (len(p) - place) * p[name]))
        corrected[name] = highest
    return corrected


def needed(first: Sequence[bool], second: Sequence[bool], margin: float, alpha: float) -> int | None:
    """Questions that would tell, if the true difference and disagreement are those seen; None if none would.

    By the normal approximation of a paired difference: to exclude zero, or to lie within the margin, whichever takes
    fewer. Connor 1987, Biometrics 43:207.
    """
    from scipy.stats import norm

    both, only_first, only_second, neither = pairs(first, second)
    total = both + only_first + only_second + neither
    disagreement = (only_first + only_second + 0.5) / (total + 1)  # none seen does not mean that there is none
    difference = abs(only_first - only_second) / total
    reach = (norm.ppf(1 - alpha / 2) + norm.ppf(POWER)) ** 2 * (disagreement - difference**2)
    farthest = max(difference, margin - difference)  # what takes the fewest questions to tell
    return max(total + 1, math.ceil(reach / farthest**2)) if farthest > 0 else None


def in_words(verdicts: Mapping[str, Verdict]) -> str:
    """One line on all benchmarks."""
    by_call = {call: [name for name, one in verdicts.items() if one.call is call] for call in Call}
    parts = [f"{call.value} on {', '.join(by_call[call])}" for call in (Call.better, Call.worse, Call.same)
             if by_call[call]]  # fmt: skip
    if by_call[Call.unclear]:
        parts.append(f"not enough questions to tell on {', '.join(by_call[Call.unclear])}")
    return "; ".join(parts)
