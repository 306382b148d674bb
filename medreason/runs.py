"""python -m medreason.runs: runs and sweeps of a folder, newest last.

    name                          status    steps  loss   score              size    age
    2026-11-26_09-14-02_tiny      finished     44  2.185  41.2% medqa      12 MB   3 h

`clean=list` says which folders hold nothing that anyone could want, `clean=remove` removes them.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medreason.config import Clean, ConfigError, RunsConfig
from medreason.core.cli import command
from medreason.core.outside import literal
from medreason.core.processes import claim
from medreason.core.progress import say
from medreason.core.recorded import finite, mapping, read_mapping
from medreason.core.run_directory import nearby
from medreason.report.results import is_run, is_sweep, judge, read_rows, timestamp, trial_folders

# all that a run leaves which ended before its first step
WORTHLESS = {".hydra", ".lock", ".machines", "config.yaml", "data.json", "metrics.csv", "run.json", "samples.json"}
PIPE_COLUMNS = 200  # in a file or a pipe, where nothing need be cut


@dataclass(frozen=True)
class Listed:
    """A run, or a sweep of them, as one line."""

    folder: Path
    status: str
    steps: int | None
    loss: float | None  # of the weights that it hands out; a sweep's: its best trial's
    score: str
    bytes: int
    changed: float  # seconds since 1970


def list_runs(folder: Path, trials: bool = False) -> list[Listed]:
    """Runs and sweeps directly in `folder`, the last one to change last; with `trials` a sweep's runs one by one."""
    found: list[Listed] = []
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        if is_sweep(path):
            found += [listed(one) for one in trial_folders(path)] if trials else [listed_sweep(path)]
        elif is_run(path):
            found.append(listed(path))
    return sorted(found, key=lambda one: (one.changed, one.folder.name))


def listed(run: Path) -> Listed:
    """A run, from whatever of its records can be read."""
    record, trouble = read_mapping(run / "run.json")
    status, why = judge(record, {})
    results = mapping(record.get("results"))
    steps = finite(results.get("steps"))
    if steps is None and status == "running":
        rows = read_rows(run / "metrics.csv")
        steps = max((row["step"] + 1 for row in rows if "train/loss" in row), default=None)
    loss = finite(results.get("val_loss_after"))
    return Listed(
        run,
        trouble if status == "unknown" and trouble else str(record.get("status") or status) if not why else status,
        None if steps is None else int(steps),
        loss,
        score_of(run, results),
        size_of(run),
        changed(run, record),
    )


def listed_sweep(sweep: Path) -> Listed:
    """A sweep: how many of its trials finished, and the lowest loss among them."""
    runs = [listed(one) for one in trial_folders(sweep)]
    done = [one for one in runs if one.status == "finished"]
    losses = [one.loss for one in done if one.loss is not None]
    return Listed(
        sweep,
        f"{len(done):,} of {len(runs):,} trials",
        None,
        min(losses, default=None),
        "",
        size_of(sweep),
        max((one.changed for one in runs), default=sweep.stat().st_mtime),
    )


def score_of(run: Path, results: dict[str, Any]) -> str:
    """A run's newest measured share, by name, and how many further ones there are."""
    scores: list[str] = []
    files = sorted(run.glob("evaluation/*/scores.json"), key=lambda file: -file.stat().st_mtime)
    for file in files:
        for name, score in mapping(read_mapping(file)[0].get("scores")).items():
            accuracy = finite(mapping(score).get("accuracy"))
            if accuracy is not None and file.parent.name.partition("_")[2] != "base":
                scores.append(f"{accuracy:.1%} {name}")
    exact = finite(results.get("accuracy_after"))
    if exact is not None:
        scores.append(f"{exact:.1%} held out")
    return "" if not scores else scores[0] if len(scores) == 1 else f"{scores[0]}, {len(scores) - 1} more"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; those that vanish meanwhile are left out."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118  # thousands of files
    return total


