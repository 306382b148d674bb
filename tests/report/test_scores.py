import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from medreason.data.benchmarks import Question, chance
from medreason.evaluate.display import MEASURES, picture, unread
from medreason.export.model_card import by_judge
from medreason.report.run_page import score_cells
from medreason.report.scores import compare, compare_judged, judged_score, summarize, summarize_judged


def choice(identity: str, gold: str | None, chosen: str | None, **more: Any) -> dict[str, Any]:
    base = {"id": identity, "subject": "s", "gold": gold, "choice": chosen, "choices": [chosen], "cut": False}
    return base | more


def losing(identity: str, loss: float, tokens: int) -> dict[str, Any]:
    return choice(identity, None, None) | {"choices": [], "loss": loss, "tokens": tokens}


def test_questions_seen_in_training_are_scored_apart() -> None:
    records = [choice("a", "A", "A"), choice("b", "A", "A"), choice("c", "A", "B"), choice("d", "A", None)]
    found = summarize(records, {"a", "b"})
    assert (found["accuracy"], found["unseen"]["accuracy"], found["unseen"]["questions"]) == (0.5, 0.0, 2)
    assert found["no_answer"] == 1
    assert "unseen" not in summarize(records)


def test_the_mean_loss_is_weighted_by_tokens() -> None:
    found = summarize([losing("a", 30.0, 10), losing("b", 10.0, 10), losing("c", 60.0, 30)])["loss"]
    assert found["mean"] == pytest.approx(2.0)
    assert found["perplexity"] == pytest.approx(math.exp(2.0))
    low, high = found["interval"]
    assert low < 2.0 < high and found["perplexity_interval"] == [math.exp(low), math.exp(high)]
    assert "accuracy" not in summarize([losing("a", 1.0, 1)])


def test_losses_are_compared_row_by_row() -> None:
    ours = [losing(str(i), 10.0 + i, 10) for i in range(20)]
    theirs = [losing(str(i), 12.0 + i + (i % 2), 10) for i in range(20)]
    found = compare(ours, theirs)
    assert found is not None
    assert found["difference"] == pytest.approx(-0.25)
    assert found["interval"][1] < 0 and found["in_words"].startswith("its loss is lower: -0.250 nats a token")
    same = compare(ours, ours)
    assert same is not None and "no significant difference" in same["in_words"]
    assert compare(ours, [losing(str(i), 1.0, 11) for i in range(20)]) is None  # another tokenizer


def test_agreement_and_confidence_come_with_several_choices() -> None:
    records = [
        choice("a", "A", "A", choices=["A", "A"], confidence=1.0),
        choice("b", "A", "B", choices=["B", "A"], confidence=0.5),
    ]
    found = summarize(records)
    assert found["agreement"]["accuracy"] == 0.5
    assert found["calibration"]["ece"] == pytest.approx(0.25)  # sure and right; half sure and wrong
    assert "brier" not in found["calibration"]


def test_letters_show_a_habit_and_what_it_alone_would_score() -> None:
    answered = (("B", "A"), ("B", "A"), ("A", "A"), ("B", None))
    records = [choice(str(i), gold, chosen, huatuo="A") for i, (gold, chosen) in enumerate(answered)]
    found = summarize(records)
    assert found["letters"] == {"A": {"chosen": 3, "gold": 1}, "B": {"chosen": 0, "gold": 3}}
    assert MEASURES["always the same letter"](found) == "75.0% (B)"
    assert MEASURES["letters chosen"](found) == "A 75%"
    for other in (choice("a", "O", "O"), choice("b", None, "text")):  # a blood group is no letter of an option
        found = summarize([other])
        assert "letters" not in found and MEASURES["always the same letter"](found) == ""


def test_an_open_question_counts_only_for_the_form_of_its_answer() -> None:
    records = [choice("a", None, "text", formed=True), choice("b", None, "text", formed=False)]
    found = summarize(records)
    assert found["format"]["accuracy"] == 0.5 and "accuracy" not in found
    assert compare(records, records) is None


