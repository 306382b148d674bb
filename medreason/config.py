"""Every knob on one page, with its unit and its range.

A folder of conf/ is a config group; a group is one dataclass here. Values live in the YAML files alone: a field
without a value there is an error, never a silent default. Hydra composes and checks names and types;
`__post_init__` checks ranges when `load` turns the composed tree into these objects.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

HOME = re.compile(r"(sqlite:///|journal://)(~[^/]*)")  # of a storage's URL
Settings = TypeVar("Settings")


class ConfigError(ValueError):
    """Something the user can mend. One line: what is wrong, and what to do. Ends a command with exit code 2."""


class RunFailed(RuntimeError):
    """Training that could not go on. One line: what happened, and what to do. Ends a command with exit code 1."""


class Precision(Enum):
    """How the frozen base is held in memory."""

    nf4 = "nf4"  # 4-bit NormalFloat, double quantisation (bitsandbytes)
    int8 = "int8"  # LLM.int8 (bitsandbytes), GPU only
    half = "half"  # 16-bit; 32-bit on a CPU without fast bf16 instructions. Unsloth's engine alone has it
    fp8 = "fp8"  # 8-bit float, a scale for each row; the fast engine alone has it
    bf16 = "bf16"  # 16-bit; the fast engine alone has it


class TrainingEngine(Enum):
    """What carries out the training passes."""

    auto = "auto"  # fast for a base in fp8 or bf16, unsloth for the others
    unsloth = "unsloth"
    fast = "fast"  # this project's own (medreason/engine/layers.py); a base in nf4, fp8 or bf16


class ComputeDtype(Enum):
    """What the fast engine multiplies frozen weights in, however they are held."""

    auto = "auto"  # fp8 where weights have fewer than 16 bits and the GPU multiplies them (Ada, Hopper); else bf16
    fp8 = "fp8"
    bf16 = "bf16"


class Recompute(Enum):
    """Activations: kept for the backward pass, recomputed, or recomputed with Unsloth's offload to host memory."""

    auto = "auto"  # the least that the GPU's memory allows (medreason/models/memory.py)
    none = "none"
    selective = "selective"  # attention's are kept, all others recomputed; the fast engine alone has it
    full = "full"
    unsloth = "unsloth"


class TooLong(Enum):
    """What to do with a document longer than a row."""

    error = "error"
    drop = "drop"
    truncate = "truncate"


class Format(Enum):
    """How question, reasoning and answer are written down (medreason/models/prompts.py)."""

    think = "think"  # the tokenizer's chat template; reasoning between think tags
    huatuo = "huatuo"  # the tokenizer's chat template; ## Thinking, ## Final Response
    seed = "seed"  # no chat template: an instruction and headings


class Packing(Enum):
    """How documents share rows."""

    best_fit = "best_fit"  # many documents in a row of row_tokens
    off = "off"  # one document a row, padded to the longest of its batch


class OnBadRow(Enum):
    """What to do with a row that cannot be learned from."""

    error = "error"
    skip = "skip"


class Deduplicate(Enum):
    """What to do with rows that repeat others."""

    off = "off"
    report = "report"
    exact = "exact"  # drop a row whose question and answer another row has
    near = "near"  # drop a row whose question is nearly another's, too


class Decontaminate(Enum):
    """What to do with rows that share text with data.benchmarks."""

    off = "off"
    report = "report"
    drop = "drop"


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


class Method(Enum):
    """How a model answers a multiple-choice question."""

    likelihood = "likelihood"  # the option letter with the highest probability; no text is written
    generate = "generate"  # the model reasons and answers; the letter is read from its answer


class Stress(Enum):
    """Questions made harder in a way that knowledge survives and habits do not."""

    none_of_above = "none_of_above"  # the right option reads "None of the above"
    prefill = "prefill"  # the model's answer begins with a wrong one, with method=generate


class Batching(Enum):
    """How written answers share the GPU."""

    static = "static"  # batches that last as long as their longest answer
    continuous = "continuous"  # the next question takes the place of an answer that has ended; weights in 16 bits


class ExportFormat(Enum):
    """What an export holds (medreason/export/write.py)."""

    adapter = "adapter"  # LoRA alone, in PEFT's format
    merged = "merged"  # 16-bit weights with LoRA added into them
    gguf = "gguf"  # for llama.cpp and Ollama


class Quantization(Enum):
    """How llama.cpp keeps the weights of a GGUF file."""

    f16 = "f16"
    q8_0 = "q8_0"
    q4_k_m = "q4_k_m"


class Engine(Enum):
    """What answers behind medreason.serve."""

    transformers = "transformers"
    vllm = "vllm"


class Checkpoint(Enum):
    """Which weights of a run."""

    best = "best"  # of the step with the lowest `monitor`
    last = "last"  # of the last step


class LoggerKind(Enum):
    """Where metrics go besides the run directory's metrics.csv."""

    csv = "csv"
    wandb = "wandb"
    # these three: medreason/train/loggers.py
    tensorboard = "tensorboard"
    mlflow = "mlflow"
    trackio = "trackio"


class Sampler(Enum):
    """How the next trial of a sweep is chosen."""

    tpe = "tpe"  # tree-structured Parzen estimator: where good trials lie close together
    random = "random"


