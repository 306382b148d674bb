"""Hydra's sweepers of this project: searches by Optuna, their best trials again with several seeds, a plain grid.

sweep --propose--> trial of a study on disk --Hydra's launcher--> run_trial --processes--> python -m medreason.train
                          ^                                                                        |
                          +------------------------ settle <-- run.json of the trial --------------+

Hydra's launcher decides where run_trial runs (here, joblib, SLURM, Ray). It trains in another process, so whatever
kills that leaves the sweep standing; trials that end well share one (slot.py), after any other end a new one begins.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from medreason.config import (
    ConfigError,
    ConfirmConfig,
    LrThenRankConfig,
    Pruner,
    SearchConfig,
    TrainConfig,
    steps_of,
    typed,
)
from medreason.core.cli import known_keys, load, unknown_setting
from medreason.core.outside import one_line
from medreason.core.overrides import override, spelled
from medreason.core.progress import say
from medreason.core.run_directory import check_can_write, read_json, write_json
from medreason.core.storage import SETTING, public
from medreason.sweep.space import read_space, shown

if TYPE_CHECKING:  # Optuna's import takes a second that a mistaken command need not wait for
    from optuna.distributions import BaseDistribution

    from medreason.data.corpus import Split
    from medreason.sweep.study import Propose


class StudySweeper(Sweeper):
    """What the sweepers with a study have in common: a launcher for their trials."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.command = config
        self.trials = trial_launcher(hydra_context, config)


class OptunaSweeper(StudySweeper):
    """hydra/sweeper=optuna: searches hydra.sweeper.params for the lowest monitored metric."""

    def __init__(self, **settings: Any) -> None:
        self.settings = typed(SearchConfig, settings)

    def sweep(self, arguments: list[str]) -> None:
        space, shared = searched(self.settings, arguments)
        from medreason.sweep.study import propose_new

        propose = propose_new(space, self.settings.sampler, self.settings.seed)
        search(self.command, self.trials, self.settings, space, shared, propose)


class LrThenRankSweeper(StudySweeper):
    """hydra/sweeper=lr_then_rank: searches the learning rate at one rank, then the ranks with the best one."""

    def __init__(self, **settings: Any) -> None:
        self.settings = typed(LrThenRankConfig, settings)

    def sweep(self, arguments: list[str]) -> None:
        settings = self.settings
        space, shared = searched(settings, arguments)
        from medreason.sweep.lr_then_rank import check_scaling, propose_lr_then_rank

        check_scaling(shared, self.command.lora)
        propose = propose_lr_then_rank(space, settings.rank, settings.sampler, settings.seed, settings.lr_trials)
        search(self.command, self.trials, settings, space, shared, propose, rank=settings.rank)


def searched(settings: SearchConfig, arguments: list[str]) -> "tuple[dict[str, BaseDistribution], list[str]]":
    """What a search chooses from, and the overrides that all its trials share. Raises ConfigError for a wrong space."""
    space, shared = read_space(settings.params, arguments)
    if not space:
        raise ConfigError("hydra.sweeper.params: nothing to search; for example lora.r: choice(8, 16)")
    if unknown := [name for name in space if name not in known_keys(TrainConfig)]:
        raise ConfigError(unknown_setting(unknown[0], TrainConfig))
    return space, shared


def search(
    command: DictConfig,
    launcher: Launcher,
    settings: SearchConfig,
    space: "Mapping[str, BaseDistribution]",
    shared: Sequence[str],
    propose: "Propose",
    **stages: int,
) -> None:
    """Carries out a search: what `propose` asks for, until a budget is used up; then its report.

    `stages` is what else makes this search what it is: one with another does not go on with its trials.
    """
    folder = sweep_folder(command)
    config, split = prepare_data(command)
    if settings.pruner is Pruner.paired:
        from medreason.sweep.paired import check_earlier, check_pairs

        check_pairs(config.monitor, space, len(split.validation))
    min_steps = first_rung(settings, config, split)
    check_same_sweep(folder, command, space, stages)
    from medreason.sweep.runner import carry_out_trials, check_any_finished
    from medreason.sweep.study import count_tokens, make_pruner, open_study, spent, storage_url

    url = storage_url(settings.storage, folder)
    pruning = {
        "pruner": settings.pruner.value,
        "min_steps": min_steps,
        "reduction_factor": settings.reduction_factor,
        "url": url,
        "name": str(folder),
    }
    study = open_study(url, str(folder), make_pruner(settings.pruner, min_steps, settings.reduction_factor, folder))
    if settings.pruner is Pruner.paired:
        check_earlier(study, folder)
    began, tokens = time.monotonic(), count_tokens(folder)
    carry_out_trials(
        study,
        settings,
        folder,
        launcher,
        space=space,
        pruning=pruning,
        propose=propose,
        describe=lambda params: (
            [*shared, *(f"{name}={spelled(value)}" for name, value in params.items())],
            {name: shown(value) for name, value in params.items()},
        ),
        over=lambda: spent(settings, study, tokens, (time.monotonic() - began) / 3600),
        sweep_file=[*(one for one in shared if one.startswith("sweeps=")), *without_secret(settings.storage)],
    )
    show(folder)
    check_any_finished(study, folder)


