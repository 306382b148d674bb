"""medreason COMMAND ...: one name for every entry point.

    medreason train lora.r=32   ==   python -m medreason.train lora.r=32

The module runs as it would with `python -m`: the same code, words, exit code and record of the command.
"""

import difflib
import runpy
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from medreason.core.commands import COMMANDS
from medreason.core.outside import one_line

PACKAGES = ("medreason", "torch", "unsloth")


def overview() -> str:
    """What `medreason` alone says."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: medreason COMMAND [SETTING=VALUE ...]",
            "",
            *(f"  {name:{width}}  {sentence}" for name, sentence in COMMANDS.items()),
            "",
            "medreason COMMAND --help   what a command takes",
            "medreason --version        versions of this project, torch and unsloth",
        ]
    )


def versions() -> str:
    """Versions of this project and of what it stands on, a line each; none of them is imported."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return "\n".join(f"{name} {installed(name)}" for name in PACKAGES)


def unknown(word: str) -> str:
    """A line on a word that is no command, with the nearest one."""
    if "=" in word:
        return f"{word}: a setting stands after a command: medreason train {word}"
    if word.startswith("-"):
        return f"{word}: no such option; an option of a command stands after it, see medreason --help"
    near = difflib.get_close_matches(word.removeprefix("medreason.").lower(), COMMANDS, n=1, cutoff=0.5)
    return f"{word}: no such command ({f'did you mean {near[0]}?' if near else 'see medreason --help'})"


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names; 0, or 2 where it names none. A command ends the process itself."""
    words = sys.argv[1:] if words is None else list(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("--version", "-V"):
        print(versions())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        print(f"medreason: {one_line(unknown(name))}", file=sys.stderr)
        return 2
    sys.argv[1:] = rest
    # as `python -m` has it: processes that this one starts find their way by __main__ and by sys.argv[0]
    runpy.run_module(f"medreason.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
