"""What can be known before anything slow: whether this machine and the hub can give what a run asks for."""

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from medreason.config import (
    ComputeDtype,
    ConfigError,
    LoggerConfig,
    LoggerKind,
    ModelConfig,
    Packing,
    Precision,
    TrainConfig,
    TrainerConfig,
    check,
    steps_of,
)
from medreason.core.hub import NotAllowed, check_readable
from medreason.core.run_directory import read_json
from medreason.core.storage import hidden
from medreason.models import embedded
from medreason.models.chat_template import check_chat_template
from medreason.models.prompts import FORMATS

EMBEDDED = "embedded:"
FP8_PRODUCTS = (8, 9)  # the compute capability that multiplies in eight bits
API_KEY = "OPENAI_API_KEY"  # the variable that OpenAI's own clients read
JUDGE_KEY = "JUDGE_API_KEY"  # for a judge with a key of its own


def check_run(config: TrainConfig, data_on_hub: bool) -> None:
    """Raises ConfigError, in about three seconds, for a run that cannot start here. Call before any hub library."""
    check_model_path(config.model)
    if config.model.chat_template and FORMATS[config.data.format].prompt is None:
        check_chat_template(config.model.chat_template, "model.chat_template")
    settle_hub(config.model, data_on_hub)
    check_hub_model(config.model)
    check_hardware(config.model, config.trainer)


def check_model_path(model: ModelConfig) -> None:
    """Raises ConfigError for a path that is neither an embedded model, nor a model's folder, nor a hub name."""
    if model.path.startswith(EMBEDDED):
        embedded.find(model.path.removeprefix(EMBEDDED))
    elif Path(model.path).is_dir():
        if not (Path(model.path) / "config.json").is_file():
            raise ConfigError(f"model.path={model.path}: no config.json there; name the folder a model was saved to")
        check_safetensors(Path(model.path), f"model.path={model.path}")
    elif model.path.count("/") != 1 or model.path.startswith((".", "/", "~")):
        raise ConfigError(f"model.path={model.path}: no such folder; name a model's folder or a hub model (OWNER/NAME)")


def check_safetensors(folder: Path, setting: str) -> None:
    """Raises ConfigError, naming `setting`, for safetensors in a folder that are cut, damaged or missing.

    Their first bytes say how long they are; what stands in them is not read.
    """
    for index in folder.glob("*.safetensors.index.json"):
        shards = read_json(index).get("weight_map") or {}
        for shard in sorted(set(map(str, shards.values()))):
            if not (folder / shard).is_file():
                raise ConfigError(f"{setting}: no {shard} in {folder}, of which {index.name} tells; copy it there")
    for file in sorted(folder.glob("*.safetensors")):
        if file.stat().st_size != told_length(file):
            raise ConfigError(f"{setting}: {file} is cut or damaged; copy it anew, or write it again")


def told_length(file: Path) -> int | None:
    """How long a safetensors file says it is, in bytes; None where it does not say."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            return None
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return 8 + length + int(max(ends, default=0))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None


def on_hub(model: ModelConfig) -> bool:
    return not model.path.startswith(EMBEDDED) and not Path(model.path).is_dir()


def settle_hub(model: ModelConfig, data_on_hub: bool) -> None:
    """Turns the hub off for this process where nothing is wanted from it or it cannot be reached.

    Else the libraries retry every call for half a minute; with the hub off they look into their caches at once.
    """
    if "HF_HUB_OFFLINE" not in os.environ and not ((on_hub(model) or data_on_hub) and hub_answers()):
        os.environ["HF_HUB_OFFLINE"] = "1"


def hub_answers() -> bool:
    """Whether the hub says anything at all within 3 seconds."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=3).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def check_hub_model(model: ModelConfig) -> None:
    """Raises ConfigError where a hub model is neither in the cache nor on the hub, or the hub asks who wants it."""
    if not on_hub(model):
        return
    from huggingface_hub import try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(model.path, "config.json", revision=model.revision), str):
            return
        check_readable(model.path, model.revision)
    except NotAllowed:
        raise
    except Exception as error:  # no network, no such model: the way out is the same
        raise ConfigError(
            f"model.path={model.path}: neither a folder here nor to be had from the hub ({type(error).__name__}); "
            "name a local copy with model.path=DIR"
        ) from error


def check_hardware(model: ModelConfig, trainer: TrainerConfig) -> None:
    """Raises ConfigError for a setting that this machine cannot honour."""
    if trainer.accelerator == "cpu":
        check_without_gpu(model.precision)
    import torch

    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=gpu, but there is no CUDA GPU here; use trainer=cpu with a small model "
            "(model=smollm2_135m), or run experiments=quickstart"
        )
    check_precision(model)
    check_float16(trainer)
    if trainer.accelerator == "gpu" and trainer.devices > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices={trainer.devices}, but {torch.cuda.device_count()} GPUs are here; lower trainer.devices"
        )
    if trainer.accelerator == "cpu" and torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=cpu, but Unsloth would use the GPU that is here; "
            "use trainer=gpu, or hide it with CUDA_VISIBLE_DEVICES=''"
        )


