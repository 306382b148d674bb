"""Causal attention over documents that stand one after the other in a row, forward and backward.

    documents   A A A B B          cumulative lengths 0 3 5          A's tokens see A alone, B's see B

Key and value heads may be fewer than query heads (Ainslie et al. 2023): each serves as many neighbouring ones.

On Hopper flash-attn-4 does it where it is installed (medreason[hopper]), on other GPUs torch's FlashAttention-2.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

SLOTS = 64  # cumulative lengths are padded with empty documents to multiples of this: kernels are kept by their number


@dataclass(frozen=True)
class Documents:
    """Where documents of a row begin, and what a token sees of its own."""

    lengths: tuple[int, ...]
    cumulative: Tensor  # (documents + 1,) int32, on the device; empty documents at the end
    longest: int
    window: int | None  # tokens that a token sees, itself included; None: all before it

    @classmethod
    def of(cls, lengths: tuple[int, ...], window: int | None, device: torch.device) -> "Documents":
        ends = torch.tensor((0, *lengths)).cumsum(0)
        padded = torch.nn.functional.pad(ends[None], (0, -len(ends) % SLOTS + 1), "replicate")[0]
        longest = max(lengths)
        window = None if window is None or window >= longest else window
        return cls(lengths, padded.int().to(device, non_blocking=True), -(-longest // 128) * 128, window)


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> tuple[Tensor, Any]:
    """What each token gathers, (tokens, heads, head), and what the backward pass needs besides.

    q is (tokens, heads, head); k and v (tokens, key heads, head).
    """
    if not q.is_cuda:
        return by_document(q, k, v, documents), None
    if hopper := made_for_hopper(q.device, documents):
        return in_own_graph(hopper, q, k, v, documents)
    out, *state = torch.ops.aten._flash_attention_forward(
        q, k, v, *spans(documents), 0.0, True, False, **scaling(q, documents)
    )
    return out, state


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, state: Any, documents: Documents
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    if isinstance(state, OwnGraph):
        with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
            return torch.autograd.grad(state.out, state.inputs, grad)  # type: ignore[return-value]
    if not q.is_cuda:
        with torch.enable_grad():
            q, k, v = (one.detach().requires_grad_() for one in (q, k, v))
            return torch.autograd.grad(by_document(q, k, v, documents), (q, k, v), grad)  # type: ignore[return-value]
    logsumexp, random_state, unused, _ = state
    return torch.ops.aten._flash_attention_backward(  # type: ignore[no-any-return]
        grad, q, k, v, out, logsumexp, *spans(documents), 0.0, True, random_state, unused, **scaling(q, documents)
    )


def in_own_graph(
    attention: Callable[..., tuple[Tensor, Tensor]], q: Tensor, k: Tensor, v: Tensor, documents: Documents
) -> tuple[Tensor, "OwnGraph"]:
    """What attention with flash-attn's arguments gives, and the way back through it; without one in inference mode."""
    if keeps_graph := not torch.is_inference_mode_enabled():
        q, k, v = (one.detach().requires_grad_() for one in (q, k, v))
    with torch.set_grad_enabled(keeps_graph), torch.cuda.device_of(q):  # type: ignore[no-untyped-call]  # it launches there
        out, _ = attention(
            q, k, v, cu_seqlens_q=documents.cumulative, cu_seqlens_k=documents.cumulative,
            max_seqlen_q=documents.longest, max_seqlen_k=documents.longest, causal=True,
        )  # fmt: skip
    return out.detach(), OwnGraph(out, (q, k, v))


@dataclass(frozen=True)
class OwnGraph:
    """What was computed under torch's eyes."""

    out: Tensor
    inputs: tuple[Tensor, Tensor, Tensor]


def made_for_hopper(device: torch.device, documents: Documents) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """flash-attn-4's attention, where this GPU and these documents are what it was tried on here; else None."""
    return flash_attn_4(device) if documents.window is None else None


@cache
def flash_attn_4(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
    if torch.cuda.get_device_capability(device)[0] != 9:
        return None
    # at each new kernel its compiler says that it does not know an argument's type
    warnings.filterwarnings("ignore", module=r"cutlass\.base_dsl")
    try:
        from flash_attn.cute import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func  # type: ignore[no-any-return]


def spans(documents: Documents) -> tuple[Tensor, Tensor, int, int]:
    return documents.cumulative, documents.cumulative, documents.longest, documents.longest


def scaling(q: Tensor, documents: Documents) -> dict[str, Any]:
    settings: dict[str, Any] = {"scale": q.shape[-1] ** -0.5}
    if documents.window is not None:
        settings |= {"window_size_left": documents.window - 1, "window_size_right": 0}
    return settings


def by_document(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """The same with torch's attention, a document at a time."""
    gathered = []
    for parts in zip(*(torch.split(one, list(documents.lengths)) for one in (q, k, v)), strict=True):
        queries, keys, values = (part.transpose(0, 1)[None] for part in parts)
        length = parts[0].shape[0]
        if documents.window is None:
            out = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        else:
            distance = torch.arange(length)[:, None] - torch.arange(length)
            seen = (distance >= 0) & (distance < documents.window)
            out = scaled_dot_product_attention(queries, keys, values, attn_mask=seen, enable_gqa=True)
        gathered.append(out[0].transpose(0, 1))
    return torch.cat(gathered)
