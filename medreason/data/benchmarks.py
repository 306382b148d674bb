"""Questions in several choices, and open ones: read from rows, checked, asked.

A file (JSONL, JSON, Parquet, CSV) or a folder of them holds rows of this form; the hub's data sets are brought to it by
known_benchmarks.py:

    id         optional; a row without one is known by its number
    question   text
    options    letter -> text, two to ten from A on, or a list of texts (in CSV: as JSON); also called choices
    answer     the right option's letter, or its index from 0
    subject    optional; without it what follows the slash in `source` (MMLU test/anatomy)
    context    optional; text that the question is about, such as an abstract

Rows without options are open questions, whose answers a judge model reads (medreason/evaluate/judging.py):

    answer     a text that holds what a right answer says
    rubrics    or in its place: a list of {criterion, points, tags}; points are below 0 where the criterion is a fault
    prompt     in the place of `question`: a chat of {role, content} that ends with the user's turn

The last two are HealthBench's (Arora et al. 2025, arXiv 2505.08775), whose files are read as they are.

Names of columns are read in any case. MedMCQA's own columns (opa, opb, opc, opd, cop) are read too.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from enum import Enum
from string import ascii_uppercase
from typing import Any

from medreason.config import ConfigError
from medreason.data.normalize import folded
from medreason.data.tables import Row

SETTING = "benchmarks"  # the setting that an error names, where no other is given
MOST_OPTIONS = 10


class Kind(Enum):
    """What makes an answer right."""

    choice = "choice"  # the letter of one of its options
    exact = "exact"  # the expected text
    open = "open"  # nothing: its expected text is one of many that would do


@dataclass(frozen=True)
class Rubric:
    """What a good answer does, or where `points` are below 0, what a bad one does."""

    criterion: str
    points: float
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """One question, its options by letter, and the letter of the right one; without options, the expected answer."""

    id: str
    question: str
    options: dict[str, str]
    answer: str
    subject: str  # "" if unknown
    context: str  # "" if there is none
    reasoning: str = ""  # the expected reasoning, where it is known
    earlier: tuple[tuple[str, str], ...] = ()  # turns of user and assistant before it
    rubrics: tuple[Rubric, ...] = ()  # of an open question, in the place of an answer


@dataclass(frozen=True)
class Task:
    """A benchmark. `fingerprint` changes with anything in its questions, whatever file they came from."""

    name: str
    questions: tuple[Question, ...]
    fingerprint: str
    kind: Kind = Kind.choice


def chance(questions: Sequence[Question]) -> float | None:
    """What guessing scores, the mean over questions of one in so many options; None where there are no options."""
    if not questions or not all(question.options for question in questions):
        return None
    return sum(1 / len(question.options) for question in questions) / len(questions)


Layout = Callable[[int, Mapping[str, Any]], Question | None]  # a row's number and cells; None: not of this benchmark


class BadQuestion(ValueError):
    """What is wrong with a row, without its place."""


def placed(
    source: str,
    row: Row,
    layout: Layout,
    check: Callable[[Question], Question] | None = None,
    setting: str = SETTING,
) -> tuple[str, Question] | None:
    """A row's place and question, checked; None for a row of something else. Raises ConfigError for a bad one."""
    number, cells = row
    try:
        if isinstance(cells, str):
            raise BadQuestion(cells)
        question = layout(number, cells)
        return None if question is None else (f"{source}: row {number}", (check or checked)(question))
    except BadQuestion as reason:
        raise ConfigError(f"{setting}={source}: row {number}: {reason}") from reason


def checked(question: Question) -> Question:
    """The question. Raises BadQuestion for one that cannot be asked or scored."""
    letters = list(question.options)
    if not 2 <= len(letters) <= MOST_OPTIONS:
        raise BadQuestion(f"{len(letters)} options; needed: 2 to {MOST_OPTIONS}")
    if letters != list(ascii_uppercase[: len(letters)]):
        raise BadQuestion(f"options are called {', '.join(letters)}; needed: A, B and so on")
    if re.search("[\ud800-\udfff]", "".join((question.question, question.context, *question.options.values()))):
        raise BadQuestion("bytes that are not UTF-8")
    empty = [letter for letter, text in question.options.items() if not text]
    if empty:
        raise BadQuestion(f"option {empty[0]} is empty")
    if question.answer not in question.options:
        raise BadQuestion(f"answer {question.answer!r} is not among the options {', '.join(question.options)}")
    return question


def checked_own(question: Question) -> Question:
    """A question of one's own file, which may be open. Raises BadQuestion for one that cannot be asked or scored."""
    if question.options:
        return checked(question)
    criteria = [rubric.criterion for rubric in question.rubrics]
    said = [text for pair in question.earlier for text in pair]
    if re.search("[\ud800-\udfff]", "".join((question.question, question.context, question.answer, *said, *criteria))):
        raise BadQuestion("bytes that are not UTF-8")
    return question


