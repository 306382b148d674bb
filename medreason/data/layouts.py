"""The columns of a table -> how its rows are read as examples. What a reader would expect to be learned is learned.

    Question, Complex_CoT, Response      the medical-o1 data set
    instruction, input, output           Alpaca's rows, also Dolly's instruction, context, response
    messages or conversations            a chat of one question and one answer: role, content or from, value
    question, options, answer            multiple choice, also MedMCQA's question, opa, opb, opc, opd, cop, exp
    question, answer                     also prompt, completion, as texts or as turns
    data.columns.question=... and so on  whatever you name

Case, blanks, hyphens and underscores in names do not count. A system text and a context come before the question.
Reasoning stands in its own column, in a turn's own field, between the format's marks, or in think tags; in two places
it is a bad row. So is a row with earlier turns or calls of tools. Columns that nothing is learned from are named.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from medreason.config import Columns, ConfigError, Format
from medreason.data.benchmarks import Question, presented
from medreason.data.folders import visible
from medreason.data.normalize import folded
from medreason.models.prompts import Example, parse_answer

DOCUMENTED = ("Question", "Complex_CoT", "Response")
QUESTIONS = ("question", "prompt", "query", "problem", "问题")
ANSWERS = ("answer", "response", "completion", "output", "solution", "答案", "回答")
REASONINGS = (
    "complex_cot", "cot", "chain_of_thought", "reasoning", "reasoning_content", "reasoning_text", "reasoning_trace",
    "reasoning_process", "reasoning_steps", "thinking", "thinking_content", "thinking_process", "thinking_trajectory",
    "thought", "thoughts", "thought_process", "think", "rationale", "explanation", "思考过程", "推理过程", "思维链",
)  # fmt: skip
TURNS = ("messages", "conversations", "conversation")
TOOLS = ("tools", "tool_calls", "function_call", "functions")
CORRECT = ("cop", "answer_idx", "answer_index", "correct_option", "answer")  # of several options
ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
    "reasoning": "reasoning", "thinking": "reasoning", "analysis": "reasoning",
}  # fmt: skip
SHOWN_NAMES, SHOWN_CHARACTERS = 12, 40  # of a table's columns, in an error

Cells = Mapping[str, Any]
Reader = Callable[[Cells], Example]


class BadRow(ValueError):
    """A row that cannot be learned from; the message is the reason by which it is counted."""


@dataclass(frozen=True)
class Layout:
    """How rows of a table are read (raises BadRow), and the columns that are not (fields of turns as they are met)."""

    read: Reader
    unread: set[str]


@dataclass(frozen=True)
class Pair:
    """The columns of a question and its answer."""

    question: str
    answer: str
    reasoning: str | None
    needed: bool  # whether a row without reasoning is a bad one
    options: tuple[str, ...] = ()  # one that holds them all, or one each
    input: str | None = None  # what an instruction is about


class Names:
    """A table's columns, found by what they may be called; `used` are those that were asked for and found."""

    def __init__(self, names: Sequence[str], filled: set[str], source: str) -> None:
        """`filled` are the columns in which any row has something."""
        self.names, self.filled, self.source = names, filled, source
        self.used: set[str] = set()

    def all(self, *called: str) -> list[str]:
        """The columns called one of these, in the order of what they are called; the filled ones, if any is."""
        found = [name for one in called for name in self.names if folded(name) == one]
        return [name for name in found if name in self.filled] or found[:1]

    def one(self, role: str, *called: str) -> str | None:
        """The column called one of these, None where there is none. Raises ConfigError where it could be several."""
        found = self.all(*called)
        if len(found) > 1:
            nameable = role in ("question", "reasoning", "answer")
            raise ConfigError(
                f"data.path={self.source}: columns {' and '.join(map(visible, found))} could each be the {role}; "
                + (f"name one with data.columns.{role}=NAME" if nameable else "rename or remove one")
            )
        self.used.update(found)
        return found[0] if found else None


