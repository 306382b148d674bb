"""Counts by hand, and counts of what torch really computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medreason.models.flops import (
    Shape,
    attention_flops,
    fp8_peak_flops,
    linear_weights,
    peak_flops,
    shape_of,
    token_flops,
)
from support import LINEARS

MISTRAL = Shape(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=32768,
)
MISTRAL_LORA = 41_943_040  # r = 16 on all seven linears, as PEFT prints it


def test_mistral_7b_has_seven_billion_weights_that_a_token_meets() -> None:
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert linear_weights(MISTRAL) == 32 * layer + 4096 * 32768 == 7_113_539_584


def test_a_token_of_mistral_7b_costs_four_operations_a_frozen_weight_and_six_a_lora_weight() -> None:
    assert token_flops(MISTRAL, 0) == pytest.approx(4 * 7.11e9, rel=1e-3)
    assert token_flops(MISTRAL, MISTRAL_LORA) - token_flops(MISTRAL, 0) == 6 * MISTRAL_LORA


def test_documents_see_themselves_alone() -> None:
    # one document: 12 x layers x width x length^2 as in PaLM's appendix B, half of it behind the mask
    assert attention_flops(MISTRAL, [1000]) == 6 * 32 * 4096 * 1000**2
    assert attention_flops(MISTRAL, [500, 500]) == attention_flops(MISTRAL, [1000]) // 2
    assert attention_flops(MISTRAL, [300, 700]) == attention_flops(MISTRAL, [300]) + attention_flops(MISTRAL, [700])


def count(model: Any, tokens: int) -> tuple[int, int]:
    """Operations that torch counts in a forward and backward pass: of linears, and of attention's products."""
    ids = torch.arange(tokens)[None] % 250 + 6
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    counts = {operator.__name__.partition(".")[0]: n for operator, n in counter.get_flop_counts()["Global"].items()}
    return counts["mm"], counts["bmm"]


def trained(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_torch_counts_the_same_in_a_llama_with_lora() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}  # sdpa is not counted
    base = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=LINEARS))
    model.enable_input_require_grads()  # else torch leaves out gradients that the first layer's inputs do not need
    shape = shape_of(base.config)
    linear, attention = count(model, 256)
    assert linear == 256 * token_flops(shape, trained(model))
    # eager attention computes what the mask hides, too; rotary embeddings add a little
    assert attention == pytest.approx(2 * attention_flops(shape, [256]), rel=0.001)


def test_torch_counts_the_same_in_what_is_trained_here(make_model: Callable[..., Any]) -> None:
    model = make_model()
    shape = shape_of(model.config)
    linear, _ = count(model, 256)
    first = 64 * (4 + 2 + 2) * 16 + 3 * 4 * 64  # q, k, v of the first layer, and the A's of their LoRA
    assert linear == 256 * (token_flops(shape, trained(model)) - 2 * first)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
    ],
)
def test_a_known_gpu_has_the_peak_of_its_data_sheet(name: str, peak: float) -> None:
    assert peak_flops(name) == peak


def test_eight_bits_have_twice_the_peak_where_there_are_cores_for_them() -> None:
    assert fp8_peak_flops("NVIDIA H100 80GB HBM3") == fp8_peak_flops("NVIDIA H200") == pytest.approx(1979e12, rel=1e-3)
    assert fp8_peak_flops("NVIDIA L4") == 242e12
    older = ("NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 3090", "NVIDIA RTX A6000", "Tesla T4", "Tesla V100-PCIE-16GB")
    assert [fp8_peak_flops(name) for name in (*older, "cpu")] == [None] * 6


@pytest.mark.parametrize(
    "name",
    ["cpu", "", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA Quadro RTX 6000"],
)
def test_a_gpu_that_is_not_known_or_not_whole_has_no_peak(name: str) -> None:
    assert peak_flops(name) is None
