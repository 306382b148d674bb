"""Answers -> the rows that are learned from."""

from typing import Any

import pytest

from medreason.config import Format
from medreason.data.benchmarks import Question, reasoning_prompt
from medreason.models.prompts import Example
from medreason.sample.rows import counted, judged, kept

CASE = Question("1", "pH 7.10?", {}, "Acidaemia", "", "")
CHOICE = Question("2", "pH 7.10?", {"A": "Acidaemia", "B": "Alkalaemia"}, "A", "", "")


def written(why: str, answer: str = "Acidaemia") -> str:
    return f"<think>\n{why}\n</think>\n\n{answer}"


def answers(*texts: str, right: list[bool] | None = None, whole: list[bool] | None = None) -> dict[str, Any]:
    every = [True] * len(texts)
    return {"id": "1", "gold": "Acidaemia", "texts": list(texts), "right": right or every, "whole": whole or every}


def test_right_answers_alone_are_kept_each_text_once_and_so_many_at_most() -> None:
    one, two, three = written("It is low."), written("Below 7.35."), written("Low indeed.")
    found = answers(one, two, f"{one[:8]} {one[8:]}", three, right=[True, False, True, True])
    assert [row.reasoning for row in kept(CASE, found, Format.think, 4, 0.0, 1000)] == ["It is low.", "Low indeed."]
    assert [row.reasoning for row in kept(CASE, found, Format.think, 1, 0.0, 1000)] == ["It is low."]
    assert kept(CASE, found, Format.think, 1, 0.0, 1000) == [Example(CASE.question, "It is low.", "Acidaemia")]


def test_what_was_written_most_often_comes_first_and_luck_is_left_out() -> None:
    rare, usual = written("Chance."), written("It is low.")
    found = answers(rare, usual, usual, rare + "!", right=[True, True, True, False])
    assert [row.reasoning for row in kept(CASE, found, Format.think, 4, 0.75, 1000)] == ["It is low.", "Chance."]
    assert kept(CASE, found, Format.think, 4, 0.76, 1000) == []


def test_an_answer_that_is_cut_or_shows_no_reasoning_is_not_kept() -> None:
    found = answers(written("It is low."), "Acidaemia", whole=[False, False])
    assert kept(CASE, found, Format.think, 4, 0.0, 1000) == []


@pytest.mark.parametrize("why", ["it </think> is", "a <think> more", "bad \ufffd byte", "x" * 2000, "a \x07 bell"])
def test_an_answer_that_training_would_refuse_is_not_kept(why: str) -> None:
    assert kept(CASE, answers(written(why)), Format.think, 4, 0.0, 1000) == []


def test_a_row_asks_what_the_model_was_asked() -> None:
    (row,) = kept(CHOICE, answers(written("Low.", "The answer is A.")), Format.think, 1, 0.0, 1000)
    assert row.question == reasoning_prompt(CHOICE) and "B. Alkalaemia" in row.question
    assert row.answer == "The answer is A."


def test_every_sample_is_judged_by_itself() -> None:
    record = {
        "id": "1", "gold": "A", "text": "", "choices": ["A", "B", None, "A"],
        "texts": [written("Low.", "A"), written("Low.", "B"), "<think>\nand", written("Cut", "A")],
        "cuts": [False, False, True, True], "cut": True,
    }  # fmt: skip
    found = judged(record, Format.think)
    assert found["right"] == [True, False, False, True] and found["whole"] == [True, True, False, False]
    alone = {"id": "1", "gold": "A", "text": written("Low.", "A"), "choices": ["A"], "cut": False}
    assert judged(alone, Format.think)["whole"] == [True]


def test_counts_are_of_questions_and_of_answers() -> None:
    first, second = answers("a", "b", "c", right=[True, True, False], whole=[True, False, True]), answers("d")
    found = counted([first, second | {"right": [False]}], rows=1)
    assert (found.questions, found.solved, found.answers, found.right, found.whole, found.rows) == (2, 1, 4, 2, 1, 1)
