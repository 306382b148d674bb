"""Runs an entry point under Hydra: composition, typed objects, one line for a mistake.

`hydra.main` with what it lacks here: the schema of config.py checked after composition too, experiments/ and sweeps/
at the top level, and mistakes of the user as one line and exit code 2 instead of a report.
"""

import difflib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medreason.config import DOLLAR, ConfigError, LrThenRankConfig, RunFailed, TrainConfig, typed
from medreason.core import resume
from medreason.core.cache import cache_folder
from medreason.core.commands import COMMANDS
from medreason.core.disk import describe_full, disk_full
from medreason.core.named_runs import NAMES, find_run
from medreason.core.other_names import foreign
from medreason.core.outside import one_line
from medreason.core.overrides import (
    agents_overrides,
    agents_settings,
    as_meant,
    given_overrides,
    override,
    printable,
    quoted,
    shell_word,
    spelled,
)
from medreason.core.progress import speak_safely
from medreason.core.run_directory import folder_name
from medreason.core.settings_help import Setting, choices, describe, only, page, root, sections, told_section
from medreason.core.storage import SETTING, begin_again, hidden, keep, public

OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)  # of conf/train.yaml

Config = TypeVar("Config")
SEVERAL = re.compile("requires --multirun|Ambiguous value for argument")  # what Hydra says of a sweep that is none

SEARCHES = ("optuna", "lr_then_rank")  # of hydra/sweeper


class NamedRuns(SearchPathPlugin):
    """Lets `experiments=NAME` and `sweeps=NAME` be found at the top level, beside conf/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="medreason", path=f"file://{root()}")


def command(
    task: Callable[[Config], None], name: str, schema: type[Config], plugins: Callable[[], None] | None = None
) -> None:
    """Runs `task` as Hydra's main over conf/NAME.yaml; mistakes of the user end in one line and exit code 2.

    `plugins` has Hydra know what a sweep needs; without it there is no sweep of this command.
    """
    speak_safely()
    try:
        check_words(schema)
        if asked_for_help():
            print(help_page(name, schema, given_overrides(), shutil.get_terminal_size().columns))
            return
        settle_words(schema)
        if schema is TrainConfig:
            resume.settle_folder(name)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        refuse(name, error, schema)
    if schema is TrainConfig:  # elsewhere, folders beside conf/ would pass for config groups: benchmarks=[medqa]
        if "--hydra-help" not in sys.argv:  # it lists every folder below, .venv included
            Plugins.instance().register(NamedRuns)
        if plugins is not None:
            plugins()
        elif swept := next((word for word in given_overrides() if word.startswith("sweeps=")), None):
            refuse(name, ConfigError(f"{swept}: sweeps are of training; python -m medreason.train {swept}"), schema)
    ConfigStore.instance().store(name="schema", node=schema)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through to us instead of Hydra's own report

    begun = []

    def job(config: DictConfig) -> None:
        begun.append(True)
        # Refused in here, not in the outer handler: on its way out Hydra would add a report of its own.
        try:
            task(settings(config, schema))
        except Exception as error:
            told = as_mistake(error, config.get("output"), config.get("run"))
            if told is None:
                raise
            discard(Path(HydraConfig.get().runtime.output_dir))
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise told from error  # the jobs after this one still run; Hydra hands on the first after the last job
            refuse(name, told, schema)

    try:
        hydra.main(version_base="1.3", config_path=searched(schema), config_name=name)(job)()
    except (ConfigError, RunFailed, HydraException, OmegaConfBaseException) as error:
        refuse(name, composition_error(name, schema) if SEVERAL.search(str(error)) else error, schema)
    except KeyboardInterrupt:
        print(f"\nmedreason.{name}: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # of Hydra's own, which makes the run's directory, or of a sweep's storage
        if disk_full(error):
            refuse(name, ConfigError(full_disk(error)), schema)
        if begun or not isinstance(error, OSError) or not isinstance(error.filename, str):
            raise
        place = f"{error.filename}: {error.strerror}; a run's directory cannot be made; give another hydra.run.dir"
        refuse(name, ConfigError(place), schema)


def asked_for_help() -> bool:
    """Whether the command line has --help or -h."""
    return bool(get_args_parser().parse_known_args(sys.argv[1:])[0].help)


def help_page(name: str, schema: type, words: Sequence[str], columns: int) -> str:
    """What a command takes, with values as its words compose them; of the groups or settings that words name, if any.

    Raises ConfigError for a word that names neither, and Hydra's errors.
    """
    width = max(40, min(columns, 100))
    with apart(schema):
        given = [as_meant(word, schema) for word in words if "=" in word]
        config = hydra.compose(name, overrides=given, return_hydra_config=True)
    chosen = dict(config.hydra.runtime.choices)
    settings = describe(schema, shown_values(config))
    groups: dict[str, dict[str, str]] = {}
    if schema is TrainConfig:
        groups = {field.name: choices(root() / "conf" / field.name) for field in fields(schema)
                  if is_dataclass(field.type)}  # fmt: skip
        groups |= {named: choices(root() / named) for named in ("experiments", "sweeps")}
    if name == "train":
        settings += describe(LrThenRankConfig, shown_values(search_values()), "hydra.sweeper.")
    parts = sections(settings, groups, chosen)
    if named := [word for word in words if "=" not in word]:
        return "\n\n".join("\n".join(told_section(part, written, width)) for part in only(parts, named))
    return page(name, COMMANDS[name], parts, written, width, schema is TrainConfig)


def search_values() -> Any:
    """Values of a search's settings, of every kind of search, not resolved."""
    kinds = (OmegaConf.load(root() / "conf" / "hydra" / "sweeper" / f"{kind}.yaml") for kind in SEARCHES)
    return OmegaConf.merge(*kinds)


