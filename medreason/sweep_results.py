"""What the files of a sweep say: its trials, and what may be concluded from them.

SWEEP/0, SWEEP/1, ...   a run directory each (medreason/run_directory.py); an Optuna sweep adds trial.json
SWEEP/confirmed/0, ...  the best configurations again, each with several seeds (sweeps=confirm_best)

A trial may have died at any moment, so that any file may be missing, cut or odd: it is then shown as what it is.
"""

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from medreason.run_directory import read_cells, series

Setting = int | float | str
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "running"}
RUN_FILES = ("run.json", "trial.json", "config.yaml", "metrics.csv", ".hydra")
LEAST_FINISHED = 8  # trials, below which importance is noise
BEST_SHARE = 0.25  # of the trials: what importance asks about. Optuna's 0.1 is two trials of twenty


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    folder: Path
    number: int
    state: str  # finished, pruned, failed, interrupted, running, unknown
    reason: str  # why it ended so; empty where it finished
    died: list[str]  # interruptions that it survived
    value: float | None  # monitored metric: a finished trial's final one, any other's last one
    settings: dict[str, Setting]  # swept, as the run took them: lora.alpha 32
    searched: dict[str, Setting]  # swept, as the search chose them: lora.alpha ${times_r:2}
    overrides: list[str]  # of medreason.train, to repeat it; empty where nothing tells
    started: float | None  # seconds since 1970
    seconds: float
    steps: int
    tokens: int
    curve: tuple[list[float], list[float]]  # optimizer steps, monitored metric


@dataclass(frozen=True)
class Repeats:
    """One configuration, trained with several seeds."""

    settings: dict[str, Setting]  # without the seed
    by_seed: dict[Setting, float]  # finished runs
    lost: int  # runs that did not finish
    searched_value: float | None  # what the search had measured, once


