"""run=last, run=best: names that stand for a run's folder."""

from pathlib import Path
from typing import Any

from medreason.config import ConfigError
from medreason.core.progress import say
from medreason.core.recorded import finite, look_up, mapping, read_mapping
from medreason.core.run_directory import ADAPTER

NAMES = ("last", "best")


def find_run(name: str, folder: Path = Path("runs")) -> Path:
    """The run that `last` or `best` names, of those in `folder` and its sweeps with an adapter; says which.

    `last` is the newest. `best` has the lowest held-out loss of those with the newest one's data and model: losses on
    other rows, or over other tokens, cannot be compared. Raises ConfigError where there is none.
    """
    runs = [file.parent.parent for pattern in ("*", "*/[0-9]*")
            for file in folder.glob(f"{pattern}/{ADAPTER}/adapter_config.json")]  # fmt: skip
    if not runs:
        raise ConfigError(f"run={name}: no run with an adapter in {folder}; name a run's folder")
    newest = max(runs, key=lambda run: ((run / ADAPTER).stat().st_mtime, run.name))
    if name == "last":
        say(f"run=last: {newest}")
        return newest
    alike = [run for run in runs if measured_on(run) == measured_on(newest)]
    losses = {run: loss for run in alike if (loss := held_out_loss(run)) is not None}
    if not losses:
        raise ConfigError(f"run=best: no held-out loss is known of {newest} or of runs like it; name a run's folder")
    best = min(losses, key=lambda run: (losses[run], run.name))
    say(f"run=best: {best}, held-out loss {losses[best]:.3f}, the lowest of {len(losses)} with its data and model")
    return best


def held_out_loss(run: Path) -> float | None:
    return finite(mapping(read_mapping(run / "run.json")[0].get("results")).get("val_loss_after"))


def measured_on(run: Path) -> tuple[Any, ...]:
    """What must be equal for two runs' losses to be comparable."""
    config, _ = read_mapping(run / "config.yaml")
    data = mapping(config.get("data"))
    return look_up(config, "model.path"), {name: value for name, value in data.items() if name != "packing"}