def evaluated(right: int, *, chance: float | None, subjects: int = 0) -> dict[str, Any]:
    records = [choice(str(i), "A", "A" if i < right else "B", subject=f"s{i % max(1, subjects)}") for i in range(40)]
    return summarize(records) | {"chance": chance}


def test_a_picture_of_scores_has_a_title_a_line_for_guessing_and_the_other_model_beside() -> None:
    ours = {"medqa": evaluated(20, chance=0.25), "pubmedqa": evaluated(30, chance=1 / 3, subjects=2)}
    alone = {"scores": ours, "evaluated": {"run": "/x/my_run", "base": False, "method": "likelihood"}}
    figure = picture(alone)
    assert figure is not None and figure.get_suptitle() == "my_run, letters by probability"
    axes = figure.axes[0]
    assert len(axes.patches) == 4, "a bar a benchmark, and one for each of two subjects"
    guessing = [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"]
    assert guessing == [[25, 25], [pytest.approx(100 / 3)] * 2]

    base = {"evaluated": {"run": "/x/my_run", "model": "org/base_7b", "base": True, "method": "generate"}}
    theirs = {"medqa": evaluated(10, chance=None), "pubmedqa": evaluated(8, chance=None, subjects=2)}
    beside = picture(alone | {"others": base | {"scores": theirs}})
    assert beside is not None
    widths = [round(bar.get_width()) for bar in beside.axes[0].patches]
    assert widths[:4] == [50, 25, 75, 20]
    labels = [text.get_text() for text in beside.legends[0].get_texts()]
    assert labels == [
        "my_run, letters by probability", "against: base_7b without an adapter, in writing", "guessing",
    ]  # fmt: skip
    assert all(bool(bar.get_hatch()) == (place % 2 == 1) for place, bar in enumerate(beside.axes[0].patches))


def test_losses_and_benchmarks_without_options_have_no_bar_and_no_line_for_guessing() -> None:
    assert picture({"scores": {"held_out": summarize([losing("a", 1.0, 1)])}}) is None
    figure = picture({"scores": {"cases": evaluated(20, chance=None)}})
    assert figure is not None and not [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]


def test_guessing_is_right_once_in_as_many_options_as_there_are() -> None:
    two, four = (Question("a", "?", dict.fromkeys("ABCD"[:count], "x"), "A", "", "") for count in (2, 4))
    assert chance([two, four]) == pytest.approx(0.375)
    assert chance([]) is None and chance([two, Question("b", "?", {}, "text", "", "")]) is None


def answer(*verdicts: Any, points: Sequence[float] = (), **more: Any) -> dict[str, Any]:
    """What a judge said of an answer, the first form and the second."""
    pairs = [list(each) if isinstance(each, tuple) else [each, each] for each in verdicts]
    tags = [()] * len(points)
    return {"id": "q", "subject": "", "no_answer": not pairs, "verdicts": pairs, "points": points, "tags": tags} | more


def test_a_score_of_rubrics_is_points_met_over_points_above_zero_and_its_mean_is_clipped() -> None:
    points = (7, 3, -5)
    assert judged_score(answer(True, False, False, points=points)) == pytest.approx(0.7)
    assert judged_score(answer(True, True, True, points=points)) == pytest.approx(0.5)
    assert judged_score(answer(False, False, True, points=points)) == pytest.approx(-0.5)
    assert judged_score(answer(points=points)) == 0
    found = summarize_judged(
        [answer(False, False, True, points=points)] * 3 + [answer(True, False, True, points=points)]
    )
    assert (found["mean"], found["interval"][0]) == (0, 0) and 0 <= found["interval"][1] <= 1
    halves = summarize_judged([answer(True, True, True, points=points), answer(True, True, False, points=points)] * 10)
    assert halves["mean"] == pytest.approx(0.75) and halves["interval"][0] < 0.75 < halves["interval"][1]


def test_what_has_no_verdict_counts_neither_for_nor_against_and_is_told() -> None:
    assert judged_score(answer(None)) is None and judged_score(answer(True, None, points=(7, 3))) == 1
    assert judged_score(answer(None, True, points=(7, -3))) is None
    found = summarize_judged([answer(True), answer(False), answer((None, True)), answer()])
    assert (found["questions"], found["scored"], found["mean"]) == (4, 3, pytest.approx(1 / 3))
    assert (found["verdicts"], found["no_verdict"], found["no_answer"]) == (3, 1, 1)
    assert found["self_agreement"]["verdicts"] == 2 and found["self_agreement"]["share"] == 1
    nothing = summarize_judged([answer(None), answer(None)])
    assert nothing["mean"] is None and nothing["no_verdict"] == 2 and nothing["self_agreement"]["share"] is None
    assert json.loads(json.dumps(nothing)) == nothing


def test_a_judge_is_compared_with_itself_and_with_the_rule() -> None:
    each = [(True, True), (True, False), (False, False), (False, False)]
    answers = [answer(pair, id=str(place)) for place, pair in enumerate(each)] + [answer(id="4")]
    found = summarize_judged(answers, {"0": True, "1": False, "2": False, "3": False, "4": False})
    assert found["self_agreement"]["share"] == 0.75 and found["self_agreement"]["kappa"] == pytest.approx(0.5)
    assert found["exact_match"]["verdicts"] == 4 and found["exact_match"]["share"] == 0.75
    assert found["exact_match"]["kappa"] == pytest.approx(0.5)


def test_judged_subjects_and_tags_have_scores_of_their_own() -> None:
    tags = [("axis:accuracy",), ("axis:accuracy", "axis:context")]
    answers = [answer(True, False, points=(4, 4), tags=tags, subject=subject) for subject in ("heart", "lung")]
    found = summarize_judged(answers)
    assert {tag: one["mean"] for tag, one in found["tags"].items()} == {"axis:accuracy": 0.5, "axis:context": 0}
    assert {subject: one["mean"] for subject, one in found["subjects"].items()} == {"heart": 0.5, "lung": 0.5}


def test_two_models_judged_scores_are_compared_pair_by_pair() -> None:
    right, wrong = [answer(True, id=str(i)) for i in range(20)], [answer(False, id=str(i)) for i in range(20)]
    found = compare_judged(right, wrong)
    assert found is not None and found["difference"] == 1 and found["in_words"].startswith("by the judge it answers")
    assert compare_judged(right, [answer(None, id="1")]) is None
    points = (6, 2, 2)
    ours = [answer(True, i % 2 == 0, False, points=points, id=str(i)) for i in range(30)]
    theirs = [answer(False, i % 2 == 0, i % 3 == 0, points=points, id=str(i)) for i in range(30)]
    better = compare_judged(ours, theirs)
    assert better is not None and better["interval"][0] > 0 and "higher: +5" in better["in_words"]
    alone = compare_judged(ours[:1], theirs[:1])
    assert alone is not None and "no significant difference" in alone["in_words"]


def test_a_judged_score_stands_in_the_table_the_page_and_the_card_by_that_name() -> None:
    summary = summarize_judged([answer(True), answer(False)] * 10)
    score = {"questions": 20, "cut": 0, "judged": summary}
    assert MEASURES["judged score (95% interval)"](score) == "50.0% (29.9% to 70.1%)"
    assert MEASURES["judge agrees with itself"](score) == "100.0% (83.9% to 100.0%), kappa 1.00"
    assert MEASURES["no verdict"](score) == "0 of 20" and unread(score) == ""
    assert score_cells(score)[:2] == ["50.0% by a judge", "29.9% to 70.1%"]
    assert by_judge(score) == "50.0% (29.9% to 70.1%) by a judge model"
    ruled = score | {"accuracy": 0.25, "interval": [0.1, 0.4]}
    assert score_cells(ruled)[0] == "25.0%", "what a rule says goes first"
    none = {"questions": 20, "judged": summarize_judged([answer(None)] * 20)}
    assert MEASURES["judged score (95% interval)"](none) == "none: no verdict" and "there is no score" in unread(none)
    assert score_cells(none)[:2] == ["", ""] and by_judge(none) is None
    assert not any(MEASURES[name]({"questions": 20}) for name in MEASURES if "judge" in name or name == "no verdict")
