import json
from collections.abc import Sequence
from itertools import pairwise

import pytest

from medreason.chat.conversation import Conversation, Turn, as_json_lines, as_markdown, fit, split_stream
from medreason.config import ConfigError, Format
from medreason.models.prompts import FORMATS, Example, completion_text, marks, parse_answer

EXAMPLE = Example("What is low?", "The pH < 7.35.\n\nSo it is low; 7.1 <th.", "Acidosis.\n\n- Low pH")


def joined(texts: Sequence[str], style: Format, *, opened: bool = False) -> tuple[str, str]:
    pieces = list(split_stream(texts, style, opened=opened))
    reasoning, answer = ("".join(text for kind, text in pieces if kind == wanted) for wanted in ("reasoning", "answer"))
    return reasoning, answer


@pytest.mark.parametrize("style", Format)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 1000])
def test_a_text_in_pieces_of_any_size_is_split_as_the_whole_is(style: Format, size: int) -> None:
    opening, closing = marks(style)
    whole = completion_text(EXAMPLE, style)
    for text in (
        whole,
        f"\n  {whole}  \n",
        f"{opening}low{closing}Acidosis",
        f"{opening}low, and cut{closing[:3]}",
        f"{opening}\n\n{closing}Acidosis",
        "Acidosis",
        "A pH < 7 # and <thing> ### no mark",
        whole[: len(opening) - 1],
        "",
    ):
        found = parse_answer(text, style)
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert joined(pieces, style) == (found.reasoning, found.answer), text


@pytest.mark.parametrize("style", Format)
def test_a_block_that_the_prompt_opened_is_reasoning_from_the_start(style: Format) -> None:
    form = FORMATS[style]
    assert joined([*f"low{form.closing}Acidosis"], style, opened=True) == ("low", "Acidosis")
    assert joined([*"low and cut"], style, opened=True) == ("low and cut", "")


def test_pieces_come_as_soon_as_they_cannot_be_part_of_a_mark() -> None:
    seen: list[str] = []

    def letters() -> object:
        for letter in "<think>low </ pH</think>acid":
            seen.append(letter)
            yield letter

    said = [(len(seen), kind, text) for kind, text in split_stream(letters(), Format.think)]  # type: ignore[arg-type]
    assert "".join(text for _, kind, text in said if kind == "reasoning") == "low </ pH"
    assert said[0] == (8, "reasoning", "l") and said[-1] == (28, "answer", "d")
    assert all(one[0] <= other[0] for one, other in pairwise(said))


def test_a_turn_of_a_cut_block_that_the_prompt_opened_has_no_answer() -> None:
    assert Turn.of("q", "low and", Format.think, "cut", opened=True) == Turn("q", "low and", "", "cut")
    assert Turn.of("q", "low</think>acid", Format.think, "whole", opened=True) == Turn("q", "low", "acid", "whole")


def turns(count: int) -> list[Turn]:
    return [Turn(f"q{index}", "because", f"a{index}", "whole") for index in range(count)]


def test_the_model_is_told_answers_without_reasoning_and_no_question_it_left_open() -> None:
    talk = Conversation([*turns(2), Turn("q2", "because", "", "stopped")])
    assert talk.told() == [("q0", "a0"), ("q1", "a1")]


def test_the_oldest_turns_are_dropped_until_the_answer_has_room() -> None:
    talk = Conversation(turns(5))

    def tokens_of(earlier: Sequence[tuple[str, str]]) -> list[int]:
        return [0] * (10 + 20 * len(earlier))  # of 110 tokens

    assert len(fit(talk, tokens_of, context_tokens=130, answer_tokens=20)) == 110 and talk.dropped == 0
    assert len(fit(talk, tokens_of, context_tokens=100, answer_tokens=20)) == 70 and talk.dropped == 2
    assert talk.told()[0] == ("q2", "a2")
    assert len(fit(talk, tokens_of, context_tokens=130, answer_tokens=20)) == 70, "what is dropped stays dropped"
    with pytest.raises(ConfigError, match="a question of 10 tokens is too long: the model reads 25, of which 20"):
        fit(talk, tokens_of, context_tokens=25, answer_tokens=20)
    assert talk.dropped == 2, "a question that was refused changes nothing"


def test_a_saved_conversation_reads_back() -> None:
    talk = [Turn("Why\nso?", "because", "é", "whole"), Turn("And?", "", "", "stopped")]
    assert [Turn(**json.loads(line)) for line in as_json_lines(talk).removesuffix("\n").split("\n")] == talk
    page = as_markdown(talk, "a run", "no device")
    assert page.startswith("# a run\n\nno device\n\n## Why so?\n\n<details><summary>Reasoning, 1 word</summary>")
    assert page.endswith("\n## And?\n\n(no answer)\n")