class Pruner(Enum):
    """How hopeless trials of a sweep are found before their end."""

    none = "none"
    asha = "asha"  # asynchronous successive halving: at each rung, only the best of reduction_factor go on
    hyperband = "hyperband"  # several such ladders, which begin at different rungs
    median = "median"  # a trial worse than the median of the others at the same step ends
    paired = "paired"  # a trial certainly worse than the best so far ends, document by document at the same step


def typed(schema: type[Settings], values: Any) -> Settings:
    """The typed settings that plain values make. A `${` in them is text: composing has resolved what it stood for.

    Raises ConfigError or OmegaConf's errors for unknown names, other types, and values out of range.
    """
    from omegaconf import OmegaConf

    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), with_dollar(values, "${", f"{DOLLAR}{{"))
        made = OmegaConf.to_object(merged)
    except (OverflowError, TypeError, AttributeError, RecursionError) as error:  # numbers and trees beyond OmegaConf
        raise ConfigError(f"a setting has a value that none can have: {error}") from error
    except ConfigError as error:
        raise ConfigError(str(error).replace(DOLLAR, "$")) from error
    settled = with_dollar(made, DOLLAR, "$")
    assert isinstance(settled, schema)
    return settled


DOLLAR = "\U0010fffe"  # in place of one that OmegaConf would read as an interpolation: a character that no text holds


def with_dollar(value: Any, old: str, new: str) -> Any:
    """The value with one text in place of another, in all that it holds."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, Mapping):
        return {key: with_dollar(one, old, new) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [with_dollar(one, old, new) for one in value]
    if is_dataclass(value):
        for each in fields(value):
            setattr(value, each.name, with_dollar(getattr(value, each.name), old, new))
    return value


def check(holds: bool, key: str, rule: str, value: object) -> None:
    """Raises ConfigError `key must RULE, got VALUE` unless `holds`."""
    if not holds:
        raise ConfigError(f"{key} must {rule}, got {value!r}")


def check_most(settings: object, group: str, **most: float) -> None:
    """Raises ConfigError where a setting is larger than it may be: more could only be a slip, and fails late or badly.

    Infinity is; what is no number fails the check of its least value.
    """
    for name, limit in most.items():
        value = getattr(settings, name)
        if value is not None:
            check(
                value <= limit,
                f"{group}{name}",
                f"be at most {limit:,}" if isinstance(limit, int) else f"be at most {limit:g}",
                value,
            )


def place(key: str, path: str) -> str:
    """A path with `~` as the home folder. Raises ConfigError for one that no file system could have."""
    parts = path.split("/")
    holds = (
        "\0" not in path
        and len(path) < 4096
        and max(len(part.encode("utf-8", "surrogatepass")) for part in parts) < 256
    )
    check(holds, key, "be a path: no part over 255 bytes, no zero byte", path[:80])
    return os.path.expanduser(path)  # noqa: PTH111  # a Path would not leave the rest as it is written


def check_one_model(base: bool, checkpoint: Checkpoint | None) -> None:
    """Raises ConfigError where both the model before the run and a step of the run are asked for."""
    given = checkpoint and checkpoint.value
    check(not base or given is None, "checkpoint", "be left out with base=true, the model before the run", given)


def settle_places(settings: object, *names: str) -> None:
    """Puts the home folder for `~` in settings that are paths or null. Raises ConfigError as `place` does."""
    for name in names:
        path = getattr(settings, name)
        if path is not None:
            check(bool(path.strip()), name, "name a folder, or be null", path)
            setattr(settings, name, place(name, path))


def share_or_steps(key: str, value: float, *, least: int = 1) -> float:
    """A setting in optimizer steps: a share of the run's below 1, or a whole number of them. Raises ConfigError."""
    rule = f"be a share of the run's steps (0.05), or a whole number of them, at least {least}"
    check(0 < value < 1 or (value >= least and value % 1 == 0), key, rule, value)
    return value if 0 < value < 1 else int(value)


def steps_of(value: float, total_steps: int, *, least: int = 1) -> int:
    """What share_or_steps means in a run of so many optimizer steps."""
    return max(least, round(value * total_steps)) if 0 < value < 1 else int(value)


# more of any of these is a slip
MOST_STEPS = 10**9  # of optimizer steps, rows or questions that are counted
MOST_TOKENS = 2**20  # of a row or an answer: no model reads more
MOST_AT_ONCE = 2**16  # of rows or questions
LARGEST = 1e30  # of rates: their products stay within float32
SEEDS = 2**32  # that NumPy's generators tell apart
SEED_BITS = 62  # of the seeds that are counted on from: torch's have 64


@dataclass
class ModelConfig:
    path: str  # hub name, local directory, or embedded:NAME (medreason/models/embedded.py)
    revision: str | None  # branch, tag or commit on the hub
    precision: Precision
    chat_template: str | None  # Jinja; null takes the tokenizer's own
    engine: TrainingEngine
    compute_dtype: ComputeDtype

    @property
    def fast(self) -> bool:
        """Whether the fast engine trains it, not Unsloth."""
        alone = self.precision in (Precision.fp8, Precision.bf16)
        return self.engine is TrainingEngine.fast or (self.engine is TrainingEngine.auto and alone)

    def __post_init__(self) -> None:
        known = (Precision.nf4, Precision.fp8, Precision.bf16) if self.fast else (
            Precision.nf4, Precision.int8, Precision.half,
        )  # fmt: skip
        rule = f"be {names(known)} with model.engine={'fast' if self.fast else 'unsloth'}"
        check(self.precision in known, "model.precision", rule, self.precision.value)
        chosen = self.compute_dtype is not ComputeDtype.auto
        rule = "be auto without model.engine=fast (Unsloth computes in the adapter's 16 bits)"
        check(self.fast or not chosen, "model.compute_dtype", rule, self.compute_dtype.value)
        check(bool(self.path.strip()), "model.path", "name a hub model or a directory", self.path)
        self.path = place("model.path", self.path)
        if self.chat_template:
            check(bool(self.chat_template.strip()), "model.chat_template", "be a template or null", self.chat_template)


