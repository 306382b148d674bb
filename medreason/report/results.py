"""What the files of a sweep say: its trials, each as far as its files can be read."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from medreason.core.recorded import finite, look_up, mapping, read_mapping
from medreason.core.run_directory import read_cells, repeatable, series

Setting = int | float | str
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "running"}
RUN_FILES = ("run.json", "trial.json", "config.yaml", "metrics.csv", ".hydra")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    folder: Path
    number: int
    state: str  # finished, pruned, failed, interrupted, running, unknown
    reason: str  # why it ended so; empty where it finished
    died: list[str]  # interruptions that it survived
    value: float | None  # monitored metric: a finished trial's best one, whose adapter it keeps; any other's last one
    settings: dict[str, Setting]  # swept, as the run took them: lora.alpha 32
    searched: dict[str, Setting]  # swept, as the search chose them: lora.alpha 2r
    overrides: list[str]  # of medreason.train, to repeat it; empty where nothing tells
    started: float | None  # seconds since 1970
    seconds: float
    steps: int
    tokens: int
    curve: tuple[list[float], list[float]]  # optimizer steps, monitored metric


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv that have a step, as numbers; cells that are none are left out, as is a cut last row."""
    try:
        cells = read_cells(path)
    except (OSError, ValueError, csv.Error):
        return []
    rows = [{key: value for key, cell in row.items() if (value := finite(cell)) is not None} for row in cells]
    return [row for row in rows if "step" in row]


def with_interval(value: object, score: Mapping[str, Any]) -> list[float] | None:
    """A value and the two ends of its interval; None where one of them is no number."""
    interval = score.get("interval")
    found = [finite(each) for each in (value, *interval)] if isinstance(interval, list) else []
    known = [each for each in found if each is not None]
    return known if len(known) == len(found) == 3 else None


def setting(value: object) -> Setting:
    """A swept value as a number where it is one, as text otherwise."""
    number = finite(value)
    if number is None:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return text.encode(errors="replace").decode()  # half of a surrogate pair cannot be drawn
    return int(number) if number.is_integer() else number


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in RUN_FILES)


def is_sweep(folder: Path) -> bool:
    """Whether Hydra's sweeps, or runs by number, lie here."""
    return (folder / "multirun.yaml").is_file() or any(is_run(path) for path in trial_folders(folder))


def trial_folders(sweep: Path) -> list[Path]:
    found = [path for path in sweep.glob("[0-9]*") if path.is_dir() and path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def read_sweep(sweep: Path) -> list[Trial]:
    """Every trial, by number.

    SWEEP/sweep.json        of an Optuna sweep: what was searched, and what all trials share
    SWEEP/0, SWEEP/1, ...   a run directory each (medreason/core/run_directory.py); an Optuna sweep adds trial.json
    SWEEP/confirmed/0, ...  the best configurations again, each with several seeds (sweeps=confirm_best)
    """
    return [read_trial(folder) for folder in trial_folders(sweep)]


def read_trial(folder: Path) -> Trial:
    """A trial from whatever of its files can be read.

    It may have died at any moment, so that any file may be missing, cut or odd: it is then shown as what it is.
    """
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
            told = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            told = None
    return repeatable([str(each) for each in told]) if isinstance(told, list) else []


def timestamp(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        return None


def time_to_last_sign(folder: Path, started: float | None) -> float:
    """Seconds from a run's start to its last measurement, for one that could not write how long it took."""
    metrics = folder / "metrics.csv"
    return max(0.0, metrics.stat().st_mtime - started) if started is not None and metrics.is_file() else 0.0


def finished(trials: Iterable[Trial]) -> list[Trial]:
    """Trials with a final value, best first."""
    done = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    return sorted(done, key=lambda trial: (trial.value or 0.0, trial.number))


def by_start(trials: Iterable[Trial]) -> list[Trial]:
    """In order of start; those that never said when they began come last, by number."""
    return sorted(trials, key=lambda t: (t.started is None, t.started or 0.0, t.number))


def varied(trials: Sequence[Trial]) -> list[str]:
    """Settings of which the sweep tried more than one value."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    return [key for key in keys if len({t.settings[key] for t in trials if key in t.settings}) > 1]


def numeric(values: Iterable[Setting]) -> bool:
    return all(not isinstance(value, str) for value in values)
