"""The passes over memory of a decoder layer, each tensor read and written once: Triton on a GPU, torch elsewhere.

Each function stands first as plain torch, which says what it computes; `on_gpu` replaces it by a kernel for CUDA
tensors. All work on rows: one token, one row. `fp8` asks for E4M3 with a scale; else rows keep their type.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from medreason.engine.fp8 import E4M3, LARGEST, TAIL, Rows, quantise

Function = TypeVar("Function", bound=Callable[..., Any])


def on_gpu(plain: Function) -> Function:
    """`plain`, but for CUDA tensors the function of the same name in engine/triton_kernels.py, on their device."""

    def choose(first: Any, *more: Any, **settings: Any) -> Any:
        tensor = first.values if isinstance(first, Rows) else first
        if not tensor.is_cuda:
            return plain(first, *more, **settings)
        from medreason.engine import triton_kernels

        kernel = getattr(triton_kernels, plain.__name__)
        if tensor.device.index == torch.cuda.current_device():
            return kernel(first, *more, **settings)
        # Triton launches on the current device, whichever device its tensors are on
        with torch.cuda.device(tensor.device):
            return kernel(first, *more, **settings)

    choose.__name__, choose.__doc__ = plain.__name__, plain.__doc__
    return choose  # type: ignore[return-value]


def held(matrix: Tensor, fp8: bool) -> Rows:
    return quantise(matrix) if fp8 else Rows(matrix, None)


@on_gpu
def cast_rows(matrix: Tensor, *, fp8: bool) -> Rows:
    """(tokens, width) as rows."""
    return held(matrix, fp8)


@on_gpu
def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None, *, fp8: bool) -> tuple[Tensor, Rows]:
    """x + delta, and its rows divided by their root mean square, times weight (Zhang and Sennrich 2019)."""
    x = x if delta is None else x + delta
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return x, held((normed * weight.float()).to(x.dtype), fp8)


@on_gpu
def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *, fp8: bool
) -> tuple[Tensor, Rows]:
    """Gradient of x, from the gradients of its normed rows and of its other use (`residual`); plain, and as rows."""
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed, grad = wide * inverse, grad.float() * weight.float()
    grad = inverse * (grad - normed * (grad * normed).mean(-1, keepdim=True))
    grad = (grad if residual is None else grad + residual.float()).to(x.dtype)
    return grad, held(grad, fp8)


@on_gpu
def swiglu(gate_up: Tensor, *, fp8: bool) -> Rows:
    """silu(gate) x up, where a row of `gate_up` holds both, one after the other (Shazeer 2020)."""
    gate, up = gate_up.float().chunk(2, -1)
    return held((torch.nn.functional.silu(gate) * up).to(gate_up.dtype), fp8)


@on_gpu
def swiglu_backward(grad: Tensor, gate_up: Tensor, *, fp8: bool) -> Rows:
    """Gradient of `gate_up`, both halves under one scale."""
    gate, up = gate_up.float().chunk(2, -1)
    sigmoid, grad = gate.sigmoid(), grad.float()
    gate_grad = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    return held(torch.cat((gate_grad, grad * gate * sigmoid), -1).to(gate_up.dtype), fp8)


@on_gpu
def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, rotated_heads: int) -> Tensor:
    """Rotary embedding (Su et al. 2021) of the first heads of each row, in place; cos and sin are (tokens, head)."""
    head = cos.shape[-1]
    heads = qkv[:, : rotated_heads * head].view(-1, rotated_heads, head)
    first, second = heads.float().chunk(2, -1)
    c, s = cos.float()[:, None, : head // 2], sin.float()[:, None, : head // 2]
    heads.copy_(torch.cat((first * c - second * s, second * c + first * s), -1))
    return qkv


@on_gpu
def rotate_backward(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *, fp8: bool) -> Rows:
    """Gradients of queries, keys and values, each (tokens, heads, head), -> of a row of `qkv` before its rotation."""
    qkv = torch.cat([one.flatten(1) for one in (q, k, v)], -1)
    return held(rotate(qkv, cos, -sin, q.shape[1] + k.shape[1]), fp8)


@on_gpu
def narrow(x: Rows, weight: Tensor, factor: float = 1.0) -> Tensor:
    """factor x (x weight^T) for a weight of few rows: (tokens, width) and (rank, width) give (tokens, rank)."""
    return (factor * (x.dense().to(weight.dtype) @ weight.t()).float()).to(weight.dtype)


@on_gpu
def summed_outer(x: Rows, few: Tensor) -> Tensor:
    """Sum over tokens of few outer x: (tokens, rank) and (tokens, width) give (rank, width) float32."""
    return few.float().t() @ x.dense().float()


@on_gpu
def add_product(y: Tensor, few: Tensor, weight: Tensor, other: Tensor | None = None) -> Tensor:
    """y + few weight + other, in place: (tokens, rank) and (rank, width), added to (tokens, width)."""
    y.addmm_(few, weight)
    return y if other is None else y.add_(other)


@on_gpu
def transposed(x: Rows, scale: Tensor, room: int = 0) -> Rows:
    """The transposed of scaled rows under given scales, one for each of its own rows; `room` as in quantise_frozen."""
    height, width = x.values.shape
    values = torch.empty(width, height + room, dtype=x.values.dtype, device=scale.device)
    values[:, :height] = (x.dense() / scale.t()).t().to(values.dtype)
    return Rows(values, scale)


@on_gpu
def decode_four(packed: Tensor, state: Any, out: Tensor, scale: Tensor | None = None, turned: bool = False) -> None:
    """Fills `out` (rows, columns) with what bitsandbytes holds in four bits, or with its transposed (`turned`).

    `packed` is uint8, two numbers each, row after row; `state` bitsandbytes' QuantState. `scale` (rows, 1) divides the
    rows of `out`. Numbers are first rounded to the 16 bits that bitsandbytes makes of them, so that eight bits are
    those of the matrix that others train on.
    """
    from bitsandbytes.functional import dequantize_4bit

    wide = dequantize_4bit(packed, state)
    wide = wide.t() if turned else wide
    out.copy_(wide if scale is None else (wide.float() / scale).to(out.dtype))


# y = x W^T + few U in one product, the adapter as more channels:  [x | few c] [W | U^T / c]^T. c is the power of two
# that brings the largest of U under the scale of its row of W to just below 448; a row's scale covers x and few c.


@on_gpu
def largest_ratio(update: Tensor, scale: Tensor, out: Tensor) -> None:
    """Raises `out` (1,), float32, to the largest of update (rows, ranks) beside its row's scale (rows, 1)."""
    out.copy_(torch.maximum(out, (update.abs().float() / scale).max()))


