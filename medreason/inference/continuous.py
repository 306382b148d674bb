"""Prompts -> what a model writes, each answer leaving as it ends and the next prompt taking its place.

    static      A A A A A . . .      batches last as long as their longest answer
                B B . . . . . .
    continuous  A A A A A D D D      as many texts at once as keys and values have room for (inference/slots.py);
                B B C C C C E E      a prompt asked several times is read once

For that the model is transformers' own, its weights in 16 bits on a GPU, the adapter merged into them. A quantised base
is first quantised and then widened again: the same numbers, in more bits.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medreason.config import Precision, RunFailed, TrainConfig
from medreason.inference.batched import Written, written_text
from medreason.inference.slots import READ_AT_ONCE, Writer, attending, make_slots, pick, read_prompts
from medreason.models.checks import lacks_bfloat16
from medreason.models.control_tokens import encode
from medreason.models.load import local_path

AT_ONCE = 512  # texts; more of them share a pass without gain, for the products are bound by arithmetic from 300 on
AT_ONCE_ON_A_CPU = 64
PASSES = 8  # between looks at what was written: a text that ends waits for the others that long


def load_merged(config: TrainConfig, adapter: Path | None) -> Any:
    """A run's model, or without an adapter its base, in 16 bits (32 on a CPU) and evaluation mode."""
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
    return model.eval() if adapter is None else merged(model, adapter)


def merged(model: Any, adapter: Path) -> Any:
    """A base of `load_merged` with an adapter in its weights, which are changed."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True).eval()


@dataclass
class Text:
    """An answer that is being written."""

    index: int  # of its prompt
    slot: int
    read: int  # tokens of its prompt
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def take(self, tokens: Sequence[int], end: int, most: int) -> None:
        """Tokens as they come; those after its end are none of its own."""
        for token in tokens:
            self.tokens.append(token)
            if token == end or len(self.tokens) == most:
                self.ended = True
                return


def write_continuously(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    at_once: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[int, Written]]:
    """Pairs of a prompt's index and what was written to it, as answers end; `temperature` 0 is greedy.

    At most `at_once` are written at once. `progress` is told every few tokens how many were written so far, to all
    prompts. Prompts hold their special tokens.

    Raises RunFailed where memory holds not even one answer, or does not hold out.
    """
    if not prompts:
        return
    torch.manual_seed(seed)
    asked = [encode(tokenizer, prompt) for prompt in prompts]
    waiting = deque(sorted(range(len(asked)), key=lambda index: asked[index]))  # equal ones side by side: read once
    try:
        with attending(model):
            length = max(map(len, asked)) + max_new_tokens + PASSES
            most = at_once or (AT_ONCE if model.device.type == "cuda" else AT_ONCE_ON_A_CPU)
            slots = make_slots(model, length, min(most, len(asked)))
            writer, free = Writer(model, slots, temperature), list(range(slots.count))
            texts: list[Text] = []
            before = 0  # tokens of the answers that ended
            while texts or waiting:
                # several at once, since all that are being written wait while prompts are read
                if waiting and free and (not texts or len(free) > slots.count // 16):
                    grown = next_texts(waiting, free, asked)
                    into = [text.slot for text in grown]
                    logits = read_prompts(model, slots, [asked[text.index] for text in grown], into)
                    more = [[token] for token in pick(logits, temperature).tolist()]
                    texts += grown
                else:
                    grown = texts
                    more = writer.write(
                        [text.tokens[-1] for text in texts],
                        [text.read + len(text.tokens) - 1 for text in texts],
                        [text.slot for text in texts],
                        PASSES,
                    )
                for text, tokens in zip(grown, more, strict=True):
                    text.take(tokens, tokenizer.eos_token_id, max_new_tokens)
                progress(before + sum(len(text.tokens) for text in texts))
                done, texts = [text for text in texts if text.ended], [text for text in texts if not text.ended]
                before += sum(len(text.tokens) for text in done)
                free += [text.slot for text in done]
                for text in done:
                    yield text.index, written_text(tokenizer, text.tokens)
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"out of memory ({str(error).splitlines()[0]}); batching=static needs less") from error


def next_texts(waiting: deque[int], free: list[int], asked: Sequence[Sequence[int]]) -> list[Text]:
    """Takes from those that wait as many as slots are free and one pass reads, at least one."""
    begun: list[Text] = []
    tokens = 0
    while waiting and free and (not begun or tokens + len(asked[waiting[0]]) <= READ_AT_ONCE):
        index = waiting.popleft()
        begun.append(Text(index, free.pop(), len(asked[index])))
        tokens += len(asked[index])
    return begun
