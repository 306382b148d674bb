"""Answers, judged by rule -> the rows of a second stage (rejection sampling, as in STaR: Zelikman et al. 2022).

An answer counts if it is right by the strict rule, shows its reasoning, and was not cut by the length limit. A row has
the columns question, reasoning and answer, which `data.path` knows by their names; its question is the text that the
model was asked.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medreason.config import Format
from medreason.data.benchmarks import Question, reasoning_prompt
from medreason.data.examples import check_example
from medreason.data.layouts import BadRow
from medreason.inference.batched import Written, well_formed
from medreason.models.prompts import Example, parse_answer

Answers = Mapping[str, Any]  # a line of answers.jsonl: id, gold, and for each answer texts, right, whole


@dataclass(frozen=True)
class Counts:
    """What became of the questions that were asked."""

    questions: int
    solved: int  # questions answered right at least once
    answers: int
    right: int  # answers
    whole: int  # right answers that show their reasoning and end
    rows: int


def judged(record: Mapping[str, Any], style: Format) -> dict[str, Any]:
    """A question's line in answers.jsonl, from its record as medreason/evaluate/asking.py has it."""
    texts = record.get("texts", [record["text"]])
    cuts = record.get("cuts", [record["cut"]])
    return {
        "id": record["id"],
        "gold": record["gold"],
        "texts": texts,
        "right": [choice == record["gold"] for choice in record["choices"]],
        "whole": [well_formed(Written(text, cut), style) for text, cut in zip(texts, cuts, strict=True)],
    }


def kept(
    question: Question, answers: Answers, style: Format, keep: int, right_share: float, max_chars: int
) -> list[Example]:
    """At most `keep` answers to a question that can be learned from: those that were written most often, no text twice.

    None where less than `right_share` of its answers are right. Reasoning that leads to a right answer by luck seldom
    does so twice, and seldom in the same words.
    """
    if sum(answers["right"]) < right_share * len(answers["right"]):
        return []
    texts = Counter(
        " ".join(text.split())
        for text, right, whole in zip(answers["texts"], answers["right"], answers["whole"], strict=True)
        if right and whole
    )
    first = {" ".join(text.split()): text for text in reversed(answers["texts"])}
    found = (learnable(question, first[text], style, max_chars) for text, _ in texts.most_common())
    return [example for example in found if example is not None][:keep]


def learnable(question: Question, text: str, style: Format, max_chars: int) -> Example | None:
    """An answer as training would read it; None for one that it would refuse."""
    parsed = parse_answer(text, style)
    example = Example(reasoning_prompt(question), parsed.reasoning, parsed.answer)
    try:
        check_example(example, style, max_chars)
    except BadRow:
        return None
    return example


def counted(answers: Sequence[Answers], rows: int) -> Counts:
    pairs = [pair for one in answers for pair in zip(one["right"], one["whole"], strict=True)]
    return Counts(
        questions=len(answers),
        solved=sum(any(one["right"]) for one in answers),
        answers=len(pairs),
        right=sum(right for right, _ in pairs),
        whole=sum(right and whole for right, whole in pairs),
        rows=rows,
    )
