"""A talk with a model: its text taken apart while it grows, the turns so far, the prompt that still fits."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from medreason.config import ConfigError, Format
from medreason.core.json_lines import json_lines
from medreason.core.outside import markdown
from medreason.models.prompts import marks, parse_answer

Kind = Literal["reasoning", "answer"]
Piece = tuple[Kind, str]
NOTICE = (
    "Research software, not a medical device and no substitute for a clinician: "
    "what it says may be wrong, and is not for decisions about patients."
)
Ending = Literal["whole", "cut", "stopped"]  # by the model itself, by the length limit, by the user


def split_stream(texts: Iterable[str], style: Format, *, opened: bool = False) -> Iterator[Piece]:
    """Reasoning and answer of a text that comes bit by bit, as soon as it is sure which of the two a bit belongs to.

        "<thi" "nk>\\nLow " "pH</th" "ink>\\n\\nAcid" "osis"
          ->  ("reasoning", "Low"), ("reasoning", " pH"), ("answer", "Acid"), ("answer", "osis")

    Joined, the pieces are what `parse_answer` finds, but where a mark comes too late to unsay what came before it.
    `opened`: the prompt has opened the reasoning already.
    """
    opening, closing = marks(style)
    kind: Kind = "reasoning" if opened else "answer"
    awaited = closing if opened else opening
    held, begun = "", False  # text that may yet be part of a mark, or space at an end; whether this part has a word
    for text in texts:
        held += text
        while awaited and awaited in held:
            before, _, held = held.partition(awaited)
            if said := before.rstrip() if begun else before.strip():
                yield kind, said
            begun = False
            kind, awaited = ("reasoning", closing) if awaited == opening else ("answer", "")
        held = held if begun else held.lstrip()
        sure = len(held[: len(held) - begun_mark(held, awaited)].rstrip())
        if sure:
            yield kind, held[:sure]
            held, begun = held[sure:], True
    if rest := held.rstrip():
        yield kind, rest


def begun_mark(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    return next((length for length in range(len(mark) - 1, 0, -1) if text.endswith(mark[:length])), 0)


@dataclass(frozen=True)
class Turn:
    """A question and what the model wrote."""

    question: str
    reasoning: str
    answer: str
    ending: Ending
    tokens_per_second: float | None = field(default=None, compare=False)

    @classmethod
    def of(cls, question: str, text: str, style: Format, ending: Ending, *, opened: bool = False) -> "Turn":
        written = parse_answer(marks(style)[0] + text if opened else text, style)
        return cls(question, written.reasoning, written.answer, ending)


@dataclass
class Conversation:
    """What was said, and how much of it the model is still told."""

    turns: list[Turn] = field(default_factory=list)
    dropped: int = 0  # of the oldest turns, so many no longer fit the model's context

    def told(self) -> list[tuple[str, str]]:
        """Questions and answers that the model gets to read, without reasoning; none that it left unanswered."""
        return [(turn.question, turn.answer) for turn in self.turns[self.dropped :] if turn.answer]


# a question in a conversation -> the answer's pieces; the conversation has the turn when they end or are left
Ask = Callable[[Conversation, str], Generator[Piece]]


def fit(
    conversation: Conversation,
    tokens_of: Callable[[Sequence[tuple[str, str]]], list[int]],
    *,
    context_tokens: int,
    answer_tokens: int,
) -> list[int]:
    """The prompt's tokens, with as many of the latest turns as leave room for the answer; older ones are dropped.

    `tokens_of` makes a prompt that follows earlier turns. Raises ConfigError for a question too long by itself.
    """
    for dropped in range(conversation.dropped, len(conversation.turns) + 1):
        tokens = tokens_of(Conversation(conversation.turns, dropped).told())
        if len(tokens) + answer_tokens <= context_tokens:
            conversation.dropped = dropped
            return tokens
    raise ConfigError(
        f"a question of {len(tokens):,} tokens is too long: "
        f"the model reads {context_tokens:,}, of which {answer_tokens:,} are for the answer"
    )


def as_json_lines(turns: Iterable[Turn]) -> str:
    """A turn a line, but for its speed, which is not part of what was said."""
    said = (asdict(turn) for turn in turns)
    return json_lines({key: value for key, value in each.items() if key != "tokens_per_second"} for each in said)


def as_markdown(turns: Iterable[Turn], title: str, notice: str) -> str:
    """A page with the reasoning folded. What was said is text on it, whatever marks it holds."""
    parts = [f"# {markdown(title)}\n\n{notice}\n"]
    for turn in turns:
        parts.append(f"\n## {markdown(turn.question, len(turn.question))}\n")
        if turn.reasoning:
            summary = f"<summary>Reasoning, {words(turn.reasoning)}</summary>"
            parts.append(f"\n<details>{summary}\n\n{lines(turn.reasoning)}\n\n</details>\n")
        parts.append(f"\n{lines(turn.answer) or '(no answer)'}\n")
    return "".join(parts)


def lines(text: str) -> str:
    """Text as Markdown that renders as this text, line by line."""
    return "\n".join(markdown(line, len(line)) for line in text.split("\n"))


def words(text: str) -> str:
    """How many: `1 word`, `143 words`."""
    count = len(text.split())
    return f"{count:,} word{'' if count == 1 else 's'}"
