"""A run directory: everything that names a run and what came out of it.

config.yaml     the composed configuration, resolved          checkpoints/  last.ckpt, best.ckpt
data.json       rejects, duplicates, contamination by row     adapter/      LoRA of the best step (PEFT), tokenizer
run.json        command, commit, versions, data, results      adapter_last/ the same of the last step, if it is another
metrics.csv     every logged number by optimizer step         curves.png    loss and held-out loss
samples.json    held-out questions, as answered over time     .hydra/       Hydra's own record
train.log       everything that was said, by packages too
"""

import contextlib
import csv
import io
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from pathlib import Path
from typing import Any

from medreason.config import DOLLAR, NEWER, Checkpoint, ConfigError, TrainConfig, typed
from medreason.core.disk import digest_of, whole_file
from medreason.core.overrides import literal
from medreason.core.storage import command_words

PACKAGES = (
    "torch", "unsloth", "unsloth-zoo", "transformers", "peft", "bitsandbytes", "lightning", "datasets", "trl",
    "flash-attn-4",
)  # fmt: skip
# known from the start, so that the file's header never has to be rewritten under a running job
COLUMNS = (  # in the order into which Lightning sorts them
    "epoch", "step", "train/data_wait", "train/grad_norm", "train/loss", "train/lr", "train/memory_gib", "train/mfu",
    "train/targets_per_second", "train/tokens", "train/tokens_per_second", "val/accuracy", "val/format", "val/loss",
    "val/time_share", "val/tokens",
)  # fmt: skip


def folder_name(model: str | None) -> str:
    """What a folder is called after a model: the last part of its path, of its name on the hub or of embedded:NAME."""
    last = re.split(r"[/:\\]", str(model or "").rstrip("/"))[-1]
    return re.sub(r"[^\w.-]+", "-", last).strip(".-") or "model"


def nearby(run: Path) -> str:
    """A folder's path as short as it can be given from here."""
    return os.path.relpath(run) if run.is_relative_to(Path.cwd()) else str(run)


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes the whole file or nothing."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with whole_file(path) as draft:
        # a lone surrogate, which stands for a byte of a file's name that is no text, becomes JSON's own \\udc80
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run holds; nothing where it is missing or cut."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


ADAPTER, LAST_ADAPTER = "adapter", "adapter_last"


def adapter_of(run: Path, checkpoint: Checkpoint | None) -> Path:
    """The folder of a run's adapter: of its best step, or of its last one.

    Raises ConfigError where the best is asked for and the run, of an earlier release, kept the last alone.
    """
    if checkpoint is Checkpoint.last and (run / LAST_ADAPTER).is_dir():
        return run / LAST_ADAPTER
    results = read_json(run / "run.json").get("results")
    if checkpoint is Checkpoint.best and not (isinstance(results, dict) and "adapter_step" in results):
        raise ConfigError(f"checkpoint=best: {run / ADAPTER} is not known to be the best step's; leave it out")
    return run / ADAPTER


def weights_digest(adapter: Path) -> str:
    """What changes when an adapter's weights do; empty where it has none."""
    weights = adapter / "adapter_model.safetensors"
    return digest_of(weights) if weights.is_file() else ""


def run_config(run: Path) -> TrainConfig:
    """The settings of a run. Raises ConfigError where the directory holds none, or a file that is damaged."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"run={run}: no config.yaml there; name a run directory of medreason.train")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # safe: tags that would make objects are errors
        if not isinstance(values, dict):
            raise ConfigError("no settings in it")
        for name, usual in NEWER.items():
            *groups, last = name.split(".")
            group = values
            for each in groups:
                group = group[each] if isinstance(group.get(each), dict) else {}
            group.setdefault(last, usual)
        return typed(TrainConfig, values)
    except (OSError, OmegaConfBaseException, RecursionError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).replace(DOLLAR, "$").splitlines()[:2]) or type(error).__name__
        raise ConfigError(f"{path}: not the settings of a run ({said})") from error


def settings_of(config: Any) -> dict[str, Any]:
    """Every setting of a typed configuration by name, as plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    settings: dict[str, Any] = plain(asdict(config))
    return settings


def write_settings(config: Any, path: Path) -> None:
    """Writes every setting as YAML, each as its value is: nothing in the file is an interpolation."""
    from omegaconf import OmegaConf

    with whole_file(path) as draft:
        OmegaConf.save(OmegaConf.create(literal(settings_of(config))), draft, resolve=True)


def check_can_write(folder: Path, setting: str) -> None:
    """Raises ConfigError where a folder is none, cannot be made, or cannot be written to. Makes nothing."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"{setting}={folder}: {there} is not a folder; give another {setting}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting}={folder}: no right to write to {there}; give another {setting}")


def provenance() -> dict[str, Any]:
    """Command, commit, versions and hardware of this process."""
    import torch

    return {
        "command": command_words(),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }


def on_cpu(record: Mapping[str, Any]) -> bool:
    """Whether a provenance is that of a machine without a GPU: the memory measured there is the host's."""
    return str(record.get("device") or "").startswith("CPU")


def repeatable(overrides: Sequence[str]) -> list[str]:
    """Overrides that train this one run again, though a sweep's file among them would have the command sweep."""
    sweeps = any(one.startswith("sweeps=") for one in overrides)
    return [*overrides, "hydra.mode=RUN"] if sweeps and "hydra.mode=RUN" not in overrides else list(overrides)


