"""A run's log holds everything that was said; the screen is kept for what people read.

    say, and print in this project's code and yours   -->   the screen and the log
    print, logging, bars and warnings of packages     -->   the log          (Outgoing, by whose code is speaking)
    C++, child processes: descriptors 1 and 2         -->   the log

After an unexpected error the user sees the log's last lines before the traceback, and where Python itself dies
(a segmentation fault, an abort) its own report of where.
"""

import faulthandler
import os
import re
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from medreason.config import ConfigError, RunFailed
from medreason.core.outside import visible
from medreason.core.storage import command_words

TRACEBACK = re.compile(r"(\[rank\d+\]: )?Traceback \(most recent call last\):")
LAST_LINES = 10  # of the log, shown where a run crashes
TRACEBACK_LINES = 40  # of a process that crashed, at most
OWN, PYTHON = (str(folder) + os.sep for folder in (Path(__file__).parent.parent, Path(os.__file__).parent))
PACKAGE = re.compile(r"[/\\](?:site|dist)-packages[/\\]|unsloth_compiled_cache")
PASSES_ON = re.compile(r"[/\\]rich[/\\]|[/\\]wandb[/\\]sdk[/\\]lib[/\\]console_capture\.py$")  # what others write
STYLE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")  # colours, cursors, links


