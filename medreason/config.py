"""Every knob on one page, with its unit and its range.

A folder of conf/ is a config group; a group is one dataclass here. Values live in the YAML files alone: a field
without a value there is an error, never a silent default. Hydra composes and checks names and types;
`__post_init__` checks ranges when `load` turns the composed tree into these objects.
"""

import difflib
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """Something the user can mend. One line: what is wrong, and what to do. Ends a command with exit code 2."""


class Precision(Enum):
    """How the frozen base is held in memory."""

    nf4 = "nf4"  # 4-bit NormalFloat, double quantisation (bitsandbytes)
    int8 = "int8"  # LLM.int8 (bitsandbytes), GPU only
    half = "half"  # 16-bit; 32-bit on a CPU without fast bf16 instructions


class Recompute(Enum):
    """Activations: kept for the backward pass, recomputed, or recomputed with Unsloth's offload to host memory."""

    none = "none"
    full = "full"
    unsloth = "unsloth"


class TooLong(Enum):
    """What to do with a document longer than a row."""

    error = "error"
    drop = "drop"
    truncate = "truncate"


class Source(Enum):
    """Where rows come from."""

    rows = "rows"  # data.path: a file, or a data set of the hub
    clinical_cases = "clinical_cases"


class Decay(Enum):
    """Shape of the learning rate after warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class Algorithm(Enum):
    """Optimizer."""

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"


class LoggerKind(Enum):
    """Where metrics go besides the run directory's metrics.csv."""

    csv = "csv"
    wandb = "wandb"


def check(holds: bool, key: str, rule: str, value: object) -> None:
    """Raises ConfigError `key must RULE, got VALUE` unless `holds`."""
    if not holds:
        raise ConfigError(f"{key} must {rule}, got {value!r}")


@dataclass
class ModelConfig:
    path: str  # hub name, local directory, or embedded:NAME (medreason/embedded.py)
    revision: str | None  # branch, tag or commit on the hub
    precision: Precision
    chat_template: str | None  # Jinja; null takes the tokenizer's own

    def __post_init__(self) -> None:
        check(bool(self.path.strip()), "model.path", "name a hub model or a directory", self.path)


@dataclass
class LoraConfig:
    r: int  # rank of the update
    alpha: float  # the update is scaled by alpha/r, with rslora by alpha/sqrt(r)
    dropout: float  # probability, on the input of A
    target_modules: list[str]
    rslora: bool
    dora: bool

    def __post_init__(self) -> None:
        check(self.r > 0, "lora.r", "be positive", self.r)
        check(self.alpha > 0, "lora.alpha", "be positive", self.alpha)
        check(0 <= self.dropout < 1, "lora.dropout", "be in [0, 1)", self.dropout)
        check(bool(self.target_modules), "lora.target_modules", "name at least one linear layer", [])


@dataclass
class OptimConfig:
    algorithm: Algorithm
    lr: float  # peak learning rate, of LoRA's A
    loraplus_ratio: float  # learning rate of B over that of A; 1 is plain LoRA
    betas: list[float]
    eps: float
    weight_decay: float
    warmup_steps: int  # optimizer steps
    decay: Decay
    max_grad_norm: float  # 0: no clipping

    def __post_init__(self) -> None:
        check(self.lr > 0, "optim.lr", "be positive", self.lr)
        check(self.loraplus_ratio > 0, "optim.loraplus_ratio", "be positive", self.loraplus_ratio)
        good = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(good, "optim.betas", "be two numbers in [0, 1)", list(self.betas))
        check(self.eps > 0, "optim.eps", "be positive", self.eps)
        check(self.weight_decay >= 0, "optim.weight_decay", "not be negative", self.weight_decay)
        check(self.warmup_steps >= 0, "optim.warmup_steps", "not be negative", self.warmup_steps)
        check(self.max_grad_norm >= 0, "optim.max_grad_norm", "not be negative", self.max_grad_norm)


@dataclass
class DataConfig:
    source: Source
    path: str | None  # hub name, or a JSON, JSONL, Parquet or CSV file
    name: str | None  # configuration of the hub data set (en, zh, ...)
    revision: str | None
    cases: int  # how many clinical_cases are made
    case_kinds: list[str] | None  # which kinds of clinical_cases; null: all
    row_tokens: int  # length of a packed row
    too_long: TooLong
    validation_share: float  # share of the rows held out, chosen by content
    max_validation_rows: int | None  # of those, how many are scored at most
    seed: int  # split, order of rows, and clinical_cases

    def __post_init__(self) -> None:
        check(self.row_tokens >= 16, "data.row_tokens", "be at least 16", self.row_tokens)
        check(0 < self.validation_share < 1, "data.validation_share", "be in (0, 1)", self.validation_share)
        limit = self.max_validation_rows
        check(limit is None or limit > 0, "data.max_validation_rows", "be positive or null", limit)
        if self.source is Source.clinical_cases:
            check(self.cases > 0, "data.cases", "be positive", self.cases)
        else:
            check(bool(self.path), "data.path", "name a file or a hub data set (data.path=FILE)", self.path)


