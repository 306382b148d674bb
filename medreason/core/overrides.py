"""Values <-> words of a command line: what Hydra reads of them, what a shell reads.

    override("data.path", "/d/a, b.jsonl")     data.path="/d/a, b.jsonl"                             for Hydra
    command_line("train", [the same])          python -m medreason.train 'data.path="/d/a, b.jsonl"'  for a shell

Everything that writes a command, or hands settings to another process, writes them here.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

from medreason.config import ConfigError, place

# settings of Hydra's own that are text; all but the last are paths here
HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.sweep", "hydra.sweeper.storage", "hydra.sweep.subdir")
PLAIN = re.compile(r"[A-Za-z0-9_./:@+-]+")
# what would break a line, steer a terminal, or stands for a byte that is no text
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
DATA_FILES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".gz", ".zst", ".bz2", ".xz")
LISTS = (list[str], list[float], list[str] | None)
WHOLE = (int, int | None)
LISTED = ("lora.target_modules",)  # a list, or a text
TEXT, NUMBER = (str, str | None), (int, float, bool, int | None, float | None)


def override(name: str, value: Any) -> str:
    """A setting and its value as Hydra reads them: composed, the setting holds just this value."""
    return f"{name}={spelled(literal(value))}"


def spelled(value: Any) -> str:
    """A value in Hydra's grammar, quoted where it would be read as something else; `${` stays an interpolation."""
    if isinstance(value, Enum):
        value = value.name
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{spelled(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spelled(one) for one in value) + "]"
    text = str(value)
    return text if PLAIN.fullmatch(text) and element(text) == text else quoted(text)


def quoted(text: str) -> str:
    """A text in Hydra's quotes."""
    return QuotedString(text, Quote.double).with_quotes()


def element(text: str) -> Any:
    """What Hydra reads a word inside a list or a dictionary as; an exception where it cannot."""
    try:
        read = OverridesParser.create().parse_override(f"x={{x:{text}}}").value()
    except HydraException as error:
        return error
    return read.get("x") if isinstance(read, dict) and len(read) == 1 else ValueError(text)


def literal(value: Any) -> Any:
    r"""The value with each `${` in its texts as `\${`, which OmegaConf takes for text and not for an interpolation."""
    if isinstance(value, Mapping):
        return {key: literal(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [literal(one) for one in value]
    if isinstance(value, str | PurePath):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    return value


def command_line(name: str, words: Sequence[str]) -> str:
    """`python -m medreason.NAME WORDS`, to be pasted into a shell."""
    return " ".join(["python", "-m", f"medreason.{name}", *(shell_word(word) for word in words)])


def shell_word(word: str) -> str:
    """A word as a shell reads it, on one line, in characters that this process's output has."""
    if all(map(sayable, word)):
        return shlex.quote(word)
    # $'...' is bash's, zsh's and ksh's; the bytes of a file's name that are no text can be said no other way
    escaped = (hexadecimal(one) if not sayable(one) else f"\\{one}" if one in "\\'" else one for one in word)
    return f"$'{''.join(escaped)}'"


def sayable(character: str) -> bool:
    try:
        character.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return not UNPRINTABLE.match(character)


def hexadecimal(character: str) -> str:
    """A character as the bytes that it stands for in a file's name, each as `\\xNN`."""
    try:
        code = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair that stands for no byte
        code = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in code)


def given_overrides() -> list[str]:
    """The overrides among the words of this process's command line."""
    return list(get_args_parser().parse_known_args(sys.argv[1:])[0].overrides)


def is_sweeping() -> bool:
    """Whether the command line asks for --multirun or names a sweep, so that `a,b` are two values."""
    asked = get_args_parser().parse_known_args(sys.argv[1:])[0]
    return bool(asked.multirun) or any(word.startswith(("sweeps=", "hydra.mode=MULTI")) for word in asked.overrides)


def as_meant(word: str, schema: type) -> str:
    """An override in which a text is one although Hydra would read a number (`1e10`), and `~` is the home folder.

    Raises ConfigError, with the word that works, for one that Hydra cannot read: most characters need quotes.
    """
    name, equals, value = word.partition("=")
    kind = type_of(name.lstrip("+"), schema)
    if not equals and not word.startswith("~"):
        raise ConfigError(f"{printable(word)}: no setting; write NAME=VALUE")
    try:
        entry = OverridesParser.create().parse_override(word)
    except HydraException as error:
        if simple := choice_with_null(word):
            return simple
        raise ConfigError(cannot_be_read(word, kind, error)) from error
    if equals and (kind in LISTS or name.lstrip("+") in LISTED):
        return f"{name}={as_list(value, entry)}"
    if name == "data.mix" and (paths := several_texts(entry)):
        return override(name, [{"path": path} for path in paths])
    if name == "data.path" and (files := several_files(entry)):
        more = override("data.mix", [{"path": path} for path in files[1:]])
        one = f"{shell_word(override(name, files[0]))} {shell_word(more)}"
        raise ConfigError(f"data.path names one file or folder; further ones are mixed with it: {one}")
    if kind in WHOLE and equals and not entry.is_sweep_override():
        return f"{name}={whole(name, entry.value(), value)}"
    if kind not in TEXT or not equals or entry.is_sweep_override():
        return word
    read = entry.value()
    if isinstance(read, int | float):
        return f"{name}={quoted(value.strip())}"
    if name in HYDRA_TEXTS[:4] and isinstance(read, str) and read.startswith("~"):
        return f"{name}={spelled(place(name, read))}"
    return word


def whole(name: str, read: Any, value: str) -> str:
    """The value of a setting that is a whole number, `1e3` as 1000. Raises ConfigError for one that is none."""
    if isinstance(read, float):
        if not read.is_integer():  # infinity and NaN are none either
            raise ConfigError(f"{name.lstrip('+')} must be a whole number, got {value}")
        return str(int(read))
    return value


def as_list(value: str, entry: Override) -> str:
    """The value of a setting that is a list, of which people leave out the brackets: `a` is `[a]`, and so is `a,b`
    `[a,b]`, but in a sweep, where it is `[a],[b]`."""
    read = entry.value()
    if entry.is_sweep_override():
        if not (isinstance(read, ChoiceSweep) and read.simple_form):
            return value
        choices = [str(Override._get_value_element_as_str(one)) for one in read.list]
        if not is_sweeping():
            return f"[{value}]" if all(map(bare, choices)) else value
        return ",".join(f"[{one}]" if bare(one) else one for one in choices)
    if isinstance(read, str) and not read.startswith("${"):
        return read if read.startswith("[") and read.endswith("]") else spelled([read])
    return f"[{value.strip()}]" if isinstance(read, int | float) and not isinstance(read, bool) else value


def bare(value: str) -> bool:
    """Whether a value in Hydra's grammar is neither a list nor a dictionary, nor null or an interpolation."""
    return not value.startswith(("[", "{", "${")) and value != "null"


def several_texts(entry: Override) -> list[str]:
    """Texts where a list of mappings is asked for; nothing of any other value."""
    read: Any = entry.value()
    if entry.is_sweep_override():
        read = read.list if isinstance(read, ChoiceSweep) and read.simple_form and not is_sweeping() else None
    texts = [text_of(one) for one in (read if isinstance(read, list) else [read])]
    return [text for text in texts if text] if all(texts) and not any(one.startswith("${") for one in texts) else []


def several_files(entry: Override) -> list[str]:
    """Paths of data files where one is asked for; nothing where there is one, or where they may be parts of a name."""
    files = several_texts(entry)
    return files if len(files) > 1 and all(file.lower().endswith(DATA_FILES) for file in files) else []


def text_of(value: Any) -> str:
    """The text that Hydra has read; empty for what is none."""
    return str(getattr(value, "text", value if isinstance(value, str) else ""))


def choice_with_null(word: str) -> str | None:
    """`x=null,8` for `x=choice(null,8)`, which Hydra's grammar has and its function refuses; None for anything else."""
    choices = re.fullmatch(r"(.*?=)\s*choice\((.*)\)\s*", word, re.DOTALL)
    if choices is None:
        return None
    try:
        entry = OverridesParser.create().parse_override(choices[1] + choices[2])
    except HydraException:
        return None
    return str(entry.input_line) if entry.is_sweep_override() else None


def cannot_be_read(word: str, kind: object, error: HydraException) -> str:
    """One line on a word that is not in Hydra's grammar, with the quoted one where quotes are all that it lacks."""
    mended = mend(word, kind)
    if mended is None:
        return f"{printable(word)}: Hydra cannot read this value ({printable(str(error).splitlines()[0])})"
    return f"{printable(word)}: Hydra reads this only in quotes; write {shell_word(mended)}"


def printable(text: str) -> str:
    """The text on one line."""
    return UNPRINTABLE.sub(lambda found: hexadecimal(found[0]), text)


def mend(word: str, kind: object) -> str | None:
    """The override with quotes around its texts; None where they do not make it one that Hydra reads."""
    name, equals, value = word.partition("=")
    if not equals or kind in NUMBER:
        return None
    whole, pieces = f"{name}={quoted(value.strip())}", f"{name}={quote_pieces(value.strip())}"
    several = is_sweeping() or re.match(r"\s*(choice|shuffle|sort)\(", value) is not None
    candidates = ([pieces, whole] if several else [whole]) if kind in TEXT else [pieces]
    for candidate in candidates:
        try:
            OverridesParser.create().parse_override(candidate)
        except HydraException:
            continue
        return candidate
    return None


def quote_pieces(value: str) -> str:
    """A list, a dictionary or several values, each text in it quoted where it must be."""
    if function := re.fullmatch(r"(choice|shuffle|sort)\((.*)\)", value, re.DOTALL):
        return f"{function[1]}({quote_pieces(function[2])})"
    pieces: list[str] = re.findall(r"""\s*"(?:\\.|[^"\\])*"\s*|\s*'(?:\\.|[^'\\])*'\s*|[\[\]{},]|[^\[\]{},]+""", value)
    open_brackets, made = "", ""
    for piece in pieces:
        if piece in "[]{},":
            made += piece
            open_brackets = open_brackets + piece if piece in "[{" else open_brackets[: -1 if piece in "]}" else None]
            continue
        key = re.match(r"\s*\w+\s*:", piece) if open_brackets.endswith("{") and made[-1:] in ("{", ",") else None
        text = piece[key.end() :] if key else piece
        made += (key[0] if key else "") + (text if readable(text) else quoted(text.strip()))
    return made


def readable(text: str) -> bool:
    """Whether Hydra reads a piece of a list as it stands; an empty one is none, and stands as it is."""
    return not text.strip() or not isinstance(element(text.strip()), Exception)


def type_of(name: str, schema: type) -> object:
    """The type of a setting; Any of one that the schema does not know."""
    if name in HYDRA_TEXTS:
        return str
    kind: Any = schema
    for part in name.split("."):
        known = {field.name: field.type for field in fields(kind)} if is_dataclass(kind) else {}
        kind = known.get(part, Any)
    return kind


def agents_overrides(words: Sequence[str], given: Mapping[str, Any]) -> list[str]:
    """Words of a command line in which what an agent of W&B's sweeps wrote is written for Hydra.

    `given` are its settings and values; it writes None, True and ['a'] as Python does, and quotes nothing.
    """
    made = {f"{plus}{name}={value}": f"{plus}{override(name, value)}" for name, value in given.items()
            for plus in ("", "+", "++")}  # fmt: skip
    return [made.get(word, word) for word in words]


def agents_settings() -> dict[str, Any]:
    """What an agent of W&B's own sweeps gave this process: settings and values; nothing without an agent.

    Raises ConfigError where its file cannot be read.
    """
    given = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not given:
        return {}
    import yaml

    try:
        entries = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"WANDB_SWEEP_PARAM_PATH={given}: cannot be read ({type(error).__name__})") from error
    entries = entries.items() if isinstance(entries, dict) else ()
    return {str(key): entry["value"] for key, entry in entries if isinstance(entry, dict) and "value" in entry}
