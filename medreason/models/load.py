"""Configuration -> tokenizer, and a model with LoRA through Unsloth; the forward pass over packed rows."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medreason.batch import IGNORE_INDEX, LOGIT_ROWS, PackedBatch
from medreason.config import ConfigError, LoraConfig, ModelConfig, Precision, Recompute, TrainConfig, TrainingEngine
from medreason.core.progress import say
from medreason.core.shared_cpu import share_cpu
from medreason.models import embedded
from medreason.models.checks import EMBEDDED, check_precision, multiplied_in_fp8, on_hub
from medreason.models.flops import Shape, linear_weights, peak_flops, shape_of
from medreason.models.kept_base import kept, own_modules
from medreason.models.memory import GIB, Base, Need, choose, describe, lora_weights, seconds
from medreason.models.prompts import MISTRAL_CHAT_TEMPLATE, dated

LONGEST_CONTEXT = 32_768  # tokens; a model that reads more is not loaded for more


def import_unsloth() -> Any:
    """Unsloth's FastLanguageModel. Slow (10 to 30 s), and must come before transformers, peft and trl."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it reports usage home otherwise
    from unsloth import FastLanguageModel

    return FastLanguageModel


def local_path(model: ModelConfig) -> str:
    """What `from_pretrained` takes: a directory or a hub name."""
    if model.path.startswith(EMBEDDED):
        return str(embedded.materialize(model.path.removeprefix(EMBEDDED)))
    return model.path


