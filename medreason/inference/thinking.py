"""Answers within a budget of reasoning: where it is used up the reasoning is ended by its closing mark, and the answer
asked for ("budget forcing": Muennighoff et al. 2025, arXiv 2501.19393).

    budget 8   <think> His ferritin is low, so | </think> Iron deficiency.
                                               ^ cut, closed        ^ written next
"""

from collections.abc import Callable, Iterator, Sequence

from medreason.config import Format
from medreason.inference.batched import Written
from medreason.models.prompts import FORMATS

# prompts, the most new tokens -> index of one, what was written to it
WriteMost = Callable[[Sequence[str], int], Iterator[tuple[int, Written]]]


def write_within(
    write: WriteMost, prompts: Sequence[str], style: Format, *, budget: int, answer_tokens: int
) -> Iterator[tuple[int, Written]]:
    """Pairs of a prompt's index and what was written to it: at most `budget` tokens, and where these are not enough,
    the answer in at most `answer_tokens` more.
    """
    reasoned: dict[int, Written] = {}
    for place, written in write(prompts, budget):
        if written.cut:
            reasoned[place] = Written(closed(written.text, style), cut=True, tokens=written.tokens)
        else:
            yield place, written
    places = sorted(reasoned)
    if not places:
        return
    for number, answer in write([prompts[place] + reasoned[place].text for place in places], answer_tokens):
        before = reasoned[places[number]]
        yield places[number], Written(before.text + answer.text, answer.cut, tokens=before.tokens + answer.tokens)


def closed(text: str, style: Format) -> str:
    """Reasoning that was cut, ended by its format's closing mark; an answer that had begun is written anew after it."""
    closing = FORMATS[style].closing
    reasoning = text.partition(closing.strip())[0]
    return reasoning.rstrip("\ufffd").rstrip() + closing  # the end may be in the middle of a letter's bytes
