"""resume=RUN: a run goes on in its own folder, with its own settings.

words of the command --settle_folder--> hydra.run.dir=RUN --Hydra--> composed
RUN/config.yaml, and of `composed` what was given beside resume= --resumed_settings--> the settings that it goes on with
"""

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from medreason.config import ConfigError, TrainConfig, place, typed
from medreason.core.overrides import command_line, given_overrides, is_sweeping, override
from medreason.core.recorded import finite, mapping
from medreason.core.run_directory import nearby, read_json, run_config, settings_of

SETTING = "resume"
# what a run may have otherwise from here on: how long it trains, what it measures, where things lie, who computes
MAY_CHANGE = (
    "trainer.max_steps", "trainer.max_epochs", "trainer.patience", "trainer.validate_every_steps",
    "trainer.checkpoint_every_steps", "trainer.answer_questions", "trainer.answer_share", "trainer.answer_batch",
    "trainer.max_answer_tokens", "trainer.accelerator", "trainer.nodes", "trainer.devices",
    "trainer.rows_per_batch",
    "trainer.recompute", "trainer.memory_gib", "model.path", "data.path", "data.mix", "data.benchmarks",
)  # fmt: skip


def settle_folder(name: str) -> None:
    """Has the command line's resume=RUN be carried out in that run's folder. Raises ConfigError where it cannot be."""
    word = next((one for one in given_overrides() if named(one) == SETTING), None)
    given = None if word is None else value_of(word)
    if word is None or given is None:
        return
    if name != "train":
        raise ConfigError(f"{SETTING}={given}: it is medreason.train that goes on with a run")
    if is_sweeping():
        raise ConfigError(f"{SETTING}={given}: one run goes on, not a sweep; a sweep's own command goes on with it")
    run = find_run(str(given))
    for other in given_overrides():
        if named(other) == "hydra.run.dir" and Path(str(value_of(other))).resolve() != run:
            raise ConfigError(f"{other}: {SETTING}= goes on in {run}; ckpt=PATH goes on in another folder")
    settled = [override(SETTING, run), override("hydra.run.dir", run), "hydra.output_subdir=null"]
    at = sys.argv.index(word)
    sys.argv[at : at + 1] = settled  # there, for words before and after an option are two lists to Hydra


def named(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def value_of(word: str) -> Any:
    return OverridesParser.create().parse_override(word).value()


def find_run(given: str) -> Path:
    """The folder of the run that resume=GIVEN names: a path, or for `last` the newest one under runs/.

    Raises ConfigError where there is none that could go on.
    """
    if given == "last":
        found = sorted(Path("runs").glob("*/checkpoints/last.ckpt"), key=os.path.getmtime)
        if not found:
            raise ConfigError(f"{SETTING}=last: no checkpoints/last.ckpt in the runs under runs; name a run's folder")
        run = found[-1].parent.parent
    else:
        run = Path(place(SETTING, given))
    if run.is_file():
        raise ConfigError(
            f"{SETTING}={given}: a file; name a run's folder (ckpt={given} begins a run with a checkpoint)"
        )
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{SETTING}={given}: no run there; name the folder that medreason.train wrote, or last")
    if (run / "trial.json").is_file():
        raise ConfigError(
            f"{SETTING}={given}: a trial of a sweep, whose own command goes on with it; "
            f"ckpt={run}/checkpoints/last.ckpt trains it further in another folder"
        )
    if not (run / "checkpoints" / "last.ckpt").is_file():
        raise ConfigError(f"{SETTING}={given}: it ended before its first checkpoint{anew(run)}")
    return run.resolve()


def anew(run: Path) -> str:
    """How to train a run from its beginning, as far as it is on record."""
    told = read_json(run / "run.json").get("overrides")
    return f"; anew: {command_line('train', [str(one) for one in told])}" if isinstance(told, list) else ""


def resumed_settings(composed: DictConfig, words: Sequence[str]) -> TrainConfig:
    """The settings of the run that composed.resume names, with those of `words`, as they were composed.

    Raises ConfigError for a setting that a run in its middle cannot have otherwise.
    """
    run = Path(composed.resume)
    before = settings_of(run_config(run))
    tree: Any = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    now = copy.deepcopy(before)
    for word, entry in zip(words, OverridesParser.create().parse_overrides(list(words)), strict=True):
        key = entry.key_or_group
        if key == SETTING:
            continue
        if key == "ckpt":
            raise ConfigError(f"{word}: {SETTING}= goes on from the run's own checkpoint; give one of the two")
        group = key not in tree or (isinstance(tree[key], dict) and not isinstance(entry.value(), dict))
        if entry.is_delete() or ("." not in key and group and key != "logger"):
            raise ConfigError(
                f"{word}: beside {SETTING}= name single settings, such as trainer.max_steps=100, or logger=NAME"
            )
        put(now, key, tree)
    own = {SETTING: str(run), "ckpt": str(run / "checkpoints" / "last.ckpt")}
    config = typed(TrainConfig, now | own)
    given = leaves(settings_of(config))
    for name, was in leaves(before).items():
        free = name in own or name in MAY_CHANGE or name.startswith("logger.")
        if given.get(name) != was and not free:
            raise ConfigError(
                f"{SETTING}={run}: {name} was {was}, and is {given.get(name)} here; a run goes on with the settings it "
                "has, but for how long it trains, what it measures and where things lie"
            )
    return config


def put(settings: dict[str, Any], key: str, tree: Mapping[str, Any]) -> None:
    """Puts what stands at a dotted name in `tree` there in `settings`."""
    *groups, last = key.split(".")
    source: Any = tree
    for group in groups:
        settings, source = settings.setdefault(group, {}), source[group]
    settings[last] = source[last]


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def repeated(words: Sequence[str], run: Path) -> list[str]:
    """The overrides that train a run from its beginning with the settings that it goes on with."""
    told = read_json(run / "run.json").get("overrides")
    earlier = [str(one) for one in told] if isinstance(told, list) else []
    now = [one for one in words if named(one) != SETTING]
    return [one for one in earlier if named(one) not in {named(other) for other in now}] + now


def nothing_left(config: TrainConfig, run: Path) -> str | None:
    """A line on a run that has finished and is asked for no more, with the command that trains on; else None."""
    record = read_json(run / "run.json")
    if record.get("status") != "finished":
        return None
    earlier, now = run_config(run).trainer, config.trainer
    steps = int(finite(mapping(record.get("results")).get("steps")) or 0)
    if record.get("ended_early"):
        if now.patience is None or now.patience > (earlier.patience or 0):
            return None
        more = [f"trainer.patience={2 * (earlier.patience or 1)}"]
        how = f"early ({record['ended_early']})"
    else:
        if (now.max_steps, now.max_epochs) != (earlier.max_steps, earlier.max_epochs):
            return None
        more = [f"trainer.max_epochs={2 * earlier.max_epochs}"]
        rows = int(finite(mapping(record.get("data")).get("train_rows")) or 0)
        by_epochs = earlier.max_epochs * -(-rows // (earlier.rows_per_batch * earlier.world_size * earlier.accumulate))
        if earlier.max_steps != -1:
            more = [f"trainer.max_steps={2 * steps}", *(more if by_epochs < 2 * steps else [])]
        how = "all of them"
    again = command_line("train", [override(SETTING, nearby(run)), *more])
    return f"{nearby(run)} has finished, after {steps} optimizer steps, {how}; to train on: {again}"