def lacks_bfloat16() -> bool:
    """Whether the GPU here computes in float16 alone, of 16-bit numbers: V100, T4, RTX 20 and older."""
    import torch

    return torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)


def lightning_precision(trainer: TrainerConfig) -> str:
    """trainer.precision, of which auto is float16 with a scaled loss where the GPU lacks bfloat16, else 32-true."""
    if trainer.precision != "auto":
        return trainer.precision
    return "16-mixed" if trainer.accelerator == "gpu" and lacks_bfloat16() else "32-true"


def check_without_gpu(precision: Precision, key: str = "model.precision") -> None:
    """Raises ConfigError for a way of holding weights that a CPU does not know."""
    if precision is Precision.int8:
        raise ConfigError(f"{key}=int8 needs a CUDA GPU; on a CPU use {key}=nf4 or half")


def check_precision(model: ModelConfig, key: str = "model.precision") -> None:
    """Raises ConfigError for a way of holding and multiplying weights that this machine does not know. Imports torch.

    `key` is the setting that chose it.
    """
    import torch

    if not torch.cuda.is_available():
        check_without_gpu(model.precision, key)
        return
    if not model.fast:
        return
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    if capability < (8, 0):
        own = key == "model.precision"
        what = f"{key}={model.precision.value}: the fast engine" if own else "the fast engine that trained this"
        instead = "use model.engine=unsloth model.precision=nf4" if own else f"with {key}=nf4 Unsloth's answers"
        raise ConfigError(
            f"{what} needs a GPU of compute capability 8.0 or newer (Ampere), and {name} is older; {instead}"
        )
    if model.compute_dtype is ComputeDtype.fp8 and capability < FP8_PRODUCTS:
        raise ConfigError(
            f"model.compute_dtype=fp8 needs a GPU of compute capability 8.9 or newer (Ada, Hopper), and {name} is "
            "older; use model.compute_dtype=auto, which multiplies in bf16 there"
        )


def multiplied_in_fp8(model: ModelConfig) -> bool:
    """Whether frozen weights are multiplied in eight bits: as model.compute_dtype says, or as this machine can."""
    if not model.fast or model.compute_dtype is ComputeDtype.bf16:
        return False
    if model.compute_dtype is ComputeDtype.fp8:
        return True
    import torch

    if not torch.cuda.is_available():
        return model.precision is Precision.fp8  # a CPU imitates it; who holds weights so wants to see what it does
    return model.precision is not Precision.bf16 and torch.cuda.get_device_capability() >= FP8_PRODUCTS


def check_float16(trainer: TrainerConfig) -> None:
    """Raises ConfigError for a trainer.precision that this machine does not compute in."""
    import torch

    if trainer.accelerator == "cpu":
        if trainer.precision == "16-mixed":
            raise ConfigError("trainer.precision=16-mixed needs a CUDA GPU; on a CPU use trainer.precision=auto")
        return
    if not lacks_bfloat16():
        return
    if trainer.precision in ("32-true", "bf16-mixed"):
        name = torch.cuda.get_device_name()
        why = ", and small gradients would vanish in float16" if trainer.precision == "32-true" else ""
        raise ConfigError(
            f"trainer.precision={trainer.precision}: {name} has no bfloat16{why}; use trainer.precision=auto, which "
            "scales the loss"
        )


def check_steps(config: TrainConfig, rows: int, total_steps: int, resumed: Path | None, behind: int) -> list[str]:
    """What a run cannot do as it is asked to, a line each.

    `rows` are those of an epoch, `total_steps` the run's optimizer steps, `behind` those of a checkpoint that it is
    resumed from. Raises ConfigError where no step would teach anything.
    """
    trainer, warmup = config.trainer, steps_of(config.optim.warmup_steps, total_steps, least=0)
    asked = config.optim.warmup_steps
    found = []
    if behind > total_steps:
        raise ConfigError(
            f"ckpt={resumed}: it has {behind} optimizer steps behind it, and this run ends after {total_steps}; "
            "raise trainer.max_steps or trainer.max_epochs"
        )
    if behind == total_steps:
        found.append(
            f"ckpt={resumed} has all {total_steps} optimizer steps behind it: nothing is trained, only measured; "
            "raise trainer.max_steps or trainer.max_epochs to train further"
        )
    elif warmup and total_steps == 1:
        raise ConfigError(
            f"optim.warmup_steps={asked}: the one optimizer step of this run ({count(rows, 'row')}) would have a "
            "learning rate of 0; set optim.warmup_steps=0, or train for more (trainer.max_epochs, data.row_tokens)"
        )
    elif warmup >= total_steps:
        found.append(
            f"optim.warmup_steps={asked} is no shorter than the run of {total_steps} optimizer steps: the learning "
            f"rate gets to {(total_steps - 1) / warmup:.0%} of optim.lr at most; lower it"
        )
    if trainer.max_steps > total_steps:
        found.append(
            f"the run ends with its epochs, after {count(total_steps, 'optimizer step')} of "
            f"trainer.max_steps={trainer.max_steps}; raise trainer.max_epochs"
        )
    together = trainer.rows_per_batch * trainer.accumulate * trainer.world_size
    if together > rows:
        found.append(
            f"an optimizer step asks for {together} rows (trainer.rows_per_batch x accumulate x devices x nodes), and "
            f"an epoch has {rows}: each step takes these"
        )
    return found


