"""Floating point operations of training, for the share of a GPU's peak that a run reaches (MFU).

MFU counts what the model needs, not what the hardware does (Chowdhery et al. 2022, PaLM, appendix B): recomputed
activations, dequantisation of 4-bit weights and padding count for nothing. A multiply-add is two operations.

    forward, frozen weights      2 N   q, k, v, o, gate, up, down of each layer, and the head; embeddings are looked up
    backward, frozen weights     2 N   gradients of activations; frozen weights have none of their own
    LoRA, forward and backward   6 n   gradients of activations and of weights
    attention                          each token sees what stands before it in its document
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What a decoder's cost depends on, named as in a transformers configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    head_norms: bool = False  # queries and keys have norms of their own

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.num_key_value_heads * self.head_dim


def shape_of(config: Any) -> Shape:
    """The shape that a transformers configuration of a Llama-like decoder describes."""
    return Shape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        head_norms=config.model_type == "qwen3",
    )


def linear_weights(shape: Shape) -> int:
    """Weights that every token is multiplied with: all linears of all layers, and the head."""
    attention = shape.hidden_size * (2 * shape.query_width + 2 * shape.key_width)  # q and o, k and v
    gated = 3 * shape.hidden_size * shape.intermediate_size
    return shape.num_hidden_layers * (attention + gated) + shape.hidden_size * shape.vocab_size


def token_flops(shape: Shape, adapter_weights: int) -> int:
    """Operations of one training token outside attention: 4 N + 6 n.

    The first layer's q, k and v are counted like all others, though gradients of frozen embeddings are not needed: that
    is 0.2% of Mistral-7B.
    """
    return 4 * linear_weights(shape) + 6 * adapter_weights


def attention_flops(shape: Shape, lengths: Sequence[int]) -> int:
    """Operations of attention over documents of `lengths` tokens, forward and backward.

    Two products forward, four backward (queries, keys, probabilities, values), each 2 x width x length^2, half of it
    behind the causal mask.
    """
    return 6 * shape.num_hidden_layers * shape.query_width * sum(length * length for length in lengths)


# Operations per second of tensor cores on dense 16-bit numbers, summed in 32 bits; data sheets often show twice that,
# for sparse ones. bfloat16, but for V100 and T4, which have float16 alone.
PEAKS: dict[tuple[str, ...], float] = {
    ("gb200",): 2500e12,
    ("b200",): 2250e12,
    ("gh200",): 989e12,
    ("h200",): 989e12,
    ("h200", "nvl"): 835e12,
    ("h100",): 989e12,
    ("h100", "nvl"): 835e12,
    ("h100", "pcie"): 756e12,
    ("a100",): 312e12,
    ("a40",): 150e12,
    ("a30",): 165e12,
    ("l40s",): 362e12,
    ("l40",): 181e12,
    ("l4",): 121e12,
    ("rtx", "4090"): 165e12,
    ("rtx", "3090"): 71e12,
    ("rtx", "a6000"): 155e12,
    ("rtx", "6000", "ada"): 364e12,
    ("v100",): 125e12,
    ("v100", "pcie"): 112e12,
    ("t4",): 65e12,
}
WITHOUT_FP8 = {"a100", "a40", "a30", "a6000", "3090", "v100", "t4"}
PARTS = {"mig", "laptop", "mobile", "max", "d"}  # a slice of a GPU, or a slower one under the same name


def peak_flops(device_name: str) -> float | None:
    """Dense 16-bit tensor-core peak of a GPU, operations per second; None where it is not known, and for a CPU.

    `device_name` as `torch.cuda.get_device_name` writes it. From NVIDIA's data sheets of GB200 NVL72, HGX B200, GH200,
    H200, H100, A100, A40, A30, L40S, L40, L4, V100 and T4, and its white papers on the Ada and GA102 GPU architectures.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    known = [name for name in PEAKS if words >= set(name)]
    if not known or words & PARTS:
        return None
    return PEAKS[max(known, key=len)]


def fp8_peak_flops(device_name: str) -> float | None:
    """Dense 8-bit peak: twice the 16-bit one (Ada, Hopper, Blackwell); None too for a GPU without such tensor cores."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    peak = peak_flops(device_name)
    return None if peak is None or words & WITHOUT_FP8 else 2 * peak