@dataclass
class TrainerConfig:
    accelerator: str  # gpu or cpu
    precision: str  # Lightning's: 32-true keeps LoRA in float32 over a quantised base
    max_epochs: int
    max_steps: int  # optimizer steps; the epochs end a run too. -1: the epochs alone do
    rows_per_batch: int  # packed rows in one forward pass
    accumulate: int  # forward passes per optimizer step
    recompute: Recompute
    validate_every_steps: int  # optimizer steps between validations
    checkpoint_every_steps: int  # optimizer steps between resumable checkpoints
    answer_questions: int  # held-out questions answered before and after training; 0: none
    answer_batch: int  # questions answered at once
    max_answer_tokens: int

    def __post_init__(self) -> None:
        check(self.accelerator in ("gpu", "cpu"), "trainer.accelerator", "be gpu or cpu", self.accelerator)
        check(
            self.precision in ("32-true", "bf16-mixed"),
            "trainer.precision",
            "be 32-true or bf16-mixed (bf16-true would round LoRA and 4-bit code books)",
            self.precision,
        )
        check(self.max_epochs > 0, "trainer.max_epochs", "be positive", self.max_epochs)
        check(self.max_steps == -1 or self.max_steps > 0, "trainer.max_steps", "be positive or -1", self.max_steps)
        for name in ("rows_per_batch", "accumulate", "validate_every_steps", "checkpoint_every_steps"):
            check(getattr(self, name) > 0, f"trainer.{name}", "be positive", getattr(self, name))
        check(self.answer_questions >= 0, "trainer.answer_questions", "not be negative", self.answer_questions)
        for name in ("answer_batch", "max_answer_tokens"):
            check(getattr(self, name) > 0, f"trainer.{name}", "be positive", getattr(self, name))


@dataclass
class LoggerConfig:
    kind: LoggerKind
    project: str  # W&B project
    name: str | None  # W&B run name; null: the run directory's
    tags: list[str]


MONITORED = ("val/loss", "train/loss")  # what the Finetuner logs and a checkpoint can be picked by


@dataclass
class TrainConfig:
    model: ModelConfig
    lora: LoraConfig
    optim: OptimConfig
    data: DataConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    seed: int  # weights of LoRA, dropout
    monitor: str  # the metric that picks the best checkpoint
    ckpt: str | None  # a checkpoint to resume from, or `last`: the newest one of the runs beside this one

    def __post_init__(self) -> None:
        check(self.monitor in MONITORED, "monitor", f"be one of {', '.join(MONITORED)}", self.monitor)


def root() -> Path:
    """The folder that holds conf/, experiments/ and sweeps/: the checkout, or the package in a wheel."""
    package = Path(__file__).resolve().parent
    return package.parent if (package.parent / "conf").is_dir() else package


class NamedRuns(SearchPathPlugin):
    """Lets `experiments=NAME` and `sweeps=NAME` be found at the top level, beside conf/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="medreason", path=f"file://{root()}")


def command(task: Callable[[TrainConfig], None], name: str) -> None:
    """Runs `task` as Hydra's main over conf/NAME.yaml; mistakes of the user end in one line and exit code 2."""
    Plugins.instance().register(NamedRuns)
    ConfigStore.instance().store(name="schema", node=TrainConfig)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through to us instead of Hydra's own report

    def job(config: DictConfig) -> None:
        # Refused in here, not in the outer handler: on its way out Hydra would add a report of its own.
        try:
            task(load(config))
        except (ConfigError, OmegaConfBaseException) as error:
            discard(Path(HydraConfig.get().runtime.output_dir))
            refuse(name, error)

    try:
        hydra.main(version_base="1.3", config_path=str(root() / "conf"), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        refuse(name, error)


def refuse(name: str, error: Exception) -> NoReturn:
    """Says what is wrong in one line and ends the process with exit code 2."""
    print(f"medreason.{name}: {explain(error)}", file=sys.stderr)
    sys.exit(2)


def discard(run: Path) -> None:
    """Removes a run directory in which nothing but Hydra's own record stands yet."""
    if [entry.name for entry in run.iterdir()] == [".hydra"]:
        shutil.rmtree(run / ".hydra")
        run.rmdir()


def load(config: DictConfig) -> TrainConfig:
    """The typed configuration. Raises ConfigError or OmegaConf's errors for unknown keys and values out of range."""
    # A key added with `+` passes Hydra's own check; merging the bare values into the schema refuses it.
    checked = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.to_container(config, resolve=True))
    loaded = OmegaConf.to_object(checked)
    assert isinstance(loaded, TrainConfig)
    return loaded


def explain(error: BaseException) -> str:
    """One line that names the key, and the known key nearest to a mistyped one."""
    if "Error merging override" in str(error) and error.__cause__:
        return explain(error.__cause__)
    lines = [line.strip() for line in str(error).partition("Config search path")[0].splitlines()]
    message = "; ".join(line for line in lines if line and not line.startswith(("object_type", "reference_type")))
    wrong = re.search(r"full_key: ([\w.]+)", message) or re.search(r"override '([\w.]+)'", message)
    if wrong and ("not in" in message or "Could not override" in message):
        near = difflib.get_close_matches(wrong[1], known_keys(TrainConfig), n=1, cutoff=0.5)
        return f"{wrong[1]}: no such setting ({f'did you mean {near[0]}?' if near else 'see --cfg job'})"
    return message.replace(":;", ":").removesuffix(";")


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of every setting, groups included."""
    keys: list[str] = []
    for field in fields(schema):
        keys.append(prefix + field.name)
        kind: Any = field.type
        if is_dataclass(kind):
            assert isinstance(kind, type)
            keys += known_keys(kind, f"{prefix}{field.name}.")
    return keys
