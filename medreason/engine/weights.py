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
from medreason.engine.fp8 import E4M3, Rows, product, quantise, quantise_frozen, scales_of_two


class Held(Protocol):
    """A matrix (out, in) as memory holds it."""

    def wide(self) -> Tensor:
        """In 16 or 32 bits."""

    def eight(self, room: int) -> Rows:
        """In E4M3, a power of two for each row; `room` are unwritten columns after the matrix's."""

    def turned(self, scale: Tensor, room: int) -> Rows:
        """The same transposed, under given scales (in, 1)."""

    def stand_in(self, owner: nn.Module, names: Sequence[str]) -> None:
        """Has the layers of these names, maybe with adapters around them, answer from this memory."""


class InSixteen:
    """Layers that share an input, one below the other, in the bits that they came in."""

    def __init__(self, layers: Sequence[nn.Module], device: torch.device) -> None:
        weights = [frozen_weight(layer) for layer in layers]
        self.weight = torch.cat([one.detach().to(device) for one in weights])
        for own, part in zip(weights, parts_of(self.weight, [len(one) for one in weights]), strict=True):
            own.data = part

    def wide(self) -> Tensor:
        return self.weight

    def eight(self, room: int) -> Rows:
        return quantise_frozen(self.weight, room)

    def turned(self, scale: Tensor, room: int) -> Rows:
        height, width = self.weight.shape
        values = torch.empty(width, height + room, dtype=E4M3, device=scale.device)
        values[:, :height] = (self.weight.t().float() / scale).to(E4M3)
        return Rows(values, scale)

    def stand_in(self, owner: nn.Module, names: Sequence[str]) -> None:
        pass  # their weights are views of this one


class InEight:
    """The same in E4M3. The layers' own weights become one number each, which only says their shape."""

    def __init__(self, layers: Sequence[nn.Module], device: torch.device, fp8: bool, room: int) -> None:
        weights = [frozen_weight(layer) for layer in layers]
        self.dtype, self.fp8 = weights[0].dtype, fp8
        self.heights, self.width = [len(one) for one in weights], weights[0].shape[1]
        self.rows = quantise_frozen(torch.cat([one.detach().to(device) for one in weights]), room)
        for own in weights:
            own.data = torch.zeros((), dtype=self.dtype, device=device).expand(own.shape)

    def wide(self) -> Tensor:
        return widened(self.rows.left(self.width), self.dtype)

    def eight(self, room: int) -> Rows:
        return self.rows

    def turned(self, scale: Tensor, room: int) -> Rows:
        return kernels.transposed(self.rows.left(self.width), scale, room)

    def stand_in(self, owner: nn.Module, names: Sequence[str]) -> None:
        values, scale = self.rows.left(self.width)
        assert scale is not None
        for name, *rows in zip(names, parts_of(values, self.heights), parts_of(scale, self.heights), strict=True):
            layer = getattr(owner, name)
            frozen = FrozenLinear(Rows(*rows), base_of(layer).bias, self.dtype, self.fp8)
            if hasattr(layer, "base_layer"):
                layer.base_layer = frozen
            else:
                setattr(owner, name, frozen)


class InFour:
    """The same as bitsandbytes holds them, each layer by itself, so that an adapter's base is the one others load."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = [base_of(layer) for layer in layers]
        shapes = [layer.weight.quant_state.shape for layer in self.layers]
        self.heights = [height for height, _ in shapes]
        self.shape = (sum(self.heights), shapes[0][1])
        self.scale: Tensor | None = None

    def wide(self) -> Tensor:
        weight = self.layers[0].weight
        out = torch.empty(*self.shape, dtype=weight.quant_state.dtype, device=weight.device)
        for layer, part in zip(self.layers, parts_of(out, self.heights), strict=True):
            kernels.decode_four(layer.weight.data, layer.weight.quant_state, part)
        return out

    def eight(self, room: int) -> Rows:
        if self.scale is None:
            self.scale = scales_of_two(self.wide())
        height, width = self.shape
        values = torch.empty(height, width + room, dtype=E4M3, device=self.scale.device)
        parts = (parts_of(one, self.heights) for one in (values[:, :width], self.scale))
        for layer, part, scale in zip(self.layers, *parts, strict=True):
            kernels.decode_four(layer.weight.data, layer.weight.quant_state, part, scale)
        return Rows(values, self.scale)

    def turned(self, scale: Tensor, room: int) -> Rows:
        height, width = self.shape
        values = torch.empty(width, height + room, dtype=E4M3, device=scale.device)
        for layer, part in zip(self.layers, parts_of(values[:, :height], self.heights, 1), strict=True):
            kernels.decode_four(layer.weight.data, layer.weight.quant_state, part, scale, turned=True)
        return Rows(values, scale)

    def stand_in(self, owner: nn.Module, names: Sequence[str]) -> None:
        for name in names:
            # else an answer written on a CPU reorders the weight's bits
            base_of(getattr(owner, name)).support_avx512bf16_for_cpu = False


def parts_of(matrix: Tensor, heights: list[int], dim: int = 0) -> Sequence[Tensor]:
    """What of a joint matrix is each layer's."""
    return torch.split(matrix, heights, dim)


