"""What mkdocs takes from elsewhere: every setting from medreason/config.py and conf/, rooms' sentences, pictures.

A hook of mkdocs, which calls the functions that begin with `on_`.
"""

import ast
from enum import Enum
from typing import Any

import hydra
from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

from medreason.completion import SCHEMAS
from medreason.config import LrThenRankConfig, TrainConfig
from medreason.core.cli import apart, search_values
from medreason.core.settings_help import Setting, choices, describe, root

LONGEST = 80  # characters of a value that is shown
GROUPS = ("model", "lora", "optim", "data", "trainer", "logger")
HEAD = "| setting | takes | default | what it is |\n|---|---|---|---|"
INTRO = """# Every setting

Made from `medreason/config.py` and `conf/`. On the command line a setting is given by its dotted name, a group by its
choice: `python -m medreason.train model=mistral_7b lora.r=32`. Where the choices of a group differ, the default of each
stands behind its name. `???` must be given. `medreason train --help` prints the same in a terminal.
"""


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    for picture in sorted((root() / "benchmarks" / "pictures").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The rooms' own sentences where the page on architecture asks for them."""
    if page.file.src_uri != "architecture.md":
        return markdown
    rooms = (root() / "medreason").glob("*/__init__.py")
    told = {room.parent.name: ast.get_docstring(ast.parse(room.read_text(encoding="utf-8"))) for room in rooms}
    return markdown.replace(
        "\nROOMS\n", "\n" + "\n".join(f"- `{name}`: {text}" for name, text in sorted(told.items())) + "\n"
    )


def settings_page() -> str:
    parts = [INTRO, "## medreason train, data, dashboard\n"]
    usual = composed("train", TrainConfig)
    for group in GROUPS:
        by_choice = {choice: composed("train", TrainConfig, f"{group}={choice}")[group] for choice in offered(group)}
        first = next(iter(choices_of(usual, group, by_choice)))
        parts += [f"### {group}\n", "\n".join(f"- `{group}={name}`: {told}" for name, told in offered(group).items())]
        shown = [one for one in describe(TrainConfig, usual) if one.name.startswith(f"{group}.")]
        parts.append(table(shown, {one.name: defaults(one.name, first, by_choice) for one in shown}))
    rest = [one for one in describe(TrainConfig, usual) if "." not in one.name]
    parts += ["### the run itself\n", table(rest)]
    search = plain(search_values())
    parts += ["### hydra.sweeper, with sweeps=NAME\n", table(describe(LrThenRankConfig, search, "hydra.sweeper."))]
    for group in ("experiments", "sweeps"):
        parts += [f"### {group}\n", "\n".join(f"- `{group}={name}`: {told}" for name, told in named(group).items())]
    for name, schema in SCHEMAS.items():
        if schema is TrainConfig:
            continue
        parts += [f"## medreason {name}\n", table(describe(schema, composed(name, schema)))]
    return "\n\n".join(parts) + "\n"


def plain(config: Any) -> dict[str, Any]:
    """Values as written, not resolved: some depend on a run, and there is none here."""
    return {str(name): value for name, value in OmegaConf.to_container(config, resolve=False).items()}


def composed(name: str, schema: type, *words: str) -> dict[str, Any]:
    with apart(schema):
        return plain(hydra.compose(name, overrides=list(words)))


def offered(group: str) -> dict[str, str]:
    return choices(root() / "conf" / group)


def named(group: str) -> dict[str, str]:
    return choices(root() / group)


def choices_of(usual: dict[str, Any], group: str, by_choice: dict[str, dict[str, Any]]) -> list[str]:
    """The group's choices, the one that a run takes by itself first."""
    return sorted(by_choice, key=lambda choice: by_choice[choice] != usual[group])


def defaults(name: str, first: str, by_choice: dict[str, dict[str, Any]]) -> str:
    """`16; rslora: 32`: the usual value, and those of the choices that have another."""
    values = {choice: settings.get(name.partition(".")[2]) for choice, settings in by_choice.items()}
    others = [f"{choice}: {code(value)}" for choice, value in values.items() if value != values[first]]
    return "; ".join([code(values[first]), *others])


def code(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.name
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else str(value)
    if not text:
        return "empty"
    return f"`{text}`" if len(text) <= LONGEST else "a template of its own"  # the only values of that length


def table(settings: list[Setting], told: dict[str, str] | None = None) -> str:
    rows = [HEAD]
    for one in settings:
        takes = ", ".join(filter(None, [one.type, one.range])) + (f" ({one.unit})" if one.unit else "")
        meaning = one.meaning + "".join(f"<br>`{name}`: {text}" for name, text in one.choices.items() if text)
        default = (told or {}).get(one.name) or code(one.default)
        rows.append("| " + " | ".join(cell(each) for each in (f"`{one.name}`", takes, default, meaning)) + " |")
    return "\n".join(rows)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
