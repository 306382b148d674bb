"""An Optuna study on disk: what was tried, what is tried next, what a trial's run directory says of its end.

A trial's folder is the truth of what happened in it; the study is told what stands there:

run.json of the trial                      the study
finished                                   COMPLETE, with the monitored value
pruned                                     PRUNED
failed: reason                             FAIL, with the reason
anything else, and nobody holds it         still RUNNING: it was interrupted and goes on from its checkpoint, until it
                                           was killed once more than `retries` allows: then FAIL
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from medreason.config import ConfigError, Pruner, Sampler, SearchConfig
from medreason.core.recorded import mapping
from medreason.core.run_directory import read_json, tokens_trained, write_json
from medreason.core.storage import VARIABLE, hidden, keep, public, whole
from medreason.sweep.space import LISTS_AS_CHOICES, size

# a trial to carry out next; None: nothing is left to try
Propose = Callable[[optuna.Study], dict[str, Any] | None]


def storage_url(storage: str | None, folder: Path) -> str:
    """Where the study of a sweep in `folder` is kept: a URL without password; journal:// is Optuna's journal file."""
    if storage == "journal":
        return f"journal://{folder.resolve() / 'study.log'}"
    return keep(storage or os.environ.get(VARIABLE) or f"sqlite:///{folder.resolve() / 'study.db'}")


def open_study(url: str, name: str, pruner: BasePruner) -> optuna.Study:
    """The study of that name, new where there is none. Raises ConfigError where the storage does not answer.

    A password that the URL lacks is taken from the environment.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", message=LISTS_AS_CHOICES)
    try:
        storage: Any = whole(url)
        if storage.startswith("journal://"):
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

            path = storage.removeprefix("journal://")
            storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
        # the sampler that is stored nowhere is set at each proposal; a random one costs a trial's process nothing
        sampler = optuna.samplers.RandomSampler()
        return optuna.create_study(
            storage=storage, study_name=name, sampler=sampler, pruner=pruner, load_if_exists=True, direction="minimize"
        )
    except Exception as error:  # each database fails in its own way
        said = (str(error) or "it gives no reason").splitlines()[0]
        # without the cause: its own text, in a traceback, could show the password
        raise ConfigError(hidden(f"hydra.sweeper.storage={public(url)}: {type(error).__name__}: {said}")) from None


def make_pruner(kind: Pruner, min_steps: int, reduction_factor: int) -> BasePruner:
    """Optuna's pruner; steps are optimizer steps."""
    if kind is Pruner.asha:
        return optuna.pruners.SuccessiveHalvingPruner(min_steps, reduction_factor)
    if kind is Pruner.hyperband:
        return optuna.pruners.HyperbandPruner(min_steps, "auto", reduction_factor)
    if kind is Pruner.median:
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=min_steps - 1)
    return optuna.pruners.NopPruner()


def make_sampler(kind: Sampler, seed: int) -> BaseSampler:
    """Optuna's sampler."""
    if kind is Sampler.random:
        return optuna.samplers.RandomSampler(seed % 2**32)
    return optuna.samplers.TPESampler(multivariate=True, seed=seed % 2**32)


def propose_new(space: Mapping[str, BaseDistribution], kind: Sampler, seed: int) -> Propose:
    """What the sampler asks for, but never what was tried already: the same settings give the same result.

    A function of the trials so far alone, so that a sweep which was interrupted goes on as it would have.
    """

    def propose(study: optuna.Study) -> dict[str, Any] | None:
        tried = study.get_trials(deepcopy=False)
        sampler = make_sampler(kind, seed + len(tried))
        # asked in a copy, for a trial once asked for in the study itself could not be taken back
        copy = optuna.create_study(sampler=sampler, pruner=study.pruner, direction="minimize")
        copy.add_trials([as_worst(trial) if trial.state is TrialState.FAIL else trial for trial in tried])
        known = {canonical(trial.params): trial for trial in tried}
        if len(known) >= size(space):
            return None
        for attempt in range(500):
            if attempt == 50:  # it insists on what is known: let chance find what is left of a small space
                copy.sampler = optuna.samplers.RandomSampler((seed + len(tried)) % 2**32)
            asked = copy.ask(dict(space))
            if canonical(asked.params) not in known:
                return asked.params
            value = known[canonical(asked.params)].value
            copy.tell(asked, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
        return None

    return propose


def as_worst(trial: FrozenTrial) -> FrozenTrial:
    """A failed trial as a sampler should see it: worse than all others. As FAIL it would be as if never tried."""
    return optuna.trial.create_trial(state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions)


def propose_listed(listed: Sequence[dict[str, Any]]) -> Propose:
    """These trials, one after the other."""

    def propose(study: optuna.Study) -> dict[str, Any] | None:
        known = {canonical(trial.params) for trial in study.get_trials(deepcopy=False)}
        return next((params for params in listed if canonical(params) not in known), None)

    return propose


def canonical(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def begin(study: optuna.Study, params: dict[str, Any], space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A new trial of the study with these values. Raises ConfigError where choices differ from the study's."""
    study.enqueue_trial(params)
    try:
        number = study.ask(dict(space)).number
    except ValueError as error:
        raise ConfigError(f"hydra.sweeper.params: {error}; give the new sweep another hydra.sweep.dir") from error
    return study.get_trials(deepcopy=False)[number]


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Trials whose end the study does not know."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def settle(study: optuna.Study, trial: FrozenTrial, run: Path, retries: int) -> str | None:
    """Tells the study how a trial ended, and its trial.json too; None while it has not."""
    link, record = read_json(run / "trial.json"), read_json(run / "run.json")
    status, reason, value = str(record.get("status", "")), None, None
    died = [str(how) for how in link["died"]] if isinstance(link.get("died"), list) else []
    if status == "finished":
        value = mapping(record.get("results")).get("monitored")
        state = TrialState.COMPLETE
        if not isinstance(value, int | float) or not math.isfinite(value):
            state, reason = TrialState.FAIL, f"its result is {value}"
    elif status == "pruned":
        state = TrialState.PRUNED
    elif status.startswith("failed: "):
        state, reason = TrialState.FAIL, status.removeprefix("failed: ")
    elif len(died) > retries:
        state, reason = TrialState.FAIL, f"{died[-1]}, {len(died)} times"
    else:
        return None
    if reason:
        optuna.trial.Trial(study, trial._trial_id).set_user_attr("reason", reason)
    told = study.tell(trial.number, value if state is TrialState.COMPLETE else None, state, skip_if_finished=True)
    write_json(run / "trial.json", link | {"state": state.name, "value": told.value, "reason": reason})
    return state.name


def spent(search: SearchConfig, study: optuna.Study, folder: Path, hours: float) -> str | None:
    """Which budget of the sweep is used up, in words; None while there is room for another trial."""
    trials = study.get_trials(deepcopy=False)
    tokens = sum(tokens_trained(folder / str(trial.number)) for trial in trials) if search.tokens else 0
    budgets = (
        ("trials", search.trials, len(trials)),
        ("tokens", search.tokens, tokens),
        ("hours", search.hours, hours),
    )
    return next((f"{limit:,} {name}" for name, limit, used in budgets if limit and used >= limit), None)
