import math
from typing import Any

import pytest

from medreason.data.benchmarks import Question, chance
from medreason.evaluate.display import MEASURES, picture
from medreason.report.scores import compare, summarize


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