def layout(names: Sequence[str], filled: set[str], columns: Columns, style: Format, source: str) -> Layout:
    """How a table with these columns is read. Raises ConfigError for one that is not recognised, or in two ways."""
    for role in ("question", "reasoning", "answer"):
        wanted = getattr(columns, role)
        if wanted is not None and wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1)
            hint = f"did you mean {visible(near[0])}?" if near else f"columns: {listed(names)}"
            raise ConfigError(f"data.columns.{role}={wanted}: {source} has no such column ({hint})")
    table, unread = Names(names, filled, source), set[str]()
    refused = [*table.all("history"), *table.all(*TOOLS)]
    before = [
        name for name in (table.one("system text", "system", "system_prompt"), table.one("context", "context")) if name
    ]
    if pair := known_pair(table, columns):
        read = pair_reader(pair, style)
    elif turns := table.one("chat", *TURNS):
        read = chat_reader(turns, columns.reasoning or table.one("reasoning", *REASONINGS), style, unread)
    elif pair := any_pair(table, columns):
        read = pair_reader(pair, style)
    else:
        raise ConfigError(
            f"data.path={source}: columns {listed(names)}; needed: {', '.join(DOCUMENTED)}, or instruction, input, "
            "output, or messages, or question, answer, or name yours with data.columns.question=NAME and so on"
        )
    used = {*table.used, *refused, *(name for name in vars(columns).values() if name)}
    unread.update(visible(name) for name in names if name in filled and name not in used)

    def whole(cells: Cells) -> Example:
        for name in refused:
            if not empty(cells.get(name)) and cells[name] not in ("[]", "{}", "null"):  # JSON in a table of texts
                raise BadRow(f"{visible(name)}: earlier turns and tools are not learned")
        example = read(cells)
        said = [text for name in before if (text := optional(cells, name)) and text not in example.question]
        return Example("\n\n".join([*said, example.question]), example.reasoning, example.answer) if said else example

    return Layout(whole, unread)


def known_pair(table: Names, columns: Columns) -> Pair | None:
    """Columns that the user named, those of medical-o1, or an instruction's; None for a table of another kind."""
    if columns.question or columns.answer:
        question = columns.question or table.one("question", *QUESTIONS)
        options = option_columns(table)
        answer = columns.answer or answer_column(table, options)
        if question is None or answer is None:
            lacks = "question" if question is None else "answer"
            raise ConfigError(
                f"data.path={table.source}: no column for the {lacks} among {listed(table.names)}; "
                f"name it with data.columns.{lacks}=NAME"
            )
        reasoning = columns.reasoning or table.one("reasoning", *REASONINGS)
        return Pair(question, answer, reasoning, reasoning is not None, options)
    if all(table.all(folded(name)) for name in DOCUMENTED):
        question, reasoning, answer = (
            table.one(role, folded(name))
            for role, name in zip(("question", "reasoning", "answer"), DOCUMENTED, strict=True)
        )
        assert question and answer
        return Pair(question, answer, columns.reasoning or reasoning, True, option_columns(table))
    if table.all("instruction") and table.all("output", "response"):
        question = table.one("question", "instruction")
        answer = table.one("answer", "output") or table.one("answer", "response")
        assert question and answer
        reasoning = columns.reasoning or table.one("reasoning", *REASONINGS)
        return Pair(question, answer, reasoning, False, input=table.one("input", "input"))
    return None


def any_pair(table: Names, columns: Columns) -> Pair | None:
    """Columns by the names that a question and an answer have elsewhere."""
    question, options = table.one("question", *QUESTIONS), option_columns(table)
    answer = answer_column(table, options)
    reasoning = columns.reasoning or table.one("reasoning", *REASONINGS, *(("exp",) if options else ()))
    if question is None or answer is None:
        return None
    if (folded(question), folded(answer), reasoning) == ("question", "response", None):
        return None  # medical-o1's without the third: reasoning is not left out by chance
    return Pair(question, answer, reasoning, not options, options)


def answer_column(table: Names, options: Sequence[str]) -> str | None:
    """The answer's column; of several options, the one that says which is right."""
    if options:
        for called in CORRECT:
            if table.all(called):
                table.used.update(table.all(*CORRECT))
                return table.one("answer", called)
    return table.one("answer", *ANSWERS)


