"""What a run will take of a GPU's memory, before it takes any; and the least recomputation that fits.

    base           frozen weights as they are held, embeddings and head in 16 bits
    adapter        LoRA's weights and gradients in 32 bits, the optimizer's states
    activations    what each layer leaves for the backward pass, by token
    working        what one layer needs at once while the others wait, the head's logits
    fragmentation  what torch's allocator holds beyond that, in blocks that are free but too small for the next

The fast engine's activations are counted from what it keeps (compiled.Kept). Unsloth's were measured: Mistral-7B in 4
bits, rows of 8,192 and 16,384 tokens, one H100; the counts below reproduce them within 2%, fragmentation included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from medreason.batch import LOGIT_ROWS
from medreason.config import Algorithm, ConfigError, Precision, Recompute
from medreason.models.flops import Shape, linear_weights, token_flops

GIB = 2**30
FITS = 0.96  # of the free memory: estimates are within 2% of what was measured, and what was not may be further off
BYTES = {Precision.nf4: 0.516, Precision.int8: 1.0, Precision.half: 2.0, Precision.bf16: 2.0}  # of a frozen weight
STATES = {Algorithm.adamw: 8.0, Algorithm.adamw_8bit: 2.0}  # bytes of an optimizer for each trained weight
UNSLOTH_WORKING = 1.0 * GIB  # beside a layer's activations: logits in chunks, weights widened for a product
# what is tried, fastest first; 2 copies of 8-bit weights spare the backward pass their transposition
FP8 = ((Recompute.none, 2), (Recompute.none, 1), (Recompute.selective, 2), (Recompute.selective, 1),
       (Recompute.full, 2), (Recompute.full, 1))  # fmt: skip
BF16 = ((Recompute.none, 1), (Recompute.selective, 1), (Recompute.full, 1))
UNSLOTH = ((Recompute.none, 1), (Recompute.unsloth, 1))
# in blocks of the largest size, that of the gated unit's input; fitted to what whole runs on an H100 reserved
FRAGMENTATION = {Recompute.none: 1, Recompute.selective: 2, Recompute.full: 3}
# operations a second as a share of the GPU's dense 16-bit peak, measured on an H100 with rows of 8,192 tokens, the fast
# engine with flash-attn-4 (bf16 with recomputation: before that)
SPEED = {
    (Precision.fp8, Recompute.none): 0.83, (Precision.fp8, Recompute.selective): 0.65,
    (Precision.fp8, Recompute.full): 0.61, (Precision.bf16, Recompute.none): 0.53,
    (Precision.bf16, Recompute.selective): 0.40,
    (Precision.nf4, Recompute.none): 0.37, (Precision.nf4, Recompute.unsloth): 0.26,
    (Precision.half, Recompute.none): 0.38,
}  # fmt: skip


@dataclass(frozen=True)
class Need:
    """Bytes that a run takes at its peak, and how it would then be trained."""

    base: float
    adapter: float
    activations: float
    working: float
    fragmentation: float
    recompute: Recompute
    copies: int  # of the frozen weights, in fp8

    @property
    def total(self) -> float:
        return self.base + self.adapter + self.activations + self.working + self.fragmentation

    def __str__(self) -> str:
        parts = ("base", "adapter", "activations", "working", "fragmentation")
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
    *,
    precision: Precision,
    recompute: Recompute,
    tokens: int,
    adapter_weights: int,
    algorithm: Algorithm,
    copies: int = 1,
) -> Need:
    """The peak of training on `tokens` at once (rows_per_batch x row_tokens)."""
    h, i, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    ends = 2 * h * shape.vocab_size
    linears = linear_weights(shape) - ends // 2
    fp8 = precision is Precision.fp8
    base: float = linears * (copies if fp8 else BYTES[precision]) + 2 * ends
    if fp8 and copies == 1:
        base += 2 * h * i  # the largest weight, transposed
    engine_copy = 2 if precision.compiled else 0  # the adapters in 16 bits
    adapter = adapter_weights * (4 + 4 + STATES[algorithm] + engine_copy)
    whole = layer_bytes(shape, precision)
    kept = kept_bytes(shape, precision, recompute)
    activations = tokens * (layers * kept + 2 * h)
    working: float
    fragmentation = 0.0  # Unsloth's was measured together with it
    if precision.compiled:
        fragmentation = FRAGMENTATION[recompute] * tokens * 2 * i * 2
        gradients = tokens * (2 * i + (2 if fp8 else 4) * i + 6 * h)
        working = tokens * (whole - kept) + max(gradients, LOGIT_ROWS * shape.vocab_size * 2 + tokens * 2 * h)
    else:
        working = (0 if recompute is Recompute.none else tokens * whole) + UNSLOTH_WORKING
    return Need(base, adapter, activations, working, fragmentation, recompute, copies)


def layer_bytes(shape: Shape, precision: Precision) -> int:
    """What a layer leaves for the backward pass where nothing is recomputed, for each token."""
    h, i = shape.hidden_size, shape.intermediate_size
    q, k = shape.query_width, shape.key_width
    if precision is Precision.fp8:  # twice x, q k v, attended in 16 bits; norms, attended and the gated unit in 8
        return 2 * (2 * h + (q + 2 * k) + q + 2 * i) + 2 * h + q + i + 4 * shape.num_attention_heads + 16
    if precision is Precision.bf16:
        return 2 * (4 * h + (q + 2 * k) + q + 3 * i) + 4 * shape.num_attention_heads
    return 2 * (5 * h + 3 * q + 2 * i)  # measured


def kept_bytes(shape: Shape, precision: Precision, recompute: Recompute) -> int:
    """What stays of that until the backward pass, for each token."""
    h = shape.hidden_size
    q, k = shape.query_width, shape.key_width
    if recompute is Recompute.none:
        return layer_bytes(shape, precision)
    if recompute is Recompute.selective:
        return 2 * (2 * h + (q + 2 * k) + q) + 4 * shape.num_attention_heads
    return 2 * h if recompute is Recompute.full else 0  # Unsloth sends it to the host's memory


def choose(
    shape: Shape,
    *,
    precision: Precision,
    recompute: Recompute,
    tokens: int,
    adapter_weights: int,
    algorithm: Algorithm,
    free: float,
) -> Need:
    """The fastest way that fits into `free` bytes; with another `recompute` than auto, among those with it.

    Raises ConfigError, which says what would fit, where nothing does.
    """

    def needs(precision: Precision, recompute: Recompute, tokens: int) -> list[Need]:
        ways = {Precision.fp8: FP8, Precision.bf16: BF16}.get(precision, UNSLOTH)
        asked = [way for way in ways if recompute in (Recompute.auto, way[0])]
        return [
            need(shape, precision=precision, recompute=how, tokens=tokens, adapter_weights=adapter_weights,
                 algorithm=algorithm, copies=copies)
            for how, copies in asked or [(recompute, 1)]
        ]  # fmt: skip

    found = needs(precision, recompute, tokens)
    for one in found:
        if one.total <= FITS * free:
            return one
    least = min(found, key=lambda one: one.total)
    cures = []
    if recompute is not Recompute.auto and fits(needs(precision, Recompute.auto, tokens), free):
        cures.append("trainer.recompute=auto")
    for part in (2, 4, 8):
        if fits(needs(precision, recompute, tokens // part), free):
            cures.append(f"rows of {tokens // part:,} tokens (data.row_tokens)")
            break
    if precision is not Precision.nf4 and fits(needs(Precision.nf4, Recompute.auto, tokens), free):
        cures.append("model.precision=nf4")
    raise ConfigError(
        f"this run needs {least.total / GIB:.1f} GiB of the GPU's memory ({least} with trainer.recompute="
        f"{least.recompute.value}, {tokens:,} tokens at once), and {free / GIB:.1f} are free; "
        + (f"what fits: {', or '.join(cures)}" if cures else "it needs a larger GPU or a smaller model")
    )


def fits(needs: Sequence[Need], free: float) -> bool:
    return any(one.total <= FITS * free for one in needs)


def seconds(
    shape: Shape, adapter_weights: int, precision: Precision, recompute: Recompute, tokens: int, peak: float | None
) -> float | None:
    """How long training on so many tokens takes, attention left out; None where the GPU or the way was not measured."""
    share = SPEED.get((precision, recompute))
    if share is None or peak is None:
        return None
    return tokens * token_flops(shape, adapter_weights) / (share * peak)


def describe(found: Need, free: float, device: str, duration: float | None) -> str:
    """One line for the log."""
    how = f"recompute={found.recompute.value}"
    if found.copies > 1:
        how += f", {found.copies} copies of the weights"
    took = "" if duration is None else f"; about {duration / 60:.0f} min of training" if duration >= 90 else (
        f"; about {duration:.0f} s of training"
    )  # fmt: skip
    return f"{found.total / GIB:.1f} of {free / GIB:.1f} GiB of {device} expected ({found}; {how}){took}"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    import torch

    # torch raises a bare RuntimeError on the host
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