FEW_STEPS, FEW_HELD_OUT = 30, 10


def describe_few(config: TrainConfig, rows: int, total_steps: int, longest: int, held_out: int) -> list[str]:
    """Lines on a run that makes few optimizer steps, or has little to pick the best of them by, and what gives more.

    `rows` are those of an epoch, `longest` the tokens of the longest document, `held_out` documents.
    """
    trainer, data, found = config.trainer, config.data, []
    if total_steps < FEW_STEPS and total_steps != trainer.max_steps:
        together = trainer.rows_per_batch * trainer.world_size * trainer.accumulate
        an_epoch = -(-rows // together)
        epochs = -(-FEW_STEPS // an_epoch)
        ways = [f"trainer.max_epochs={epochs} makes {epochs * an_epoch}"]
        if trainer.accumulate > 1:
            steps = trainer.max_epochs * -(-rows * trainer.accumulate // together)
            ways.append(f"trainer.accumulate=1 {steps}")
        tokens = data.row_tokens
        while tokens // 2 >= longest and total_steps * data.row_tokens / tokens < FEW_STEPS:
            tokens //= 2
        if data.packing is Packing.best_fit and tokens < data.row_tokens:
            ways.append(f"data.row_tokens={tokens} about {total_steps * data.row_tokens // tokens}")
        found.append(f"{count(total_steps, 'optimizer step')}: few to learn from; {', '.join(ways)}")
    if held_out < FEW_HELD_OUT and held_out != data.max_validation_rows:
        found.append(
            f"{count(held_out, 'held-out example')} to pick the best step by: nearly chance; "
            f"data.validation_share={max(0.2, min(0.5, 2 * data.validation_share)):g} holds out more"
        )
    return found


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def check_installed(extra: str, *packages: str) -> None:
    """Raises ConfigError where a package is missing that an extra of this one brings."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ConfigError(f"no {missing[0]} here; pip install 'medreason[{extra}]'")


def check_port(host: str, port: int) -> None:
    """Raises ConfigError where nothing can listen, as there is no such address here or the port is taken."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, TypeError, ValueError) as error:  # the latter: a name that no host can have
        why = str(getattr(error, "strerror", None) or "no such host").partition(" (")[0].lower()
        raise ConfigError(f"host={host} port={port}: {why}; give another port=NUMBER") from error


LOGGERS = {  # what each needs; mlflow or mlflow-skinny have MLflow's client, and optuna brings its database
    LoggerKind.tensorboard: "tensorboard",
    LoggerKind.mlflow: "mlflow",
    LoggerKind.trackio: "trackio",
}


def check_logger(logger: LoggerConfig) -> None:
    """Raises ConfigError where TensorBoard, MLflow or Trackio is asked for and cannot log."""
    package = LOGGERS.get(logger.kind)
    if package is None:
        return
    check_installed("loggers", package)
    for setting, name in (("project", logger.project), ("name", logger.name)):
        check(name is None or 0 < len(name.strip()) <= 128, f"logger.{setting}", "have 1 to 128 characters", name)
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if logger.kind is LoggerKind.mlflow and server.startswith("http"):
        try:
            urllib.request.urlopen(server, timeout=5).close()
        except urllib.error.HTTPError:
            return  # it answers; who may write it will say
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = hidden(str(getattr(error, "reason", error))).lower()
            raise ConfigError(
                f"MLFLOW_TRACKING_URI={hidden(server)}: does not answer ({why}); mend or unset it"
            ) from error


def api_key(setting: str) -> str:
    """The key for the server of a setting, from the environment; "" where there is none."""
    return (setting == "judge" and os.environ.get(JUDGE_KEY)) or os.environ.get(API_KEY) or ""


def check_server(server: str, setting: str = "server") -> list[str]:
    """Names of the models that an OpenAI-compatible server lists. Raises ConfigError where none is at work there."""
    key = api_key(setting)
    try:
        models = urllib.request.Request(f"{server.rstrip('/')}/models")
        if key:
            models.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(models, timeout=10) as reply:
            listed = json.load(reply)
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = hidden(str(getattr(error, "reason", error))).lower()
        raise ConfigError(
            f"{setting}={hidden(server)}: no list of models there ({why}); "
            "name the address that medreason.serve tells, with /v1"
        ) from error
    models_there = listed.get("data") if isinstance(listed, dict) else None
    return [str(one.get("id")) for one in models_there or [] if isinstance(one, dict)]