class ConfirmSweeper(StudySweeper):
    """hydra/sweeper=confirm: trains the best trials of a finished sweep again, each with several seeds."""

    def __init__(self, **settings: Any) -> None:
        self.settings = typed(ConfirmConfig, settings)

    def sweep(self, arguments: list[str]) -> None:
        settings = self.settings
        if others := [one for one in arguments if not one.startswith("sweeps=")]:
            raise ConfigError(f"{others[0]}: sweeps=confirm_best repeats trials as they were, but for the seed")
        from optuna.distributions import CategoricalDistribution

        from medreason.sweep.runner import best_trials, carry_out_trials, check_any_finished
        from medreason.sweep.study import make_pruner, open_study, propose_listed, storage_url

        best = best_trials(Path(settings.sweep), settings.top)
        folder = sweep_folder(self.command)
        folder.mkdir(parents=True, exist_ok=True)
        study = open_study(storage_url(settings.storage, folder), str(folder), make_pruner(Pruner.none, 1, 2, folder))
        seeds = range(1, settings.seeds + 1)
        # in the study a trial is the number of the one it repeats, and a seed
        space = {"trial": CategoricalDistribution(list(best)), "seed": CategoricalDistribution(list(seeds))}
        carry_out_trials(
            study,
            settings,
            folder,
            self.trials,
            space=space,
            pruning={},
            propose=propose_listed([{"trial": number, "seed": seed} for seed in seeds for number in best]),
            describe=lambda params: (
                [*best[params["trial"]][0], f"seed={params['seed']}"],
                best[params["trial"]][1] | {"seed": str(params["seed"])},
            ),
            over=lambda: None,
            sweep_file=[*arguments, *without_secret(settings.storage)],
        )
        show(Path(settings.sweep))
        check_any_finished(study, folder)


