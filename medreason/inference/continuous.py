"""Prompts -> what a model writes, each answer leaving as it ends and the next prompt taking its place.

    static      A A A A A . . .      batches last as long as their longest answer
                B B . . . . . .
    continuous  A A A A A D D D      transformers' own continuous batching, over a cache of pages;
                B B C C C C E E      a prompt asked several times is read once

For that the model is transformers' own, its weights in 16 bits on a GPU, the adapter merged into them. A quantised base
is first quantised and then widened again: the same numbers, in more bits.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medreason.config import Precision, RunFailed, TrainConfig
from medreason.inference.batched import Written, written_text
from medreason.models.checks import lacks_bfloat16
from medreason.models.control_tokens import encode
from medreason.models.load import local_path

ATTENTION = "paged|varlen"
NEW_RESULT_SECONDS = 1.0  # how long to wait for one before looking whether the engine still lives


def load_merged(config: TrainConfig, adapter: Path | None) -> Any:
    """A run's model, or without an adapter its base, in 16 bits (32 on a CPU) and evaluation mode."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    gpu = torch.cuda.is_available()
    dtype = torch.float32 if not gpu else torch.float16 if lacks_bfloat16() else torch.bfloat16
    widths: dict[Precision, dict[str, Any]] = {
        Precision.nf4: {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        },
        Precision.int8: {"load_in_8bit": True},
    }
    quantised = widths.get(config.model.precision)
    model: Any = AutoModelForCausalLM.from_pretrained(
        local_path(config.model),
        revision=config.model.revision,
        dtype=dtype,
        device_map={"": 0} if gpu else None,
        quantization_config=BitsAndBytesConfig(**quantised) if quantised else None,
    )
    if quantised:
        model = model.dequantize()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    return model.eval()


def write_continuously(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    memory_share: float | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[int, Written]]:
    """Pairs of a prompt's index and what was written to it, as answers end; `temperature` 0 is greedy.

    `progress` is told, with each answer and every second, how many tokens were written so far.

    Prompts hold their special tokens. `memory_share` is what the cache takes of the memory that is left (transformers'
    own choice: 0.9). Raises RunFailed where the engine stops or cannot take a prompt.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
    use_torch_attention(model)
    tokens = [encode(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(tokens)), key=lambda index: tokens[index])  # what begins alike is read once
    chosen: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    generation = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **chosen,
    )
    # no CUDA graphs: capturing one for every size took longer than it saved (3,800 tokens/s against 6,200)
    batching = ContinuousBatchingConfig(seed=seed, max_memory_percent=memory_share, use_cuda_graph=False)
    hints = WorkloadHints(max(map(len, tokens)), max_new_tokens, len(tokens))
    with model.continuous_batching_context_manager(
        generation, continuous_batching_config=batching, workload_hints=hints
    ) as engine:
        index_of = {engine.add_request(tokens[index], max_new_tokens=max_new_tokens): index for index in order}
        ended = 0  # tokens of the answers that ended
        while index_of:
            result = engine.get_result(timeout=NEW_RESULT_SECONDS)
            ended += len(result.generated_tokens) if result is not None and result.is_finished() else 0
            progress(ended + being_written(engine))
            if result is None:
                if not engine.is_running():
                    raise RunFailed("continuous batching stopped; method=generate batching=static needs less memory")
                continue
            if result.error is not None:
                raise RunFailed(f"continuous batching: {result.error}; batching=static works without it")
            if result.is_finished():
                yield index_of.pop(result.request_id), written_text(tokenizer, result.generated_tokens)


def being_written(engine: Any) -> int:
    """Tokens of the answers that an engine is at; it gives no result before an answer has ended."""
    try:
        return sum(
            len(state.generated_tokens) for state in list(engine.batch_processor.scheduler.active_requests.values())
        )
    except (AttributeError, RuntimeError):  # it has not begun, or its thread is changing them
        return 0


def use_torch_attention(model: Any) -> None:
    """Has a model on a GPU attend by torch's own kernel for sequences of many lengths, which needs no mask.

    Not one with a sliding window, of which `attend` knows nothing: transformers' own way is slower and right.
    """
    from transformers import AttentionInterface

    if model.device.type != "cuda" or torch.cuda.get_device_capability(model.device) < (8, 0):
        return  # FlashAttention-2 knows no older GPU
    if not getattr(model.config, "sliding_window", None):
        AttentionInterface.register(ATTENTION, attend)
        model.set_attn_implementation(ATTENTION)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cache: Any,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scaling: float | None = None,
    **indices: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens to the pages of their own prompts: query (1, heads, tokens, width) -> (1, tokens, heads,
    width). Keys and values have their own, fewer heads."""
    key, value = cache.update(
        key, value, module.layer_idx, read_index=indices["read_index"], write_index=indices["write_index"]
    )
    attended = torch.ops.aten._flash_attention_forward(
        query[0].transpose(0, 1),
        key,
        value,
        cu_seq_lens_q.to(torch.int32),
        cu_seq_lens_k.to(torch.int32),
        max_seqlen_q,
        max_seqlen_k,
        0.0,  # dropout
        True,  # causal, the last query beside the last key
        False,
        scale=scaling,
    )[0]
    return attended[None], None
