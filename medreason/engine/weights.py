"""A frozen weight: how it is held, and the rows that products take of it.

    held in   bytes a number   as fp8 takes it              as 16 bits take it
    bf16      2                cast anew                    looked at
    fp8       1                looked at                    widened anew
    nf4       0.52             decoded anew into E4M3       decoded anew

What is made anew is made for one product and gone after it, or kept where memory allows (`copies`). A product of the
backward pass takes the weight transposed: in 16 bits that is another look at it, in eight bits another matrix.

What transformers' own layers need of a weight, to write answers, is the same memory.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medreason.config import Precision
from medreason.engine import kernels
from medreason.engine.fp8 import Rows, product, quantise, quantise_frozen, scales_of_two


class Held(Protocol):
    """A matrix (out, in) as memory holds it."""

    def wide(self) -> Tensor:
        """In 16 or 32 bits."""

    def eight(self) -> Rows:
        """In E4M3, a power of two for each row."""


class InSixteen:
    """Layers that share an input, one below the other, in the bits that they came in."""

    def __init__(self, layers: Sequence[nn.Module], device: torch.device) -> None:
        weights = [frozen_weight(layer).detach() for layer in layers]
        self.weight = torch.cat([one.to(device) for one in weights])
        start = 0
        for layer, own in zip(layers, weights, strict=True):
            base_of(layer).weight.data = self.weight[start : start + len(own)]
            start += len(own)

    def wide(self) -> Tensor:
        return self.weight

    def eight(self) -> Rows:
        return quantise_frozen(self.weight)


class InEight:
    """The same in E4M3. Replaces each layer in its `owner` by one that multiplies in eight bits."""

    def __init__(self, owner: nn.Module, names: Sequence[str], device: torch.device) -> None:
        layers = [getattr(owner, name) for name in names]
        weights = [frozen_weight(layer).detach() for layer in layers]
        self.dtype = weights[0].dtype
        self.rows = quantise_frozen(torch.cat([one.to(device) for one in weights]))
        values, scale = self.rows
        assert scale is not None
        start = 0
        for name, layer, own in zip(names, layers, weights, strict=True):
            part = slice(start, start + len(own))
            start = part.stop
            frozen = FrozenLinear(Rows(values[part], scale[part]), base_of(layer).bias, self.dtype)
            if hasattr(layer, "base_layer"):
                layer.base_layer = frozen
            else:
                setattr(owner, name, frozen)

    def wide(self) -> Tensor:
        assert self.rows.scale is not None
        return self.rows.values.to(self.dtype).mul_(self.rows.scale.to(self.dtype))  # powers of two: nothing is rounded

    def eight(self) -> Rows:
        return self.rows


class InFour:
    """The same as bitsandbytes holds them, each layer by itself, so that an adapter's base is the one others load."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = [base_of(layer) for layer in layers]
        for layer in self.layers:
            layer.support_avx512bf16_for_cpu = False  # else an answer written on a CPU reorders the weight's bits
        self.scale: Tensor | None = None

    def wide(self) -> Tensor:
        return self.decoded(self.layers[0].weight.quant_state.dtype, None)

    def eight(self) -> Rows:
        if self.scale is None:
            self.scale = scales_of_two(self.wide())
        return Rows(self.decoded(torch.float8_e4m3fn, self.scale), self.scale)

    def decoded(self, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
        weights = [layer.weight for layer in self.layers]
        heights = [one.quant_state.shape[0] for one in weights]
        out = torch.empty(
            sum(heights), weights[0].quant_state.shape[1], dtype=dtype, device=weights[0].device
        )  # fmt: skip
        scales = [None] * len(weights) if scale is None else torch.split(scale, heights)
        for one, part, own in zip(weights, torch.split(out, heights), scales, strict=True):
            kernels.decode_four(one.data, one.quant_state, part, own)
        return out


def hold(owner: nn.Module, names: Sequence[str], precision: Precision, device: torch.device) -> Held:
    """The weights of the linear layers of these names, as `precision` says; in nf4 they come so from the loader."""
    layers = [getattr(owner, name) for name in names]
    if precision is Precision.nf4:
        for layer in layers:
            layer.to(device)
        return InFour(layers)
    return InEight(owner, names, device) if precision is Precision.fp8 else InSixteen(layers, device)


class Weight:
    """Rows of a held matrix for products in eight bits (`fp8`) or 16.

    `copies` of what is multiplied are kept: 0 makes both directions anew for each product, 1 keeps the forward one, 2
    keeps both. It changes memory and time, no number.
    """

    def __init__(self, held: Held, fp8: bool, copies: int) -> None:
        self.held, self.fp8 = held, fp8
        wide = held.wide()
        self.shape, self.dtype = wide.shape, wide.dtype
        self.turned_scale = scales_of_two(wide.t()) if fp8 else None
        del wide
        self.kept_turned: Rows | None = None
        self.kept = self.made() if copies >= 1 else None
        if fp8 and copies >= 2:
            self.kept_turned = self.turned()

    def made(self) -> Rows:
        return self.held.eight() if self.fp8 else Rows(self.held.wide(), None)

    def rows(self) -> Rows:
        """(out, in), for the forward pass."""
        return self.kept or self.made()

    def turned(self) -> Rows:
        """(in, out), for the backward pass."""
        if self.turned_scale is None:
            return Rows(self.rows().values.t(), None)
        return self.kept_turned or kernels.transposed(self.rows(), self.turned_scale)


class FrozenLinear(nn.Module):
    """A linear layer whose weight is fixed rows, for passes that need no gradient of the input."""

    def __init__(self, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.dtype = dtype
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows = quantise(x.reshape(-1, self.in_features))
        weight: Rows = Rows(self.weight, self.weight_scale)  # type: ignore[arg-type]
        y = product(rows, weight, self.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias  # type: ignore[operator]


def base_of(layer: nn.Module) -> Any:
    """A layer without the adapter around it."""
    return getattr(layer, "base_layer", layer)


def frozen_weight(layer: nn.Module) -> Tensor:
    weight = base_of(layer).weight
    assert isinstance(weight, Tensor)
    return weight
