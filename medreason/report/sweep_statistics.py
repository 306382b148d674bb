"""What may be concluded from the trials of a sweep: savings, importance, noise."""

import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medreason.report.results import Setting, Trial, finished, numeric

LEAST_FINISHED = 8  # trials, below which importance is noise
BEST_SHARE = 0.25  # of the trials: what importance asks about. Optuna's 0.1 is two trials of twenty


@dataclass(frozen=True)
class Repeats:
    """One configuration, trained with several seeds."""

    settings: dict[str, Setting]  # without the seed
    by_seed: dict[Setting, float]  # finished runs
    lost: int  # runs that did not finish
    searched_value: float | None  # what the search had measured, once


def saved_by_pruning(trials: Sequence[Trial]) -> int | None:
    """Tokens that pruned trials would have trained on at full length (a finished trial's median); None if unknown."""
    lengths = [trial.tokens for trial in finished(trials) if trial.tokens]
    pruned = [trial.tokens for trial in trials if trial.state == "pruned"]
    return max(0, round(statistics.median(lengths) * len(pruned)) - sum(pruned)) if lengths and pruned else None


def importance(trials: Sequence[Trial]) -> dict[str, float]:
    """Shares, of 1, by which each setting decides whether a trial is among the best (PED-ANOVA); {} with too few.

    https://arxiv.org/abs/2304.10255. It asks only which trials are best, so a pruned one, of which all that is known
    is that it is not, may stand in as the worst. Without them a setting that pruning cuts short would look harmless.
    """
    import optuna  # slow

    done = [(trial, trial.value) for trial in finished(trials) if trial.value is not None]
    if len(done) < LEAST_FINISHED:
        return {}
    rows = done + [(trial, done[-1][1]) for trial in trials if trial.state == "pruned"]
    keys = [key for key in done[0][0].searched if all(key in trial.searched for trial, _ in rows)]
    columns = {key: [trial.searched[key] for trial, _ in rows] for key in keys}
    spaces = {key: space(values) for key, values in columns.items() if len(set(values)) > 1}
    if len(spaces) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    as_param = {key: (lambda value: value) if numeric(columns[key]) else str for key in spaces}
    for trial, value in rows:
        params = {key: told(trial.searched[key]) for key, told in as_param.items()}
        study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=spaces))
    share = min(BEST_SHARE, len(done) / 2 / len(rows))  # no pruned trial among the best
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, says Optuna
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # all trials alike
            return {}
    return {key: each for key, each in found.items() if math.isfinite(each)}


def space(values: Sequence[Setting]) -> Any:
    """The Optuna distribution that values could have come from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted({str(value) for value in values}))
    return FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0 and max(numbers) >= 4 * min(numbers))


def repeats(confirmed: Sequence[Trial], search: Sequence[Trial]) -> list[Repeats]:
    """Runs that differ in nothing but their seed, together; the best mean first."""
    groups: dict[tuple[tuple[str, Setting], ...], list[Trial]] = {}
    for trial in confirmed:
        if "seed" in trial.settings:
            key = tuple(sorted((k, v) for k, v in trial.settings.items() if k != "seed"))
            groups.setdefault(key, []).append(trial)
    found = []
    for members in groups.values():
        settings = {k: v for k, v in members[0].settings.items() if k != "seed"}
        done = {trial.settings["seed"]: trial.value for trial in finished(members) if trial.value is not None}
        alike = [trial.value for trial in finished(search) if same(settings, trial.settings)]
        found.append(Repeats(settings, done, len(members) - len(done), alike[0] if alike else None))
    return sorted(found, key=lambda each: statistics.mean(each.by_seed.values()) if each.by_seed else math.inf)


def same(some: Mapping[str, Setting], others: Mapping[str, Setting]) -> bool:
    """Whether two trials agree in every setting that both name (numbers to 6 digits: text may have rounded them)."""
    shared = [key for key in some if key in others]

    def agree(one: Setting, other: Setting) -> bool:
        if isinstance(one, str) or isinstance(other, str):
            return str(one) == str(other)
        return math.isclose(one, other, rel_tol=1e-6)

    return bool(shared) and all(agree(some[key], others[key]) for key in shared)


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% t-interval, infinite below two values."""
    from scipy.special import stdtrit  # Student's t without scipy.stats' slow import

    each = list(values)
    if len(each) < 2:
        return statistics.mean(each), math.inf
    quantile = float(stdtrit(len(each) - 1, 0.975))
    return statistics.mean(each), quantile * statistics.stdev(each) / math.sqrt(len(each))


def compare(best: Repeats, second: Repeats) -> str:
    """Whether the best configuration is better than the second, in words; paired by seed where both ran with one."""
    paired = [second.by_seed[seed] - best.by_seed[seed] for seed in best.by_seed if seed in second.by_seed]
    if len(paired) > 1:
        gain, half = interval(paired)
        told = f"mean difference {gain:.4f} (95% interval {gain - half:.4f} to {gain + half:.4f}, {len(paired)} seeds)"
        if gain > half:
            return f"Paired by seed, the best configuration is better than the second: {told}."
        return f"Paired by seed, the difference between the best two is within noise: {told}."
    if min(len(best.by_seed), len(second.by_seed)) < 2:
        return "Too few seeds to tell the best two apart: each needs two finished runs or more."
    (mean, half), (other, other_half) = interval(best.by_seed.values()), interval(second.by_seed.values())
    if mean + half >= other - other_half:
        return "The intervals of the best two overlap: the difference is within noise."
    return "The intervals of the best two do not overlap: the best configuration is better than the second."