def option_columns(table: Names) -> tuple[str, ...]:
    """The column that holds an answer's options, or the columns that hold one each, from A on; none: no choice."""
    if name := table.one("options", "options", "choices"):
        return (name,)
    for prefix in ("op", "option_", "option", "choice_", ""):
        found = []
        for letter in ascii_lowercase[:10]:
            if not table.all(prefix + letter):
                break
            found.append(table.one(f"option {letter.upper()}", prefix + letter) or "")
        if len(found) > 1:
            return tuple(found)
    return ()


def pair_reader(pair: Pair, style: Format) -> Reader:
    def read(cells: Cells) -> Example:
        if is_chat(cells.get(pair.question)) or is_chat(cells.get(pair.answer)):  # as TRL has prompt and completion
            turns = [*as_turns(cells, pair.question, "user"), *as_turns(cells, pair.answer, "assistant")]
            question, reasoning, written = from_turns(turns, pair.question, set())
            return with_reasoning(question, reasoning, written, style)
        question = cell(cells, pair.question)
        if pair.input and (about := optional(cells, pair.input)):
            question += "\n\n" + about
        reasoning = ""
        if pair.reasoning:
            reasoning = (cell if pair.needed else optional)(cells, pair.reasoning)
        options = options_in(cells, pair.options)
        if options:
            question = presented(Question("", question, options, "", "", ""))
            return with_reasoning(question, reasoning, chosen(cells, pair.answer, options), style)
        return with_reasoning(question, reasoning, cell(cells, pair.answer), style)

    return read


def chat_reader(column: str, beside: str | None, style: Format, unread: set[str]) -> Reader:
    def read(cells: Cells) -> Example:
        question, reasoning, written = from_turns(turns_in(cells, column), column, unread)
        if beside and (more := optional(cells, beside)):
            reasoning = one_reasoning(reasoning, more)
        return with_reasoning(question, reasoning, written, style)

    return read


def from_turns(turns: Sequence[Mapping[str, Any]], column: str, unread: set[str]) -> tuple[str, str, str]:
    """Question (a system turn before it), reasoning and answer of a chat.

    Raises BadRow for more than one question and answer, and for calls of tools.
    """
    roles, texts, reasoning = [], [], ""
    for turn in turns:
        said = turn.get("role") or turn.get("from")
        role = ROLES.get(said.lower()) if isinstance(said, str) else None
        if role is None:
            raise BadRow(f"{column} hold a turn of {said!r}"[:80])
        if called := [name for name, value in turn.items() if folded(name) in TOOLS and not empty(value)]:
            raise BadRow(f"{column} hold {called[0]}: calls of tools are not learned")
        key = "content" if "content" in turn or "value" not in turn else "value"
        text, thought = parts(turn, key)
        for name, value in turn.items():
            if empty(value) or name in ("role", "from", key):
                continue
            if folded(name) in REASONINGS and role == "assistant":
                thought = one_reasoning(thought, cell(turn, name))
            else:
                unread.add(f"{visible(column)}[].{visible(name)}")
        if role == "reasoning":
            thought, text = one_reasoning(thought, text), ""
        else:
            roles.append(role)
            texts.append(text)
        reasoning = one_reasoning(reasoning, thought)
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise BadRow(f"{column} are not one question and one answer")
    *asked, written = texts
    return "\n\n".join(asked), reasoning, written


def parts(turn: Mapping[str, Any], key: str) -> tuple[str, str]:
    """The text and the reasoning of a turn's content: a text, or a list of parts with their types."""
    content = turn.get(key)
    if not isinstance(content, list):
        return cell(turn, key), ""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part.strip())
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        into = texts if kind in ("text", "input_text", "output_text") else thoughts if kind in REASONINGS else None
        if into is None or not isinstance(part, Mapping):
            raise BadRow(f"{key} holds {kind}, not text")
        name = next((name for name in ("text", kind, "content") if not empty(part.get(name))), "text")
        into.append(cell(part, name))
    if not any(texts):
        raise BadRow(f"empty {key}")
    return "\n\n".join(texts), "\n\n".join(thoughts)