def kind_of(found: Sequence[tuple[str, Question]]) -> Kind:
    """What makes answers to the questions of one file right. Raises ConfigError where some alone have options."""
    if not found or all(question.options for _, question in found):
        return Kind.choice
    if mixed := next((place for place, question in found if question.options), None):
        bare = next(place for place, question in found if not question.options)
        raise ConfigError(f"{SETTING}={mixed} has options and {bare} has none; part them into two files")
    return Kind.open


def make_task(
    name: str, found: Iterable[tuple[str, Question]], kind: Kind = Kind.choice, setting: str = SETTING
) -> Task:
    """The task of questions and their places. Raises ConfigError for two with one id, or none at all."""
    places: dict[str, str] = {}
    questions = []
    for place, question in found:
        if question.id in places:
            raise ConfigError(f"{setting}={place}: id {question.id!r} is also that of {places[question.id]}")
        places[question.id] = place
        questions.append(question)
    if not questions:
        raise ConfigError(f"{setting}={name}: no questions")
    content = json.dumps([parts_of(question) for question in questions])
    return Task(name, tuple(questions), hashlib.sha256(content.encode()).hexdigest()[:16], kind)


def parts_of(question: Question) -> tuple[Any, ...]:
    """A question for its task's fingerprint, without what only open ones have and this one has not."""
    parts = astuple(question)
    while parts[-1] == ():
        parts = parts[:-1]
    return parts


def from_row(number: int, cells: Mapping[str, Any]) -> Question:
    """A question in this project's own form (see above). Raises BadQuestion for a missing or unusable cell."""
    cells = {folded(name): value for name, value in cells.items()}
    if "options" not in cells and {"opa", "cop"} <= set(cells):
        return replace(from_medmcqa(number, cells), id=identity_of(number, cells))
    if is_open(cells):
        return open_question(number, cells)
    options = needed(cells, "choices" if "options" not in cells and "choices" in cells else "options")
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except ValueError:
            options = None
    if isinstance(options, list):
        options = lettered(options)
    if not isinstance(options, Mapping):
        raise BadQuestion('`options` is not of the form {"A": TEXT, "B": TEXT}')
    if not options:
        raise BadQuestion(f"0 options; needed: 2 to {MOST_OPTIONS}")
    source = str(cells.get("source") or "")
    index = isinstance(cells.get("answer"), int)
    return Question(
        identity_of(number, cells),
        text(cells, "question"),
        by_letter(options),
        letter_of(cells, "answer") if index else text(cells, "answer"),
        str(cells.get("subject") or (source.partition("/")[2])).strip(),
        str(cells.get("context") or "").strip(),
    )


def is_open(cells: Mapping[str, Any]) -> bool:
    """Whether a row, its columns' names folded, is an open question: no options, and an answer that is no letter."""
    if any(cells.get(name) is not None for name in ("options", "choices")):
        return False
    answer = cells.get("answer")
    return cells.get("rubrics") is not None or (
        isinstance(answer, str) and not re.fullmatch("[A-Za-z0-9]?", answer.strip())
    )


def open_question(number: int, cells: Mapping[str, Any]) -> Question:
    """A question with a reference answer, or with rubrics. Raises BadQuestion for a missing or unusable cell."""
    rubrics = rubrics_of(cells["rubrics"]) if cells.get("rubrics") is not None else ()
    chat = listed(cells.get("prompt")) if cells.get("question") is None else None
    earlier, asked = ((), text(cells, "question")) if chat is None else turns_of(chat)
    tags = [tag.partition(":")[2] for tag in listed(cells.get("example_tags")) or [] if str(tag).startswith("theme:")]
    source = str(cells.get("source") or "")
    identity = cells.get("prompt_id") if cells.get("id") in (None, "") else None
    return Question(
        str(identity or identity_of(number, cells)),
        asked,
        {},
        "" if rubrics else text(cells, "answer"),
        str(cells.get("subject") or (tags[0] if tags else source.partition("/")[2])).strip(),
        str(cells.get("context") or "").strip(),
        earlier=earlier,
        rubrics=rubrics,
    )


