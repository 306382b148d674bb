"""Calls on pairs of models whose true difference is known."""

import numpy as np
import pytest

from medreason.report.verdicts import Call, holm, in_words, judge, needed

TRIES, QUESTIONS = 200, 1500


def answered(random: np.random.Generator, difference: float, disagreement: float) -> tuple[list[bool], list[bool]]:
    """Answers of two models to the same questions, the first better by `difference`."""
    only_first, only_second = (disagreement + difference) / 2, (disagreement - difference) / 2
    both = 0.5 - only_second
    kinds = random.choice(4, QUESTIONS, p=[both, only_first, only_second, 1 - both - only_first - only_second])
    return [bool(kind in (0, 1)) for kind in kinds], [bool(kind in (0, 2)) for kind in kinds]


@pytest.mark.parametrize(
    ("difference", "call"), [(0.08, Call.better), (-0.08, Call.worse), (0.0, Call.same)], ids=lambda value: str(value)
)
def test_of_two_hundred_simulated_pairs_nearly_all_are_called_right(difference: float, call: Call) -> None:
    random = np.random.default_rng(3407)
    calls = [judge({"x": answered(random, difference, 0.2)}, margin=0.05)["x"].call for _ in range(TRIES)]
    assert calls.count(call) >= 0.95 * TRIES
    opposite = {Call.better: Call.worse, Call.worse: Call.better, Call.same: None}[call]
    assert opposite not in calls


def test_of_many_equal_pairs_together_hardly_one_in_twenty_families_errs() -> None:
    random = np.random.default_rng(3407)
    wrong = 0
    for _ in range(TRIES):
        family = {str(place): answered(random, 0.0, 0.2) for place in range(6)}
        calls = {one.call for one in judge(family, margin=0.001).values()}
        wrong += bool(calls & {Call.better, Call.worse, Call.same})
    assert wrong <= 0.05 * TRIES + 6  # three standard deviations


def test_too_few_questions_are_said_to_be_too_few_and_how_many_would_do() -> None:
    tuned, base = [True] * 12 + [False] * 8, [True] * 10 + [False] * 10
    one = judge({"x": (tuned, base)}, margin=0.03)["x"]
    assert one.call is Call.unclear and one.needed is not None and one.needed > 20
    # that many like these would tell, about as often as promised
    random, told = np.random.default_rng(1), 0
    for _ in range(50):
        drawn = random.integers(0, 20, one.needed)
        again = judge({"x": ([tuned[i] for i in drawn], [base[i] for i in drawn])}, margin=0.03)["x"]
        told += again.call is Call.better
    assert 0.6 <= told / 50 <= 1


def test_equal_answers_are_the_same_only_if_there_are_enough_of_them() -> None:
    few, many = [True, False] * 10, [True, False] * 500
    assert judge({"x": (few, few)}, margin=0.03)["x"].call is Call.unclear
    assert judge({"x": (many, many)}, margin=0.03)["x"].call is Call.same
    assert needed(few, few, 0.0, 0.05) is None, "no number would tell, for no difference is within no margin"


def test_a_difference_that_does_not_matter_is_the_same_though_it_is_significant() -> None:
    tuned = [True] * 5100 + [False] * 4900
    base = [True] * 5000 + [False] * 5000
    one = judge({"x": (tuned, base)}, margin=0.03)["x"]
    assert one.p < 0.001 and one.call is Call.same


def test_holms_correction() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


def test_a_line_says_it_in_words() -> None:
    worse, same = [False] * 100, [True, False] * 1000
    found = judge({"far": (worse, [True] * 100), "near": (same, same)}, margin=0.05)
    assert in_words(found) == "worse on far; the same on near"
    with pytest.raises(ValueError, match="none: no questions"):
        judge({"none": ([], [])}, margin=0.05)
