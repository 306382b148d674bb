import math

import numpy as np
import pytest
import scipy.stats

from medreason.report.statistics import (
    accuracy_at_coverage,
    bootstrap_mean,
    brier,
    cohens_kappa,
    expected_calibration_error,
    in_words,
    majority,
    mcnemar,
    paired_difference,
    wilson,
)


def answered(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (0, 10), (10, 10), (81, 263), (741, 1273), (2, 4183)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_is_scipys_score_interval(correct: int, total: int, level: float) -> None:
    reference = scipy.stats.binomtest(correct, total).proportion_ci(level, "wilson")
    assert wilson(correct, total, level) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_gives_the_intervals_of_newcombes_table() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    for counts, interval in {
        (81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)
    }.items():  # fmt: skip
        assert wilson(*counts) == pytest.approx(interval, abs=5e-5)


def test_nothing_asked_says_nothing() -> None:
    assert wilson(0, 0) == (0, 1)
    assert mcnemar([], []) == 1
    assert paired_difference([], []) == (0, -1, 1)
    assert math.isnan(expected_calibration_error([], [])) and math.isnan(brier([], []))
    assert all(math.isnan(share) for share in accuracy_at_coverage([], [], [0.5, 1]))
    assert in_words([], []) == "no question was answered by both"
    assert majority([]) == (None, 0)


def test_all_right_and_all_wrong_stay_within_the_unit_interval() -> None:
    assert wilson(5, 5)[1] == 1 and 0.5 < wilson(5, 5)[0] < 1
    assert wilson(0, 5)[0] == 0 and 0 < wilson(0, 5)[1] < 0.5
    for first in ([True] * 5, [False] * 5):
        difference, low, high = paired_difference(first, first)
        assert difference == 0 and -1 < low < 0 < high < 1  # five questions prove nothing
    difference, low, high = paired_difference([True] * 5, [False] * 5)
    assert difference == 1 and low < 1 and high == pytest.approx(1)


@pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3), (1, 0)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="correct of"):
        wilson(correct, total)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_in_percent_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level)


@pytest.mark.parametrize("cells", [(20, 12, 2, 16), (3, 0, 0, 4), (0, 5, 5, 0), (0, 1, 0, 0), (600, 80, 140, 453)])
def test_mcnemar_is_the_exact_binomial_test(cells: tuple[int, int, int, int]) -> None:
    only_first, only_second = cells[1], cells[2]
    throws = only_first + only_second
    reference = scipy.stats.binomtest(only_first, throws).pvalue if throws else 1
    first, second = answered(*cells)
    assert mcnemar(first, second) == pytest.approx(reference, rel=1e-12)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_gives_the_published_p_of_the_tuberculosis_media() -> None:
    # Armitage and Berry 1994, p. 127; exact p from the StatsDirect manual
    assert mcnemar(*answered(20, 12, 2, 16)) == pytest.approx(0.0129, abs=5e-5)


def test_thousands_of_discordant_pairs_do_not_overflow() -> None:
    assert 0 < mcnemar(*answered(0, 2300, 1883, 0)) < 1e-9


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, 17:2635, method 10
        ((20, 12, 2, 16), 0.056156, 0.329207),  # Armitage and Berry's data in the StatsDirect manual
        ((14, 5, 0, 22), 0.011, 0.226),  # Altman et al. 2000, Statistics with Confidence, table 6.2
    ],
)
def test_the_paired_difference_has_its_published_intervals(
    cells: tuple[int, int, int, int], low: float, high: float
) -> None:
    digits = 1e-6 if cells[0] == 20 else 6e-4 if cells[0] == 14 else 5e-5
    difference, found_low, found_high = paired_difference(*answered(*cells))
    assert difference == pytest.approx((cells[1] - cells[2]) / sum(cells))
    assert (found_low, found_high) == pytest.approx((low, high), abs=digits)


def test_swapping_two_models_turns_their_difference_around() -> None:
    first, second = answered(5, 9, 3, 4)
    difference, low, high = paired_difference(first, second)
    assert paired_difference(second, first) == pytest.approx((-difference, -high, -low))


def test_the_paired_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        both, only_first, only_second, neither = generator.multinomial(200, [0.5, 0.15, 0.05, 0.3])
        _, low, high = paired_difference(*answered(both, only_first, only_second, neither))
        held += low <= 0.1 <= high
    assert 0.93 < held / 1000 < 0.975


def test_models_that_answered_different_numbers_of_questions_are_not_compared() -> None:
    for compared in (mcnemar, paired_difference):
        with pytest.raises(ValueError, match="argument"):
            compared([True], [True, False])


def test_words_say_who_is_better_by_how_much_and_how_surely() -> None:
    better, worse = answered(50, 30, 5, 15)
    said = in_words(better, worse, "B")
    assert said.startswith("B answers 25.0 points more of the questions correctly (95% interval 14.0 to 35.2; ")
    assert said.endswith("p < 0.001, 100 questions)")
    assert "B answers 25.0 points fewer of the questions correctly (95% interval 14.0 to 35.2; p < 0.001" in in_words(
        worse, better, "B"
    )


def test_words_claim_nothing_that_the_exact_test_or_the_interval_doubts() -> None:
    first, second = answered(0, 5, 0, 5)  # the interval excludes 0, exact p is 0.0625
    assert paired_difference(first, second)[1] > 0
    said = in_words(first, second)
    assert said.startswith("no significant difference (+50.0 points, 95% interval +") and "p = 0.062" in said
    assert in_words(first, first) == (
        "no significant difference (+0.0 points, 95% interval -16.7 to +16.7; p = 1, 10 questions)"
    )