def shown_values(config: Any) -> dict[str, Any]:
    """Values as written, not resolved: some depend on a run, and there is none here."""
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items() if name != "hydra"}


def written(setting: Setting) -> str:
    """A setting with its value, as the command line takes it."""
    return f"{setting.name}=VALUE" if setting.required else f"{setting.name}={spelled(setting.default)}"


def as_mistake(error: Exception, *written: str | None) -> Exception | None:
    """What a command's error is to its user: one that a line tells, or None. `written` are folders that it wrote to."""
    if disk_full(error):
        return ConfigError(full_disk(error, *written))
    if isinstance(error, PermissionError):  # any path that was given may be one
        return ConfigError(f"{error.filename}: no right to read or write it ({error.strerror})")
    return error if isinstance(error, (ConfigError, RunFailed, OmegaConfBaseException)) else None


def full_disk(error: Exception, *given: str | None) -> str:
    """A line on the disk that is full, of those that a command writes to."""
    own = HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else None
    written = [Path(folder) for folder in (*given, own) if folder]
    return describe_full(error, *written, cache_folder(), Path(tempfile.gettempdir()))


def check_words(schema: type) -> None:
    """Raises ConfigError where the command line has a setting by the name that another tool gives it."""
    keys = known_keys(schema)
    if schema is TrainConfig:
        keys += ["experiments", "sweeps", *known_keys(LrThenRankConfig, "hydra.sweeper.")]
    options = [option for action in get_args_parser()._actions for option in action.option_strings]
    if line := foreign(sys.argv[1:], options, keys):
        raise ConfigError(line)
    for word in given_overrides():
        if schema is TrainConfig and word in choices(root() / "experiments"):
            raise ConfigError(f"{word}: no setting; write experiments={word}")


def settle_run(word: str, schema: type) -> str:
    """run=last and run=best as the folder that they name; any other word as it is. Raises ConfigError for none."""
    name, _, value = word.partition("=")
    if name != "run" or value not in NAMES or "run" not in {field.name for field in fields(schema)}:
        return word
    return override("run", find_run(value))


def settle_words(schema: type) -> None:
    """Makes of the command line what it is meant to be, before Hydra reads it. Raises ConfigError where it cannot be.

    A storage's password goes from there into the environment, and this process begins again without it.
    """
    given = agents_overrides(given_overrides(), agents_settings())
    secret = {word: settled for word in given if (settled := without_password(word)) != word}
    if secret:
        begin_again(secret)
    changed = dict(
        zip(
            given_overrides(),
            (as_meant(settle_run(secret.get(word, word), schema), schema) for word in given),
            strict=True,
        )
    )
    sys.argv[1:] = [changed.get(word, word) for word in sys.argv[1:]]


def without_password(word: str) -> str:
    """The override of a storage with its URL's public form; any other, and one without a password, as it is."""
    name, _, value = word.partition("=")
    if name.lstrip("+") != SETTING:
        return word
    url = value.strip().strip("'\"")
    return word if public(url) == url else f"{name}={quoted(keep(url))}"


def composition_error(name: str, schema: type) -> Exception:
    """Why Hydra could not compose a sweep's command: a sweep's file then does not count, so it asks for --multirun."""
    words = given_overrides()
    entries = OverridesParser.create().parse_overrides(words)
    single = [word for word, entry in zip(words, entries, strict=True) if not entry.is_sweep_override()]
    try:
        with initialized(schema):
            hydra.compose(name, overrides=single, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        return error
    several = next(word for word, entry in zip(words, entries, strict=True) if entry.is_sweep_override())
    setting, _, value = several.partition("=")
    return ConfigError(
        "several values for a setting make a sweep: add --multirun, or sweeps=NAME; a value with a comma in it needs "
        f"quotes: {shell_word(f'{setting}={quoted(value)}')}"
    )


def composed(*overrides: str) -> TrainConfig:
    """Composes the typed configuration of a training run outside medreason.train. Raises Hydra's errors too.

    In the middle of another command too, which Hydra itself would refuse.
    """
    with apart(TrainConfig):
        return load(hydra.compose("train", overrides=list(overrides)), TrainConfig)


@contextmanager
def apart(schema: type) -> Iterator[None]:
    """Hydra over conf/ by this schema, in the middle of another command too; as it was afterwards.

    Its own schema included, by which the next job of the other's multirun is composed.
    """
    outer = GlobalHydra.get_state()
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=schema)
    if schema is TrainConfig:
        Plugins.instance().register(NamedRuns)
    try:
        with initialized(schema):
            yield
    finally:
        GlobalHydra.set_state(outer)