class GridSweeper(Sweeper):
    """hydra/sweeper=basic: every combination of the values given, by Hydra's own. One of training runs ends ranked."""

    def __init__(self, **settings: Any) -> None:
        # not before: Hydra carries the module out anew when it looks for its plugins
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        self.own = BasicSweeper(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.command = config
        self.own.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        try:
            return self.own.sweep(arguments)  # raises what the first failed job did, once all are carried out
        finally:
            if self.command.hydra.job.name == "train":
                from medreason.report.pages import ranking

                for line in ranking(Path(str(self.command.hydra.sweep.dir)).expanduser()):
                    print(one_line(line))


def without_secret(storage: str | None) -> list[str]:
    """The override that keeps a password, which a sweep's file gave, out of what Hydra writes down of each trial."""
    return [] if storage is None or public(storage) == storage else [override(SETTING, public(storage))]


OWN: tuple[type[Sweeper], ...] = (OptunaSweeper, LrThenRankSweeper, ConfirmSweeper, GridSweeper)
SWEEPERS = {f"hydra_plugins.medreason.{sweeper.__name__}": sweeper for sweeper in OWN}


def register() -> None:
    """Makes Hydra know the sweepers, under names in the package hydra_plugins: it takes no others."""
    for name, sweeper in SWEEPERS.items():
        Plugins.instance().class_name_to_class[name] = sweeper
    # in the place of Hydra's own: a file in conf/ would be held against that one's schema
    basic = {"_target_": f"hydra_plugins.medreason.{GridSweeper.__name__}", "max_batch_size": None, "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=basic, provider="medreason")


def trial_launcher(hydra_context: HydraContext, config: DictConfig) -> Launcher:
    """The launcher that the command asks for, with run_trial to launch. Raises ConfigError outside medreason.train."""
    if config.hydra.job.name != "train":
        raise ConfigError(f"sweeps are for medreason.train, not for medreason.{config.hydra.job.name}")
    if config.trainer.nodes > 1 and "Slurm" not in str(config.hydra.launcher.get("_target_")):
        nodes = config.trainer.nodes
        raise ConfigError(
            f"trainer.nodes={nodes}: a sweep's trials find several machines through hydra/launcher=submitit_slurm "
            f"hydra.launcher.nodes={nodes} hydra.launcher.tasks_per_node=1"
        )
    from medreason.sweep.runner import run_trial

    return Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=run_trial, config=config)


def sweep_folder(config: DictConfig) -> Path:
    """The sweep's folder, to be made. Raises ConfigError where it cannot be."""
    folder = Path(str(config.hydra.sweep.dir)).expanduser()
    check_can_write(folder, "hydra.sweep.dir")
    return folder


def check_same_sweep(
    folder: Path, config: DictConfig, space: "Mapping[str, BaseDistribution]", stages: Mapping[str, int]
) -> None:
    """Keeps what all trials share in FOLDER/sweep.json.

    Raises ConfigError where trials were carried out there with something else: their results could not be compared.
    """
    shared = {
        key: value
        for key, value in flat(OmegaConf.to_container(run_settings(config), resolve=True, enum_to_str=True)).items()
        if key not in space and not key.startswith("logger.")
    } | {f"hydra.sweeper.{name}": value for name, value in stages.items()}
    earlier = read_json(folder / "sweep.json").get("shared", {})
    differing = [key for key in {**earlier, **shared} if earlier.get(key) != shared.get(key) and key not in space]
    if earlier and differing and any((run / "metrics.csv").is_file() for run in folder.iterdir()):
        key = differing[0]
        raise ConfigError(
            f"{folder} holds a sweep with {key}={earlier.get(key)}, this one has {shared.get(key)}; "
            "give it another hydra.sweep.dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    searched = {name: str(one) for name, one in space.items()}
    write_json(folder / "sweep.json", {"shared": shared, "space": searched, **stages})


def run_settings(config: DictConfig) -> DictConfig:
    """A run's part of what Hydra composed for the sweep."""
    return OmegaConf.masked_copy(config, [field.name for field in fields(TrainConfig)])


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dictionaries as dotted names and values."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {name: value for key, branch in tree.items() for name, value in flat(branch, f"{prefix}{key}.").items()}


def prepare_data(config: DictConfig) -> "tuple[TrainConfig, Split]":
    """Reads the rows once, into the cache that all trials share. Raises ConfigError as a trial would, but now."""
    from medreason.data.corpus import read_split
    from medreason.data.sources import needs_hub
    from medreason.models.checks import check_model_path, settle_hub

    typed_config = load(run_settings(config), TrainConfig)
    check_model_path(typed_config.model)
    settle_hub(typed_config.model, needs_hub(typed_config.data))
    split = read_split(typed_config.data, say)
    say(f"{len(split.corpus):,} examples of {split.corpus.source}")
    return typed_config, split


def first_rung(settings: SearchConfig, config: TrainConfig, split: "Split") -> int:
    """The optimizer steps that every trial may take. A share is that of a trial as the command has it.

    All trials are measured by the same steps, also where some of them are longer: so the sweep counts them, once.
    """
    if settings.min_steps >= 1 or settings.pruner is Pruner.none:
        return max(1, int(settings.min_steps))
    from medreason.data.datamodule import prepare
    from medreason.models.load import load_tokenizer

    trainer = config.trainer
    data = prepare(config, split, load_tokenizer(config.model), lambda line: None)
    total_steps = data.total_steps(trainer.max_epochs, trainer.max_steps, trainer.world_size)
    steps = steps_of(settings.min_steps, total_steps)
    say(f"trials of {total_steps} optimizer steps; none is stopped before step {steps}")
    return steps


def show(folder: Path) -> None:
    """Draws a sweep's report. What keeps it from being drawn is said, and ends nothing."""
    from medreason.report.pages import write_report

    try:
        for line in write_report(folder, top=10):
            print(one_line(line))
    except (ConfigError, OSError) as error:
        say(f"no report: {error}")