def test_calibration_error_of_a_worked_example() -> None:
    # bin (0.8, 0.9]: three answers at 0.9, two right, gap 0.7/3; bin (0.5, 0.6]: two at 0.6, one right, gap 0.1
    assert expected_calibration_error([0.9, 0.9, 0.9, 0.6, 0.6], [True, True, False, True, False]) == pytest.approx(
        3 / 5 * (0.9 - 2 / 3) + 2 / 5 * 0.1
    )


def test_calibration_error_is_0_when_confidence_is_deserved_and_1_when_it_never_is() -> None:
    assert expected_calibration_error([1, 1, 0], [True, True, False]) == 0
    assert expected_calibration_error([1, 1], [False, False]) == 1
    assert expected_calibration_error([0.75] * 4, [True, True, True, False]) == 0


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # 0.3 with (0.2, 0.3]: were it in (0.3, 0.4], the two gaps would cancel
    assert expected_calibration_error([0.3, 0.35], [True, False]) == pytest.approx((0.7 + 0.35) / 2)
    assert expected_calibration_error([0.3, 0.25], [True, False]) == pytest.approx(abs(0.7 - 0.25) / 2)


@pytest.mark.parametrize("confidence", [-0.1, 1.1, math.nan])
def test_confidence_that_is_no_probability_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        expected_calibration_error([confidence], [True])


def test_brier_score_of_worked_examples() -> None:
    assert brier([[1, 0, 0]], [0]) == 0
    assert brier([[1, 0, 0]], [1]) == 2
    assert brier([[0.25] * 4], [2]) == pytest.approx(0.75)
    assert brier([[0.7, 0.2, 0.1], [0.5, 0.5]], [0, 1]) == pytest.approx((0.09 + 0.04 + 0.01 + 0.5) / 2)


def test_brier_score_refuses_a_gold_option_without_probability() -> None:
    with pytest.raises(IndexError, match="gold option 2 of 2"):
        brier([[0.5, 0.5]], [2])
    with pytest.raises(IndexError, match="gold option -1"):
        brier([[0.5, 0.5]], [-1])


def test_accuracy_rises_when_only_the_surest_answers_are_taken() -> None:
    confidence, correct = [0.6, 0.9, 0.5, 0.8], [False, True, False, True]
    assert accuracy_at_coverage(confidence, correct, [1, 0.75, 0.5, 0.01]) == [0.5, pytest.approx(2 / 3), 1, 1]


def test_answers_equally_sure_are_taken_at_their_mean_in_any_order() -> None:
    confidence, correct = [0.9] + [0.5] * 4, [True, True, True, False, False]
    expected = [(1 + 1 * 0.5) / 2, (1 + 4 * 0.5) / 5]
    assert accuracy_at_coverage(confidence, correct, [0.4, 1]) == pytest.approx(expected)
    assert accuracy_at_coverage(confidence, [True, False, False, True, True], [0.4, 1]) == pytest.approx(expected)


def test_seven_hundredths_of_a_hundred_answers_are_seven() -> None:
    confidence = [1 - index / 100 for index in range(100)]
    assert accuracy_at_coverage(confidence, [index < 7 for index in range(100)], [0.07, 0.08]) == [1, 7 / 8]


def test_no_coverage_is_refused() -> None:
    with pytest.raises(ValueError, match="coverage"):
        accuracy_at_coverage([0.5], [True], [0])


def test_the_bootstrap_interval_is_scipys_bca() -> None:
    skewed = np.random.default_rng(3).lognormal(size=40)
    reference = scipy.stats.bootstrap(
        (skewed,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(4)
    ).confidence_interval
    mean, low, high = bootstrap_mean(list(skewed), seed=1)
    assert mean == pytest.approx(skewed.mean())
    assert (low, high) == pytest.approx((reference.low, reference.high), rel=0.02)
    assert high - mean > mean - low  # a percentile interval would be nearly even


def test_the_bootstrap_repeats_with_its_seed_alone() -> None:
    values = list(np.random.default_rng(0).normal(size=20))
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_one_value_has_no_interval_and_equal_values_have_none_to_speak_of() -> None:
    assert bootstrap_mean([0.4], seed=0) == (0.4, -math.inf, math.inf)
    assert bootstrap_mean([0.5, 0.5, 0.5], seed=0) == (0.5, 0.5, 0.5)
    assert math.isnan(bootstrap_mean([], seed=0)[0])


@pytest.mark.parametrize(
    ("answers", "winner", "share"),
    [
        (["A", "B", "B"], "B", 2 / 3),
        (["A", "B"], "A", 1 / 2),
        (["A", "B", "B", "A"], "B", 1 / 2),  # B got to two first
        ([None, None, "C"], "C", 1 / 3),  # no answer does not win, and does not make the others surer
        ([None, None], None, 0),
    ],
)
def test_the_answer_most_given_wins(answers: list[str | None], winner: str | None, share: float) -> None:
    assert majority(answers) == (winner, pytest.approx(share))


def test_kappa_is_agreement_beyond_chance() -> None:
    # Cohen's own definition, computed from shares: observed 0.7, by chance 0.5
    assert cohens_kappa(*answered(20, 5, 10, 15)) == pytest.approx((0.7 - 0.5) / 0.5)
    assert cohens_kappa(*answered(7, 0, 0, 3)) == 1
    assert cohens_kappa(*answered(25, 25, 25, 25)) == 0
    assert cohens_kappa(*answered(0, 5, 5, 0)) == -1
    assert cohens_kappa(*answered(9, 0, 0, 0)) is None and cohens_kappa([], []) is None
