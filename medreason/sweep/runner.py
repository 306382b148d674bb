"""Carries out the trials of a study, one process each, through a launcher of Hydra's."""

import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from medreason.config import ConfigError, RunFailed, TrialsConfig
from medreason.core.machines import log_name, machine, take_place
from medreason.core.overrides import command_line, override
from medreason.core.processes import (
    carry_out,
    claim,
    note_death,
    note_end,
    one_gpu,
    reporter,
    run_command,
    run_words,
)
from medreason.core.progress import describe_swept, say
from medreason.core.recorded import mapping
from medreason.core.run_directory import read_json, repeatable, write_json
from medreason.sweep.slot import SLOT
from medreason.sweep.study import Propose, begin, running, settle

# a trial's values in the study -> its overrides, and what of them tells it apart
Describe = Callable[[dict[str, Any]], tuple[list[str], dict[str, str]]]
LAUNCHERS_THAT_STAY = ("BasicLauncher", "JoblibLauncher")  # their processes carry out one trial after another
SAME_FAILURES = 3  # with nothing else to show, so many failures for one reason end a sweep


def carry_out_trials(
    study: optuna.Study,
    settings: TrialsConfig,
    folder: Path,
    launcher: Launcher,
    *,
    space: Mapping[str, BaseDistribution],
    pruning: Mapping[str, Any],
    propose: Propose,
    describe: Describe,
    over: Callable[[], str | None],
    sweep_file: Sequence[str] = (),
) -> None:
    """Carries out trials until `over` names a used-up budget or nothing is left to try.

    Interrupted trials come first. `sweep_file` is the command's own sweeps=NAME. Raises ConfigError where the first
    trials all fail for the same reason.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C: trials save and end
    try:
        while batch := next_batch(study, settings, folder, space, propose, over):
            for trial in batch:
                prepare(trial, folder / str(trial.number), describe, pruning)
            jobs = [job_overrides(describe(trial.params)[0], sweep_file, folder, trial.number) for trial in batch]
            trouble = launch(launcher, jobs, batch[0].number)
            for trial in batch:
                run = folder / str(trial.number)
                if trouble and settle(study, trial, run, settings.retries) is None:
                    note_death(run, trouble)  # so that a launcher which never works is not asked for ever
                ended = settle(study, trial, run, settings.retries)
                say(describe_end(study, trial, folder, ended))
            check_hopeful(study, folder)
    except KeyboardInterrupt:
        say(f"stopped; nothing is lost. The same command goes on with it: {command_line('train', sys.argv[1:])}")
        sys.exit(128 + signal.SIGINT)
    finally:
        SLOT.end()


def launch(launcher: Launcher, jobs: Sequence[Sequence[str]], first: int) -> str:
    """Has the jobs carried out; what went wrong with the launcher or with one of its jobs, else nothing."""
    try:
        ended = launcher.launch(jobs, initial_job_idx=first)
    except Exception as error:  # a scheduler's own: a job cancelled, a node gone
        return f"{type(error).__name__}: {error}".splitlines()[0]
    wrong = [job._return_value for job in ended if job.status is JobStatus.FAILED]
    return f"{type(wrong[0]).__name__}: {wrong[0]}".splitlines()[0] if wrong else ""


def job_overrides(overrides: Sequence[str], sweep_file: Sequence[str], folder: Path, number: int) -> list[str]:
    """What the launcher composes a trial's job from: the sweep in hand, not the one that a confirmed trial is from."""
    own = [one for one in overrides if not one.startswith(("sweeps=", "hydra."))]
    return [*sweep_file, *own, override("hydra.sweep.dir", folder), f"hydra.sweep.subdir={number}"]


def next_batch(
    study: optuna.Study,
    settings: TrialsConfig,
    folder: Path,
    space: Mapping[str, BaseDistribution],
    propose: Propose,
    over: Callable[[], str | None],
) -> list[FrozenTrial]:
    """Trials to carry out now: those that were interrupted, then new ones while the budget lasts."""
    batch = [trial for trial in running(study) if abandoned(study, trial, folder / str(trial.number), settings.retries)]
    while len(batch) < settings.parallel:
        if used_up := over():
            if not batch:
                say(f"the budget of {used_up} is used up")
            break
        params = propose(study)
        if params is None:
            if not batch:
                others = "what is left waits for trials that other processes carry out"
                say(others if running(study) else "everything there is to try has been tried")
            break
        batch.append(begin(study, params, space))
    return batch[: settings.parallel]


def abandoned(study: optuna.Study, trial: FrozenTrial, run: Path, retries: int) -> bool:
    """Whether a trial has not ended, and nobody is at it: another process of this sweep may be."""
    run.mkdir(parents=True, exist_ok=True)
    with claim(run) as held:
        return held is not None and settle(study, trial, run, retries) is None


def prepare(trial: FrozenTrial, run: Path, describe: Describe, pruning: Mapping[str, Any]) -> None:
    """Leaves in a trial's folder what its run needs to know, beside what an earlier attempt left there."""
    overrides, swept = describe(trial.params)
    run.mkdir(parents=True, exist_ok=True)
    link = {
        "number": trial.number,
        "params": swept,
        "state": "RUNNING",
        "study": {**pruning, "trial_id": trial._trial_id},
    }
    died = read_json(run / "trial.json").get("died")
    write_json(run / "trial.json", {"died": died if isinstance(died, list) else [], **link})
    start = {"status": "starting", "swept": swept, "overrides": repeatable(overrides)}
    write_json(run / "run.json", read_json(run / "run.json") | start)


