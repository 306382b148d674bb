"""python -m medreason.export run=DIR format=adapter|merged|gguf: a run's model in a folder of its own, checked.

    adapter   RUN/adapter as it is: LoRA in PEFT's format, tokenizer
    merged    base in the type its weights are stored in (never 4-bit) + LoRA --merge--> safetensors, tokenizer
    gguf      merged --llama.cpp's converter--> f16, q8_0 --llama.cpp--> q4_k_m; Modelfile for Ollama

Each answers questions beside the adapter on its base (parity.py) and gets a model card. The folder appears last,
whole, or not at all; with push=OWNER/NAME it is then sent to the hub.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medreason.config import (
    Checkpoint,
    ComputeDtype,
    ConfigError,
    ExportConfig,
    ExportFormat,
    Format,
    ModelConfig,
    Precision,
    Quantization,
    RunFailed,
    TrainingEngine,
)
from medreason.core.cli import command
from medreason.core.disk import disk_full
from medreason.core.hub import check_push, push
from medreason.core.outside import literal
from medreason.core.progress import say
from medreason.core.progress_line import AnswersLine
from medreason.core.recorded import look_up, read_mapping
from medreason.core.run_directory import adapter_of, weights_digest, write_json
from medreason.core.run_log import kept_log
from medreason.core.what_next import after_export
from medreason.export.gguf import check_end, check_weights, find_tools, write_gguf
from medreason.inference.target import questions_of
from medreason.models.checks import check_hub_model, check_model_path, check_safetensors, hub_answers, on_hub

if TYPE_CHECKING:
    from medreason.export.parity import Parity


def export(config: ExportConfig) -> None:
    kind, quantization = config.format, config.quantization or Quantization.q8_0
    suffix = f"_{quantization.value}" if kind is ExportFormat.gguf else ""
    suffix += "_last" if config.checkpoint is Checkpoint.last else ""
    output = Path(config.output) if config.output else Path(config.run) / f"export_{kind.value}{suffix}"
    try:
        run = read_run(Path(config.run), config.checkpoint)
        if config.push:
            check_push(config.push, config.public)
        check_base(run.model, online=bool(config.push))
        asked = {"questions": config.questions, "max_new_tokens": config.max_new_tokens}
        with kept_log(run.folder / "export.log"):
            write_export(run, kind, quantization, output, **asked)
    except (ConfigError, RunFailed, OSError) as error:
        if disk_full(error):
            raise
        wrong = RunFailed if isinstance(error, RunFailed) else ConfigError
        raise wrong(f"run={config.run}: {error}") from error
    say(f"exported: {output}")
    if config.push:
        say(f"pushing to {config.push}, {'for anyone' if config.public else 'for its owner alone'}")
        say(f"pushed: {push(output, config.push, config.public)}")
    from medreason.models.load import local_path

    rank = read_mapping(run.adapter / "adapter_config.json")[0]["r"]
    for line in after_export(output, kind, base=local_path(run.model), rank=rank, style=run.style):
        print(line)


@dataclass(frozen=True)
class Run:
    """What an export needs to know of a run directory."""

    folder: Path
    model: ModelConfig
    style: Format
    config: dict[str, Any]  # all of config.yaml
    adapter: Path


def read_run(folder: Path, checkpoint: Checkpoint | None = None) -> Run:
    """Raises ConfigError for a folder that is no finished run."""
    if not folder.is_dir():
        raise ConfigError("no such folder")
    config, wrong = read_mapping(folder / "config.yaml")
    if wrong:
        raise ConfigError(f"{wrong}; name a run that medreason.train has written")
    adapter = adapter_of(folder, checkpoint)
    missing = [
        name
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json")
        if not (adapter / name).is_file()
    ]
    if missing:
        raise ConfigError(f"no {adapter.name}/{missing[0]}; a run has it once training has finished")
    check_safetensors(adapter, adapter.name)
    path, style = look_up(config, "model.path"), look_up(config, "data.format")
    revision, precision = look_up(config, "model.revision"), look_up(config, "model.precision")
    if not isinstance(path, str) or style not in Format.__members__ or precision not in Precision.__members__:
        raise ConfigError("config.yaml names no model.path, model.precision or data.format")
    model = ModelConfig(path, revision, Precision[precision], None, TrainingEngine.auto, ComputeDtype.auto)
    return Run(folder, model, Format[style], config, adapter)


def check_base(model: ModelConfig, *, online: bool = False) -> None:
    """Raises ConfigError where the base cannot be had, or its weights are quantised already.

    Turns the hub off for this process where nothing is wanted from it; `online` says that something will be.
    """
    check_model_path(model)
    if "HF_HUB_OFFLINE" not in os.environ and not online and not (on_hub(model) and hub_answers()):
        os.environ["HF_HUB_OFFLINE"] = "1"
    check_hub_model(model)
    config, _ = read_mapping(Path(model.path) / "config.json")
    if "quantization_config" in config:
        raise ConfigError(f"model.path={model.path} holds quantised weights; an export needs the 16-bit base")


def write_export(
    run: Run, kind: ExportFormat, quantization: Quantization, output: Path, *, questions: int, max_new_tokens: int
) -> "Parity":
    """Writes the folder `output`. Raises RunFailed for an export that does not answer as its adapter does."""
    packed = quantization.value
    tools = find_tools(packed) if kind is ExportFormat.gguf else None
    with whole_folder(output) as draft:
        say("importing transformers and PEFT")
        from transformers import AutoTokenizer

        from medreason.export.model_card import card_of_run
        from medreason.models.prompts import asked_text

        tokenizer: Any = AutoTokenizer.from_pretrained(run.adapter)
        prompts = [asked_text(tokenizer, question, run.style) for question in questions_of(run.folder, questions)]
        weights = draft / "merged" if tools else draft
        checked: list[tuple[str, str]] = []  # of the GGUF's weights
        parity = write_checked(run, kind, weights, tokenizer, prompts, max_new_tokens)
        if tools is not None:
            name = run.folder.resolve().name
            write_gguf(tools, weights, draft / f"{name}-{packed}.gguf", packed, tokenizer, run.model, run.style)
            worst, difference = check_weights(draft / f"{name}-{packed}.gguf", weights, packed)
            checked = [("largest difference of a tensor in the GGUF", f"{difference:.2%} ({worst})")]
            say(f"{checked[0][0]}: {checked[0][1]}")
            shutil.rmtree(weights)
        write_json(draft / "parity.json", parity.record() | {"adapter": weights_digest(run.adapter)})
        card = card_of_run(run.folder, kind.value, [*parity.rows(), *checked], packed if tools else None)
        (draft / "README.md").write_text(card, encoding="utf-8")
    return parity


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A draft beside `output` that gets its name if all goes well, and vanishes if not."""
    if output.exists():
        raise ConfigError(f"{output} exists already; name another folder with output=DIR")
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}.draft-{os.getpid()}")
    draft.mkdir()
    try:
        yield draft
        draft.rename(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_checked(
    run: Run, kind: ExportFormat, target: Path, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int
) -> "Parity":
    """Writes adapter or merged model to `target` and reads it back. Raises RunFailed unless it answers alike."""
    from peft import PeftModel
    from rich.console import Console
    from rich.table import Table

    from medreason.export.parity import adapted_layers, compare, observe
    from medreason.models.load import local_path

    base = load_weights(local_path(run.model), run.model.revision)
    dtype = str(base.dtype).removeprefix("torch.")
    say(f"{run.model.path} in {dtype} on {base.device}")
    adapted: Any = PeftModel.from_pretrained(base, run.adapter).eval()
    layers = adapted_layers(adapted)

    def ask(model: Any, what: str, tokens: int) -> Any:
        line = AnswersLine(what, len(prompts), len(prompts) * tokens)
        found = observe(model, tokenizer, prompts, layers, max_new_tokens=tokens, line=line)
        line.end(stands=True)
        return found

    reference = ask(adapted, "adapter on base", max_new_tokens)
    with adapted.disable_adapter():
        plain = ask(adapted, "base alone, one token", 1)
    end_as_taught(base, tokenizer)
    if kind is ExportFormat.adapter:
        copy_adapter(run, target)
        base.generation_config.save_pretrained(target)
        exported: Any = PeftModel.from_pretrained(adapted.unload(), target).eval()
    else:
        check_space(target.parent, base, copies=2 if kind is ExportFormat.gguf else 1)
        say("merging")
        merge(adapted).save_pretrained(target)
        if kind is ExportFormat.merged:
            tell_servers(tokenizer, run.style)
        tokenizer.save_pretrained(target)
        del adapted, base
        exported = load_weights(str(target), None)
    check_end(ends_of(target), tokenizer.eos_token_id)
    parity = compare(reference, ask(exported, "export", max_new_tokens), plain, dtype)
    table = Table("export beside adapter on base", "", title_justify="left")
    for label, value in parity.rows():
        table.add_row(literal(label), literal(value))
    Console(highlight=False).print(table)
    if not parity.holds:
        share = max(parity.least_share, parity.greatest_share, key=lambda share: abs(share - 1))
        raise RunFailed(
            f"the export does not answer as the adapter does: logits differ by {parity.logit_difference:.2g} "
            f"(tolerance {parity.tolerance:.2g}), {parity.parted_otherwise} of {parity.questions} texts part, "
            f"of the update of {parity.worst_layer} a share of {share:.3f} arrived (1 +- {parity.share_tolerance:g}); "
            "nothing was written"
        )
    return parity


def load_weights(path: str, revision: str | None) -> Any:
    """A model in the type its weights are stored in, on the GPU where there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype="auto")
    if getattr(model, "is_quantized", False):
        raise ConfigError(f"{path} holds quantised weights; an export needs the 16-bit base")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def end_as_taught(model: Any, tokenizer: Any) -> None:
    """Has a model's own settings, by which servers go, end an answer as the run taught: its base may end otherwise."""
    from transformers import GenerationConfig

    try:
        model.generation_config.validate(strict=True)
    except ValueError:  # transformers reads such settings and does not write them: a temperature of greedy answers
        model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id


def ends_of(folder: Path) -> dict[str, Any]:
    """The tokens that end an answer, by what says so in the folder of an adapter or a merged model."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found = {"its tokenizer": tokenizer.eos_token_id}
    found["generation_config.json"] = GenerationConfig.from_pretrained(folder).eos_token_id
    if (folder / "config.json").is_file():
        found["config.json"] = AutoConfig.from_pretrained(folder).eos_token_id
    return found


def check_space(folder: Path, model: Any, copies: int) -> None:
    """Raises ConfigError where so many copies of a model's weights do not fit: a full disk shows late, and oddly."""
    needed = copies * sum(weight.numel() * weight.element_size() for weight in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise ConfigError(f"{folder} has {free / 1e6:,.0f} MB free, and about {needed * 1.05 / 1e6:,.0f} MB are needed")


def copy_adapter(run: Run, target: Path) -> None:
    """The run's adapter, named after the base as the run's settings have it: Unsloth names a 4-bit copy or a cache."""
    shutil.copytree(run.adapter, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
    if on_hub(run.model):
        settings = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
        write_json(target / "adapter_config.json", settings | {"base_model_name_or_path": run.model.path})


def tell_servers(tokenizer: Any, style: Format) -> None:
    """Has the tokenizer say how a server is to ask, and to part reasoning and answer: all that it has to go by."""
    from medreason.models.prompts import response_template, served_chat_template

    tokenizer.response_template = response_template(tokenizer, style)
    tokenizer.chat_template = served_chat_template(tokenizer, style)


def merge(adapted: Any) -> Any:
    """The base with LoRA added into its weights."""
    return adapted.merge_and_unload(safe_merge=True)  # safe: refuses weights that are not numbers


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a draft is taken away
    command(export, "export", ExportConfig)
