"""Who answers: a run of this project, an adapter in PEFT's format, or a model alone."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from medreason.config import (
    Checkpoint,
    ComputeDtype,
    ConfigError,
    Format,
    LoraConfig,
    Precision,
    TrainConfig,
    TrainingEngine,
    typed,
)
from medreason.core.cli import composed
from medreason.core.hub import NotAllowed, hub_name
from medreason.core.run_directory import adapter_of, folder_name, read_json, run_config
from medreason.data.sources import needs_hub
from medreason.models import embedded
from medreason.models.chat_template import check_chat_template
from medreason.models.checks import EMBEDDED, check_hub_model, check_model_path, check_safetensors, settle_hub
from medreason.models.prompts import FORMATS

# settings of LoRA that are always these here
PLAIN: dict[str, Any] = {"bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}


CASES_SEED = 20  # of questions beyond those of the run's own samples.json


@dataclass(frozen=True)
class Answerer:
    config: TrainConfig  # as it was trained, or would be
    adapter: Path | None  # None: the model alone
    run: Path | None  # the run that it came from, of which the rows are known
    folder: Path  # where what it answers is kept; not there yet for a model alone


def find_answerer(
    given: str,
    *,
    base: bool = False,
    checkpoint: Checkpoint | None = None,
    precision: Precision | None = None,
    style: Format | None = None,
) -> Answerer:
    """What `run=GIVEN` names: a run directory, an adapter's folder, or a model (folder, hub name, embedded:NAME).

    `base` leaves the adapter out, `checkpoint` picks one of a run's two. Without a run, precision is 4-bit on a GPU and
    16-bit elsewhere, and the format `think`.

    Raises ConfigError, before anything slow, for what is none of these or cannot be had.
    """
    folder = Path(given)
    if (folder / "config.yaml").is_file():
        found = of_run(folder, base, checkpoint)
    elif checkpoint is not None:
        raise ConfigError(
            f"run={given}: no run directory, so checkpoint={checkpoint.value} means nothing; leave it out"
        )
    elif (folder / "adapter_config.json").is_file():
        found = of_adapter(folder, base)
    else:
        found = of_model(given)
    if precision is not None:
        auto = (TrainingEngine.auto, ComputeDtype.auto)
        found.config.model = replace(found.config.model, precision=precision, engine=auto[0], compute_dtype=auto[1])
    if style is not None:
        found.config.data = replace(found.config.data, format=style)
    if found.config.model.chat_template and FORMATS[found.config.data.format].prompt is None:
        own = found.folder / "chat_template.jinja"  # an adapter's
        check_chat_template(found.config.model.chat_template, str(own) if own.is_file() else "model.chat_template")
    try:
        check_model_path(found.config.model)
        settle_hub(found.config.model, needs_hub(found.config.data))
        check_hub_model(found.config.model)
    except ConfigError as error:
        path = found.config.model.path
        if found.run is not None or Path(path).is_dir() or isinstance(error, NotAllowed):
            raise
        raise ConfigError(f"run={given}: the model {path} is neither here nor to be had from the hub") from error
    return found


def of_run(run: Path, base: bool, checkpoint: Checkpoint | None) -> Answerer:
    adapter = adapter_of(run, checkpoint)
    if not base and not (adapter / "adapter_config.json").is_file():
        raise ConfigError(
            f"run={run}: no {adapter.name}/ in it: it has not finished; base=true takes the model before it"
        )
    if not base:
        check_safetensors(adapter, f"run={run}")
    return Answerer(run_config(run), None if base else adapter, run, run)


def of_adapter(folder: Path, base: bool) -> Answerer:
    """Raises ConfigError for an adapter that is not LoRA, or of a kind that would not be honoured."""
    settings = read_json(folder / "adapter_config.json")
    name, targets = settings.get("base_model_name_or_path"), settings.get("target_modules")
    known = settings.get("peft_type") == "LORA" and {"r", "lora_alpha"} <= settings.keys()
    listed = isinstance(targets, list) and all(isinstance(one, str) for one in targets)
    if not known or not name or not isinstance(name, str) or not listed:
        raise ConfigError(f"run={folder}: not LoRA over a list of target modules, which is what this project knows")
    if odd := [key for key, usual in PLAIN.items() if settings.get(key, usual) != usual]:
        raise ConfigError(f"run={folder}: an adapter with {odd[0]}, which this project does not know")
    if not base:
        check_safetensors(folder, f"run={folder}")
    template = folder / "chat_template.jinja"
    config = alone(name)
    revision = settings.get("revision")
    config.model = replace(
        config.model,
        revision=None if revision is None else str(revision),
        chat_template=read_template(template) if template.is_file() else None,
    )
    rank, alpha = settings["r"], settings["lora_alpha"]
    given = {"r": rank, "alpha": alpha, "target_modules": targets}
    switches = {"rslora": bool(settings.get("use_rslora")), "dora": bool(settings.get("use_dora"))}
    try:
        config.lora = typed(LoraConfig, vars(config.lora) | given | switches)
    except (ConfigError, OmegaConfBaseException) as error:
        raise ConfigError(f"run={folder}: adapter_config.json: {str(error).splitlines()[0]}") from error
    return Answerer(config, None if base else folder, None, folder)


def read_template(file: Path) -> str:
    """An adapter's chat template. Raises ConfigError for one that cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as UTF-8 ({type(error).__name__})") from error


def of_model(given: str) -> Answerer:
    if not given.startswith(EMBEDDED) and not (Path(given) / "config.json").is_file() and not hub_name(given):
        raise ConfigError(
            f"run={given}: no run directory, adapter or model there; name the folder that medreason.train wrote"
        )
    return Answerer(alone(given), None, None, Path("runs") / folder_name(given))


def alone(model: str) -> TrainConfig:
    """Settings of a run of this model, if there were one."""
    import torch

    known = []
    if model.startswith(EMBEDDED):
        embedded.find(model.removeprefix(EMBEDDED))
        known.append(f"model={model.removeprefix(EMBEDDED)}")
    gpu = torch.cuda.is_available()
    config = composed(*known, f"trainer={'gpu' if gpu else 'cpu'}")
    changed: dict[str, Any] = {} if known else {"path": model, "revision": None}
    config.model = replace(config.model, precision=Precision.nf4 if gpu else Precision.half, **changed)
    return config


def questions_of(folder: Path, count: int) -> list[str]:
    """Held-out questions that the run answered, then clinical cases made by rule: always `count`."""
    from medreason.data.clinical_cases import generate_cases

    try:
        samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        held_out = [str(sample["question"]) for sample in samples][:count]
    except (OSError, ValueError, KeyError, TypeError):
        held_out = []
    return held_out + [case.question for case in generate_cases(count, seed=CASES_SEED)][: count - len(held_out)]