def balance(ratio: Tensor) -> Tensor:
    """c of `ratio`, what largest_ratio found: (1,) float32."""
    return torch.where(ratio > 0, torch.exp2(torch.ceil(torch.log2(ratio / LARGEST))), 1.0)


def split(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """High and low part in E4M3 of float32 numbers up to 448."""
    high = numbers.to(E4M3)
    return high, (numbers - high.float()).to(E4M3)


@on_gpu
def write_tail(update: Tensor, scale: Tensor, ratio: Tensor, out: Tensor) -> None:
    """Fills `out` (rows, TAIL), the columns beside a frozen weight of these scales, with update (rows, ranks)."""
    high, low = split(update.float() / (scale * balance(ratio)))
    tail = torch.cat((high.float(), low.float(), high.float()), 1)
    out.copy_(torch.nn.functional.pad(tail, (0, TAIL - tail.shape[1])).to(E4M3))


@on_gpu
def cast_with_tail(x: Tensor, few: Tensor, ratio: Tensor) -> Rows:
    """Rows of x (tokens, width) in E4M3 with few (tokens, ranks) beside them, (tokens, width + TAIL)."""
    wide, channels = x.float(), few.float() * balance(ratio)
    largest = torch.maximum(wide.abs().amax(1, keepdim=True), channels.abs().amax(1, keepdim=True))
    largest = torch.where(largest > 0, largest, LARGEST)
    high, low = split(channels * (LARGEST / largest))
    tail = torch.cat((high.float(), high.float(), low.float()), 1)
    values = torch.cat((wide * (LARGEST / largest), torch.nn.functional.pad(tail, (0, TAIL - tail.shape[1]))), 1)
    return Rows(values.to(E4M3), largest / LARGEST)


@on_gpu
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each row, (tokens,) float32, 0 where the label is negative; `logits` become their gradients in place."""
    kept = labels >= 0
    chosen = labels.clamp(min=0)[:, None]
    logprobs = logits.float().log_softmax(-1)
    losses = torch.where(kept, -logprobs.gather(1, chosen)[:, 0], 0.0)
    grad = logprobs.exp().scatter_add(1, chosen, torch.full_like(logprobs[:, :1], -1.0))
    logits.copy_(grad * kept[:, None])
    return losses