def read_mapping(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON or YAML file's content and an empty string; or an empty mapping and what is wrong with the file."""
    try:
        text = path.read_text()
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was compiled
        content = yaml.load(text, Loader=loader) if path.suffix == ".yaml" else json.loads(text)
    except FileNotFoundError:
        return {}, f"no {path.name}"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return {}, f"{path.name} cannot be read ({type(error).__name__})"
    return (content, "") if isinstance(content, dict) else ({}, f"{path.name} holds no settings")


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv that have a step, as numbers; cells that are none are left out, as is a cut last row."""
    try:
        cells = read_cells(path)
    except (OSError, ValueError, csv.Error):
        return []
    rows = [{key: value for key, cell in row.items() if (value := finite(cell)) is not None} for row in cells]
    return [row for row in rows if "step" in row]


def finite(value: object) -> float | None:
    """The number that a value is or spells; None for anything else, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def setting(value: object) -> Setting:
    """A swept value as a number where it is one, as text otherwise."""
    number = finite(value)
    if number is None:
        return value if isinstance(value, str) else json.dumps(value, default=str)
    return int(number) if number.is_integer() else number


def look_up(config: Mapping[str, Any], key: str) -> Any:
    """The value at `lora.r`; None where there is none, or a whole group."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return None if isinstance(node, Mapping) else node


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in RUN_FILES)


def is_sweep(folder: Path) -> bool:
    """Whether Hydra's sweeps, or runs by number, lie here."""
    return (folder / "multirun.yaml").is_file() or any(is_run(path) for path in trial_folders(folder))


def trial_folders(sweep: Path) -> list[Path]:
    found = [path for path in sweep.glob("[0-9]*") if path.is_dir() and path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def read_sweep(sweep: Path) -> list[Trial]:
    """Every trial, by number."""
    return [read_trial(folder) for folder in trial_folders(sweep)]


def read_trial(folder: Path) -> Trial:
    """A trial from whatever of its files can be read."""
    record, trouble = read_mapping(folder / "run.json")
    verdict, verdict_trouble = read_mapping(folder / "trial.json")
    config, _ = read_mapping(folder / "config.yaml")
    rows = read_rows(folder / "metrics.csv")
    results, params = mapping(record.get("results")), mapping(verdict.get("params"))
    curve = series(rows, monitored(config))

    state, reason = judge(record, verdict)
    if state == "unknown":
        complaints = [trouble, verdict_trouble if verdict_trouble != "no trial.json" else ""]
        reason = reason or "; ".join(filter(None, complaints)) or "no status"
    final = [verdict.get("value"), results.get("monitored")]
    final += [results.get("val_loss_after")] if monitored(config) == "val/loss" else []
    last = curve[1][-1] if curve[1] else None
    value = next((number for each in final if (number := finite(each)) is not None), None)
    # JSON's NaN, not a missing value: the curve's last point before it would be a lie
    if value is None and (state != "finished" or all(each is None for each in final)):
        value = last
    if state == "finished" and value is None:
        reason = "its monitored metric is not a number"

    swept = {key.lstrip("+"): value for key, value in (params | mapping(record.get("swept"))).items()}
    resolved = {key: look_up(config, key) for key in swept}
    started = timestamp(record.get("started"))
    trained = [row["step"] for row in rows if "train/loss" in row]
    died = verdict.get("died")
    return Trial(
        folder=folder,
        number=int(folder.name) if folder.name.isdecimal() else 0,
        state=state,
        reason=reason,
        died=[str(each) for each in died] if isinstance(died, list) else [],
        value=value,
        settings={k: setting(swept[k] if resolved[k] is None else resolved[k]) for k in swept},
        searched={k.lstrip("+"): setting(params.get(k, v)) for k, v in swept.items()},
        overrides=read_overrides(folder, record),
        started=started,
        seconds=finite(record.get("seconds")) or time_to_last_sign(folder, started),
        steps=int(finite(results.get("steps")) or (max(trained) + 1 if trained else 0)),
        tokens=int(finite(results.get("tokens")) or max(series(rows, "train/tokens")[1], default=0)),
        curve=curve,
    )


def monitored(config: Mapping[str, Any]) -> str:
    """The metric's name; of a run that died before it wrote its configuration, the usual one."""
    name = config.get("monitor")
    return name if isinstance(name, str) else "val/loss"


def judge(record: Mapping[str, Any], verdict: Mapping[str, Any]) -> tuple[str, str]:
    """State and reason: the search's verdict once it has one, else what the run says of itself."""
    status, why = str(record.get("status") or ""), str(verdict.get("reason") or "")
    said, _, more = status.partition(": ")
    state = STATES.get(str(verdict.get("state")), "")
    if state in ("", "running") and said in ("finished", "pruned", "interrupted", "running", "failed"):
        state = said
    if state == "failed" and said == "interrupted" and not why:
        state = said
    return state or "unknown", why or more


def read_overrides(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """What `python -m medreason.train` needs to repeat the run; from Hydra's own record where run.json is none."""
    told = record.get("overrides")
    if not isinstance(told, list):
        try:
            told = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        except (OSError, ValueError, yaml.YAMLError):
            told = None
        # Hydra records a job's sweep file too, which would sweep again
        told = [each for each in told if not str(each).startswith("sweeps=")] if isinstance(told, list) else []
    return [str(each) for each in told]


def timestamp(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def time_to_last_sign(folder: Path, started: float | None) -> float:
    """Seconds from a run's start to its last measurement, for one that could not write how long it took."""
    metrics = folder / "metrics.csv"
    return max(0.0, metrics.stat().st_mtime - started) if started is not None and metrics.is_file() else 0.0


def finished(trials: Iterable[Trial]) -> list[Trial]:
    """Trials with a final value, best first."""
    done = [(trial.value, trial.number, trial) for trial in trials if trial.state == "finished"]
    return [trial for value, _, trial in sorted((v, n, t) for v, n, t in done if v is not None)]


def by_start(trials: Iterable[Trial]) -> list[Trial]:
    """In order of start; those that never said when they began come last, by number."""
    return sorted(trials, key=lambda t: (t.started is None, t.started or 0.0, t.number))


def varied(trials: Sequence[Trial]) -> list[str]:
    """Settings of which the sweep tried more than one value."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    return [key for key in keys if len({t.settings[key] for t in trials if key in t.settings}) > 1]


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
    import warnings

    import optuna

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
    for trial, value in rows:
        params = {key: trial.searched[key] if numeric(columns[key]) else str(trial.searched[key]) for key in spaces}
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


def numeric(values: Iterable[Setting]) -> bool:
    return all(not isinstance(value, str) for value in values)


def wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis suits: positive, and spanning a factor of more than 10."""
    return min(values) > 0 and max(values) > 10 * min(values)


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
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # Student's t without scipy.stats' slow import

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