def run_trial(config: DictConfig) -> None:
    """What a launcher launches: `python -m medreason.train` with a trial's overrides, in another process."""
    hydra = HydraConfig.get()
    run = Path(hydra.runtime.output_dir)
    name = f"trial {run.name}"
    log = run / "train.log"
    searchpath = [one for one in hydra.overrides.hydra if one.startswith("hydra.searchpath")]
    trainer = config.trainer
    if trainer.nodes > 1:
        take_place(trainer, [], run_given=True)
        if machine():  # the first machine's job keeps the record
            overrides = read_json(run / "run.json")["overrides"]
            carry_out(run_command([*overrides, *searchpath], run, trainer.nodes, trainer.devices), log=run / log_name())
            return
    with claim(run) as held:
        # a job that a scheduler took away and starts again finds its trial interrupted, not starting
        status = str(read_json(run / "run.json").get("status", ""))
        if held is None or status.startswith(("finished", "pruned", "failed")):
            say(f"{name}: another process has taken it")
            return
        record = read_json(run / "run.json") | {"status": "starting"}
        write_json(run / "run.json", record)
        say(f"{name}: {describe_swept(record['swept'])}   {log}")
        alone = trainer.nodes * trainer.devices == 1
        on_gpu = alone and trainer.accelerator == "gpu"

        def gpu() -> AbstractContextManager[dict[str, str]]:
            return one_gpu(hydra.sweeper.trials_per_gpu, name) if on_gpu else nullcontext({})

        overrides = [*record["overrides"], *searchpath]
        watch = reporter(run, name, config.monitor)
        if alone and hydra.sweeper.keep_model and str(hydra.launcher._target_).endswith(LAUNCHERS_THAT_STAY):
            kind = OmegaConf.to_container(config.model, resolve=True)
            code = SLOT.carry_out(run, run_words(overrides, run), kind, gpu, log=log, held=held, watch=watch)
        else:
            with gpu() as environment:
                command = run_command(overrides, run, trainer.nodes, trainer.devices)
                code = carry_out(command, log=log, held=held, environment=environment, watch=watch)
        note_end(run, code, log)


def describe_end(study: optuna.Study, trial: FrozenTrial, folder: Path, ended: str | None) -> str:
    """A line on how a trial ended, and where the sweep stands."""
    run = folder / str(trial.number)
    name = f"trial {trial.number}"
    if ended is None:
        died = read_json(run / "trial.json").get("died")
        how = died[-1] if isinstance(died, list) and died else "interrupted"
        return f"{name}: {how}; it goes on from its last checkpoint"
    if ended == "FAIL":
        return f"{name}: failed: {read_json(run / 'trial.json').get('reason')}"
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = min(finished, key=lambda one: one.value or 0.0, default=None)
    standing = f"; best so far: trial {best.number} with {best.value:.4f}" if best else ""
    if ended == "PRUNED":
        return f"{name}: pruned{standing}"
    return f"{name}: {study.get_trials(deepcopy=False)[trial.number].value:.4f}{standing}"


def check_hopeful(study: optuna.Study, folder: Path) -> None:
    """Raises ConfigError where so far every trial failed, several of them, for one reason."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if len(ended) < SAME_FAILURES or any(trial.state is not TrialState.FAIL for trial in ended):
        return
    reasons = {trial.user_attrs.get("reason") for trial in ended}
    if len(reasons) == 1 and (reason := reasons.pop()):
        raise ConfigError(f"the first {len(ended)} trials all failed: {reason}; mend it and remove {folder}")


def check_any_finished(study: optuna.Study, folder: Path) -> None:
    """Raises RunFailed where every trial of a sweep that has ended failed: it has no result."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if not ended or any(trial.state is not TrialState.FAIL for trial in ended):
        return
    reasons = Counter(str(trial.user_attrs.get("reason", "no reason is known")) for trial in ended)
    reason, times = reasons.most_common(1)[0]
    often = "" if times == len(ended) else f" ({times} of them)"
    raise RunFailed(f"every trial failed, {len(ended)} in all: {reason}{often}; see {folder}, and mend the sweep")


def best_trials(folder: Path, top: int) -> dict[int, tuple[list[str], dict[str, str]]]:
    """The best finished trials of a sweep's folder, best first: number -> overrides, and what tells it apart.

    Raises ConfigError for a folder without any.
    """
    if not folder.is_dir():
        raise ConfigError(f"hydra.sweeper.sweep={folder}: no such folder; name the folder of a sweep")
    found: Sequence[tuple[float, int, dict[str, Any]]] = sorted(
        (value, int(run.name), record)
        for run in folder.iterdir()
        if run.name.isdecimal()
        and (record := read_json(run / "run.json")).get("status") == "finished"
        and isinstance(value := mapping(record.get("results")).get("monitored"), int | float)
        and math.isfinite(value)
        and isinstance(record.get("overrides"), list)
    )
    if not found:
        raise ConfigError(f"hydra.sweeper.sweep={folder}: no finished trial in it")
    return {
        number: (
            [str(one) for one in record["overrides"]],
            {key: str(value) for key, value in mapping(record.get("swept")).items()},
        )
        for _, number, record in found[:top]
    }