@dataclass
class LoraConfig:
    r: int  # rank of the update
    alpha: Any  # a number, or 2r: twice the rank; the update is scaled by alpha/r, with rslora by alpha/sqrt(r)
    dropout: float  # probability, on the input of A
    target_modules: Any  # names of linear layers, or all-linear: those of every decoder layer, the head left out
    rslora: bool  # scale the update by alpha/sqrt(r), not alpha/r, so that a higher rank is not damped
    dora: bool  # learn direction and magnitude of the weights apart

    def __post_init__(self) -> None:
        check(self.r > 0, "lora.r", "be positive", self.r)
        check_most(self, "lora.", r=2**16)
        number = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(r?)", str(self.alpha), re.ASCII)
        check(number is not None, "lora.alpha", "be a number, or a multiple of the rank such as 2r", self.alpha)
        assert number is not None
        self.alpha = float(number[1]) * (self.r if number[2] else 1)
        check(self.alpha > 0, "lora.alpha", "be positive", self.alpha)
        check_most(self, "lora.", alpha=1e9)
        check(0 <= self.dropout < 1, "lora.dropout", "be in [0, 1)", self.dropout)
        self.target_modules = linears(self.target_modules)


def names(members: Iterable[Enum]) -> str:
    """a, b or c."""
    *others, last = (str(member.value) for member in members)
    return f"{', '.join(others)} or {last}" if others else last


def linears(targets: Any) -> list[str]:
    """The linear layers that lora.target_modules names, each once. Raises ConfigError for what is no list of names."""
    given = [targets] if isinstance(targets, str) else targets
    names = isinstance(given, list) and all(isinstance(one, str) and one.strip() for one in given)
    check(names and bool(given), "lora.target_modules", "name linear layers, or be all-linear", targets)
    whole = [one for one in given if one.rpartition(".")[2] in ENDS]
    rule = "be of a decoder layer's linears: embeddings and head would be trained whole, and no estimate counts them"
    check(not whole, "lora.target_modules", rule, whole)
    found = [name for one in given for name in (DECODER_LINEARS if one == ALL_LINEAR else (one,))]
    return list(dict.fromkeys(found))


@dataclass
class OptimConfig:
    algorithm: Algorithm
    lr: float  # peak learning rate, of LoRA's A
    loraplus_ratio: float  # learning rate of B over that of A; 1 is plain LoRA
    betas: list[float]  # how slowly AdamW forgets: gradients, and their squares
    eps: float  # added to the denominator of AdamW's update
    weight_decay: float  # of LoRA's weights; each step takes learning rate times this share of them
    warmup_steps: float  # optimizer steps; below 1: a share of the run's
    decay: Decay
    max_grad_norm: float  # longer gradients are cut to this norm; 0: no clipping

    def __post_init__(self) -> None:
        check(self.lr > 0, "optim.lr", "be positive", self.lr)
        check(self.loraplus_ratio > 0, "optim.loraplus_ratio", "be positive", self.loraplus_ratio)
        good = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(good, "optim.betas", "be two numbers in [0, 1)", list(self.betas))
        check(self.eps > 0, "optim.eps", "be positive", self.eps)
        check(self.weight_decay >= 0, "optim.weight_decay", "not be negative", self.weight_decay)
        check(self.max_grad_norm >= 0, "optim.max_grad_norm", "not be negative", self.max_grad_norm)
        check_most(
            self, "optim.", lr=LARGEST, loraplus_ratio=1e6, eps=1, weight_decay=1e6, warmup_steps=MOST_STEPS,
            max_grad_norm=LARGEST,
        )  # fmt: skip
        self.warmup_steps = share_or_steps("optim.warmup_steps", self.warmup_steps, least=0)


@dataclass
class Columns:
    """Columns of a table by what they hold; null: recognised by name (medreason/data/examples.py)."""

    question: str | None = None
    reasoning: str | None = None
    answer: str | None = None


MOST_WEIGHT = 10_000  # of a source: how often each row comes in an epoch


@dataclass
class Mixed:
    """A further source, mixed with data.path. A list's entries have no YAML file, so defaults stand here."""

    path: str
    weight: float = 1.0  # how often each of its rows comes in an epoch: 0.5 takes half of them, 2 each twice
    name: str | None = None
    revision: str | None = None
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        check(bool(self.path), "data.mix", "name a path in each entry", self.path)
        check(self.weight > 0, "data.mix: weight", "be positive", self.weight)
        check_most(self, "data.mix: ", weight=MOST_WEIGHT)
        self.path = place("data.mix: path", self.path)