class Log:
    """A file that lines are added to, each with the time of day."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def line(self, text: str) -> None:
        text = f"{time.strftime('%H:%M:%S')} {visible(STYLE.sub('', text))}\n"
        with suppress(OSError):  # a full disk: the code that writes results will say so
            os.write(self.descriptor, text.encode("utf-8", "backslashreplace"))


class Screen:
    """A stream of output as it was before a log took its place.

    One that goes into that log anyway, as a sweep's trial has it, or that is closed, shows nothing.
    """

    def __init__(self, stream: TextIO | None, log: Log) -> None:
        self.stream, self.descriptor = stream, None
        with suppress(OSError, ValueError, AttributeError):
            self.descriptor = os.dup(stream.fileno())  # type: ignore[union-attr]
        self.shown = stream is not None
        if self.descriptor is not None:
            self.shown = not os.path.samestat(os.fstat(self.descriptor), os.fstat(log.descriptor))

    def write(self, text: str) -> None:
        if not self.shown or self.stream is None:
            return
        if self.descriptor is None:
            self.stream.write(text)
            return
        # not through Python's buffer: a signal's handler that speaks in the middle of it would be an error
        rest = text.encode(self.stream.encoding or "utf-8", "backslashreplace")
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def isatty(self) -> bool:
        return self.shown and self.descriptor is not None and os.isatty(self.descriptor)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


class Outgoing:
    """sys.stdout or sys.stderr while a log is kept: everything goes into it, and what no package says to the screen.

    Those who keep it for longer, as handlers of logging do, write where the stream went before.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.screen, self.log = stream, None, None
        self.partial = ""  # of a line that has not ended yet

    screen: Screen | None
    log: Log | None

    def __getattr__(self, name: str) -> Any:  # encoding, buffer, fileno: as the stream has them
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if self.log is None or self.screen is None:
            return self.stream.write(text)
        if not by_package(sys._getframe(1)):
            STATE.erase()
            self.screen.write(text)
        self.keep(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        if self.stream is not None:
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether the screen is a terminal; not for packages, whose bars and colours go into a file."""
        if self.screen is None:
            return self.stream.isatty()
        return self.screen.isatty() and not by_package(sys._getframe(1))

    def keep(self, text: str) -> None:
        """Puts whole lines into the log; of a bar that draws itself again and again, what stood there last."""
        assert self.log is not None
        *lines, partial = (self.partial + text).split("\n")
        self.partial = last_drawn(partial)
        for line in lines:
            self.log.line(last_drawn(line).rstrip("\r"))

    def end(self) -> None:
        self.flush()
        if self.log is not None and self.partial.strip():
            self.log.line(self.partial.rstrip("\r"))
        self.partial, self.screen, self.log = "", None, None


class State:
    """What this process keeps at the moment, and the line at the bottom of a terminal that is drawn again and again."""

    def __init__(self) -> None:
        self.log: Log | None = None
        self.screen: Screen | None = None  # of sys.stdout
        self.known: dict[str, Outgoing] = {}
        self.earlier: deque[str] = deque(maxlen=1000)  # lines that were said before a log was there
        self.drawn = False

    def keep(self, log: Log | None, screen: Screen | None) -> None:
        self.log, self.screen = log, screen

    def terminal(self) -> bool:
        """Whether lines can be drawn again."""
        stream: Any = self.screen or sys.stdout
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"

    def columns(self) -> int:
        """Of the terminal."""
        with suppress(OSError, ValueError, AttributeError, TypeError):
            descriptor: Any = self.screen.descriptor if self.screen is not None else sys.stdout.fileno()
            return os.get_terminal_size(descriptor).columns or 80
        return 80

    def draw(self, text: str) -> None:
        """Shows `text` in place of what was drawn before, without a line's end."""
        self.show(f"\r\x1b[K{text}")
        self.drawn = True

    def erase(self) -> None:
        if self.drawn:
            self.drawn = False
            self.show("\r\x1b[K")

    def leave(self) -> None:
        """Lets what is drawn stand; what is said next comes below it."""
        if self.drawn:
            self.drawn = False
            self.show("\n")

    def show(self, text: str) -> None:
        stream: Any = self.screen or sys.stdout
        stream.write(text)
        if stream is sys.stdout:
            stream.flush()


STATE = State()


def speak(line: str) -> None:
    """Says a line on the screen and in the log."""
    STATE.erase()
    if STATE.log is None:
        STATE.earlier.append(line)
    print(line, flush=True)


def note(line: str) -> None:
    """Puts a line into the log alone, where one is kept."""
    if STATE.log is not None:
        STATE.log.line(line)


def by_package(frame: FrameType | None) -> bool:
    """Whether it is a package that speaks: the first code on the stack that is not Python's own is a package's."""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(OWN):
            return False
        if PACKAGE.search(path):
            if not PASSES_ON.search(path):
                return True
        elif not path.startswith(("<", PYTHON)):
            return False
        frame = frame.f_back
    return False


def last_drawn(line: str) -> str:
    """Of a line that was drawn over and over, the last state."""
    return line[line.rstrip("\r").rfind("\r") + 1 :]


def child_output() -> int | None:
    """Where a child's standard output should go to be seen: a descriptor; None where it goes there anyway."""
    return STATE.screen.descriptor if STATE.screen is not None and STATE.screen.shown else None


@contextmanager
def kept_log(path: Path) -> Iterator[None]:
    """Appends everything that is printed to the file `path`; output of packages goes only there.

    Where it cannot be written, and where a log is being kept already, nothing changes.
    """
    try:
        log = None if STATE.log is not None else Log(path)
    except OSError:
        log = None
    if log is None:
        yield
        return
    shown: list[str] = []
    try:
        with ExitStack() as back:
            errors = begin(log, back)
            try:
                yield
            except BaseException as error:
                if errors.shown:  # else the traceback that Python writes goes into the log anyway
                    shown = last_lines(path) if unexpected(error) else []
                    for line in described(error):
                        log.line(line)
                raise
    finally:
        if shown:
            print(f"the last lines of {path}:", *shown, sep="\n  ", file=sys.stderr, flush=True)


def begin(log: Log, back: ExitStack) -> Screen:
    """Has everything go through `log` until `back` is left; where sys.stderr went."""
    back.callback(os.close, log.descriptor)
    if os.environ.get("RANK", "0") == "0":
        log.line(f"{time.strftime('== %Y-%m-%d')}  {' '.join(command_words())}  (process {os.getpid()})")
    while STATE.earlier:
        log.line(STATE.earlier.popleft())
    streams: dict[str, Any] = {"stdout": sys.stdout, "stderr": sys.stderr}
    screens = {name: Screen(stream, log) for name, stream in streams.items()}
    for name, screen in screens.items():
        back.callback(screen.close)
        if streams[name] is not None:
            streams[name].flush()
    for number in (1, 2):
        back.callback(point, number, os.dup(number) if is_open(number) else None)
        os.dup2(log.descriptor, number)
    if screens["stderr"].shown and not faulthandler.is_enabled():
        back.callback(faulthandler.disable)
        faulthandler.enable(screens["stderr"].descriptor or 2)
    back.callback(setattr, warnings, "showwarning", warnings.showwarning)
    warnings.showwarning = keep_warning
    for name, stream in streams.items():
        outgoing = STATE.known.get(name)
        if outgoing is None or outgoing.stream is not stream:
            outgoing = STATE.known[name] = Outgoing(stream)
        outgoing.screen, outgoing.log = screens[name], log
        back.callback(setattr, sys, name, stream)
        back.callback(outgoing.end)
        setattr(sys, name, outgoing)
    back.callback(STATE.keep, None, None)
    back.callback(STATE.leave)
    STATE.keep(log, screens["stdout"])
    return screens["stderr"]


def point(number: int, copy: int | None) -> None:
    """Has a descriptor be again what it was a copy of; closes it where it was none."""
    if copy is None:
        os.close(number)
        return
    os.dup2(copy, number)
    os.close(copy)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def keep_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    note(f"{filename}:{lineno}: {category.__name__}: {message}")


def unexpected(error: BaseException) -> bool:
    """Whether an error is neither a mistake in the settings, nor a run's own failure, nor somebody's wish to stop."""
    if isinstance(error, SystemExit):
        return error.code not in (None, 0, 130)
    return isinstance(error, Exception) and not isinstance(error, ConfigError | RunFailed)


def described(error: BaseException) -> list[str]:
    """What the log keeps of an error that ends a run: the whole traceback of one that nobody expects."""
    told = traceback.format_exception(error) if unexpected(error) else [f"{type(error).__name__}: {error}"]
    return "".join(told).rstrip("\n").splitlines()


def last_lines(path: Path) -> list[str]:
    """How a log ends."""
    try:
        return [visible(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]]
    except OSError:
        return []


def told_traceback(path: Path, start: int) -> list[str]:
    """The first traceback in a log from byte `start` on: why the first of several processes crashed."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = next(((number, mark) for number, line in enumerate(lines) if (mark := TRACEBACK.match(line))), None)
    if found is None:
        return []
    first, process = found[0], found[1][1] or ""  # torch marks every line with its process: `[rank0]: `
    told = [lines[first]]
    for line in lines[first + 1 :]:
        ends = line.strip() and not line.startswith(process) if process else not line.startswith((" ", "\t"))
        if ends and process:
            break
        told.append(line)
        if ends:
            break  # the error itself
    return [visible(line.removeprefix(process)) for line in told][-TRACEBACK_LINES:]