def load_tokenizer(model: ModelConfig) -> Any:
    """A tokenizer with a chat template, and a padding token that is not the end-of-sequence token.

    Raises ConfigError for a tokenizer without a chat template that is not Mistral's, and for one that ends a text with
    a token that the model does not have.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(local_path(model), revision=model.revision)
    settings: Any = AutoConfig.from_pretrained(local_path(model), revision=model.revision)
    embedded_tokens = int(settings.get_text_config().vocab_size)
    vocabulary = tokenizer.get_vocab()
    if model.chat_template:
        tokenizer.chat_template = model.chat_template
    elif not tokenizer.chat_template:
        if "[/INST]" not in vocabulary:
            raise ConfigError(f"model.path={model.path}: its tokenizer has no chat template; set model.chat_template")
        tokenizer.chat_template = MISTRAL_CHAT_TEMPLATE
    tokenizer.chat_template = dated(tokenizer.chat_template)
    end = tokenizer.eos_token_id
    if end is None or end >= embedded_tokens:
        raise ConfigError(
            f"model.path={model.path}: its tokenizer ends a text with {tokenizer.eos_token} (token {end}), which "
            f"is none of the model's {embedded_tokens:,} tokens; use the tokenizer that the model came with"
        )
    tokenizer.pad_token = padding_token(tokenizer, embedded_tokens)
    return tokenizer


def padding_token(tokenizer: Any, embedded_tokens: int) -> str:
    """The tokenizer's own padding token where that will do, else one that no text holds.

    Were it the end-of-sequence token, a collator that masks padding would unteach the model to stop. Were it one that
    was added to the tokenizer and not to the model, its embedding would be read from beyond the table.
    """
    vocabulary = tokenizer.get_vocab()
    spare = (tokenizer.pad_token, "<pad>", "[PAD]", "[control_8]", "<|endoftext|>", "<unk>", tokenizer.unk_token)
    return next(
        (one for one in spare if vocabulary.get(one, embedded_tokens) < embedded_tokens and one != tokenizer.eos_token),
        tokenizer.eos_token,  # nothing else is left; rows here mask padding by place, not by token
    )


def plan_memory(config: TrainConfig, train_tokens: int) -> Need | None:
    """How the run will fit into this process's GPU, said in a line; None on a CPU. `train_tokens` are the run's.

    Raises ConfigError, which says what would fit, where the run does not. Caps the process at trainer.memory_gib.
    """
    if not torch.cuda.is_available():
        return None
    from transformers import AutoConfig

    shape = shape_of(AutoConfig.from_pretrained(local_path(config.model), revision=config.model.revision))
    (free, whole), cap = torch.cuda.mem_get_info(), config.trainer.memory_gib
    free += torch.cuda.memory_reserved()  # by the base that an earlier run of this process left, which is counted
    # also without a cap: that earlier run may have had one
    torch.cuda.set_per_process_memory_fraction(1.0 if cap is None else min(1.0, cap * GIB / whole))
    if cap is not None:
        free = min(free, int(cap * GIB))
    device = torch.cuda.get_device_name()
    found, duration = planned(config, shape, free, train_tokens, device)
    say(describe(found, free, device, duration))
    if told := faster_way(config, shape, free, train_tokens, device, duration):
        say(told)
    return found


def planned(
    config: TrainConfig, shape: Shape, free: float, train_tokens: int, device: str
) -> tuple[Need, float | None]:
    """How a run fits into `free` bytes, and how many seconds it then trains, if that is known."""
    base = Base(config.model.precision, config.model.fast, multiplied_in_fp8(config.model))
    adapter_weights = lora_weights(shape, config.lora.r, config.lora.target_modules)
    found = choose(
        shape,
        base,
        recompute=config.trainer.recompute,
        tokens=config.data.row_tokens * config.trainer.rows_per_batch,
        adapter_weights=adapter_weights,
        algorithm=config.optim.algorithm,
        free=free,
    )
    tokens = train_tokens // config.trainer.world_size
    return found, seconds(shape, adapter_weights, base, found, tokens, peak_flops(device))


def faster_way(
    config: TrainConfig, shape: Shape, free: float, train_tokens: int, device: str, duration: float | None
) -> str | None:
    """A line on the fast engine, where it would train the same 4-bit base in less time here; else None."""
    if config.model.precision is not Precision.nf4 or config.model.fast or duration is None:
        return None
    from transformers import AutoConfig

    from medreason.engine.layers import check_architecture

    model = replace(config.model, engine=TrainingEngine.fast)
    trainer = replace(config.trainer, recompute=Recompute.auto)
    try:
        other = replace(config, model=model, trainer=trainer)
        check_precision(model)
        check_architecture(AutoConfig.from_pretrained(local_path(model), revision=model.revision))
        found, faster = planned(other, shape, free, train_tokens, device)
    except ConfigError:
        return None
    if faster is None or faster > 0.9 * duration:
        return None
    return f"model.engine=fast would train {duration / faster:.1f} times as fast, in {found.total / GIB:.1f} GiB"


def load_model(
    model: ModelConfig,
    lora: LoraConfig,
    *,
    row_tokens: int,
    recompute: Recompute,
    seed: int,
    copies: int = 1,
    spared: int = 0,
    dtype: torch.dtype | None = None,
) -> Any:
    """A PEFT model in training mode: base frozen in `model.precision`, LoRA in float32.

    `copies` and `spared` are the fast engine's (engine/layers.How). `row_tokens` are those of a forward pass. `dtype`
    is what Unsloth computes in; None: bfloat16 where the hardware does so fast, else float16 on a GPU and float32 on a
    CPU.

    Raises ConfigError where the machine cannot hold the base as asked, or the engine not the kind of LoRA.
    """
    share_cpu()
    if model.fast:
        return load_fast(model, lora, recompute, seed, copies, spared)
    fast_model = import_unsloth()
    if model.precision is Precision.nf4 and not torch.cuda.is_available():
        from unsloth_zoo.cpu.runtime import cpu_bnb_4bit_supported

        if not cpu_bnb_4bit_supported():
            raise ConfigError("model.precision=nf4: bitsandbytes has no 4-bit for this CPU; use model.precision=half")
    base = own_modules(unsloth_base(model, min(row_tokens, context_tokens(model)), dtype, recompute))
    if model.precision is Precision.nf4 and not getattr(base, "is_loaded_in_4bit", False):
        # Unsloth falls back to 16-bit with a printed note; a run must not say 4-bit and be 16-bit
        raise ConfigError(f"model.precision=nf4: {model.path} cannot be held in 4-bit here; use model.precision=half")
    for module in base.modules():
        module.max_seq_length = row_tokens  # Unsloth would cut off what exceeds it, though documents are shorter
    check_targets(base, lora.target_modules)
    adapted = fast_model.get_peft_model(
        base,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        bias="none",
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        use_gradient_checkpointing=checkpointing(recompute),
        random_state=seed,
    )
    adapted.train()  # from_pretrained leaves eval mode, in which recomputation is silently off
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def unsloth_base(model: ModelConfig, longest: int, dtype: torch.dtype | None, recompute: Recompute) -> Any:
    """Unsloth's model without an adapter, for texts of `longest` tokens.

    Never more than the model's own context: Unsloth would stretch its positions, and nothing else would.
    """

    def load() -> Any:
        base, _ = import_unsloth().from_pretrained(
            local_path(model),
            revision=model.revision,
            max_seq_length=longest,
            dtype=dtype,
            load_in_4bit=model.precision is Precision.nf4,
            load_in_8bit=model.precision is Precision.int8,
            use_gradient_checkpointing=checkpointing(recompute),
        )
        return base

    return kept((model.path, model.revision, model.precision, longest, dtype, recompute), load)


def load_fast(model: ModelConfig, lora: LoraConfig, recompute: Recompute, seed: int, copies: int, spared: int) -> Any:
    """`load_model` for the fast engine, which has no need of Unsloth."""
    from medreason.engine import layers

    how = layers.How(model.precision, multiplied_in_fp8(model), copies, recompute, spared)

    def load() -> tuple[Any, layers.HeldWeights]:
        return layers.load_base(local_path(model), model.revision, model.precision), defaultdict(dict)

    base, weights = kept((model.path, model.revision, how.precision, how.fp8), load)
    return layers.adapt(own_modules(base), lora, how, seed, weights)


def trained_dtype(precision: str) -> torch.dtype | None:
    """What Unsloth computes in under one of Lightning's precisions; None leaves it to the hardware."""
    return torch.float16 if precision == "16-mixed" else None