def commit() -> str | None:
    """The checkout's commit, with `-dirty` for uncommitted changes; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here, capture_output=True, encoding="utf-8", timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def resolve_checkpoint(ckpt: str | None, run: Path) -> Path | None:
    """The checkpoint to resume from: a path, or for `last` the newest of this run and the runs beside it.

    Raises ConfigError where there is none, or it is no checkpoint.
    """
    if ckpt is None:
        return None
    if ckpt == "last":
        here = run / "checkpoints" / "last.ckpt"
        found = [here] if here.is_file() else sorted(run.parent.glob("*/checkpoints/last.ckpt"), key=os.path.getmtime)
        if not found:
            raise ConfigError(
                f"ckpt=last: no checkpoints/last.ckpt in the runs under {run.parent}; name one with ckpt=PATH"
            )
        path = found[-1]
    else:
        path = Path(ckpt)
        if not path.is_file():
            raise ConfigError(f"ckpt={ckpt}: no such file; name a .ckpt file, or last")
    import torch

    try:
        keys = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        complete = {"state_dict", "optimizer_states", "global_step"} <= set(keys)
    except Exception as error:  # a cut or foreign file fails in many ways
        raise ConfigError(
            f"ckpt={path}: not a readable checkpoint ({type(error).__name__}); use an older one"
        ) from error
    if not complete:
        raise ConfigError(f"ckpt={path}: not a checkpoint of medreason.train")
    return path


def checkpoint_step(path: Path) -> int:
    """Optimizer steps that a checkpoint has behind it."""
    import torch

    step: int = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    return step


def resumed_at(checkpoint: Path | None) -> list[int]:
    """Optimizer steps after which a run that goes on from a checkpoint has gone on, this time the last."""
    if checkpoint is None:
        return []
    told, step = read_json(checkpoint.parent.parent / "run.json").get("resumed_at"), checkpoint_step(checkpoint)
    before = [each for each in told if isinstance(each, int) and each < step] if isinstance(told, list) else []
    return [*before, step]


def checkpoint_position(path: Path) -> dict[str, Any]:
    """Where in the training rows a checkpoint was saved, as PackedLoader has it."""
    import torch

    loops = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["loops"]
    position: dict[str, Any] = loops["fit_loop"]["state_dict"]["combined_loader"][0]
    return position


# a checkpoint brings these with it, or its weights mean nothing else; others take effect in a resumed run
RESUMED = ("lora.r", "lora.alpha", "lora.rslora", "lora.dora", "lora.target_modules", "optim.algorithm", "optim.lr",
           "optim.loraplus_ratio", "optim.betas", "optim.eps", "optim.weight_decay", "data.format")  # fmt: skip


def check_resumed(config: TrainConfig, checkpoint: Path) -> None:
    """Raises ConfigError where a checkpoint's run had a setting that cannot be another one in the run that resumes it.

    Says nothing where no settings lie beside the checkpoint.
    """
    try:
        earlier = run_config(checkpoint.parent.parent)
    except ConfigError:
        return
    for name in RESUMED:
        before, now = (attrgetter(name)(one) for one in (earlier, config))
        if before != now:
            was, now = (getattr(value, "value", value) for value in (before, now))
            raise ConfigError(
                f"ckpt={checkpoint}: {name} was {was} when it was saved, and is {now} here; resume with the settings "
                "it was trained with"
            )


def metrics_logger(run: Path, resumed: Path | None) -> Any:
    """Lightning's CSV logger on RUN/metrics.csv, in a resumed run begun with what its checkpoint has behind it."""
    from lightning.pytorch.loggers import CSVLogger

    earlier = []
    if resumed is not None:
        before = checkpoint_step(resumed)
        rows = read_cells(resumed.parent.parent / "metrics.csv")  # of which a full disk may have cut the last one
        earlier = [row for row in rows if row.get("step", "").isdecimal() and is_behind(row, before)]
    logger = CSVLogger(run, name=None, version="", flush_logs_every_n_steps=1)
    logger.experiment.metrics_keys = list(COLUMNS)
    logger.experiment.metrics = earlier
    logger.save()
    return logger


def is_behind(row: Mapping[str, str], steps: int) -> bool:
    """Whether a row of metrics.csv was written by the time that a checkpoint with so many steps behind it was saved."""
    # the checkpoint of a validated step is saved after its validation; a loss of this number is the next step's
    return int(row["step"]) < steps or (int(row["step"]) == steps and "train/loss" not in row)


def read_cells(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv as they were written, empty cells left out; none where there is no file.

    Of a damaged file, what can be read.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    rows = []
    with contextlib.suppress(csv.Error):  # a cell that never ends: what stands before it counts
        for row in csv.DictReader(io.StringIO(text, newline="")):
            rows.append({key: cell for key, cell in row.items() if key and cell})  # None: more cells than columns
    return rows


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv that have a step, as numbers; cells that are none are left out."""
    rows = [
        {key: number for key, cell in row.items() if (number := as_number(cell)) is not None}
        for row in read_cells(path)
    ]
    return [row for row in rows if "step" in row]


def as_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def series(rows: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one metric."""
    points = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    return [step for step, _ in points], [value for _, value in points]


def tokens_trained(run: Path) -> int:
    """Tokens that a run has trained on, as its metrics.csv counts them; 0 while that cannot be read."""
    try:
        _, counts = series(read_metrics(run / "metrics.csv"), "train/tokens")
    except OSError:
        return 0
    return int(counts[-1]) if counts else 0
