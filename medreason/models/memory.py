"""What a run will take of a GPU's memory, before it takes any; and the least recomputation that fits.

    base         frozen weights as they are held, embeddings and head in 16 bits
    adapter      LoRA's weights and gradients in 32 bits, the optimizer's states
    activations  what each layer leaves for the backward pass, by token
    working      what one layer needs at once while the others wait, the head's logits

The fast engine's activations are counted from what it keeps (Kept of engine/layers.py). Unsloth's were measured:
Mistral-7B in 4 bits, rows of 8,192 and 16,384 tokens, one H100; the counts below reproduce them within 2%.

What torch's allocator holds beyond that is little, as training lets its segments grow (train/run.py).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medreason.batch import LOGIT_ROWS
from medreason.config import Algorithm, ConfigError, Precision, Recompute
from medreason.engine.fp8 import TAIL
from medreason.models.flops import Shape, linear_weights, token_flops

GIB = 2**30
FITS = 0.96  # of the free memory: estimates are within 3% of what was measured, and what was not may be further off
BYTES = {
    Precision.nf4: 0.516, Precision.int8: 1.0, Precision.fp8: 1.0, Precision.half: 2.0, Precision.bf16: 2.0,
}  # fmt: skip
STATES = {Algorithm.adamw: 8.0, Algorithm.adamw_8bit: 2.0}  # bytes of an optimizer for each trained weight
UNSLOTH_WORKING = 1.0 * GIB  # beside a layer's activations: logits in chunks, weights widened for a product
STEPS = (Recompute.none, Recompute.selective, Recompute.full)  # of the fast engine, each recomputes more
UNSLOTH = (Recompute.none, Recompute.unsloth)


@dataclass(frozen=True)
class Base:
    """How frozen weights are held, by which engine, and whether that multiplies them in eight bits."""

    precision: Precision
    fast: bool = False
    fp8: bool = False

    @property
    def copies(self) -> tuple[int, ...]:
        """How many of the weights as they are multiplied can be kept (engine/weights.py), the fastest first."""
        if not self.fast or self.precision is Precision.bf16:
            return (1,)
        if self.fp8:
            return (2, 1) if self.precision is Precision.fp8 else (2, 1, 0)
        return (1, 0)


# operations a second as a share of the GPU's dense 16-bit peak, all copies kept, measured on an H100 with rows of 8,192
# tokens, the fast engine with flash-attn-4
SPEED = {
    ("fp8", Recompute.none): 0.84, ("fp8", Recompute.selective): 0.67, ("fp8", Recompute.full): 0.63,
    ("bf16", Recompute.none): 0.53, ("bf16", Recompute.selective): 0.41, ("bf16", Recompute.full): 0.385,
    ("nf4", Recompute.none): 0.37, ("nf4", Recompute.unsloth): 0.26,
    ("half", Recompute.none): 0.38,
}  # fmt: skip
MAKING = 0.025  # of a step's time, for each copy of the weights that is made anew


@dataclass(frozen=True)
class Need:
    """Bytes that a run takes at its peak, and how it would then be trained."""

    base: float
    adapter: float
    activations: float
    working: float
    recompute: Recompute
    copies: int  # of the frozen weights as they are multiplied, in the fast engine
    spared: int = 0  # last layers that recompute one step less

    @property
    def total(self) -> float:
        return self.base + self.adapter + self.activations + self.working

    def __str__(self) -> str:
        parts = ("base", "adapter", "activations", "working")
        return ", ".join(f"{part} {getattr(self, part) / GIB:.1f}" for part in parts)


def lora_weights(shape: Shape, r: int, targets: Sequence[str]) -> int:
    """Weights of LoRA on these linears of every layer."""
    h, i = shape.hidden_size, shape.intermediate_size
    q, k = shape.query_width, shape.key_width
    widths = {"q_proj": h + q, "k_proj": h + k, "v_proj": h + k, "o_proj": q + h,
              "gate_proj": h + i, "up_proj": h + i, "down_proj": i + h}  # fmt: skip
    return r * shape.num_hidden_layers * sum(widths.get(target, 0) for target in targets)


def need(
    shape: Shape,
    base: Base,
    *,
    recompute: Recompute,
    tokens: int,
    adapter_weights: int,
    algorithm: Algorithm,
    copies: int = 1,
    spared: int = 0,
) -> Need:
    """The peak of training on `tokens` at once (rows_per_batch x row_tokens)."""
    h, i, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    ends = 2 * h * shape.vocab_size
    frozen = held_bytes(shape, base, copies) + 2 * ends
    engine_copy = 2 if base.fast else 0  # the adapters in 16 bits
    adapter = adapter_weights * (4 + 4 + STATES[algorithm] + engine_copy)
    whole = layer_bytes(shape, base)
    kept = kept_bytes(shape, base, recompute)
    if not base.fast:
        working = (0 if recompute is Recompute.none else tokens * whole) + UNSLOTH_WORKING
        return Need(frozen, adapter, tokens * (layers * kept + 2 * h), working, recompute, copies)
    lighter = kept_bytes(shape, base, lighter_than(recompute)) if spared else kept
    activations = tokens * ((layers - spared) * kept + spared * lighter + 2 * h)
    gradients = tokens * (2 * i + (2 if base.fp8 else 4) * i + 6 * h)
    working = tokens * (whole - lighter) + max(gradients, LOGIT_ROWS * shape.vocab_size * 2 + tokens * 2 * h)
    # the spared layers' activations are gone before the first of the others is computed again
    working = max(working, tokens * (whole - kept - spared * lighter) + gradients)
    return Need(frozen, adapter, activations, working, recompute, copies, spared)


def lighter_than(recompute: Recompute) -> Recompute:
    return STEPS[max(0, STEPS.index(recompute) - 1)]


def held_bytes(shape: Shape, base: Base, copies: int) -> float:
    """Of the linears of all layers as they are held, the kept copies of them, and the largest that is made anew."""
    h, i = shape.hidden_size, shape.intermediate_size
    linears, largest = linear_weights(shape) - h * shape.vocab_size, 2 * h * i
    held = BYTES[base.precision]
    if not base.fast or (base.precision is Precision.bf16 and not base.fp8):
        return linears * held
    size = 1 if base.fp8 else 2  # of a number as it is multiplied
    kept = copies - (base.precision is Precision.fp8 and base.fp8)
    made = max(base.copies) - copies
    # columns beside the kept rows of gate and up, and beside down's transposed ones
    beside = TAIL * shape.num_hidden_layers * i * (2 * (copies > 0) + (copies > 1)) if base.fp8 else 0
    return linears * (held + kept * size) + made * largest * size + beside


def layer_bytes(shape: Shape, base: Base) -> int:
    """What a layer leaves for the backward pass where nothing is recomputed, for each token."""
    h, i = shape.hidden_size, shape.intermediate_size
    q, k = shape.query_width, shape.key_width
    heads = 2 * (q + k) if shape.head_norms else 0
    if base.fast and base.fp8:  # twice x, q k v, attended in 16 bits; norms, attended and the gated unit in 8
        return heads + 2 * (2 * h + (q + 2 * k) + q + 2 * i) + 2 * h + q + i + 4 * shape.num_attention_heads + 16
    if base.fast:
        return heads + 2 * (4 * h + (q + 2 * k) + q + 3 * i) + 4 * shape.num_attention_heads
    return 2 * (5 * h + 3 * q + 2 * i)  # measured


def kept_bytes(shape: Shape, base: Base, recompute: Recompute) -> int:
    """What stays of that until the backward pass, for each token."""
    h = shape.hidden_size
    q, k = shape.query_width, shape.key_width
    if recompute is Recompute.none:
        return layer_bytes(shape, base)
    if recompute is Recompute.selective:
        heads = 2 * (q + k) if shape.head_norms else 0
        return heads + 2 * (2 * h + (q + 2 * k) + q) + 4 * shape.num_attention_heads
    return 2 * h if recompute is Recompute.full else 0  # Unsloth sends it to the host's memory


def choose(
    shape: Shape,
    base: Base,
    *,
    recompute: Recompute,
    tokens: int,
    adapter_weights: int,
    algorithm: Algorithm,
    free: float,
) -> Need:
    """The fastest way that fits into `free` bytes; with another `recompute` than auto, among those with it.

    Raises ConfigError, which says what would fit, where nothing does.
    """

    def needs(base: Base, recompute: Recompute, tokens: int, algorithm: Algorithm = algorithm) -> list[Need]:
        return [
            need(shape, base, recompute=how, tokens=tokens, adapter_weights=adapter_weights, algorithm=algorithm,
                 copies=copies, spared=spared)
            for how, copies, spared in ways(base, recompute, shape.num_hidden_layers)
        ]  # fmt: skip

    found = needs(base, recompute, tokens)
    if fitting := [one for one in found if one.total <= FITS * free]:
        return min(fitting, key=lambda one: (slowness(shape, base, one), one.total))
    least = min(found, key=lambda one: one.total)
    cures = []
    if recompute is not Recompute.auto and fits(needs(base, Recompute.auto, tokens), free):
        cures.append("trainer.recompute=auto")
    for eighths in range(7, 0, -1):
        if fits(needs(base, recompute, tokens * eighths // 8), free):
            cures.append(f"rows of {tokens * eighths // 8:,} tokens (data.row_tokens)")
            break
    if algorithm is Algorithm.adamw and fits(needs(base, recompute, tokens, Algorithm.adamw_8bit), free):
        cures.append("optim=adamw_8bit")
    four = Base(Precision.nf4, base.fast, base.fp8)
    if base.precision is not Precision.nf4 and fits(needs(four, Recompute.auto, tokens), free):
        cures.append("model.engine=fast model.precision=nf4" if base.fast else "model.precision=nf4")
    elif base.fast and fits(needs(Base(Precision.nf4), Recompute.auto, tokens), free):
        cures.append("model.engine=unsloth model.precision=nf4")
    raise ConfigError(
        f"this run needs {least.total / GIB:.1f} GiB of the GPU's memory ({least} with trainer.recompute="
        f"{least.recompute.value}, {tokens:,} tokens at once), and {free / GIB:.1f} are free; "
        + (f"what fits: {', or '.join(cures)}" if cures else "it needs a larger GPU or a smaller model")
    )


def ways(base: Base, recompute: Recompute, layers: int) -> Iterator[tuple[Recompute, int, int]]:
    """What can be tried: how much is recomputed, how many copies of the weights are kept, how many layers are spared.

    Layers are spared where nobody has said what to recompute: so memory between two steps of it is made use of.
    """
    steps = STEPS if base.fast else UNSLOTH
    for how in steps if recompute is Recompute.auto else (recompute,):
        most = layers - 1 if recompute is Recompute.auto and base.fast and how is not Recompute.none else 0
        for copies in base.copies:
            for spared in range(most + 1):
                yield how, copies, spared


def fits(needs: Sequence[Need], free: float) -> bool:
    return any(one.total <= FITS * free for one in needs)


def slowness(shape: Shape, base: Base, way: Need) -> float:
    """Time of a step, in that which a GPU at its dense 16-bit peak would need; infinite where it was not measured."""
    kind = ("fp8" if base.fp8 else "bf16") if base.fast else base.precision.value
    share = SPEED.get((kind, way.recompute))
    if share is None:
        return math.inf
    if not base.fast:
        return 1 / share
    spared = way.spared / shape.num_hidden_layers
    time = (1 - spared) / share + (spared / SPEED[kind, lighter_than(way.recompute)] if spared else 0)
    return time * (1 + MAKING * (max(base.copies) - way.copies))


def seconds(shape: Shape, adapter_weights: int, base: Base, way: Need, tokens: int, peak: float | None) -> float | None:
    """How long training on so many tokens takes, attention left out; None where the GPU or the way was not measured."""
    time = slowness(shape, base, way)
    if peak is None or math.isinf(time):
        return None
    return tokens * token_flops(shape, adapter_weights) * time / peak


def describe(found: Need, free: float, device: str, duration: float | None) -> str:
    """One line for the log."""
    how = f"recompute={found.recompute.value}"
    if found.spared:
        how += f", {lighter_than(found.recompute).value} in {found.spared} layers"
    if found.copies > 1:
        how += f", {found.copies} copies of the weights"
    took = "" if duration is None else f"; about {duration / 60:.0f} min of training" if duration >= 90 else (
        f"; about {duration:.0f} s of training"
    )  # fmt: skip
    return f"{found.total / GIB:.1f} of {free / GIB:.1f} GiB of {device} expected ({found}; {how}){took}"


OUT_OF_MEMORY = "out of memory"  # how the reason of a run that ended so begins


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    import torch

    # torch raises a bare RuntimeError on the host
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
