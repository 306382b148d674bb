"""Settings, told to people: config.py's dataclasses and conf/'s files -> the help of a command.

    describe(LoraConfig, {"r": 16, ...}, "lora.")  ->  Setting("lora.r", "whole number", ..., "rank of the update")

A meaning is the comment behind a field, or the docstring of its type; a range is what `__post_init__` checks, read from
the source. So config.py is where each of them is written, once.
"""

import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, get_args

from medreason.config import ConfigError

TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
# a name of config.py says its unit
UNITS = {
    "tokens": "tokens", "steps": "optimizer steps", "epochs": "epochs", "gib": "GiB", "chars": "characters",
    "hours": "hours", "rows": "rows", "cases": "cases", "questions": "questions", "trials": "trials",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A setting as people are told of it."""

    name: str  # dotted
    type: str  # in words; empty where its range says it
    unit: str  # empty where it has none, or where the meaning says it
    choices: Mapping[str, str]  # value -> its phrase, of a setting with a fixed set of values
    range: str  # what values it may have beyond its type; empty: any
    default: Any  # as composed; ??? where it must be given
    meaning: str  # a phrase

    @property
    def required(self) -> bool:
        return bool(self.default == "???")


@dataclass(frozen=True)
class Source:
    """What the source of a class says beyond what Python keeps of it."""

    comments: Mapping[str, str]  # name of a field or member -> the comment behind it
    rules: Mapping[str, Sequence[str]]  # name of a field -> what it must be


def describe(schema: type, defaults: Mapping[str, Any] | None = None, prefix: str = "") -> list[Setting]:
    """Every setting of a dataclass and of those in it, in their order; `defaults` holds values as YAML has them."""
    values = defaults or {}
    told: list[Setting] = []
    for field in fields(schema):
        name, value = prefix + field.name, values.get(field.name)
        if is_dataclass(field.type):
            assert isinstance(field.type, type)
            told += describe(field.type, value if isinstance(value, Mapping) else {}, f"{name}.")
            continue
        kinds = [kind for kind in get_args(field.type) if kind is not NoneType] or [field.type]
        enum = kinds[0] if isinstance(kinds[0], type) and issubclass(kinds[0], Enum) else None
        known = source(schema)
        told.append(
            Setting(
                name=name,
                type=describe_type(field.type),
                unit=unit(field.name, kinds[0]),
                choices=members(enum) if enum else {},
                range=bounds(known.rules.get(field.name, ())),
                default=value,
                meaning=known.comments.get(field.name) or described(enum or schema),
            )
        )
    return told


def describe_type(kind: Any) -> str:
    """A type in words; nothing where the checks alone say what it takes."""
    if isinstance(kind, UnionType):
        inner = [describe_type(one) for one in get_args(kind) if one is not NoneType]
        return " or ".join([*filter(None, inner), "null"])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    if kind is Any:
        return ""
    of = get_args(kind)
    if of and kind.__origin__ is list:
        return f"list of {TYPES.get(of[0], 'mapping')}s" if of[0] is not Any else "list"
    return TYPES.get(kind, "mapping")


def bounds(rules: Sequence[str]) -> str:
    """Rules as one phrase, the upper bound last."""
    return ", ".join(sorted((rule.removesuffix(" or null") for rule in rules), key=lambda one: "at most" in one))


def unit(name: str, kind: Any) -> str:
    """The unit that the name of a number says, if it says one."""
    if kind not in (int, float):
        return ""
    return next((UNITS[word] for word in reversed(name.split("_")) if word in UNITS), "")


def described(kind: type) -> str:
    """The first line of a type's docstring, as a phrase; nothing of one that Python made up."""
    text = (kind.__doc__ or "").strip()
    return "" if text.startswith(f"{kind.__name__}(") else phrase(without_module(text.partition("\n")[0]))


def phrase(text: str) -> str:
    """A sentence without its full stop, and without a first capital that is that of a sentence alone."""
    text = re.sub(r"\.$", "", text)
    return text[:1].lower() + text[1:] if re.match(r"[A-Z][a-z]+(?![A-Za-z])", text) else text


def members(enum: type[Enum]) -> dict[str, str]:
    """The values of a setting with a fixed set of them, each with the comment behind it."""
    comments = source(enum).comments
    return {name: comments.get(name, "") for name in enum.__members__}


@cache
def source(kind: type) -> Source:
    """Comments and rules of a class and of those that it extends, from their source."""
    comments: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for each in reversed(kind.__mro__):
        if each in (object, Enum):
            continue
        module = sys.modules[each.__module__]
        tree, behind = parsed(module)
        classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == each.__name__)
        for node in (statement for found in classes for statement in found.body):
            if isinstance(node, ast.AnnAssign | ast.Assign):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                if isinstance(target, ast.Name) and node.end_lineno in behind:
                    comments[target.id] = behind[node.end_lineno]
            elif isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                for name, rule in checked(node.body, dict(vars(module))):
                    if rule not in rules.setdefault(name, []):
                        rules[name].append(rule)
    return Source(comments, rules)