@dataclass
class DataConfig:
    source: Source
    path: str | None  # hub name, or a JSON, JSONL, Parquet or CSV file, or a folder of them (train alone, if split)
    name: str | None  # configuration of the hub data set (en, zh, ...)
    revision: str | None  # branch, tag or commit on the hub
    weight: float  # how often each row of data.path comes in an epoch
    mix: list[Mixed]  # further sources: [{path: FILE, weight: 0.5}]
    columns: Columns
    on_bad_row: OnBadRow
    max_bad_share: float  # under skip: more bad rows than this are an error
    max_field_chars: int  # a longer question, reasoning or answer is a bad row
    deduplicate: Deduplicate
    near_duplicate: float  # Jaccard similarity of two questions' three-word runs from which they are nearly the same
    decontaminate: Decontaminate
    benchmarks: list[str]  # files or hub data sets with a `question` column
    format: Format
    cases: int  # how many clinical_cases are made
    case_kinds: list[str] | None  # which kinds of clinical_cases; null: all
    packing: Packing
    row_tokens: int  # length of a packed row
    too_long: TooLong
    validation_share: float  # share of the rows held out, chosen by content
    max_validation_rows: int | None  # of those, how many are scored at most
    seed: int  # split, order of rows, and clinical_cases

    def __post_init__(self) -> None:
        check(self.row_tokens >= 16, "data.row_tokens", "be at least 16", self.row_tokens)
        check(self.cases >= 0, "data.cases", "not be negative", self.cases)
        check(0 < self.validation_share < 1, "data.validation_share", "be in (0, 1)", self.validation_share)
        limit = self.max_validation_rows
        check(limit is None or limit > 0, "data.max_validation_rows", "be positive or null", limit)
        check(self.weight > 0, "data.weight", "be positive", self.weight)
        check_most(
            self, "data.", weight=MOST_WEIGHT, row_tokens=MOST_TOKENS, max_validation_rows=MOST_STEPS,
            max_field_chars=MOST_STEPS, cases=10**7,
        )  # fmt: skip
        check(abs(self.seed) < 2**SEED_BITS, "data.seed", f"have at most {SEED_BITS} bits", self.seed)
        self.path = None if self.path is None else place("data.path", self.path)
        self.benchmarks = [place("data.benchmarks", path) for path in self.benchmarks]
        check(all(self.benchmarks), "data.benchmarks", "name files or hub data sets", self.benchmarks)
        check(0 <= self.max_bad_share <= 1, "data.max_bad_share", "be in [0, 1]", self.max_bad_share)
        check(self.max_field_chars > 0, "data.max_field_chars", "be positive", self.max_field_chars)
        check(0 < self.near_duplicate <= 1, "data.near_duplicate", "be in (0, 1]", self.near_duplicate)
        if self.decontaminate is Decontaminate.drop:
            check(bool(self.benchmarks), "data.benchmarks", "name what data.decontaminate=drop compares with", [])
        if self.decontaminate is Decontaminate.off:
            check(not self.benchmarks, "data.decontaminate", "be report or drop where benchmarks are named", "off")
        if self.source is Source.clinical_cases:
            check(self.cases > 0, "data.cases", "be positive", self.cases)
            check(not self.mix, "data.mix", "be empty with data=clinical_cases", "entries")
        else:
            check(bool(self.path), "data.path", "name a file or a hub data set (data.path=FILE)", self.path)

    def sources(self) -> list[Mixed]:
        """data.path as one source among those mixed with it; none for rule-made cases."""
        if self.path is None or self.source is Source.clinical_cases:
            return []
        return [Mixed(self.path, self.weight, self.name, self.revision, self.columns), *self.mix]


