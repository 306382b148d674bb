"""What can be known before anything slow: whether this machine and the hub can give what a run asks for."""

import http.client
import os
import socket
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from medreason import embedded
from medreason.chat_template import check_chat_template
from medreason.config import ConfigError, DataConfig, ModelConfig, Precision, TrainConfig, TrainerConfig
from medreason.prompts import FORMATS
from medreason.sources import is_local
from medreason.storage import hidden

EMBEDDED = "embedded:"
API_KEY = "OPENAI_API_KEY"  # the variable that OpenAI's own clients read


def check_run(config: TrainConfig) -> None:
    """Raises ConfigError, in about three seconds, for a run that cannot start here. Call before any hub library."""
    check_model_path(config.model)
    if config.model.chat_template and FORMATS[config.data.format].prompt is None:
        check_chat_template(config.model.chat_template, "model.chat_template")
    settle_hub(config.model, config.data)
    check_hub_model(config.model)
    check_hardware(config.model, config.trainer)


def check_model_path(model: ModelConfig) -> None:
    """Raises ConfigError for a path that is neither an embedded model, nor a model's folder, nor a hub name."""
    if model.path.startswith(EMBEDDED):
        embedded.find(model.path.removeprefix(EMBEDDED))
    elif Path(model.path).is_dir():
        if not (Path(model.path) / "config.json").is_file():
            raise ConfigError(f"model.path={model.path}: no config.json there; name the folder a model was saved to")
    elif model.path.count("/") != 1 or model.path.startswith((".", "/", "~")):
        raise ConfigError(f"model.path={model.path}: no such folder; name a model's folder or a hub model (OWNER/NAME)")


def on_hub(model: ModelConfig) -> bool:
    return not model.path.startswith(EMBEDDED) and not Path(model.path).is_dir()


def settle_hub(model: ModelConfig, data: DataConfig) -> None:
    """Turns the hub off for this process where nothing is wanted from it or it cannot be reached.

    Else the libraries retry every call for half a minute; with the hub off they look into their caches at once.
    """
    paths = [*(source.path for source in data.sources()), *data.benchmarks]
    data_on_hub = any(not is_local(path) for path in paths)
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
    """Raises ConfigError where a hub model is neither in the cache nor on the hub."""
    if not on_hub(model):
        return
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(model.path, "config.json", revision=model.revision), str):
            return
        HfApi().model_info(model.path, revision=model.revision, timeout=5)
    except Exception as error:  # no network, no such model, no right to it: the way out is the same
        raise ConfigError(
            f"model.path={model.path}: neither a folder here nor to be had from the hub ({type(error).__name__}); "
            "name a local copy with model.path=DIR"
        ) from error


def check_hardware(model: ModelConfig, trainer: TrainerConfig) -> None:
    """Raises ConfigError for a setting that this machine cannot honour."""
    if trainer.accelerator == "cpu" and model.precision is Precision.int8:
        raise ConfigError("model.precision=int8 needs a CUDA GPU; on a CPU use model.precision=nf4 or half")
    import torch

    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=gpu, but there is no CUDA GPU here; use trainer=cpu with a small model "
            "(model=smollm2_135m), or run experiments=quickstart"
        )
    if model.precision is Precision.fp8 and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        raise ConfigError(
            f"model.precision=fp8 needs a GPU of compute capability 8.9 or newer (Ada, Hopper), and "
            f"{torch.cuda.get_device_name()} is older; use model.precision=bf16 or nf4"
        )
    if trainer.accelerator == "gpu" and trainer.devices > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices={trainer.devices}, but {torch.cuda.device_count()} GPUs are here; lower trainer.devices"
        )
    if trainer.accelerator == "cpu" and torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=cpu, but Unsloth would use the GPU that is here; "
            "use trainer=gpu, or hide it with CUDA_VISIBLE_DEVICES=''"
        )


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


def check_server(server: str) -> None:
    """Raises ConfigError for an address at which no OpenAI-compatible server is at work."""
    key = os.environ.get(API_KEY)
    try:
        models = urllib.request.Request(f"{server.rstrip('/')}/models")
        if key:
            models.add_header("Authorization", f"Bearer {key}")
        urllib.request.urlopen(models, timeout=10).close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = hidden(str(getattr(error, "reason", error))).lower()
        raise ConfigError(
            f"server={hidden(server)}: no list of models there ({why}); "
            "name the address that medreason.serve tells, with /v1"
        ) from error
