"""Keys and values of many texts side by side, and attention of new tokens to them.

    slot 0   k k k k k . . . .      a slot has room for the longest prompt and its answer; a pass is told of each text
    slot 1   k k k . . . . . .      where its slot begins and how much of it is written
    slot 2   . . . . . . . . .      the last slot is what padding of a pass writes into; nothing reads it

Prompts are read several at once, one after the other in one row of tokens, and attend to themselves. Then every pass
gives each text one token more, which attends to its slot. Nothing is gathered or padded for it: on a GPU the attention
takes where a text begins and how long it is from tensors, so a pass is the same work with other numbers, and is
recorded once for each number of texts (a CUDA graph).
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medreason.config import ConfigError, RunFailed

ATTENTION = "slots"  # what transformers calls it
# models that write here what they write alone (tests/inference/test_slots.py); others cap their attention, have values
# of another width than keys, or do not say where tokens belong
KNOWN = (
    "apertus", "cohere", "cohere2", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "granite", "helium",
    "hunyuan_v1_dense", "llama", "ministral", "ministral3", "mistral", "mixtral", "olmo", "olmo2", "phi", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
)  # fmt: skip
WIDEST = 256  # of a head, in FlashAttention-2
READ_AT_ONCE = 8192  # tokens of prompts in one pass, unless one prompt is longer


@dataclass(frozen=True)
class Slots:
    """Keys and values of each layer: (slots * length, heads, width). The last slot is for padding."""

    keys: list[Tensor]
    values: list[Tensor]
    count: int  # without the last
    length: int  # tokens of a slot
    flash: bool  # whether torch's FlashAttention-2 reads them


@dataclass(frozen=True)
class Pass:
    """Where the tokens of one pass belong.

    `reading` is None for prompts, which attend to themselves; else each token is one text's newest, and `reading` its
    length with that token, (texts,) int32.
    """

    slots: Slots
    written: Tensor  # (tokens,) int64: where in Slots each token's key goes
    begins: Tensor  # (texts + 1,) int32: of prompts where each begins among the tokens; else where its slot begins
    reading: Tensor | None
    longest: int  # tokens of a text, at most


def make_slots(model: Any, length: int, most: int) -> Slots:
    """As many slots of `length` tokens as there is room for, at most `most`.

    Raises RunFailed where there is none for one, ConfigError for a model that is not KNOWN.
    """
    check_known(model.config.model_type)
    shape = model.config.get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    layers, device, dtype = shape.num_hidden_layers, model.device, model.dtype
    # a token that is read is held eight times in the hidden width at worst, thrice in the inner one
    reading = READ_AT_ONCE * (8 * shape.hidden_size + 3 * getattr(shape, "intermediate_size", 0)) * dtype.itemsize
    slot = 2 * layers * length * heads * width * dtype.itemsize + 16 * shape.vocab_size  # and a text's logits
    count = min(most, int((room(device) - reading) // slot) - 1)
    if count < 1:
        raise RunFailed(
            f"no memory is left for the keys and values of one answer ({slot / 2**30:.1f} GiB); "
            "lower max_new_tokens, or use batching=static, which needs less"
        )
    keys, values = (
        [torch.zeros((count + 1) * length, heads, width, device=device, dtype=dtype) for _ in range(layers)]
        for _ in range(2)
    )
    flash = (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype.itemsize == 2
        and width % 8 == 0
        and width <= WIDEST
    )
    return Slots(keys, values, count, length, flash)


def check_known(kind: str | None) -> None:
    if kind not in KNOWN:
        raise ConfigError(f"batching=continuous does not know {kind or 'such'} models; use batching=static")


def room(device: torch.device) -> float:
    """Bytes for slots: nine tenths of what a GPU has left, half of a host, which gives them as they are written."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return 0.9 * torch.cuda.mem_get_info(device)[0]
    return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """The model with this file's attention; afterwards with its own."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    place: Pass,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Writes keys and values into their slots; query (1, heads, tokens, width) -> (1, tokens, heads, width)."""
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))  # (tokens, heads, width)
    slots = place.slots
    keys, values = slots.keys[module.layer_idx], slots.values[module.layer_idx]
    keys.index_copy_(0, place.written, key)
    values.index_copy_(0, place.written, value)
    if place.reading is not None:
        key, value = keys, values
    attention = attend_by_flash if slots.flash else attend_plainly
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(place, query, key, value, scale, sliding_window)[None], None


