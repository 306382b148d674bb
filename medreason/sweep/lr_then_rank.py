"""A search in two stages: the learning rate at one rank, then the other ranks with what was best there.

    stage 1   lora.r = 16          optim.lr: 1e-5 ... 2e-4 (best) ... 1e-3      what else is searched, too
    stage 2   lora.r = 4, 8, 32    optim.lr = 2e-4

8 rates and 5 ranks are 12 trials then, not 40. LoRA adds s B A to a weight, s = alpha/r (with rslora alpha/sqrt(r)),
and how the best rate moves with the rank depends on how s does: Chen et al. 2026 (arXiv 2602.06204).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from medreason.config import ConfigError, Sampler
from medreason.core.progress import say
from medreason.sweep.study import Propose, Seen, canonical, propose_new

RANK, RATE, ALPHA = "lora.r", "optim.lr", "lora.alpha"


def ranks_of(space: Mapping[str, BaseDistribution], rank: int) -> list[int]:
    """The ranks that a space holds, in its order. Raises ConfigError for a space without two stages."""
    if ALPHA in space:
        raise ConfigError(f"{ALPHA}: sweeps=lr_then_rank takes one: a number, or a multiple of the rank such as 2r")
    if RATE not in space:
        raise ConfigError(f"{RATE}: sweeps=lr_then_rank searches it; for example {RATE}=tag(log,interval(1e-5,1e-3))")
    one = space.get(RANK)
    if isinstance(one, CategoricalDistribution):
        ranks = [each for each in one.choices if isinstance(each, int)]
    elif isinstance(one, IntDistribution):
        ranks = list(range(one.low, one.high + 1, one.step))
    else:
        ranks = []
    if len(ranks) < 2:
        raise ConfigError(
            f"{RANK}: sweeps=lr_then_rank needs ranks to choose from, for example {RANK}=choice(8,16,32); rates are "
            "searched at hydra.sweeper.rank"
        )
    if rank not in ranks:
        raise ConfigError(f"hydra.sweeper.rank={rank}: not one of the ranks to search, {', '.join(map(str, ranks))}")
    return ranks


def check_scaling(shared: Sequence[str], lora: Mapping[str, Any]) -> None:
    """Raises ConfigError where alpha is a multiple of the rank, and the update's scale would grow with the rank."""
    given = [one.partition("=")[2] for one in shared if one.startswith(f"{ALPHA}=")]
    alpha = str(given[-1] if given else lora["alpha"])
    if lora["rslora"] and alpha.endswith("r"):
        raise ConfigError(
            f"{ALPHA}={alpha}: with lora.rslora=true the update is scaled by alpha/sqrt(r), which would grow with the "
            f"rank; give a number, for example {ALPHA}=16"
        )


def propose_lr_then_rank(
    space: Mapping[str, BaseDistribution], rank: int, kind: Sampler, seed: int, lr_trials: int
) -> Propose:
    """Up to `lr_trials` trials at one rank, as the sampler asks for them; then their best at the other ranks.

    The second stage begins when all trials of the first have ended: None while others carry them out.
    """
    ranks = ranks_of(space, rank)
    ask = propose_new({name: one for name, one in space.items() if name != RANK}, kind, seed)

    def propose(study: optuna.Study) -> dict[str, Any] | None:
        trials = study.get_trials(deepcopy=False)
        first = [trial for trial in trials if trial.params.get(RANK) == rank]
        if len(first) < lr_trials and len(first) == len(trials):  # once ranks have begun, the rate is settled
            seen = Seen([without_rank(trial, number) for number, trial in enumerate(first)])
            beside = optuna.create_study(
                storage=seen, study_name=study.study_name, pruner=study.pruner, direction="minimize"
            )
            if (asked := ask(beside)) is not None:
                return {name: asked.get(name, rank) for name in space}
        best = best_of(first)
        if best is None or not all(trial.state.is_finished() for trial in first):
            return None
        known = {canonical(trial.params) for trial in trials}
        wanted = [best.params | {RANK: each} for each in ranks]
        left = [params for params in wanted if canonical(params) not in known]
        if len(first) == len(trials) and left:
            say(describe_best(best, len(first), [params[RANK] for params in left]))
        return next(iter(left), None)

    return propose


def without_rank(trial: FrozenTrial, number: int) -> FrozenTrial:
    """A trial of the first stage, in which the rank is nothing to choose."""
    seen = copy.copy(trial)
    seen.number = number
    seen.params = {name: value for name, value in trial.params.items() if name != RANK}
    seen.distributions = {name: one for name, one in trial.distributions.items() if name != RANK}
    return seen


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The finished trial with the lowest value; None without one."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
    return min(done, key=lambda trial: trial.value or 0.0, default=None)


def describe_best(best: FrozenTrial, trials: int, ranks: list[int]) -> str:
    """A line on what the first stage found."""
    told = ", ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in best.params.items() if name != RANK)  # fmt: skip
    return (
        f"the best of {trials} trials at {RANK}={best.params[RANK]} is trial {best.number}, {told}; now with "
        f"{RANK}={', '.join(map(str, ranks))}"
    )
