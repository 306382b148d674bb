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
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from medreason.config import ConfigError, Pruner, Sampler, SearchConfig
from medreason.core.recorded import mapping
from medreason.core.run_directory import read_json, tokens_trained, write_json
from medreason.core.storage import VARIABLE, hidden, keep, public, whole
from medreason.sweep.paired import PairedPruner
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


def make_pruner(kind: Pruner, min_steps: int, reduction_factor: int, folder: Path) -> BasePruner:
    """The pruner of a sweep in `folder`; steps are optimizer steps."""
    if kind is Pruner.paired:
        return PairedPruner(folder, min_steps)
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
    numbers: dict[str, int] = {}  # settings -> the trial that has tried them; they never change, so each is read once

    def propose(study: optuna.Study) -> dict[str, Any] | None:
        tried = study.get_trials(deepcopy=False)
        for trial in tried[len(numbers) :]:
            numbers[canonical(trial.params)] = trial.number
        if len(numbers) >= size(space):
            return None
        sampler = make_sampler(kind, seed + len(tried))
        # asked beside the study, for a trial once asked for in it could not be taken back
        seen = Seen([ended(one, one.number) if one.state is TrialState.FAIL else one for one in tried])
        beside = optuna.create_study(
            storage=seen, study_name=study.study_name, sampler=sampler, pruner=study.pruner, direction="minimize"
        )
        for attempt in range(500):
            if attempt == 50:  # it insists on what is known: let chance find what is left of a small space
                beside.sampler = optuna.samplers.RandomSampler((seed + len(tried)) % 2**32)
            asked = beside.ask(dict(space)).params
            if canonical(asked) not in numbers:
                return asked
            seen.trials.append(ended(tried[numbers[canonical(asked)]], len(seen.trials)))
        return None

    return propose


class Seen(InMemoryStorage):
    """A storage in which a sampler sees these trials, none of them copied; what is asked in it is not among them.

    Optuna's own copies each trial in: with 2,000 of them it takes a second to ask for the next.
    """

    def __init__(self, trials: list[FrozenTrial]) -> None:
        super().__init__()
        self.trials, self.next_number = trials, len(trials)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self.trials if states is None or trial.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        asked = super().get_trial(trial_id)
        asked.number = self.next_number  # hyperband's bracket is a function of it
        return asked


def ended(trial: FrozenTrial, number: int) -> FrozenTrial:
    """A trial as a sampler should see it once it has ended: with its value, or as worse than all others without one.

    As FAIL it would be as if never tried.
    """
    state = TrialState.PRUNED if trial.value is None else TrialState.COMPLETE
    seen = optuna.trial.create_trial(
        state=state, value=trial.value, params=trial.params, distributions=trial.distributions
    )
    seen.number = number
    return seen


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
    earlier = study.get_trials(deepcopy=False)[-1:]
    begun = optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space))
    try:
        for name, one in (each for trial in earlier for each in trial.distributions.items()):
            check_distribution_compatibility(one, space.get(name, one))  # Optuna's journal does not
        # whole, at once: Optuna's ask writes each value by itself, and each write waits for the disk
        trial_id = study._storage.create_new_trial(study._study_id, template_trial=begun)
    except ValueError as error:
        raise ConfigError(f"hydra.sweeper.params: {error}; give the new sweep another hydra.sweep.dir") from error
    return study._storage.get_trial(trial_id)


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


def count_tokens(folder: Path) -> Callable[[Sequence[FrozenTrial]], int]:
    """A function of trials: the tokens that they have trained on. The files of those that have ended are read once."""
    known: dict[int, int] = {}

    def count(trials: Sequence[FrozenTrial]) -> int:
        for trial in trials:
            if trial.number not in known and trial.state.is_finished():
                known[trial.number] = tokens_trained(folder / str(trial.number))
        running = [trial.number for trial in trials if trial.number not in known]
        return sum(known.values()) + sum(tokens_trained(folder / str(number)) for number in running)

    return count


def spent(
    search: SearchConfig, study: optuna.Study, tokens: Callable[[Sequence[FrozenTrial]], int], hours: float
) -> str | None:
    """Which budget of the sweep is used up, in words; None while there is room for another trial."""
    trials = study.get_trials(deepcopy=False)
    budgets = (
        ("trials", search.trials, len(trials)),
        ("tokens", search.tokens, tokens(trials) if search.tokens else 0),
        ("hours", search.hours, hours),
    )
    return next((f"{limit:,} {name}" for name, limit, used in budgets if limit and used >= limit), None)
