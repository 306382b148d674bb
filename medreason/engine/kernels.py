"""The passes over memory of a decoder layer, each tensor read and written once: Triton on a GPU, torch elsewhere.

Each function stands first as plain torch, which says what it computes; `on_gpu` replaces it by a kernel for CUDA
tensors. All work on rows: one token, one row. `fp8` asks for E4M3 with a scale; else rows keep their type.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from medreason.engine.fp8 import Rows, quantise

Function = TypeVar("Function", bound=Callable[..., Any])


def on_gpu(plain: Function) -> Function:
    """`plain`, but for CUDA tensors the function of the same name in engine/triton_kernels.py, on their device."""

    def choose(first: Any, *more: Any, **settings: Any) -> Any:
        tensor = first.values if isinstance(first, Rows) else first
        if not tensor.is_cuda:
            return plain(first, *more, **settings)
        from medreason.engine import triton_kernels

        # Triton launches on the current device, whichever device its tensors are on
        with torch.cuda.device(tensor.device):
            return getattr(triton_kernels, plain.__name__)(first, *more, **settings)

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
def transposed(x: Rows, scale: Tensor) -> Rows:
    """The transposed of scaled rows under given scales, one for each of its own rows."""
    assert x.scale is not None
    return Rows((x.dense() / scale.t()).t().contiguous().to(x.values.dtype), scale)


@on_gpu
def decode_four(packed: Tensor, state: Any, out: Tensor, scale: Tensor | None) -> None:
    """Fills `out` (rows, columns) with what bitsandbytes holds in four bits, in its type; over `scale` where given.

    `packed` is uint8, two numbers each, row after row; `state` bitsandbytes' QuantState. Numbers are first rounded to
    the 16 bits that bitsandbytes makes of them, so that eight bits are those of the matrix that others train on.
    """
    from bitsandbytes.functional import dequantize_4bit

    wide = dequantize_4bit(packed, state)
    out.copy_(wide if scale is None else (wide.float() / scale).to(out.dtype))


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