@dataclass
class TrainerConfig:
    accelerator: str  # what trains
    nodes: int  # machines that train together; all see the run's folder
    devices: int  # GPUs of each machine; with more than one, each is a process of its own (DDP)
    precision: str  # Lightning's, or auto: 32-true, but 16-mixed (float16 with a scaled loss) on a GPU without bfloat16
    max_epochs: int  # passes over the rows
    max_steps: int  # optimizer steps; the epochs end a run too. -1: the epochs alone do
    rows_per_batch: int  # packed rows in one forward pass
    accumulate: int  # forward passes per optimizer step
    recompute: Recompute
    memory_gib: float | None  # the most of a GPU's memory that each process may take; null: all that is free
    validate_every_steps: float  # optimizer steps between validations; below 1: a share of the run's
    checkpoint_every_steps: float  # optimizer steps between resumable checkpoints; below 1: a share of the run's
    patience: int | None  # validations in a row without a lower `monitor` after which training ends; null: never
    answer_questions: int  # held-out questions answered before, during and after training; 0: none
    answer_share: float  # of the time of training, the most that answering at validations may take; 0: none there
    answer_batch: int  # questions answered at once
    max_answer_tokens: int  # of an answer, reasoning included; a longer one is cut

    def __post_init__(self) -> None:
        check(self.accelerator in ("gpu", "cpu"), "trainer.accelerator", "be gpu or cpu", self.accelerator)
        check(
            self.precision in ("auto", "32-true", "bf16-mixed", "16-mixed"),
            "trainer.precision",
            "be auto, 32-true, bf16-mixed or 16-mixed (bf16-true would round LoRA and 4-bit code books)",
            self.precision,
        )
        check(self.max_epochs > 0, "trainer.max_epochs", "be positive", self.max_epochs)
        check(self.max_steps == -1 or self.max_steps > 0, "trainer.max_steps", "be positive or -1", self.max_steps)
        check(self.memory_gib is None or self.memory_gib > 0, "trainer.memory_gib", "be positive", self.memory_gib)
        for name in ("nodes", "devices", "rows_per_batch", "accumulate"):
            check(getattr(self, name) > 0, f"trainer.{name}", "be positive", getattr(self, name))
        check(self.patience is None or self.patience > 0, "trainer.patience", "be positive or null", self.patience)
        check(self.answer_questions >= 0, "trainer.answer_questions", "not be negative", self.answer_questions)
        check(0 <= self.answer_share < 1, "trainer.answer_share", "be in [0, 1)", self.answer_share)
        for name in ("answer_batch", "max_answer_tokens"):
            check(getattr(self, name) > 0, f"trainer.{name}", "be positive", getattr(self, name))
        check_most(
            self, "trainer.", max_epochs=10**6, max_steps=MOST_STEPS, memory_gib=10**6, nodes=10_000, devices=1024,
            rows_per_batch=MOST_AT_ONCE, accumulate=10**6, validate_every_steps=MOST_STEPS,
            checkpoint_every_steps=MOST_STEPS, patience=MOST_STEPS, answer_questions=MOST_STEPS,
            answer_batch=MOST_AT_ONCE, max_answer_tokens=MOST_TOKENS,
        )  # fmt: skip
        for name in ("validate_every_steps", "checkpoint_every_steps"):
            setattr(self, name, share_or_steps(f"trainer.{name}", getattr(self, name)))

    @property
    def world_size(self) -> int:
        """Processes that train together, on all machines."""
        return self.nodes * self.devices


@dataclass
class LoggerConfig:
    kind: LoggerKind
    project: str  # of W&B and Trackio; MLflow calls it an experiment
    name: str | None  # of the run there; null: the run directory's
    tags: list[str]  # of the run in W&B and MLflow


ALL_LINEAR = "all-linear"  # PEFT's word
ENDS = ("lm_head", "embed_tokens")
DECODER_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # Llama's and Mistral's
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
    resume: str | None  # a run to go on with in its own folder, with its own settings; `last`: the newest under runs/

    def __post_init__(self) -> None:
        check(self.monitor in MONITORED, "monitor", f"be one of {', '.join(MONITORED)}", self.monitor)
        check(0 <= self.seed < SEEDS, "seed", f"be in 0 to {SEEDS - 1}", self.seed)
        if self.ckpt is not None:
            check(bool(self.ckpt.strip()), "ckpt", "name a checkpoint, be last or null", self.ckpt)
            self.ckpt = place("ckpt", self.ckpt)
        settle_places(self, "resume")
        self.check_engine()

    def check_engine(self) -> None:
        """Raises ConfigError for what the model's engine does not have."""
        recompute = self.trainer.recompute
        if not self.model.fast:
            known = recompute is not Recompute.selective
            rule = "be auto, none, full or unsloth with Unsloth's engine (model.engine)"
            check(known, "trainer.recompute", rule, recompute.value)
            return
        known = recompute is not Recompute.unsloth
        check(known, "trainer.recompute", "be auto, none, selective or full with the fast engine", recompute.value)
        instead = "be {} with the fast engine (model.engine=unsloth with nf4, int8 or half has it)"
        check(not self.lora.dora, "lora.dora", instead.format("false"), self.lora.dora)
        check(not self.lora.dropout, "lora.dropout", instead.format("0"), self.lora.dropout)
        unknown = [one for one in self.lora.target_modules if one not in DECODER_LINEARS]
        rule = f"be of {', '.join(DECODER_LINEARS)} with the fast engine"
        check(not unknown, "lora.target_modules", rule, unknown)
        rule = "be auto, 32-true or bf16-mixed with the fast engine"
        check(self.trainer.precision != "16-mixed", "trainer.precision", rule, self.trainer.precision)


# settings that runs of earlier releases lack, with what those runs did
NEWER = {
    "resume": None, "trainer.patience": None, "trainer.nodes": 1, "model.engine": "auto", "model.compute_dtype": "auto",
}  # fmt: skip