def listed(cell: Any) -> list[Any] | None:
    """A cell's list, which CSV has as JSON; None for anything else."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    return cell if isinstance(cell, list) else None


def rubrics_of(cell: Any) -> tuple[Rubric, ...]:
    """Raises BadQuestion for rubrics that are none, or none of which is worth anything."""
    found = []
    for place, each in enumerate(listed(cell) or [], 1):
        points = each.get("points") if isinstance(each, Mapping) else None
        if not isinstance(points, int | float) or isinstance(points, bool) or not math.isfinite(points):
            raise BadQuestion(f"`rubrics`: the {place}. has no number of `points`")
        try:
            criterion = text(each, "criterion")
        except BadQuestion as reason:
            raise BadQuestion(f"`rubrics`: the {place}.: {reason}") from reason
        found.append(Rubric(criterion, points, tuple(str(tag) for tag in listed(each.get("tags")) or [])))
    if not any(rubric.points > 0 for rubric in found):
        raise BadQuestion("`rubrics` holds no {criterion, points} with points above 0")
    return tuple(found)


def turns_of(chat: Sequence[Any]) -> tuple[tuple[tuple[str, str], ...], str]:
    """A chat's pairs of user and assistant, and the user's last turn.

    Turns of one role in a row are one turn, and what a system turn says begins the user turn after it, a blank line
    between them, as rows are read (data/examples.py). Raises BadQuestion for another chat.
    """
    turns: list[tuple[str, str]] = []
    for place, each in enumerate(chat, 1):
        role, said = (each.get("role"), each.get("content")) if isinstance(each, Mapping) else (None, None)
        role = "user" if role in ("system", "developer") else role
        if role not in ("user", "assistant") or not isinstance(said, str):
            raise BadQuestion(
                f"`prompt`: the {place}. turn is not of the form {{role: user or assistant, content: TEXT}}"
            )
        said = said.strip()
        if turns and turns[-1][0] == role:
            said = f"{turns.pop()[1]}\n\n{said}".strip()
        turns.append((str(role), said))
    if len(turns) % 2 == 0 or turns[0][0] != "user":
        raise BadQuestion("`prompt` must begin and end with a turn of the user")
    if not turns[-1][1]:
        raise BadQuestion("`prompt` ends with an empty turn")
    said = [text for _, text in turns]
    return tuple(zip(said[:-1:2], said[1::2], strict=True)), said[-1]


def identity_of(number: int, cells: Mapping[str, Any]) -> str:
    """A row's own id, or its number."""
    identity = cells.get("id")
    return str(number if identity in (None, "") else identity)


def needed(cells: Mapping[str, Any], column: str) -> Any:
    if cells.get(column) is None:
        raise BadQuestion(f"no `{column}`")
    return cells[column]


def text(cells: Mapping[str, Any], column: str) -> str:
    """A cell's text without surrounding space. Raises BadQuestion where there is none."""
    value = needed(cells, column)
    if not isinstance(value, str) or not value.strip():
        raise BadQuestion(f"`{column}` is {'empty' if isinstance(value, str) else 'not text'}")
    return value.strip()


def lettered(options: Sequence[Any]) -> dict[str, str]:
    return {letter: str(option).strip() for letter, option in zip(ascii_uppercase, options, strict=False)}


def by_letter(options: Mapping[str, Any]) -> dict[str, str]:
    """Options by letter; Parquet gives every row the letters of the longest."""
    return {str(letter): str(option).strip() for letter, option in sorted(options.items()) if option is not None}


def letter_of(cells: Mapping[str, Any], column: str) -> str:
    """The letter of an option's index, from 0. Raises BadQuestion for anything else (-1: the key is not published)."""
    index = needed(cells, column)
    if isinstance(index, str) and index.isdecimal():  # CSV knows no numbers
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MOST_OPTIONS:
        raise BadQuestion(f"`{column}` is {index!r}, not an option's index")
    return ascii_uppercase[index]


def from_medmcqa(number: int, cells: Mapping[str, Any]) -> Question:
    """openlifescienceai/medmcqa. Its test split has no published key; scores are of validation."""
    options = lettered([needed(cells, column) for column in ("opa", "opb", "opc", "opd")])
    subject = str(cells.get("subject_name") or "")
    identity = str(cells.get("id") or f"medmcqa-{number}")
    return Question(identity, text(cells, "question"), options, letter_of(cells, "cop"), subject, "")


def cyclic_orders(options: int, count: int) -> list[tuple[int, ...]]:
    """`count` orders of so many options, their own order first, at most one for each option.

    In all of them every option stands once in every place, so that a model's preference for a place helps each alike
    (Zheng et al. 2023, arXiv 2309.03882).
    """
    return [tuple((place + shift) % options for place in range(options)) for shift in range(min(count, options) or 1)]


def permuted(question: Question, order: Sequence[int]) -> Question:
    """The question with option order[i] under the i-th letter, the right answer moved along.

    Raises ValueError for an order that is no permutation of the options' indices.
    """
    letters = list(question.options)
    if sorted(order) != list(range(len(letters))):
        raise ValueError(f"{list(order)} is no order of {len(letters)} options")
    texts = list(question.options.values())
    options = {letter: texts[index] for letter, index in zip(letters, order, strict=True)}
    return replace(question, options=options, answer=letters[list(order).index(letters.index(question.answer))])


def likelihood_prompt(question: Question) -> str:
    """The user's turn where the next token's probabilities decide: the answer is to be a letter."""
    return f"{presented(question)}\n\nAnswer with the letter of the correct option."


def reasoning_prompt(question: Question) -> str:
    """The user's turn where the written answer decides: reasoning, then a sentence that names the letter.

    A question without options is asked as it is.
    """
    if not question.options:
        return presented(question)
    return (
        f'{presented(question)}\n\nThink step by step, then end with "The answer is X.", where X is the letter of the '
        "correct option."
    )


def presented(question: Question) -> str:
    """Context if there is one, question, a line for each option."""
    options = "\n".join(f"{letter}. {option}" for letter, option in question.options.items())
    return "\n\n".join(part for part in (question.context, f"{question.question}\n{options}".rstrip()) if part)


def length(question: Question) -> int:
    """Of all that is read of a question, in characters."""
    earlier = sum(len(said) for pair in question.earlier for said in pair)
    return len(presented(question)) + len(question.reasoning) + earlier
