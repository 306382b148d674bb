import pytest

from medreason.config import Format
from medreason.data.benchmarks import Question, make_task
from medreason.evaluate.display import habit
from medreason.evaluate.stress import NONE_OF_ABOVE, none_of_above, wrong_beginning, wrong_letter
from medreason.models.prompts import parse_answer

QUESTION = Question("q", "Which?", {"A": "iron", "B": "zinc", "C": "tin"}, "C", "", "")


def test_the_right_option_alone_reads_none_of_the_above_and_stays_the_right_one() -> None:
    plain = make_task("x", [("x", QUESTION)])
    (question,) = none_of_above(plain).questions
    assert question.options == {"A": "iron", "B": "zinc", "C": NONE_OF_ABOVE} and question.answer == "C"
    assert none_of_above(plain).fingerprint != plain.fingerprint, "answers to one must not pass for those to the other"


@pytest.mark.parametrize("style", list(Format))
def test_the_beginning_in_a_models_mouth_is_of_its_format_and_wrong(style: Format) -> None:
    assert wrong_letter(QUESTION) == "A"
    begun = wrong_beginning(QUESTION, style)
    assert begun.endswith("The answer is A.") and "\0" not in begun and "\1" not in begun
    if style is Format.think:
        assert parse_answer(begun + " No: C.\n</think>\n\nThe answer is C.", style).answer == "The answer is C."


def counted(chosen: dict[str, int], gold: dict[str, int], low: float) -> dict[str, object]:
    letters = {letter: {"chosen": chosen[letter], "gold": gold[letter]} for letter in chosen}
    return {"questions": 100, "accuracy": 0.3, "interval": [low, 0.5], "letters": letters}


def test_a_score_that_one_letter_explains_is_called_a_habit() -> None:
    gold = {"A": 30, "B": 70}
    assert habit(counted({"A": 90, "B": 10}, gold, 0.2)) == (
        "A for 90% of the questions, which alone scores 30.0%: a habit and not knowledge"
    )
    assert habit(counted({"A": 60, "B": 40}, gold, 0.2)) == "", "two letters are chosen"
    assert habit(counted({"A": 90, "B": 10}, gold, 0.4)) == "", "it is right more often than the letter"
    assert habit({"questions": 3, "accuracy": 0.5, "interval": [0.1, 0.9]}) == "", "no letters"
