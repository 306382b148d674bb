"""Rows of a table -> examples, each row checked: what cannot be learned from is counted by reason, never guessed at.

A table's layout is recognised by its columns:

    Question, Complex_CoT, Response       the medical-o1 data set
    instruction, input, output            the output may carry its reasoning between the format's marks or think tags
    messages                              a chat of one question and one answer, system turn first if there is one
    data.columns.question=... and so on   whatever you name
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medreason.config import Columns, ConfigError, Format, OnBadRow
from medreason.prompts import Example, marks, parse_answer
from medreason.sources import Row

REASONING_COLUMNS = ("Question", "Complex_CoT", "Response")
# C0 and C1 control characters but tab, line feed and carriage return; the mark of an undecodable byte
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
Reader = Callable[[Mapping[str, Any]], Example]
SHOWN = 5  # row numbers named for each reason


class BadRow(ValueError):
    """A row that cannot be learned from; the message is the reason by which it is counted."""


@dataclass
class Rejects:
    """Rows that failed a check: how many for each reason, and the first ones' places."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= SHOWN:
            self.places.setdefault(reason, []).append(place)

    def summary(self) -> str:
        """One line, the most frequent reason first."""
        parts = [f"{count} {reason} ({', '.join(self.places[reason])}{', ...' if count > SHOWN else ''})"
                 for reason, count in self.counts.most_common()]  # fmt: skip
        return "; ".join(parts)


def read_examples(
    rows: Sequence[Row], columns: Columns, style: Format, max_chars: int, source: str, rejects: Rejects
) -> list[tuple[int, Example]]:
    """The examples of a table with their row numbers; what fails a check goes to `rejects`.

    Raises ConfigError for columns that are not recognised.
    """
    names = list(dict.fromkeys(name for _, cells in rows if isinstance(cells, dict) for name in cells))
    read = layout(names, columns, style, source)
    examples = []
    for number, cells in rows:
        try:
            if isinstance(cells, str):
                raise BadRow(cells)
            example = read(cells)
            check_example(example, style, max_chars)
            examples.append((number, example))
        except BadRow as reason:
            rejects.add(str(reason), f"{source}:{number}")
    return examples


def layout(names: Sequence[str], columns: Columns, style: Format, source: str) -> Reader:
    """How a table with these columns is read. Raises ConfigError for one that is not recognised."""
    for key in ("question", "reasoning", "answer"):
        wanted = getattr(columns, key)
        if wanted is not None and wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"columns: {', '.join(names)}"
            raise ConfigError(f"data.columns.{key}={wanted}: {source} has no such column ({hint})")
    question, reasoning, answer = (
        getattr(columns, key) or default
        for key, default in zip(("question", "reasoning", "answer"), REASONING_COLUMNS, strict=True)
    )
    if question in names and answer in names:
        if reasoning in names:
            return lambda cells: Example(*(cell(cells, name) for name in (question, reasoning, answer)))
        if columns.question or columns.answer:  # named by the user: a table without reasoning is meant
            return lambda cells: with_reasoning(cell(cells, question), cell(cells, answer), style)
    if {"instruction", "output"} <= set(names):
        return lambda cells: from_instruction(cells, style)
    if "messages" in names:
        return lambda cells: from_messages(cells, style)
    raise ConfigError(
        f"data.path={source}: columns {', '.join(names) or '(none)'}; needed: {', '.join(REASONING_COLUMNS)}, or "
        "instruction, input, output, or messages, or name yours with data.columns.question=NAME and so on"
    )


def cell(cells: Mapping[str, Any], name: str) -> str:
    """A text without surrounding space. Raises BadRow for anything else."""
    value = cells.get(name)
    if value is None:
        raise BadRow(f"no {name}")
    if not isinstance(value, str):
        raise BadRow(f"{name} is {type(value).__name__}, not text")
    value = value.strip()
    if not value:
        raise BadRow(f"empty {name}")
    return value


def from_instruction(cells: Mapping[str, Any], style: Format) -> Example:
    """What is asked is instruction and, where there is one, input; what is written is the output."""
    asked = cell(cells, "instruction")
    if cells.get("input") not in (None, ""):
        asked += "\n\n" + cell(cells, "input")
    return with_reasoning(asked, cell(cells, "output"), style)


def from_messages(cells: Mapping[str, Any], style: Format) -> Example:
    """A chat: a system turn stands before the question. Raises BadRow for more than one question and answer."""
    turns = cells.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow("messages is not a list of turns")
    roles = [turn.get("role") for turn in turns]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise BadRow("messages are not one question and one answer")
    *asked, written = [cell(turn, "content") for turn in turns]
    return with_reasoning("\n\n".join(asked), written, style)


def with_reasoning(question: str, written: str, style: Format) -> Example:
    """Finds the reasoning in a written answer, between the format's marks or in think tags."""
    for form in dict.fromkeys((style, Format.think)):
        parsed = parse_answer(written, form)
        if parsed.reasoning:
            return Example(question, parsed.reasoning, parsed.answer)
    return Example(question, "", written)


def check_example(example: Example, style: Format, max_chars: int) -> None:
    """Raises BadRow for text that is broken, absurdly long, or would be taken for the format's own marks."""
    if not example.answer:
        raise BadRow("reasoning without an answer")
    for name in ("question", "reasoning", "answer"):
        text = getattr(example, name)
        if len(text) > max_chars:
            raise BadRow(f"{name} of more than {max_chars} characters")
        if not text.isascii() and ("\ufffd" in text or not encodable(text)):
            raise BadRow(f"{name} is not valid UTF-8")
        if CONTROL.search(text):
            raise BadRow(f"control character in {name}")
    for mark in marks(style):
        if any(mark in text for text in (example.question, example.reasoning, example.answer)):
            raise BadRow(f"holds {mark}, a mark of data.format={style.value}")


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: a byte that was not UTF-8, or half of a \u pair in JSON
        return False
    return True


def settle_rejects(rejects: Rejects, rows: int, source: str, on_bad_row: OnBadRow, max_bad_share: float) -> None:
    """Raises ConfigError where rows failed and the policy does not let them be skipped."""
    bad = rejects.counts.total()
    if not bad:
        return
    said = f"data.path={source}: {bad} of {rows} rows cannot be learned from: {rejects.summary()}; "
    if on_bad_row is OnBadRow.error:
        raise ConfigError(said + "mend them or set data.on_bad_row=skip")
    if bad > max_bad_share * rows:
        raise ConfigError(said + f"more than data.max_bad_share={max_bad_share:g}; mend them or raise it")