@cache
def parsed(module: ModuleType) -> tuple[ast.Module, dict[int, str]]:
    """A module's tree, and its comments by line."""
    text = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {one.start[0]: without_module(one.string.lstrip("# ")) for one in tokens if one.type == tokenize.COMMENT}
    return ast.parse(text), comments


def without_module(text: str) -> str:
    """A comment without the module that it points readers of the source to."""
    return re.sub(r" \(medreason/[\w/]+\.py\)", "", text)


def checked(body: Sequence[ast.stmt], names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and rule of each check that always holds: those under an `if` hang on other settings."""
    for node in body:
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            for value in evaluated(node.iter, names) or ():
                yield from checked(node.body, names | {node.target.id: value})
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = evaluated(node.value, names)
        if not isinstance(node, ast.For | ast.If):
            for call in ast.walk(node):
                yield from rules_of(call, lambda one: evaluated(one, names))


def rules_of(call: ast.AST, read: Callable[[ast.expr], Any]) -> Iterator[tuple[str, str]]:
    """Field and rule of one call, if it checks something; `read` tells what an expression is, None if it cannot."""
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        return
    called = call.func.id
    if called == "check":
        key, rule = read(call.args[1]), read(call.args[2])
        told = re.match(r"(not )?(?:be|have) (?!given)(.*)", str(rule))
        if isinstance(key, str) and told:
            yield last(key), (told[1] or "") + told[2]
    elif called == "check_most":
        for most in call.keywords:
            limit = read(most.value)
            if most.arg and limit is not None:
                yield most.arg, f"at most {limit:,}" if isinstance(limit, int) else f"at most {limit:g}"
    elif called == "share_or_steps" and isinstance(key := read(call.args[0]), str):
        least = next((read(one.value) for one in call.keywords if one.arg == "least"), 1)
        yield last(key), f"a share below 1, or a whole number from {least}"


def evaluated(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """What an expression of constants and of a module's own names is; None where it hangs on more."""
    try:
        return eval(compile(ast.Expression(node), "<checks>", "eval"), dict(names))  # of our own source
    except Exception:
        return None


def last(key: str) -> str:
    """The field that a key names: `r` of `lora.r`, `weight` of `data.mix: weight`."""
    return re.split(r"[.: ]+", key)[-1]


def root() -> Path:
    """The folder that holds conf/, experiments/ and sweeps/: the checkout, or the package in a wheel."""
    package = Path(__file__).resolve().parent.parent
    return package.parent if (package.parent / "conf").is_dir() else package


def choices(folder: Path) -> dict[str, str]:
    """The choices of a config group: file name without .yaml -> the first sentence of its first comment."""
    return {file.stem: told for file in sorted(folder.glob("*.yaml")) if (told := first_sentence(file)) is not None}


def first_sentence(file: Path) -> str | None:
    """Of the comment that a YAML file begins with; None where the file says that it is no choice of a group."""
    lines = file.read_text(encoding="utf-8").splitlines()
    begin = [line for line in lines if line != "# @package _global_"]
    comment: list[str] = []
    for line in begin:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    text = " ".join(comment)
    if "Not for `" in text:
        return None
    return re.sub(r"[.:]$", "", re.split(r"(?<=[.?])\s+(?=[A-Z(])|[.:]\s+python -m", text)[0])


def render(setting: Setting, written: str, width: int) -> list[str]:
    """Lines on one setting; `written` is it with its default, as the command line takes it."""
    unit = "" if setting.unit in setting.meaning else setting.unit
    facts = ", ".join(filter(None, [setting.type, unit, setting.range]))
    text = f"{setting.meaning} ({facts})" if facts and setting.meaning else setting.meaning or facts
    lines = [f"  {written}", *textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return lines + (table(setting.choices, width, 8) if any(setting.choices.values()) else [])


def table(rows: Mapping[str, str], width: int, indent: int) -> list[str]:
    """Names and phrases in two columns."""
    margin = max(map(len, rows)) + 2
    lines: list[str] = []
    for name, text in rows.items():
        first = " " * indent + f"{name:{margin}}"
        told = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * len(first))
        lines += told or [first.rstrip()]
    return lines


# what people type, for a start: command -> words, and what they do
EXAMPLES = {
    "train": {
        "experiments=quickstart": "a real small model learns clinical cases, without a GPU",
        "lora.r=32 optim.lr=1e-4": "Mistral-7B and rows from the hub",
        "data=local data.path=rows.jsonl": "rows of your own",
        "resume=last": "go on with the newest run",
        "--multirun lora.r=8,16 optim.lr=1e-4,2e-4": "a grid",
        "sweeps=rank_alpha_lr experiments=quickstart": "a search; again: it goes on",
        "sweeps=lr_then_rank experiments=quickstart": "rates at one rank, then ranks",
    },
    "data": {
        "data=local data.path=rows.jsonl": "what training will see of rows of your own",
        "data.name=zh data.format=huatuo": "other rows of the hub's data set",
    },
    "dashboard": {"logger.project=medreason": "a workspace for the runs of a project"},
    "evaluate": {
        "run=runs/RUN benchmarks=medqa,pubmedqa": "letters by their probability",
        "run=runs/RUN benchmarks=quiz.jsonl method=generate": "written answers",
        "run=runs/RUN base=true": "the model before the run",
        "run=last benchmarks=open.jsonl method=generate judge=URL": "read by a judge",
    },
    "verdict": {
        "run=last benchmarks=medqa,pubmedqa": "better, worse or the same as the model before the run",
        "run=last forgetting=general.jsonl fail_if_worse=true": "for a script: exit code 1 if worse",
    },
    "sample": {
        "run=last": "answer the clinical cases that the run was trained on",
        "run=last data=questions.jsonl benchmarks=quiz.jsonl": "other questions, no quiz",
        "run=last data=medqa:train samples=16 keep=4": "the hub's training questions",
    },
    "export": {
        "run=runs/RUN format=merged": "16-bit weights with LoRA in them",
        "run=runs/RUN format=gguf quantization=q4_k_m": "for llama.cpp and Ollama",
    },
    "chat": {"run=runs/RUN": "in the terminal", "run=runs/RUN page=true": "on a web page"},
    "serve": {"run=runs/RUN": "at http://127.0.0.1:8000/v1", "weights=DIR engine=vllm": "an export, by vLLM"},
}
OPTIONS = {
    "--help WORD ...": "of these groups or settings alone; with SETTING=VALUE, as they would be",
    "--cfg job": "print the settings as composed; nothing runs",
    "--multirun": "values with commas are a grid: lora.r=8,16",
    "--hydra-help": "Hydra's own options",
}


HEADINGS = {"": "settings", "hydra.sweeper": "hydra.sweeper: of a search, such as sweeps=rank_alpha_lr"}


@dataclass(frozen=True)
class Section:
    """A config group, or the settings that belong to none."""

    name: str  # empty: the settings of none
    choices: Mapping[str, str]  # what GROUP=CHOICE takes, each with a phrase; empty where it is no such group
    chosen: str  # as composed; empty: none
    settings: Sequence[Setting]


def sections(settings: Sequence[Setting], groups: Mapping[str, Mapping[str, str]], chosen: Mapping[str, str]
             ) -> list[Section]:  # fmt: skip
    """The settings by group, those of none first; then groups without settings of their own."""
    of: dict[str, list[Setting]] = {name: [] for name in ("", *groups)}
    for setting in settings:
        name = setting.name.rpartition(".")[0]
        of.setdefault(name if name.startswith("hydra.") else name.partition(".")[0], []).append(setting)
    return [Section(name, groups.get(name, {}), chosen.get(name) or "", found) for name, found in of.items()]


def only(parts: Sequence[Section], words: Sequence[str]) -> list[Section]:
    """The sections that words name, or those settings in them. Raises ConfigError for a word that names neither."""
    known = {setting.name for part in parts for setting in part.settings}
    for word in words:
        if word not in {part.name for part in parts} | known:
            raise ConfigError(f"{word}: no such group or setting; --help alone lists them")
    named = []
    for part in parts:
        if part.name and part.name in words:
            named.append(part)
        elif found := [setting for setting in part.settings if setting.name in words]:
            named.append(Section(part.name, {}, "", found))
    return named


def page(
    command: str, sentence: str, parts: Sequence[Section], write: Callable[[Setting], str], width: int, sweeps: bool
) -> str:
    """The help of a command: its use, examples, every group and every setting. `sweeps`: it can be one."""
    grouped = any(part.choices for part in parts)
    words = ["[GROUP=CHOICE ...]", "[SETTING=VALUE ...]"] if grouped else ["[SETTING=VALUE ...]"]
    needed = [f"{setting.name}=VALUE" for part in parts for setting in part.settings if setting.required]
    lines = [f"usage: medreason {' '.join([command, *needed, *words])}", "", *textwrap.wrap(sentence, width), ""]
    lines += ["examples:"]
    for line, told in EXAMPLES.get(command, {}).items():
        lines += [f"  medreason {command} {line}", f"      {told}"]
    for part in parts:
        lines += ["", *told_section(part, write, width)]
    shown = OPTIONS if sweeps else {name: told for name, told in OPTIONS.items() if name != "--multirun"}
    return "\n".join([*lines, "", "options:", *table(shown, width, 2)])


def told_section(part: Section, write: Callable[[Setting], str], width: int) -> list[str]:
    """A heading, the choices of a group, its settings."""
    if not part.settings and not part.choices:
        return []
    lines = [HEADINGS.get(part.name, part.name)]
    if part.choices:
        lines[0] += f": {part.name}=CHOICE" + (f", here {part.chosen}" if part.chosen else ", by default none")
        lines += table(part.choices, width, 2)
    for setting in part.settings:
        lines += render(setting, write(setting), width)
    return lines