def widened(rows: Rows, dtype: torch.dtype) -> Tensor:
    """Frozen rows in 16 or 32 bits. Their scales are powers of two: nothing is rounded."""
    assert rows.scale is not None
    return rows.values.to(dtype).mul_(rows.scale.to(dtype))


def hold(layers: Sequence[nn.Module], device: torch.device, precision: Precision, fp8: bool, room: int) -> Held:
    """The weights of linear layers, as `precision` says; in nf4 they come so from the loader.

    They will be multiplied in eight bits (`fp8`) or 16. Where they are held so, `room` columns are held beside them.
    """
    if precision is Precision.nf4:
        for layer in layers:
            layer.to(device)
        return InFour(layers)
    return InEight(layers, device, fp8, room) if precision is Precision.fp8 else InSixteen(layers, device)


class Weight:
    """Rows of a held matrix for products in eight bits (`fp8`) or 16.

    `copies` of what is multiplied are kept: 0 makes both directions anew for each product, 1 keeps the forward one, 2
    keeps both. It changes memory and time, no number. `room` and `turned_room` are columns that rows in eight bits have
    after the matrix's own, one way and the other; what stands there is the caller's.
    """

    kept: Rows | None = None
    kept_turned: Rows | None = None

    def __init__(self, held: Held, fp8: bool, copies: int, room: int = 0, turned_room: int = 0) -> None:
        self.held, self.fp8, self.room, self.turned_room = held, fp8, room, turned_room
        wide = held.wide()
        self.shape, self.dtype = wide.shape, wide.dtype
        self.turned_scale = scales_of_two(wide.t()) if fp8 else None
        del wide
        self.scale = self.keep(copies).scale

    def keep(self, copies: int) -> Rows:
        """Keeps so many copies from now on; the rows of the forward pass."""
        rows = self.rows()
        self.kept = rows if copies >= 1 else None
        self.kept_turned = self.turned() if self.fp8 and copies >= 2 else None
        return rows

    def made(self) -> Rows:
        return self.held.eight(self.room) if self.fp8 else Rows(self.held.wide(), None)

    def rows(self) -> Rows:
        """(out, in + room), for the forward pass."""
        return self.kept or self.made()

    def turned(self) -> Rows:
        """(in, out + turned_room), for the backward pass."""
        if self.turned_scale is None:
            return Rows(self.rows().values.t(), None)
        return self.kept_turned or self.held.turned(self.turned_scale, self.turned_room)


class FrozenLinear(nn.Module):
    """A linear layer whose weight is fixed rows, for passes that need no gradient of the input."""

    def __init__(self, weight: Rows, bias: Tensor | None, dtype: torch.dtype, fp8: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.dtype, self.fp8 = dtype, fp8
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight: Rows = Rows(self.weight, self.weight_scale)  # type: ignore[arg-type]
        if not self.fp8:
            return nn.functional.linear(x, widened(weight, self.dtype), self.bias)  # type: ignore[arg-type]
        y = product(quantise(x.reshape(-1, self.in_features)), weight, self.dtype).view(
            *x.shape[:-1], self.out_features
        )
        return y if self.bias is None else y + self.bias  # type: ignore[operator]


def base_of(layer: nn.Module) -> Any:
    """A layer without the adapter around it."""
    return getattr(layer, "base_layer", layer)


def frozen_weight(layer: nn.Module) -> Tensor:
    weight = base_of(layer).weight
    assert isinstance(weight, Tensor)
    return weight