def turns_in(cells: Cells, column: str) -> Sequence[Mapping[str, Any]]:
    """A chat's turns, also where a table of texts holds them as JSON."""
    turns = cells.get(column)
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except ValueError:
            turns = None
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow(f"{column} is not a list of turns")
    return turns


def as_turns(cells: Cells, column: str, role: str) -> Sequence[Mapping[str, Any]]:
    if is_chat(cells.get(column)):
        return turns_in(cells, column)
    return [{"role": role, "content": cell(cells, column)}]


def is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def options_in(cells: Cells, columns: Sequence[str]) -> dict[str, str]:
    """Letter -> option, from a mapping or a list (also as JSON), or from a column each; none where the row has none."""
    if not columns or all(empty(cells.get(name)) for name in columns):
        return {}
    if len(columns) > 1:
        given = [cells.get(name) for name in columns]
        while empty(given[-1]):
            given.pop()
        found: Any = given
    else:
        found = cells[columns[0]]
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except ValueError:
                found = None
    if isinstance(found, Mapping):
        found = {str(letter): option for letter, option in sorted(found.items()) if not empty(option)}
    elif isinstance(found, list):
        found = dict(zip(ascii_uppercase, found, strict=False))
    else:
        raise BadRow(f"{columns[0]} is neither a list nor a mapping of options")
    if any(empty(option) or isinstance(option, Mapping | list) for option in found.values()):
        raise BadRow("an option is empty or not text")
    return {letter: str(option).strip() for letter, option in found.items()}


def chosen(cells: Cells, column: str, options: Mapping[str, str]) -> str:
    """The right option's letter and text as an answer; other text than a letter, an index from 0 or an option stays."""
    value = cells.get(column)
    if isinstance(value, str) and value.strip().isdecimal() and column.lower() not in ("answer", "response"):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(options):
            raise BadRow(f"{column} is {value}, not from 0 to {len(options) - 1}")
        letter = list(options)[value]
    else:
        written = cell(cells, column)
        bare = re.fullmatch(r"\(?([A-Za-z])[).:]*", written)
        same = [letter for letter, option in options.items() if option == written]
        if same:
            letter = same[0]
        elif bare and bare[1].upper() in options:
            letter = bare[1].upper()
        elif bare:
            raise BadRow(f"{column} is {written}, not one of {', '.join(options)}")
        else:
            return written
    return f"The answer is {letter}. {options[letter]}"


def with_reasoning(question: str, reasoning: str, written: str, style: Format) -> Example:
    """Finds the reasoning in a written answer too, between the format's marks or in think tags."""
    for form in dict.fromkeys((style, Format.think)):
        parsed = parse_answer(written, form)
        if parsed.reasoning:
            return Example(question, one_reasoning(reasoning, parsed.reasoning), parsed.answer)
    return Example(question, reasoning, written)


def one_reasoning(one: str, other: str) -> str:
    """The reasoning that stands in either of two places. Raises BadRow where each has its own."""
    if one and other and one != other:
        raise BadRow("reasoning in two places")
    return one or other


def cell(cells: Cells, name: str) -> str:
    """A text without surrounding space. Raises BadRow for anything else."""
    value = cells.get(name)
    if value is None:
        raise BadRow(f"no {visible(name)}")
    if not isinstance(value, str):
        raise BadRow(f"{visible(name)} is {type(value).__name__}, not text")
    value = value.strip()
    if not value:
        raise BadRow(f"empty {visible(name)}")
    return value


def optional(cells: Cells, name: str) -> str:
    """A text without surrounding space, "" where there is none. Raises BadRow for what is not text."""
    return "" if empty(cells.get(name)) else cell(cells, name)


def empty(value: Any) -> bool:
    """Whether a cell has nothing in it."""
    return value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip())


def listed(names: Sequence[str]) -> str:
    """Columns as an error names them: a table without a line of names has whole texts there."""
    shown = [visible(name if len(name) <= SHOWN_CHARACTERS else name[:SHOWN_CHARACTERS] + "...") for name in names]
    more = f" and {len(shown) - SHOWN_NAMES} more" if len(shown) > SHOWN_NAMES else ""
    return " ".join((", ".join(shown[:SHOWN_NAMES]) + more).split()) or "(none)"