def settings_of(model: ModelConfig) -> dict[str, Any]:
    """A model's config.json, without transformers, before which Unsloth must be imported; {} where it cannot be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    hub: dict[str, Any] = {"repo_id": model.path, "filename": "config.json", "revision": model.revision}
    try:
        # the cache asks nobody
        here = try_to_load_from_cache(**hub) if on_hub(model) else f"{local_path(model)}/config.json"
        file = here if isinstance(here, str) else hf_hub_download(**hub)
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def bytes_in_16_bits(settings: dict[str, Any]) -> int:
    """A model's weights, by its config.json; 0 where that does not say."""
    try:
        shape = shape_of(SimpleNamespace(**settings))
        return 2 * (linear_weights(shape) + shape.vocab_size * shape.hidden_size)
    except (AttributeError, TypeError):
        return 0


def positions(model: ModelConfig) -> int:
    """Tokens that a model tells apart by their place: it was made for no longer text."""
    from transformers import AutoConfig

    settings: Any = AutoConfig.from_pretrained(local_path(model), revision=model.revision)
    return int(settings.get_text_config().max_position_embeddings)


def context_tokens(model: ModelConfig) -> int:
    """How long a text a model is loaded for at most: all its positions, or as many as are of use."""
    return min(positions(model), LONGEST_CONTEXT)


def load_trained(config: TrainConfig, adapter: Path | None) -> Any:
    """A run's model to answer with, in evaluation mode: base and adapter as they were trained, or the base alone.

    For its whole context: a prompt longer than Unsloth was told of would lose its end without a word.

    Raises ConfigError for an adapter that is not of this model.
    """
    lora = replace(config.lora, dropout=0.0)  # off in evaluation mode anyway; the fast engine has none
    model = load_model(  # LoRA's B is zero: the base
        config.model,
        lora,
        row_tokens=context_tokens(config.model),
        recompute=Recompute.none,
        seed=config.seed,
        copies=0,  # answers come from transformers' own layers
        dtype=trained_dtype(config.trainer.precision) if torch.cuda.is_available() else None,
    )
    if adapter is not None:
        give_adapter(model, adapter)
    return model.eval()


def give_adapter(model: Any, adapter: Path) -> None:
    """Puts an adapter's weights in the place of those that a model of `load_trained` has.

    Raises ConfigError for an adapter that is not of this model.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        result = set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{adapter}: {str(error).splitlines()[0]}") from error
    if result.unexpected_keys:
        raise ConfigError(f"{adapter}: not of this model; it has {result.unexpected_keys[0]}")


def checkpointing(recompute: Recompute) -> bool | str:
    """Unsloth's word for it."""
    words: dict[Recompute, bool | str] = {Recompute.none: False, Recompute.full: True, Recompute.unsloth: "unsloth"}
    return words[recompute]  # plan_memory settles auto; TrainConfig refuses the others


