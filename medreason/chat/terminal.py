"""The chat in a terminal or a pipe: reasoning dimmed and set apart, commands, conversations saved."""

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from medreason.chat.conversation import NOTICE, Ask, Conversation, Piece, as_json_lines, as_markdown, words
from medreason.config import ConfigError
from medreason.core.outside import one_line, visible

HELP = """\
/fold       shows reasoning whole, or folded into a line
/show       prints the last reasoning
/reset      begins a new conversation
/save FILE  writes this one to a new file: .md or .jsonl
/quit       ends, as Ctrl-D does; Ctrl-C stops an answer"""


def typed_lines() -> Iterator[str]:
    """Lines of a terminal, with editing, or of a pipe, each repeated in the output so that a log can be read."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text would end the talk, and lose it
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if line.strip():
                write(f"> {visible(line.strip())}\n")
                yield line.strip()
        return
    import readline  # noqa: F401  # arrow keys and history in input()

    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends)")
            continue
        except EOFError:
            print()
            return
        if line:
            yield line


@dataclass
class Terminal:
    """A chat as text: reasoning set apart, dimmed where there is colour."""

    ask: Ask
    title: str
    alone: bool  # each question stands alone
    colour: bool
    conversation: Conversation = field(default_factory=Conversation)
    folded: bool = False

    def talk(self, lines: Iterable[str]) -> None:
        write(f"\n{one_line(self.title)}\n{NOTICE}\n")
        if self.alone:
            write("This run's format has no turns: each question stands alone.\n")
        write("/help lists the commands.\n\n")
        for line in lines:
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self.obey(*line.split(maxsplit=1))
            else:
                self.reply(line)
            write("\n")

    def obey(self, order: str, argument: str = "") -> None:
        if order == "/fold":
            self.folded = not self.folded
            write(f"reasoning is {'folded' if self.folded else 'shown whole'}\n")
        elif order == "/show":
            turns = self.conversation.turns
            self.write_reasoning(turns[-1].reasoning if turns and turns[-1].reasoning else "(none)")
            write("\n")
        elif order == "/reset":
            self.conversation = Conversation()
            write("a new conversation\n")
        elif order == "/save":
            write(one_line(save(self.conversation, argument, self.title)) + "\n")
        else:
            write(("" if order == "/help" else f"no command {one_line(order)}; there are:\n") + HELP + "\n")

    def reply(self, question: str) -> None:
        dropped, before = self.conversation.dropped, len(self.conversation.turns)
        try:
            pieces = self.ask(self.conversation, question)
        except ConfigError as error:
            write(f"({one_line(str(error))})\n")
            return
        if self.conversation.dropped > dropped:
            oldest = turns_of(self.conversation.dropped)
            write(f"(too long a conversation: the model no longer sees the oldest {oldest})\n")
        try:
            with closing(pieces):
                self.write_pieces(pieces)
        except KeyboardInterrupt:
            pass  # the turn says that it was stopped
        except (RuntimeError, MemoryError) as error:
            from medreason.models.memory import out_of_memory

            if not out_of_memory(error):
                raise
            write("\n(out of memory: /reset, or ask for less with max_new_tokens)")
        if len(self.conversation.turns) == before:  # stopped before it began
            return
        turn = self.conversation.turns[-1]
        ends = {"whole": "" if turn.answer else "(no answer)", "stopped": "(stopped)"}
        write("\n" + (f"{said}\n" if (said := ends.get(turn.ending, "(cut: max_new_tokens is reached)")) else ""))

    def write_pieces(self, pieces: Iterator[Piece]) -> None:
        reasoning, before = "", None
        for kind, text in pieces:
            if kind == "answer" and before == "reasoning":
                self.end_reasoning(reasoning)
            if kind == "answer":
                write(visible(text))
            elif not self.folded:
                self.write_reasoning(text, begins=not reasoning)
            elif self.colour:
                write("\r" + self.dim(f"(reasoning: {words(reasoning + text)})"))
            reasoning += text if kind == "reasoning" else ""
            before = kind
        if before == "reasoning":
            self.end_reasoning(reasoning)

    def write_reasoning(self, text: str, *, begins: bool = True) -> None:
        write(self.dim(("│ " if begins else "") + visible(text).replace("\n", "\n│ ")))

    def end_reasoning(self, reasoning: str) -> None:
        folded = f"(reasoning: {words(reasoning)}; /show prints it)"
        write(("\r" * self.colour + self.dim(folded) + "\n") if self.folded else "\n\n")

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.colour else text


def write(text: str) -> None:
    print(text, end="", flush=True)


def turns_of(count: int) -> str:
    return "turn" if count == 1 else f"{count} turns"


def save(conversation: Conversation, name: str, title: str) -> str:
    """Writes a conversation to a new file, and says so, or why not."""
    path = Path(name)
    if path.suffix not in (".md", ".jsonl"):
        return "/save FILE: the name must end in .md or .jsonl"
    text = (
        as_json_lines(conversation.turns) if path.suffix == ".jsonl" else as_markdown(conversation.turns, title, NOTICE)
    )
    try:
        path = path.expanduser()
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return f"{path} exists already; name another file"
    except (OSError, RuntimeError) as error:  # of expanduser, where there is no such user
        return f"{path}: {getattr(error, 'strerror', error)}"
    return f"saved: {path}"
