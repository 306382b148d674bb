from collections.abc import Iterator, Sequence

import pytest

from medreason.config import Format
from medreason.inference.batched import Written
from medreason.inference.thinking import closed, write_within

FULL = "<think>\nHis ferritin is low, so iron.\n</think>\n\nThe answer is A."


class Writer:
    """Writes `text` letter by letter, as if each were a token, and tells what it was asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[tuple[list[str], int]] = []

    def __call__(self, prompts: Sequence[str], most: int) -> Iterator[tuple[int, Written]]:
        self.asked.append((list(prompts), most))
        for place, prompt in reversed(list(enumerate(prompts))):  # in no order of theirs
            rest = "The answer is B." if prompt.endswith("</think>\n\n") else self.text
            yield place, Written(rest[:most].strip(), cut=len(rest) > most, tokens=min(most, len(rest)))


def test_an_answer_within_the_budget_stands_as_it_was_written() -> None:
    write = Writer(FULL)
    found = dict(write_within(write, ["p", "q"], Format.think, budget=200, answer_tokens=20))
    assert found == {0: Written(FULL, False), 1: Written(FULL, False)}
    assert len(write.asked) == 1


def test_reasoning_at_the_end_of_its_budget_is_closed_and_the_answer_asked_for() -> None:
    write = Writer(FULL)
    found = dict(write_within(write, ["p", "q"], Format.think, budget=20, answer_tokens=30))
    reasoned = "<think>\nHis ferritin\n</think>\n\n"
    assert write.asked[1] == (["p" + reasoned, "q" + reasoned], 30)
    assert {written.text for written in found.values()} == {reasoned + "The answer is B."}
    assert not any(written.cut for written in found.values())
    assert found[0].tokens == 20 + len("The answer is B.")


def test_an_answer_is_cut_where_its_own_tokens_are_not_enough() -> None:
    found = dict(write_within(Writer(FULL), ["p"], Format.think, budget=20, answer_tokens=3))
    assert found[0].cut and found[0].text.endswith("</think>\n\nThe")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("<think>\nlow\n</think>\n\nThe answ", "<think>\nlow\n</think>\n\n"),  # it is written anew
        ("<think>\n铁缺乏\ufffd", "<think>\n铁缺乏\n</think>\n\n"),  # the half of a letter is left out
        ("no mark at all", "no mark at all\n</think>\n\n"),
        ("", "\n</think>\n\n"),
    ],
)
def test_what_was_cut_ends_in_one_closing_mark(text: str, end: str) -> None:
    assert closed(text, Format.think) == end


def test_every_format_has_its_own_closing_mark() -> None:
    assert closed("## Thinking\n\nlow", Format.huatuo).endswith("low\n\n## Final Response\n\n")
    assert closed("### Complex_CoT:\nlow", Format.seed).endswith("low\n\n### Response:\n")
