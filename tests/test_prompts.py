import pytest

from medreason.prompts import Answer, Example, completion_text, parse_answer


@pytest.mark.parametrize(
    ("written", "reasoning", "answer"),
    [
        ("<think>\nlow pH\n</think>\n\nAcidosis", "low pH", "Acidosis"),
        ("<think>low pH</think>Acidosis", "low pH", "Acidosis"),
        ("low pH\n</think>\nAcidosis", "low pH", "Acidosis"),  # the template opened the block
        ("<think>low pH and then", "low pH and then", ""),  # cut by the length limit
        ("Acidosis", "", "Acidosis"),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("So: <think>low pH</think>Acidosis", "low pH", "Acidosis"),
        ("<think></think>", "", ""),
        ("", "", ""),
    ],
)
def test_reasoning_and_answer_are_taken_apart(written: str, reasoning: str, answer: str) -> None:
    assert parse_answer(written) == Answer(reasoning, answer)


def test_what_is_taught_can_be_parsed_back() -> None:
    for example in (Example("q", "because\n\nof this", "B"), Example("q", "", "plain")):
        assert parse_answer(completion_text(example)) == Answer(example.reasoning, example.answer)