def attend_by_flash(place: Pass, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """(tokens, heads, width) of all texts at once, by torch's FlashAttention-2."""
    prompts = place.reading is None
    ends = place.begins if prompts else torch.arange(len(place.begins), device=query.device, dtype=torch.int32)
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        ends,
        place.begins,
        place.longest if prompts else 1,
        place.longest,
        0.0,  # dropout
        prompts,  # causal; a newest token sees all there is, and its heads then share the reading of their keys
        False,
        scale=scale,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
        seqused_k=place.reading,
    )[0]
    return attended


def attend_plainly(place: Pass, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """The same for any device, text by text for prompts."""
    how: dict[str, Any] = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if place.reading is None:
        parts = []
        for begin, end in itertools.pairwise(place.begins.tolist()):
            seen = torch.ones(end - begin, end - begin, device=query.device, dtype=torch.bool).tril()
            if window is not None:
                seen = seen.triu(1 - window)
            asking, seeable, gist = (each[begin:end].transpose(0, 1)[None] for each in (query, key, value))
            parts.append(scaled_dot_product_attention(asking, seeable, gist, seen, **how)[0].transpose(0, 1))
        return torch.cat(parts)
    at = torch.arange(place.longest, device=query.device)
    chosen = place.begins[:-1, None] + at  # (texts, longest)
    seen = at < place.reading[:, None]
    if window is not None:
        seen &= at >= place.reading[:, None] - window
    key, value = (each[chosen].transpose(1, 2) for each in (key, value))  # (texts, heads, longest, width)
    return scaled_dot_product_attention(query[:, :, None], key, value, attn_mask=seen[:, None, None], **how)[:, :, 0]


@torch.no_grad()
def read_prompts(model: Any, slots: Slots, prompts: Sequence[Sequence[int]], into: Sequence[int]) -> Tensor:
    """Reads prompts' tokens into slots; the logits of what follows each, (prompts, vocabulary) float32.

    A prompt that stands several times in a row is read once.
    """
    distinct = [prompt for prompt, _ in itertools.groupby(prompts)]
    differs = (before != prompt for before, prompt in itertools.pairwise(prompts))
    which = [0, *itertools.accumulate(map(int, differs))]  # of each prompt its place among the distinct ones
    first = [into[which.index(number)] for number in range(len(distinct))]
    bounds = [0, *itertools.accumulate(map(len, distinct))]
    positions = torch.cat([torch.arange(len(prompt)) for prompt in distinct])
    starts = torch.cat(
        [torch.full((len(prompt),), slot * slots.length) for prompt, slot in zip(distinct, first, strict=True)]
    )
    device = model.device
    place = Pass(
        slots,
        (positions + starts).to(device),
        torch.tensor(bounds, dtype=torch.int32).to(device),
        None,
        max(map(len, distinct)),
    )
    tokens = torch.tensor([token for prompt in distinct for token in prompt])
    last = torch.tensor([bounds[number + 1] - 1 for number in which])
    logits = forward(model, place, tokens.to(device), positions.to(device), last.to(device))
    copies = [(first[number], slot) for number, slot in zip(which, into, strict=True) if first[number] != slot]
    if copies:
        source, target = torch.tensor(copies, device=device).T
        for cache in (*slots.keys, *slots.values):
            by_slot = cache.view(slots.count + 1, slots.length, *cache.shape[1:])
            by_slot[target, : place.longest] = by_slot[source, : place.longest]
    return logits


def forward(model: Any, place: Pass, tokens: Tensor, positions: Tensor, asked: Tensor) -> Tensor:
    """Logits after those tokens that `asked` names, (asked, vocabulary) float32."""
    found = model(
        input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=asked, place=place
    )
    logits: Tensor = found.logits[0]
    return logits.float()


def pick(logits: Tensor, temperature: float) -> Tensor:
    """A token for each row of logits: the likeliest, or one drawn at a temperature."""
    if not temperature:
        return logits.argmax(-1)
    likely = (logits / temperature).softmax(-1)
    return (likely / torch.empty_like(likely).exponential_()).argmax(-1)  # the Gumbel trick: no wait for the GPU


class Writer:
    """Gives many texts some tokens more, each pass recorded once for a number of texts."""

    def __init__(self, model: Any, slots: Slots, temperature: float) -> None:
        self.model, self.slots, self.temperature = model, slots, temperature
        self.recorded: dict[int, Any] = {}
        self.pool: Any = None
        device, widest = model.device, padded(slots.count, slots.count)
        self.tokens = torch.zeros(widest, device=device, dtype=torch.int64)
        self.positions = torch.zeros(widest, device=device, dtype=torch.int64)  # of those tokens
        self.begins = torch.zeros(widest + 1, device=device, dtype=torch.int32)  # of their slots

    @torch.no_grad()
    def write(
        self, tokens: Sequence[int], positions: Sequence[int], into: Sequence[int], passes: int
    ) -> list[list[int]]:
        """The next `passes` tokens of each text, whose newest token, its position and its slot are given."""
        slots, texts = self.slots, len(tokens)
        rows = padded(texts, slots.count) if slots.flash else texts
        padding = [0] * (rows - texts)
        self.tokens[:rows] = torch.tensor([*tokens, *padding])
        self.positions[:rows] = torch.tensor([*positions, *padding])
        begins = [slot * slots.length for slot in (*into, *[slots.count] * (rows - texts + 1))]
        self.begins[: rows + 1] = torch.tensor(begins, dtype=torch.int32)
        written = torch.empty(passes, rows, device=self.tokens.device, dtype=torch.int64)
        for number in range(passes):
            self.once(rows, max(positions) + number + 1)
            written[number] = self.tokens[:rows]
        return written[:, :texts].T.tolist()

    def once(self, rows: int, longest: int) -> None:
        """One pass; on a GPU it is recorded the first time, and repeated from then on."""
        graph = self.recorded.get(rows)
        if graph is not None:
            graph.replay()
            return
        self.one_pass(rows, self.slots.length if self.slots.flash else longest)
        if self.slots.flash and rows not in self.recorded:  # what is done but once has been done, and can be repeated
            self.recorded[rows] = self.record(rows)

    def record(self, rows: int) -> Any:
        """The graph of a pass, None where a model cannot be recorded. It leaves nothing changed."""
        kept = [each.clone() for each in (self.tokens, self.positions)]
        torch.cuda.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                self.one_pass(rows, self.slots.length)
        except RuntimeError:  # a model that asks the GPU for a number on its way cannot be recorded
            graph = None
        else:
            self.pool = graph.pool()
        for each, was in zip((self.tokens, self.positions), kept, strict=True):
            each.copy_(was)
        return graph

    def one_pass(self, rows: int, longest: int) -> None:
        tokens, positions, begins = self.tokens[:rows], self.positions[:rows], self.begins[: rows + 1]
        written, reading = begins[:-1].long() + positions, (positions + 1).to(torch.int32)
        place = Pass(self.slots, written, begins, reading, longest)
        asked = torch.arange(rows, device=tokens.device)
        tokens.copy_(pick(forward(self.model, place, tokens, positions, asked), self.temperature))
        positions.add_(1)


def padded(texts: int, most: int) -> int:
    """Texts of a pass, of few different numbers: powers of two, then every 64."""
    rounded = 1 << (texts - 1).bit_length() if texts <= 64 else -(-texts // 64) * 64
    return min(rounded, max(most, texts))