def initialized(schema: type) -> Any:
    """Hydra, ready to compose settings of this schema outside `hydra.main`; a context manager."""
    folder = searched(schema)
    if folder is None:
        return hydra.initialize(None, version_base="1.3")
    return hydra.initialize_config_dir(folder, version_base="1.3")


def searched(schema: type) -> str | None:
    """The folder in which Hydra finds a command's file and its groups.

    None for a command with a setting that is called as a folder of conf/ is (data=FILE): Hydra would take its value for
    a choice of that group, so the command's file is handed to it without the folders beside it.
    """
    folder, own = root() / "conf", {field.name for field in fields(schema)}
    if not any((folder / field.name).is_dir() and not is_dataclass(field.type) for field in fields(schema)):
        return str(folder)
    for file in folder.glob("*.yaml"):
        values = OmegaConf.load(file)
        if {str(key) for key in values} - {"defaults", "hydra"} == own:
            ConfigStore.instance().store(name=file.stem, node=values)
    return None


def swept_settings() -> dict[str, str]:
    """What this job of a multirun was given that its siblings were not, by dotted name; nothing in a single run."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode is not RunMode.MULTIRUN:
        return {}
    parser = OverridesParser.create()
    asked = parser.parse_overrides(given_overrides())
    swept = {override.key_or_group for override in asked if override.is_sweep_override()}
    swept |= set(OmegaConf.to_container(hydra_config.sweeper).get("params") or {})  # type: ignore[union-attr]
    given = parser.parse_overrides(list(hydra_config.overrides.task))
    return {one.key_or_group: str(one.get_value_element_as_str()) for one in given if one.key_or_group in swept}


def refuse(name: str, error: Exception, schema: type) -> NoReturn:
    """Says what is wrong in one line and ends the process: exit code 2, or 1 where training itself failed."""
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes of a machine, one says it
        print(f"medreason.{name}: {printable(one_line(hidden(explain(error, schema))))}", file=sys.stderr)
    sys.exit(1 if isinstance(error, RunFailed) else 2)


def discard(run: Path) -> None:
    """Removes a run directory in which nothing but Hydra's own record, a lock, and a log of the mistake stand yet."""
    entries = {entry.name for entry in run.iterdir()}
    if not entries and run != Path.cwd():  # of a command that keeps no record of Hydra's
        run.rmdir()
    logs = {entry.name for entry in run.glob("train.*log")}  # each machine's
    if ".hydra" in entries and entries - logs <= {".hydra", ".lock"}:
        shutil.rmtree(run)


def settings(config: DictConfig, schema: type[Config]) -> Config:
    """The typed configuration of a command: as composed, or of the run that it goes on with."""
    if schema is not TrainConfig or config.get("resume") is None:
        return load(config, schema)
    resumed = resume.resumed_settings(config, list(HydraConfig.get().overrides.task))
    assert isinstance(resumed, schema)
    return resumed


def load(config: DictConfig, schema: type[Config]) -> Config:
    """The typed configuration. Raises ConfigError or OmegaConf's errors for unknown keys and values out of range."""
    # A key added with `+` passes Hydra's own check; merging the bare values into the schema refuses it.
    return typed(schema, OmegaConf.to_container(config, resolve=True))


def explain(error: BaseException, schema: type) -> str:
    """One line that names the key, and the known key nearest to a mistyped one."""
    if "Error merging override" in str(error) and error.__cause__:
        return explain(error.__cause__, schema)
    lines = [line.strip() for line in str(error).partition("Config search path")[0].splitlines()]
    message = "; ".join(line for line in lines if line and not line.startswith(("object_type", "reference_type")))
    wrong = re.search(r"full_key: ([\w.]+)", message) or re.search(r"override '([\w.]+)'", message)
    if wrong and ("not in" in message or "Could not override" in message):
        return unknown_setting(wrong[1], schema)
    if missing := re.search(r"issing mandatory value.*full_key: ([^\s;]+)", message):
        return f"{missing[1]} must be given: {missing[1]}=VALUE"
    return message.replace(":;", ":").replace(DOLLAR, "$").removesuffix(";")


def unknown_setting(key: str, schema: type) -> str:
    """A line on a mistyped setting, with the known one nearest to it."""
    near = difflib.get_close_matches(key, known_keys(schema), n=1, cutoff=0.5)
    return f"{key}: no such setting ({f'did you mean {near[0]}?' if near else 'see --cfg job'})"


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of every setting, groups included."""
    keys: list[str] = []
    for field in fields(schema):
        keys.append(prefix + field.name)
        kind: Any = field.type
        if is_dataclass(kind):
            assert isinstance(kind, type)
            keys += known_keys(kind, f"{prefix}{field.name}.")
    return keys