def changed(run: Path, record: dict[str, Any]) -> float:
    """When a run last said something of itself, in seconds since 1970."""
    times = [timestamp(record.get("started")) or 0.0]
    for name in ("run.json", "metrics.csv"):
        with suppress(OSError):
            times.append((run / name).stat().st_mtime)
    return max(times) if max(times) else run.stat().st_mtime


# ------------------------------------------------------------------------------------------------- what can go


def removable(folder: Path) -> list[Path]:
    """Runs that ended before their first step, and empty folders; none with anything else in it, and none at work."""
    found = []
    for path in sorted(one for one in folder.iterdir() if one.is_dir() and not one.is_symlink()):
        logs = {entry.name for entry in path.glob("train.*log")}  # each machine's
        entries = {entry.name for entry in path.iterdir() if not is_empty_folder(entry)}
        ended = judge(read_mapping(path / "run.json")[0], {})[0] in ("failed", "interrupted", "unknown")
        trained = any("train/loss" in row for row in read_rows(path / "metrics.csv"))
        if not entries or (entries - logs <= WORTHLESS and is_run(path) and ended and not trained and at_rest(path)):
            found.append(path)
    return found


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def at_rest(run: Path) -> bool:
    """Whether no process trains here."""
    if not (run / ".lock").is_file():
        return True
    with claim(run) as held:
        return held is not None


def clean(folder: Path, remove: bool) -> None:
    """Names what is removable, with its size, and removes it on request."""
    paths = removable(folder)
    freed = 0
    for path in paths:
        bytes_ = size_of(path)
        freed += bytes_
        if remove:
            shutil.rmtree(path)
        say(f"{'removed' if remove else 'would go'}: {nearby(path.resolve())} ({size(bytes_)})")
    if not paths:
        say(f"{folder}: nothing to clean")
    else:
        say(f"{len(paths):,} folders, {size(freed)}" + ("" if remove else "; clean=remove removes them"))


# ------------------------------------------------------------------------------------------------- the table


def size(count: int) -> str:
    """Bytes in the largest unit that leaves a digit before the point."""
    amount, units = float(count), ["B", "kB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:,.0f} {units[0]}"


def age(seconds: float) -> str:
    """A time span in its largest unit."""
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.0f} {name}"
    return f"{max(seconds, 0):,.0f} s"


def print_runs(runs: Sequence[Listed], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    narrow = sys.stdout.isatty()  # then names and words are cut, and never numbers
    table = Table(box=None, pad_edge=False, expand=narrow)
    table.add_column("name", overflow="ellipsis", no_wrap=True, ratio=1 if narrow else None)
    table.add_column("status", overflow="ellipsis", no_wrap=True, min_width=8, max_width=18 if narrow else None)
    for name in ("steps", "loss"):
        table.add_column(name, justify="right", no_wrap=True, min_width=5)
    table.add_column("score", overflow="ellipsis", no_wrap=True, max_width=16 if narrow else None)
    for name, least in (("size", 6), ("age", 6)):
        table.add_column(name, justify="right", no_wrap=True, min_width=least)
    now = time.time()
    for run in runs:
        table.add_row(
            literal(str(run.folder.relative_to(folder))),
            literal(run.status),
            "" if run.steps is None else f"{run.steps:,}",
            "" if run.loss is None else f"{run.loss:.3f}",
            literal(run.score),
            size(run.bytes),
            age(now - run.changed),
        )
    console.print(table)


def show(config: RunsConfig) -> None:
    folder = Path(config.folder)
    if not folder.is_dir():
        raise ConfigError(
            f"folder={folder}: no such folder; runs are made in runs/ of the folder where training starts"
        )
    if config.clean is not None:
        clean(folder, config.clean is Clean.remove)
        return
    runs = list_runs(folder, config.trials)
    if runs:
        print_runs(runs, folder)
    else:
        say(f"{folder}: no runs in it")


def main() -> None:
    command(show, "runs", RunsConfig)


if __name__ == "__main__":
    main()