@dataclass
class EvaluateConfig:
    run: str  # a run directory, an adapter's folder, or a model (folder, hub name, embedded:NAME)
    base: bool  # evaluate the model as it was before the run instead
    checkpoint: Checkpoint | None  # weights of the run's best or last step; null: the best
    precision: Precision | None  # of the base; null: as the run had it, without one nf4 (half on a CPU)
    format: Format | None  # of prompts and answers; null: as the run had it, without one think
    benchmarks: list[str]  # names (medreason/data/known_benchmarks.py) or files of their form
    method: Method
    limit: int | None  # questions of each benchmark, chosen by `seed`
    batch: int | None  # questions answered at once, at most, or asked of a server; null: by method
    max_new_tokens: int  # with method=generate
    thinking_tokens: list[int] | None  # budgets of reasoning, each scored; an answer has max_new_tokens beside them
    samples: int  # with method=generate: answers to each question, of which the most frequent counts
    temperature: float  # of samples; a single answer is greedy
    stress: Stress | None  # questions made harder, compared with the plain ones where these are answered
    orders: int  # orders of the options in which a question is asked; its letters' places are then no hint
    batching: Batching | None  # with method=generate; null: what is fastest for this model here
    server: str | None  # with method=generate: address of an OpenAI-compatible server that writes instead
    served_model: str | None  # what the server calls the model; null: as medreason.serve does
    judge: str | None  # with method=generate: address of an OpenAI-compatible server whose model judges open answers
    judge_model: str | None  # what that server calls the judge; null: the one that it lists
    judge_tokens: int  # that a reply of the judge may have, its reasoning included
    against: str | None  # folder of another evaluation, compared question by question
    output: str | None  # null: RUN/evaluation/METHOD, _base, _last or _served; for a model alone under runs/
    seed: int  # draws the questions of `limit`, orders of options and samples

    def __post_init__(self) -> None:
        check(bool(self.run), "run", "name a run directory (run=DIR)", self.run)
        check(bool(self.benchmarks), "benchmarks", "name at least one (benchmarks=[medqa])", [])
        check(self.limit is None or self.limit > 0, "limit", "be positive or null", self.limit)
        check(self.batch is None or self.batch > 0, "batch", "be positive or null", self.batch)
        for name in ("max_new_tokens", "samples", "orders", "judge_tokens"):
            check(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        check(self.temperature > 0, "temperature", "be positive", self.temperature)
        check_most(
            self, "", limit=MOST_STEPS, batch=MOST_AT_ONCE, max_new_tokens=MOST_TOKENS, samples=10_000, orders=10_000,
            temperature=1000, judge_tokens=MOST_TOKENS,
        )  # fmt: skip
        check(abs(self.seed) < 2**SEED_BITS, "seed", f"have at most {SEED_BITS} bits", self.seed)
        self.run = place("run", self.run)
        check(all(self.benchmarks), "benchmarks", "be names or files", list(self.benchmarks))
        self.benchmarks = [place("benchmarks", name) for name in self.benchmarks]
        settle_places(self, "against", "output")
        check_one_model(self.base, self.checkpoint)
        written = self.method is Method.generate
        if (budgets := self.thinking_tokens) is not None:
            rule = "be null where nothing is written here (method=generate without a server)"
            check(written and not self.server, "thinking_tokens", rule, budgets)
            rule = "name budgets of tokens, each once, such as [128,256,512,1024]"
            check(bool(budgets) and len(set(budgets)) == len(budgets), "thinking_tokens", rule, budgets)
            rule = f"be of 1 to {MOST_TOKENS:,} tokens"
            check(all(0 < budget <= MOST_TOKENS for budget in budgets), "thinking_tokens", rule, budgets)
            self.thinking_tokens = sorted(budgets)
        check(written or self.samples == 1, "samples", "be 1 where nothing is written (method=generate)", self.samples)
        prefilled = self.stress is Stress.prefill
        alone = "be none_of_above or null where nothing is written here (method=generate without a server)"
        check(not prefilled or (written and not self.server), "stress", alone, "prefill")
        check(written or not self.server, "server", "be null where nothing is written (method=generate)", self.server)
        named = self.served_model is not None
        check(not named or bool(self.server), "served_model", "be null without server=URL", self.served_model)
        check(written or not self.judge, "judge", "be null where nothing is written (method=generate)", self.judge)
        judging = self.judge_model is not None
        check(not judging or bool(self.judge), "judge_model", "be null without judge=URL", self.judge_model)
        if self.server is not None:
            local = "be left out where a server writes, which holds the model as it is served"
            for name in ("base", "checkpoint", "precision", "batching"):
                given = getattr(self, name)
                check(not given, name, local, getattr(given, "value", given))


@dataclass
class VerdictConfig:
    run: str  # a run directory
    checkpoint: Checkpoint | None  # weights of the run's best or last step; null: the best
    benchmarks: list[str]  # names (medreason/data/known_benchmarks.py) or files of their form
    forgetting: list[str]  # benchmarks outside what was trained, watched for what the run forgot
    method: Method
    limit: int | None  # questions of each benchmark, chosen by `seed`
    batch: int | None  # questions answered at once; null: by method
    max_new_tokens: int  # with method=generate
    margin: float  # points of accuracy that do not matter: a difference surely within them is called the same
    fail_if_worse: bool  # exit code 1 where the run is worse on any benchmark
    output: str | None  # null: RUN/evaluation/verdict_METHOD
    seed: int  # draws the questions of `limit`

    def __post_init__(self) -> None:
        check(bool(self.run), "run", "name a run directory (run=DIR)", self.run)
        check(bool(self.benchmarks or self.forgetting), "benchmarks", "name at least one (benchmarks=[medqa])", [])
        for name in ("limit", "batch"):
            value = getattr(self, name)
            check(value is None or value > 0, name, "be positive or null", value)
        check(self.max_new_tokens > 0, "max_new_tokens", "be positive", self.max_new_tokens)
        check(0 <= self.margin <= 100, "margin", "be in 0 to 100", self.margin)
        check_most(self, "", limit=MOST_STEPS, batch=MOST_AT_ONCE, max_new_tokens=MOST_TOKENS)
        check(abs(self.seed) < 2**SEED_BITS, "seed", f"have at most {SEED_BITS} bits", self.seed)
        self.run = place("run", self.run)
        for name in ("benchmarks", "forgetting"):
            check(all(getattr(self, name)), name, "be names or files", list(getattr(self, name)))
            setattr(self, name, [place(name, one) for one in getattr(self, name)])
        settle_places(self, "output")


@dataclass
class SampleConfig:
    run: str  # a run directory, an adapter's folder, or a model (folder, hub name, embedded:NAME)
    base: bool  # ask the model as it was before the run instead
    checkpoint: Checkpoint | None  # weights of the run's best or last step; null: the best
    precision: Precision | None  # of the base; null: as the run had it, without one nf4 (half on a CPU)
    data: str | None  # a file or folder, another run (its clinical cases), NAME:train of the hub; null: the run's own
    benchmarks: list[str]  # files or hub data sets whose questions are not asked; those of the run's rows join them
    samples: int  # answers to each question
    temperature: float  # of samples
    keep: int  # right answers that are kept of each question, at most: those written most often, no text twice
    right_share: float  # of a question's answers that must be right for any to be kept: fewer may be luck
    limit: int | None  # questions, chosen by `seed`
    batch: int | None  # answers written at once, at most; null: 32 with batching=static, else what memory holds
    batching: Batching | None  # null: what is fastest for this model here
    max_new_tokens: int  # of an answer, reasoning included; one that is cut is not kept
    output: str | None  # null: RUN/sampled, _base or _last; for a model alone under runs/
    seed: int  # draws the questions of `limit`, and samples

    def __post_init__(self) -> None:
        check(bool(self.run), "run", "name a run directory (run=DIR)", self.run)
        for name in ("limit", "batch"):
            value = getattr(self, name)
            check(value is None or value > 0, name, "be positive or null", value)
        for name in ("samples", "keep", "max_new_tokens"):
            check(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        check(self.temperature > 0, "temperature", "be positive", self.temperature)
        check_most(
            self, "", limit=MOST_STEPS, batch=MOST_AT_ONCE, max_new_tokens=MOST_TOKENS, samples=10_000, keep=10_000,
            temperature=1000,
        )  # fmt: skip
        check(abs(self.seed) < 2**SEED_BITS, "seed", f"have at most {SEED_BITS} bits", self.seed)
        check(0 <= self.right_share <= 1, "right_share", "be in 0 to 1", self.right_share)
        self.run = place("run", self.run)
        check(all(self.benchmarks), "benchmarks", "be files or hub data sets", list(self.benchmarks))
        self.benchmarks = [place("benchmarks", name) for name in self.benchmarks]
        settle_places(self, "data", "output")
        check_one_model(self.base, self.checkpoint)


@dataclass
class ExportConfig:
    run: str  # a run directory
    format: ExportFormat
    quantization: Quantization | None  # of format=gguf; null: q8_0
    output: str | None  # a new folder; null: RUN/export_FORMAT, with checkpoint=last RUN/export_FORMAT_last
    questions: int  # asked of the adapter on its base and of the export
    max_new_tokens: int  # of each answer
    checkpoint: Checkpoint | None  # weights of the run's best or last step; null: the best
    push: str | None = None  # the hub's OWNER/NAME that the export is sent to once it has proved itself
    public: bool = False  # whether anyone may read it there; else its owner alone

    def __post_init__(self) -> None:
        check(bool(self.run), "run", "name a run directory (run=DIR)", self.run)
        check(bool(self.push) or not self.public, "public", "be false without push=OWNER/NAME", self.public)
        self.run = place("run", self.run)
        settle_places(self, "output")
        check_most(self, "", questions=MOST_STEPS, max_new_tokens=MOST_TOKENS)
        if self.format is not ExportFormat.gguf:
            kind = f"be null with format={self.format.value}: only format=gguf has one"
            check(self.quantization is None, "quantization", kind, self.quantization and self.quantization.value)
        for name in ("questions", "max_new_tokens"):
            check(getattr(self, name) > 0, name, "be positive", getattr(self, name))


@dataclass
class ChatConfig:
    run: str  # a run directory, an adapter's folder, or a model (folder, hub name, embedded:NAME)
    base: bool  # talk to the model as it was before the run
    checkpoint: Checkpoint | None  # weights of the run's best or last step; null: the best
    precision: Precision | None  # of the base; null: as the run had it
    page: bool  # a web page instead of the terminal
    host: str  # that the page listens on
    port: int  # that the page listens on
    max_new_tokens: int  # of an answer, reasoning included
    temperature: float  # 0: always the likeliest token

    def __post_init__(self) -> None:
        check(bool(self.run), "run", "name a run directory (run=DIR)", self.run)
        check(0 < self.port < 65536, "port", "be in 1 to 65535", self.port)
        check(self.max_new_tokens > 0, "max_new_tokens", "be positive", self.max_new_tokens)
        check(self.temperature >= 0, "temperature", "not be negative", self.temperature)
        check_most(self, "", max_new_tokens=MOST_TOKENS, temperature=1000)
        check_one_model(self.base, self.checkpoint)
        self.run = place("run", self.run)


class Clean(Enum):
    """What becomes of folders that hold nothing: runs that ended before their first step, and empty ones."""

    list = "list"  # they are named
    remove = "remove"  # they are removed


@dataclass
class RunsConfig:
    folder: str  # that runs and sweeps lie in
    trials: bool  # a sweep's runs one by one
    clean: Clean | None  # name or remove folders that hold nothing; null: list runs

    def __post_init__(self) -> None:
        check(bool(self.folder), "folder", "name a folder", self.folder)
        self.folder = place("folder", self.folder)


@dataclass
class ServeConfig:
    run: str | None  # a run directory: its export_merged (_last) is served, and made where there is none
    checkpoint: Checkpoint | None  # weights of the run's best or last step; null: the best
    weights: str | None  # the folder of a merged export, in place of a run
    engine: Engine
    host: str  # that the server listens on; 0.0.0.0: everyone who can reach this machine may ask
    port: int  # that the server listens on
    max_requests: int | None  # at work and waiting; null: 64 by transformers, 256 at work by vLLM

    def __post_init__(self) -> None:
        rule = "name a run directory (run=DIR), or weights=DIR an export, not both"
        check(bool(self.run) != bool(self.weights), "run", rule, self.run)
        given = self.checkpoint and self.checkpoint.value
        check(given is None or bool(self.run), "checkpoint", "be left out with weights=DIR", given)
        settle_places(self, "run", "weights")
        check(0 < self.port < 65536, "port", "be in 1 to 65535", self.port)
        most = self.max_requests
        check(most is None or 0 < most <= 10_000, "max_requests", "be in 1 to 10000", most)


@dataclass
class TrialsConfig:
    """How trials of a sweep are carried out."""

    storage: str | None  # null: study.db in the sweep's folder; journal: study.log there; else a URL for SQLAlchemy
    parallel: int  # trials handed to the launcher at once
    trials_per_gpu: int  # where a trial takes one of several GPUs
    retries: int  # how often a trial that was killed goes on from its checkpoint
    keep_model: bool  # a trial begins in the process of the one before, which has the base loaded

    def __post_init__(self) -> None:
        for name in ("parallel", "trials_per_gpu"):
            check(getattr(self, name) > 0, f"hydra.sweeper.{name}", "be positive", getattr(self, name))
        check(self.retries >= 0, "hydra.sweeper.retries", "not be negative", self.retries)
        known = self.storage is None or self.storage == "journal" or "://" in self.storage
        check(known, "hydra.sweeper.storage", "be null, journal or a URL such as sqlite:///FILE", self.storage)
        check_most(self, "hydra.sweeper.", parallel=10_000, trials_per_gpu=1000, retries=10_000)
        self.storage = None if self.storage is None else at_home(self.storage)


@dataclass
class SearchConfig(TrialsConfig):
    """hydra.sweeper=optuna. A budget ends the sweep: no trial begins once one of those given is used up."""

    sampler: Sampler
    pruner: Pruner
    min_steps: float  # optimizer steps that every trial may take; below 1: a share of a trial's
    reduction_factor: int  # of asha and hyperband
    trials: int | None  # budget: trials, those before an interruption included
    tokens: int | None  # budget: tokens trained on by all trials
    hours: float | None  # budget: wall time of this command
    seed: int  # of the sampler
    params: dict[str, Any]  # setting -> choice(...), range(...), interval(...), tag(log, ...)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.reduction_factor > 1, "hydra.sweeper.reduction_factor", "be at least 2", self.reduction_factor)
        budgets = {"trials": self.trials, "tokens": self.tokens, "hours": self.hours}
        for name, budget in budgets.items():
            check(budget is None or budget > 0, f"hydra.sweeper.{name}", "be positive or null", budget)
        check_most(
            self,
            "hydra.sweeper.",
            min_steps=MOST_STEPS,
            reduction_factor=1000,
            trials=10**6,
            tokens=10**18,
            hours=10**6,
        )
        self.min_steps = share_or_steps("hydra.sweeper.min_steps", self.min_steps)
        check(0 <= self.seed < SEEDS, "hydra.sweeper.seed", f"be in 0 to {SEEDS - 1}", self.seed)
        check(any(budgets.values()), "hydra.sweeper.trials", "be given, or tokens, or hours: else it never ends", None)


@dataclass
class LrThenRankConfig(SearchConfig):
    """hydra.sweeper=lr_then_rank."""

    rank: int  # of lr_then_rank: lora.r while learning rates are searched
    lr_trials: int  # of lr_then_rank: trials at that rank, before the others are tried

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "lr_trials"):
            check(getattr(self, name) > 0, f"hydra.sweeper.{name}", "be positive", getattr(self, name))
        check_most(self, "hydra.sweeper.", rank=2**16, lr_trials=10**6)


@dataclass
class ConfirmConfig(TrialsConfig):
    """hydra.sweeper=confirm."""

    sweep: str  # the folder of a finished sweep
    top: int  # how many of its best trials
    seeds: int  # how often each is trained anew

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.top > 0, "hydra.sweeper.top", "be positive", self.top)
        check(self.seeds > 1, "hydra.sweeper.seeds", "be at least 2", self.seeds)
        check_most(self, "hydra.sweeper.", top=10_000, seeds=10_000)
        check(bool(self.sweep.strip()), "hydra.sweeper.sweep", "name the folder of a sweep", self.sweep)
        self.sweep = place("hydra.sweeper.sweep", self.sweep)


def at_home(url: str) -> str:
    """The URL of a file with `~` as the home folder."""
    return HOME.sub(lambda found: found[1] + os.path.expanduser(found[2]), url)  # noqa: PTH111  # of text, not a path
