"""The paired pruner: all trials score the same held-out documents, so two of them are compared document by document.

    document     1      2      3      4    ...  mean        alone, the means differ by much less than their own spread
    this one     2.31   0.92   4.05   1.58      1.74        (documents are hard or easy for both); in pairs, what is
    best so far  2.25   0.90   3.96   1.51      1.69        common to both is gone, and a small difference is a sure one
    difference  +0.06  +0.02  +0.09  +0.07     +0.05

A trial keeps its losses in its folder, which the trials of a sweep share: some 100 kB, where the study would have all
processes read those of all trials from its database at every step.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from medreason.config import ConfigError
from medreason.core.disk import whole_file
from medreason.core.progress import say

FILE = "heldout_losses.npz"
FEW_DOCUMENTS = 10  # Student's t of fewer is wide
LEVEL = 0.05  # how often a trial that is as good as any other may be stopped, in its whole course


@dataclass(frozen=True)
class Kept:
    """A trial's held-out losses by document, as its file has them."""

    steps: np.ndarray  # (validations,) int64, optimizer steps
    losses: np.ndarray  # (validations, documents) float32, summed over a document's target tokens, in nats
    targets: np.ndarray  # (documents,) int64, target tokens

    def at(self, step: int) -> np.ndarray | None:
        """The losses of a step; None where none were kept."""
        found = np.flatnonzero(self.steps == step)
        return self.losses[found[-1]] if len(found) else None


def read_losses(run: Path) -> Kept | None:
    """What a trial has kept; None where that is nothing, or cannot be read."""
    try:
        with np.load(run / FILE) as found:
            kept = Kept(found["steps"], found["losses"], found["targets"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # no file, a damaged one
        return None
    fits = kept.losses.shape == (len(kept.steps), len(kept.targets))
    return kept if fits else None


def keep_losses(run: Path, step: int, losses: np.ndarray, targets: np.ndarray) -> None:
    """Adds the losses of a step to a trial's file; those of it and of later steps, before a resumption, go."""
    earlier = read_losses(run)
    steps, rows = np.array([step]), losses[None].astype(np.float32)
    if earlier is not None and np.array_equal(earlier.targets, targets):
        before = earlier.steps < step
        steps = np.concatenate([earlier.steps[before], steps])
        rows = np.concatenate([earlier.losses[before], rows])
    with whole_file(run / FILE) as draft, draft.open("wb") as file:
        np.savez(file, steps=steps, losses=rows, targets=targets)


def certainly_worse(losses: np.ndarray, others: np.ndarray, level: float) -> bool:
    """Whether the mean paired difference of losses has a one-sided interval at 1 - level that lies above zero.

    Student's t over documents: they are what would be other ones another time. The target tokens of the documents are
    the same for both, so the mean is above zero just where the held-out loss is higher.
    """
    from scipy.special import stdtrit  # Student's t without scipy.stats' slow import

    differences = losses.astype(float) - others
    if len(differences) < 2:
        return False
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    return mean > float(stdtrit(len(differences) - 1, 1 - level)) * spread / math.sqrt(len(differences))


def level_of(look: int, others: int) -> float:
    """The level of a trial's look-th comparison, with the best of so many others.

    A trial is looked at after each validation, and the best of many looks better than it is. By the union bound the
    chance that a trial as good as any other is ever stopped stays below LEVEL, however looks and trials hang together:
    the sum of 1 / (k (k + 1)) over all k is 1, so the number of looks need not be known. A race: Maron and Moore 1997,
    Artificial Intelligence Review 11:193, who pair ("block") as well; Student's t stands in for Hoeffding's bound, as
    losses have none.
    """
    return LEVEL / (look * (look + 1) * max(1, others))


class PairedPruner(BasePruner):
    """Stops a trial whose held-out loss is certainly higher than that of the best so far at the same step."""

    def __init__(self, sweep: Path, min_steps: int) -> None:
        """`sweep` holds the trials' folders. Nothing is stopped before `min_steps` optimizer steps."""
        self.sweep, self.min_steps = sweep, min_steps
        self.told = False

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step < self.min_steps:
            return False
        there = [
            (value, one.number)
            for one in study.get_trials(deepcopy=False)
            if one.number != trial.number and math.isfinite(value := one.intermediate_values.get(step, math.nan))
        ]
        if not there:
            return False
        own = read_losses(self.sweep / str(trial.number))
        mine = None if own is None else own.at(step)
        if own is None or mine is None:
            self.tell(f"trial {trial.number} has kept no held-out losses by document at step {step}")
            return False
        without: list[int] = []
        for _, number in sorted(there):
            kept = read_losses(self.sweep / str(number))
            best = kept.at(step) if kept is not None and np.array_equal(kept.targets, own.targets) else None
            if best is not None:
                looks = sum(self.min_steps <= each <= step for each in trial.intermediate_values)
                if without:
                    self.tell(missing(without))
                return certainly_worse(mine, best, level_of(looks, len(there)))
            without.append(number)
        self.tell(missing(without))
        return False

    def tell(self, why: str) -> None:
        """Says once why trials are not compared as they should be, and what to do."""
        if not self.told:
            say(f"pruner=paired: {why}; {REMEDY}")
        self.told = True


def check_pairs(monitor: str, searched: Iterable[str], documents: int) -> None:
    """Raises ConfigError where trials could not be compared by their held-out documents."""
    if monitor != "val/loss":
        raise ConfigError(f"hydra.sweeper.pruner=paired compares val/loss, not {monitor}; set monitor=val/loss")
    if other := next((name for name in searched if name.startswith("data.")), None):
        raise ConfigError(
            f"hydra.sweeper.pruner=paired: with {other} among what is searched, trials would not score the same "
            "held-out documents; use hydra.sweeper.pruner=asha"
        )
    if documents < FEW_DOCUMENTS:
        say(
            f"only {documents} held-out documents: few differences will be certain, and few trials stopped early; more "
            "of them (data.validation_share, data.max_validation_rows) make the paired pruner stop more"
        )


def check_earlier(study: optuna.Study, sweep: Path) -> None:
    """Says which trials of the study cannot be compared with: another pruner has carried them out."""
    ended = [trial.number for trial in study.get_trials(deepcopy=False) if trial.intermediate_values]
    if without := [number for number in ended if not (sweep / str(number) / FILE).is_file()]:
        say(f"pruner=paired: {missing(without)}; {REMEDY}")


REMEDY = "give the sweep another hydra.sweep.dir, which all its trials reach, or hydra.sweeper.pruner=asha"


def missing(numbers: Sequence[int]) -> str:
    """Which trials cannot be compared with, in words."""
    named = ", ".join(map(str, sorted(numbers)[:5])) + (", ..." if len(numbers) > 5 else "")
    trials = f"trial {named} has" if len(numbers) == 1 else f"trials {named} have"
    return f"{trials} no losses of these held-out documents in {FILE}, and cannot be compared with"
