"""How far something is: in a terminal one line that is drawn again, in a file a line now and then.

step 22/44  loss 0.123  held-out 0.456  12,345 tok/s  0:12 left
"""

import math
import time
from collections.abc import Callable, Sequence

from rich.cells import cell_len, set_cell_size

from medreason.core.progress import first_process, say
from medreason.core.run_log import STATE, note

EVERY_SECONDS = 30.0  # between two lines in a file
DRAWN_SECONDS = 0.1  # between two pictures of the line in a terminal


class ProgressLine:
    """Tells how far something is. Of several processes, the first one does."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.told, self.drawn = clock, clock(), -math.inf

    def tell(self, parts: Sequence[str], more: Sequence[str] = (), *, milestone: bool = False) -> None:
        """Draws `parts`; in a file says them and `more`, at a milestone or when nothing was said for long."""
        if not first_process():
            return
        now, terminal = self.clock(), STATE.terminal()
        if terminal and (milestone or now - self.drawn >= DRAWN_SECONDS):
            self.drawn = now
            STATE.draw(fitted(parts, STATE.columns() - 1))
        if milestone or now - self.told >= EVERY_SECONDS:
            self.told = now
            (note if terminal else say)("  ".join([*parts[:-1], *more, *parts[-1:]]))

    def end(self, *, stands: bool) -> None:
        """What was drawn stands from now on, or is gone."""
        if first_process():
            (STATE.leave if stands else STATE.erase)()


def fitted(parts: Sequence[str], columns: int) -> str:
    """The parts on a line of so many columns; where they are too many, the last but one goes first."""
    left = list(parts)
    while len(left) > 2 and cell_len("  ".join(left)) > columns:
        del left[-2]
    line = "  ".join(left)
    return line if cell_len(line) <= columns else set_cell_size(line, max(columns, 0))


def hours(seconds: float) -> str:
    """A duration as a clock shows it: 0:07, 12:05, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    whole, minutes = divmod(minutes, 60)
    return f"{whole}:{minutes:02}:{rest:02}" if whole else f"{minutes}:{rest:02}"


class AnswersLine:
    """Tells how many questions are answered, and from the first token on how many were written."""

    def __init__(
        self,
        what: str,
        questions: int,
        most_tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "questions",
    ) -> None:
        self.what, self.questions, self.most_tokens, self.unit = what, questions, most_tokens, unit
        self.clock, self.began, self.line = clock, clock(), ProgressLine(clock)
        self.answered = self.tokens = 0
        self.tell()

    def tell(self, *, answered: int | None = None, tokens: int | None = None) -> None:
        self.answered = self.answered if answered is None else answered
        self.tokens = self.tokens if tokens is None else tokens
        self.line.tell(self.parts())

    def wrote(self, tokens: int) -> None:
        self.tell(tokens=tokens)

    def parts(self) -> list[str]:
        seconds = max(self.clock() - self.began, 1e-9)
        found = [f"{self.what}  {self.answered:,}/{self.questions:,} {self.unit}"]
        if self.tokens:
            found += [f"{self.tokens:,} tokens", f"{self.tokens / seconds:,.0f} tok/s"]
        if self.answered:
            found += [f"{hours(seconds / self.answered * (self.questions - self.answered))} left"]
        elif self.tokens and self.most_tokens:
            found += [f"at most {hours(seconds / self.tokens * max(self.most_tokens - self.tokens, 0))} left"]
        return found

    def end(self, *, stands: bool) -> None:
        """Says in a line what it was in all; in a terminal only if it `stands`."""
        if not first_process():
            return
        self.line.end(stands=False)
        tokens = f", {self.tokens:,} tokens" if self.tokens else ""
        said = f"{self.what}: {self.answered:,} {self.unit}{tokens} in {hours(self.clock() - self.began)}"
        (say if stands or not STATE.terminal() else note)(said)
