"""Rows of a table -> examples, each row checked: what cannot be learned from is counted by reason, never guessed at."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
LOOKED_AT = 1000  # rows by which a table's columns are judged at first


@dataclass
class Rejects:
    """Rows that failed a check: how many for each reason, and the first ones' places."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= SHOWN:
            self.places.setdefault(reason, []).append(place)

    def update(self, other: "Rejects") -> None:
        """Adds those of another table."""
        self.counts.update(other.counts)
        for reason, places in other.places.items():
            own = self.places.setdefault(reason, [])
            own += places[: SHOWN - len(own)]

    def report(self) -> dict[str, dict[str, Any]]:
        """Reason -> count and the first places, the most frequent reason first."""
        return {reason: {"count": count, "places": self.places[reason]} for reason, count in self.counts.most_common()}

    def summary(self) -> str:
        """One line, the most frequent reason first."""
        return "; ".join(f"{count} {reason} ({named(self.places[reason], count)})"
                         for reason, count in self.counts.most_common())  # fmt: skip


@dataclass
class Reading:
    """One way through a table's rows: what they are taken for, and what they turn out to be.

    The columns decide how rows are read, those in which any row has something before the others. They are taken from
    the first rows; if a later row fills another one, what was read does not count, and the table is read again.
    """

    columns: dict[str, bool]  # name -> whether any row has something there, as supposed
    met: dict[str, bool] = field(default_factory=dict)  # the same, as found
    rows: int = 0
    unread: set[str] = field(default_factory=set)  # columns that nothing is learned from
    rejects: Rejects = field(default_factory=Rejects)

    @property
    def holds(self) -> bool:
        """Whether the columns were those supposed, once all rows are read."""
        return self.columns == self.met

    def examples(
        self, rows: Iterable[Row], columns: Columns, style: Format, max_chars: int, source: str
    ) -> Iterator[tuple[int, Example]]:
        """Examples with their row numbers; bad rows go to `rejects`. Raises ConfigError for columns not recognised."""
        way = layout(list(self.columns), filled(self.columns), columns, style, source)
        self.unread = way.unread
        for number, cells in rows:
            self.rows += 1
            try:
                if isinstance(cells, str):
                    raise BadRow(cells)
                meet(self.met, cells)
                example = way.read(cells)
                check_example(example, style, max_chars)
                yield number, example
            except BadRow as reason:
                self.rejects.add(str(reason), f"{source}:{number}")


def readings(
    table: Callable[[], Iterator[Row]], columns: Columns, style: Format, max_chars: int, source: str
) -> Iterator[tuple[Reading, Iterator[tuple[int, Example]]]]:
    """Ways to read a table, each with its examples, which are to be gone through; the last one counts.

    Raises ConfigError for columns that are not recognised, or what `table`, which gives its rows anew, raises.
    """
    rows = table()
    first = list(itertools.islice(rows, LOOKED_AT))
    reading = Reading(columns_of(first))
    try:
        layout(list(reading.columns), filled(reading.columns), columns, style, source)
    except ConfigError:  # perhaps not of all rows; and an error of the file's own comes first
        reading = Reading(columns_of(itertools.chain(first, rows)))
        first, rows = [], table()
    yield reading, reading.examples(itertools.chain(first, rows), columns, style, max_chars, source)
    if not reading.holds:
        reading = Reading(reading.met)
        yield reading, reading.examples(table(), columns, style, max_chars, source)


def read_examples(
    rows: Sequence[Row], columns: Columns, style: Format, max_chars: int, source: str, rejects: Rejects
) -> tuple[list[tuple[int, Example]], list[str]]:
    """The examples of a table with their row numbers, and the columns that were not read; bad rows go to `rejects`.

    Raises ConfigError for columns that are not recognised.
    """
    for reading, examples in readings(lambda: iter(rows), columns, style, max_chars, source):  # noqa: B007
        found = list(examples)
    rejects.update(reading.rejects)
    return found, sorted(reading.unread)


def columns_of(rows: Iterable[Row]) -> dict[str, bool]:
    """The columns of rows, each with whether any row has something there."""
    found: dict[str, bool] = {}
    for _, cells in rows:
        if isinstance(cells, dict):
            meet(found, cells)
    return found


def meet(columns: dict[str, bool], cells: Mapping[str, Any]) -> None:
    """Adds what a row shows of the columns."""
    for name, value in cells.items():
        if not columns.get(name):
            columns[name] = not empty(value)


def filled(columns: Mapping[str, bool]) -> set[str]:
    return {name for name, any_filled in columns.items() if any_filled}


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
