import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medreason.engine import kernels
from medreason.engine.fp8 import LARGEST, Rows, product, quantise, quantise_frozen, scales_of_two
from medreason.engine.weights import FrozenLinear


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_a_row_is_held_to_a_sixteenth_of_each_number_whatever_its_size() -> None:
    rows = torch.randn(40, 96) * torch.logspace(-6, 6, 40)[:, None]
    held = quantise(rows)
    assert held.values.dtype == torch.float8_e4m3fn
    assert torch.equal(held.values.float().abs().amax(-1), torch.full((40,), LARGEST))
    small = rows.abs() < rows.abs().amax(-1, keepdim=True) / LARGEST / 64  # below E4M3's normal numbers
    assert ((held.dense() - rows).abs() / rows.abs())[~small].max() <= 1 / 16
    assert quantise(torch.zeros(2, 16)).dense().abs().max() == 0


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_a_product_of_held_rows_is_that_of_the_numbers_they_stand_for(tokens: int) -> None:
    left, right = quantise(torch.randn(tokens, 96)), quantise(torch.randn(48, 96))
    exact = left.dense() @ right.dense().t()
    assert relative(product(left, right, torch.float32), exact) < 1e-6
    assert relative(product(left, right, torch.bfloat16).float(), exact) < 4e-3


def test_a_frozen_layer_is_the_linear_layer_but_for_rounding() -> None:
    weight, x = torch.randn(48, 96), torch.randn(2, 5, 96)
    frozen = FrozenLinear(quantise(weight), None, torch.float32, fp8=True)
    assert 1e-3 < relative(frozen(x), x @ weight.t()) < 0.05


def test_gradients_of_passes_are_those_that_torch_finds() -> None:
    """In 64 bits, so that a wrong formula cannot hide behind rounding."""
    torch.manual_seed(0)
    double = torch.float64
    x, other, grad = (torch.randn(9, 24, dtype=double) for _ in range(3))
    weight = torch.rand(24, dtype=double)
    leaf = x.clone().requires_grad_()
    (functional.rms_norm(leaf, (24,), weight, 1e-5) * grad + leaf * other).sum().backward()
    found, _ = kernels.rms_norm_backward(grad, x, weight, 1e-5, other, fp8=False)
    assert leaf.grad is not None and torch.allclose(found, leaf.grad, atol=1e-5)
    total, normed = kernels.rms_norm(x, weight, 1e-5, other, fp8=False)
    assert torch.allclose(normed.values, functional.rms_norm(x + other, (24,), weight, 1e-5), atol=1e-5)
    assert torch.equal(total, x + other)

    leaf = torch.cat((x, other), -1).requires_grad_()
    gate, up = leaf.chunk(2, -1)
    (functional.silu(gate) * up * grad).sum().backward()
    found = kernels.swiglu_backward(grad, leaf.detach(), fp8=False).values
    assert leaf.grad is not None and torch.allclose(found, leaf.grad, atol=1e-5)


def test_what_is_rotated_back_is_what_was_rotated() -> None:
    angles = torch.rand(5, 4)
    cos, sin = (torch.cat((turn, turn), -1) for turn in (angles.cos(), angles.sin()))
    qkv = torch.randn(5, 6 * 8)
    turned = kernels.rotate(qkv.clone(), cos, sin, 4)
    assert relative(turned[:, :32], qkv[:, :32]) > 0.1 and torch.equal(turned[:, 32:], qkv[:, 32:])
    heads = turned.view(5, 6, 8).split((3, 1, 2), 1)
    assert relative(kernels.rotate_backward(*heads, cos, sin, fp8=False).values, qkv) < 1e-6
    assert relative(kernels.rotate_backward(*heads, cos, sin, fp8=True).dense(), qkv) < 0.05


def test_cross_entropy_and_its_gradient_are_torchs() -> None:
    logits, labels = torch.randn(7, 50) * 4, torch.tensor([3, -100, 0, 49, 7, -100, 7])
    leaf = logits.clone().requires_grad_()
    functional.cross_entropy(leaf, labels, reduction="sum").backward()
    losses = kernels.cross_entropy(logits, labels)
    assert losses.sum().item() == pytest.approx(
        functional.cross_entropy(leaf, labels, reduction="sum").item(), rel=1e-5
    )
    assert leaf.grad is not None and torch.allclose(logits, leaf.grad, atol=1e-6)


def test_frozen_rows_transposed_are_the_same_numbers() -> None:
    weight = torch.randn(48, 96) * torch.logspace(-1, 0, 48)[:, None]
    held, scale = quantise_frozen(weight), scales_of_two(weight.t())
    assert 1e-3 < relative(held.dense(), weight) < 0.03
    largest = (weight.abs().amax(-1, keepdim=True) / held.scale).flatten()
    assert largest.min() >= LARGEST / 2 and largest.max() <= LARGEST
    tiny = scales_of_two(torch.cat((weight, 1e-4 * weight[:1], 0 * weight[:1])))
    assert tiny.min() == tiny.max() / 32 and tiny[-1] == tiny.max(), "beside numbers so small others would have no room"
    turned = kernels.transposed(held, scale)
    assert turned.values.shape == (96, 48) and turned.values.is_contiguous()
    numbers = held.dense().t()
    large = numbers.abs() > numbers.abs().amax(-1, keepdim=True) / 2**13  # above E4M3's smallest normal number
    assert torch.equal(turned.dense()[large], numbers[large]) and large.float().mean() > 0.99


def test_what_is_added_to_a_product_is_added_in_place() -> None:
    y, few, weight, other = (torch.randn(*shape) for shape in ((7, 24), (7, 3), (3, 24), (7, 24)))
    wanted = y + few @ weight
    assert torch.allclose(kernels.add_product(y.clone(), few, weight, other), wanted + other, atol=1e-5)
    assert kernels.add_product(y, few, weight) is y and torch.allclose(y, wanted, atol=1e-5)


def test_adapters_products_see_the_numbers_that_are_held() -> None:
    held, weight, few = quantise(torch.randn(30, 64)), torch.randn(6, 64), torch.randn(30, 6)
    assert torch.allclose(kernels.narrow(held, weight, 0.5), 0.5 * held.dense() @ weight.t(), atol=1e-4)
    assert torch.allclose(kernels.summed_outer(held, few), few.t() @ held.dense(), atol=1e-4)
    plain = Rows(held.dense(), None)
    assert torch.allclose(kernels.narrow(plain, weight), kernels.narrow(held, weight), atol=1e-4)


def test_kernels_of_a_gpu_compute_what_their_plain_twins_do() -> None:
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).with_name("kernel_twins.py")],
        env=os.environ | interpreted, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-3000:]