def check_lora(model: ModelConfig, lora: LoraConfig) -> None:
    """Raises ConfigError for a target that no layer of the model is named after, before its weights are loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(local_path(model), revision=model.revision)
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(settings)
    except Exception:  # a model that transformers cannot make alone: load_model looks at the loaded one
        return
    check_targets(empty, lora.target_modules)


def check_targets(model: torch.nn.Module, target_modules: list[str]) -> None:
    """Raises ConfigError for a target that no linear of a decoder layer is named after."""
    inner = [name for name, module in model.named_modules() if hasattr(module, "in_features") and ".layers." in name]
    names = {name.rpartition(".")[2] for name in inner}
    for target in target_modules:
        if target not in names:
            raise ConfigError(f"lora.target_modules: the model has no {target!r}; it has {', '.join(sorted(names))}")


def summed_loss(model: Any, batch: PackedBatch) -> Tensor:
    """Cross entropy summed over the target tokens of packed rows, float32, shape ()."""
    if packed := getattr(model, "packed", None):
        fast: Tensor = packed.step(batch)
        return fast
    tokens, labels, positions = batch.input_ids, batch.labels, batch.position_ids
    extra: dict[str, Any] = {}
    if tokens.is_cuda:
        # Unsloth's GPU attention wants one long row and its borders. A fresh tensor: it caches by identity.
        tokens, labels, positions = tokens.view(1, -1), labels.view(1, -1), positions.view(1, -1)
        extra["packed_seq_lengths"] = torch.tensor(batch.lengths, dtype=torch.int32)
    with chunked_cross_entropy(model):
        # use_cache=False always: with a cache, transformers no longer reads document borders from the positions
        loss: Tensor = model(input_ids=tokens, labels=labels, position_ids=positions, use_cache=False, **extra).loss
    return loss.float() * batch.targets  # the model returns the mean; a row that counts for nothing has 0 targets


@torch.no_grad()
def document_losses(model: Any, batch: PackedBatch) -> Tensor:
    """Cross entropy of each document summed over its target tokens, (documents,) float64, without what is padding.

    In the order of the rows; all of them together are `summed_loss`. None of a batch that counts for nothing.
    """
    if packed := getattr(model, "packed", None):
        losses = packed.token_losses(batch)
    else:
        tokens, _, positions = batch.input_ids, batch.labels, batch.position_ids
        extra: dict[str, Any] = {}
        if tokens.is_cuda:
            tokens, positions = tokens.view(1, -1), positions.view(1, -1)
            extra["packed_seq_lengths"] = torch.tensor(batch.lengths, dtype=torch.int32)
        logits = model(input_ids=tokens, position_ids=positions, use_cache=False, **extra).logits.flatten(0, 1)
        targets = torch.nn.functional.pad(batch.labels.flatten()[1:], (0, 1), value=IGNORE_INDEX)
        # a few tokens at a time: in float32 they would need their memory twice
        parts = zip(torch.split(logits, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True)
        losses = torch.cat([cross_entropy(some.float(), own, reduction="none") for some, own in parts])
    lengths = torch.tensor(batch.lengths, device=losses.device)
    place = torch.repeat_interleave(torch.arange(len(lengths), device=losses.device), lengths)
    sums = losses.new_zeros(len(lengths), dtype=torch.float64).index_add_(0, place, losses.double())
    learned = torch.zeros(len(lengths), device=losses.device).index_add_(
        0, place, (batch.labels.flatten() != IGNORE_INDEX).float()
    )
    found: Tensor = sums[learned > 0]
    return found if batch.targets else found[:0]


@contextmanager
def chunked_cross_entropy(model: torch.nn.Module) -> Iterator[None]:
    """Turns on Unsloth's cross entropy in chunks on CPU, which its own trainer alone would turn on."""
    able: list[Any] = [module for module in model.modules() if "_unsloth_cpu_chunked_ce" in vars(module)]
    for module in able:
        module._unsloth_cpu_chunked_ce_active = True
    try:
        yield
    finally:
        for module in able:
            module._unsloth_cpu_chunked_ce_active = False
