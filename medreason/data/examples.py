"""Rows of a table -> examples, each row checked: what cannot be learned from is counted by reason, never guessed at."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medreason.config import Columns, ConfigError, Format, OnBadRow
from medreason.core.progress import named
from medreason.data.layouts import BadRow, empty, layout
from medreason.data.tables import Row
from medreason.models.prompts import Example, marks

# C0 and C1 control characters but tab, line feed and carriage return; the mark of an undecodable byte
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SHOWN = 5  # row numbers named for each reason


@dataclass
class Rejects:
    """Rows that failed a check: how many for each reason, and the first ones' places."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= SHOWN:
            self.places.setdefault(reason, []).append(place)

    def report(self) -> dict[str, dict[str, Any]]:
        """Reason -> count and the first places, the most frequent reason first."""
        return {reason: {"count": count, "places": self.places[reason]} for reason, count in self.counts.most_common()}

    def summary(self) -> str:
        """One line, the most frequent reason first."""
        return "; ".join(f"{count} {reason} ({named(self.places[reason], count)})"
                         for reason, count in self.counts.most_common())  # fmt: skip


def read_examples(
    rows: Sequence[Row], columns: Columns, style: Format, max_chars: int, source: str, rejects: Rejects
) -> tuple[list[tuple[int, Example]], list[str]]:
    """The examples of a table with their row numbers, and the columns that were not read; bad rows go to `rejects`.

    Raises ConfigError for columns that are not recognised.
    """
    names: dict[str, bool] = {}  # column -> whether any row has something there
    for _, cells in rows:
        if isinstance(cells, dict):
            for name, value in cells.items():
                if not names.get(name):
                    names[name] = not empty(value)
    filled = {name for name, any_filled in names.items() if any_filled}
    way = layout(list(names), filled, columns, style, source)
    examples = []
    for number, cells in rows:
        try:
            if isinstance(cells, str):
                raise BadRow(cells)
            example = way.read(cells)
            check_example(example, style, max_chars)
            examples.append((number, example))
        except BadRow as reason:
            rejects.add(str(reason), f"{source}:{number}")
    return examples, sorted(way.unread)


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
