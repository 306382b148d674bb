import asyncio
from typing import Any

import pytest
import torch
from transformers.cli.serving.utils import ReasoningText

from medreason.serve.stops import Held, Watch, before_stop, may_begin


def pieces(stops: list[str], *given: Any) -> list[Any]:
    """What a client gets of an answer's pieces, None at their end; plain ones joined, so that cuts do not matter."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    for piece in (*given, None):
        queue.put_nowait(piece)
    held, found = Held(queue, stops), []
    while (piece := held.get_nowait()) is not None:
        if type(piece) is str and found and type(found[-1]) is str:
            found[-1] += piece
        else:
            found.append(piece)
    with pytest.raises(asyncio.QueueEmpty):
        held.get_nowait()
    return found


def test_an_answer_ends_before_the_first_stop_wherever_it_is_cut() -> None:
    text = "One. Two.\n\nThree. Question: four?"
    for stops, kept in ((["\n\n"], "One. Two."), (["Question:", "Two"], "One. "), (["Five"], text), (["O"], "")):
        assert before_stop(text, stops) == kept
        for size in (1, 2, 3, 7, len(text)):
            cut = [text[place : place + size] for place in range(0, len(text), size)]
            assert "".join(pieces(stops, *cut)) == kept, (stops, size)


def test_what_only_began_like_a_stop_is_not_lost() -> None:
    assert pieces(["\n\nQ"], "a\n", "\n", "b\n\n") == ["a\n\nb\n\n"]
    assert may_begin("aab", ["abc", "bd"]) == 2 and may_begin("x", ["x"]) == 0 and may_begin("", ["abc"]) == 0


def test_reasoning_passes_whatever_stands_in_it() -> None:
    thought = ReasoningText("So.\n\nThen")
    assert pieces(["\n\n"], thought, "Yes.\n", "\nNo") == [thought, "Yes."]
    assert pieces(["\n\n"], "a\n", thought, "\n") == ["a\n", thought, "\n"]


@pytest.mark.parametrize("stop", ["7.10", "\n\n", "问题", "\u2028", "🙂", "é"])
def test_a_stop_is_seen_at_its_last_token_whatever_letters_it_has(tokenizer: Any, stop: str) -> None:
    tokens = tokenizer(f"A pH of {stop} is low.", add_special_tokens=False).input_ids
    watch, ended = Watch([stop, "never"], tokenizer, None), []
    for end in range(1, len(tokens) + 1):
        ended.append(bool(watch(torch.tensor([tokens[:end]]), None)))
    assert any(ended) and stop in tokenizer.decode(tokens[: ended.index(True) + 1])
    assert stop not in tokenizer.decode(tokens[: ended.index(True)])
