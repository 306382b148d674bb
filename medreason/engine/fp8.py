"""Rows of numbers in eight bits: each row its scale, each product of two such matrices in one kernel.

    row      0.8 -2.0  0.1        largest 2.0 -> scale 2.0 / 448
    values   176 -448   22        float8_e4m3fn: sign, 4 bits of exponent, 3 of mantissa; up to 448
    value  = values x scale

Both factors of a product are scaled along what is summed over, so scales are multiplied once, on the result. The same
code holds 16- and 32-bit rows: their scale is None.
"""

from typing import NamedTuple

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of E4M3
TAIL = 128  # columns beside a matrix for an adapter (kernels.write_tail): products take a multiple of it at once
PARTS = 3  # of an adapter there: high x high, high x low, low x high, which is as exact as 16 bits


class Rows(NamedTuple):
    """A matrix: `values` (rows, columns) in E4M3 with `scale` (rows, 1) float32, or in 16 or 32 bits without."""

    values: Tensor
    scale: Tensor | None

    def left(self, columns: int) -> "Rows":
        """The first columns."""
        return Rows(self.values[:, :columns], self.scale)

    def dense(self) -> Tensor:
        """The matrix itself, float32 where it was scaled."""
        return self.values if self.scale is None else self.values.float() * self.scale


def quantise(matrix: Tensor) -> Rows:
    """Rows in E4M3, the largest of each at 448. A row of zeros has scale 1."""
    matrix = matrix.float().contiguous()  # a transposed one would keep its strides, which cuBLASLt refuses
    largest = matrix.abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, LARGEST)
    return Rows((matrix * (LARGEST / largest)).to(E4M3), largest / LARGEST)


def scales_of_two(matrix: Tensor) -> Tensor:
    """For each row the power of two that scales its largest number to between 224 and 448: (rows, 1) float32.

    None is below a 32nd of the largest of them, so that what stands beside the numbers of a row (kernels.write_tail)
    has room under every row's scale: rows so small lose their smallest numbers.
    """
    largest = matrix.abs().amax(-1, keepdim=True).float()
    most = largest.amax()
    largest = torch.where(largest > 0, largest, torch.where(most > 0, most, LARGEST))
    _, exponent = torch.frexp(largest / LARGEST)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.maximum(scale, scale.amax() / 32)


def quantise_frozen(matrix: Tensor, room: int = 0) -> Rows:
    """Rows in E4M3 under powers of two: transposed under others such, numbers keep their bits but for the smallest.

    `room` are columns after them that stay unwritten.
    """
    scale, (height, width) = scales_of_two(matrix), matrix.shape
    values = torch.empty(height, width + room, dtype=E4M3, device=matrix.device)
    values[:, :width] = (matrix.float() / scale).to(E4M3)
    return Rows(values, scale)


def product(left: Rows, right: Rows, dtype: torch.dtype) -> Tensor:
    """left x right^T in `dtype`: (m, k) and (n, k) give (m, n), summed in float32.

    Scaled factors need k and n in multiples of 16; on a GPU `dtype` must then be bfloat16.
    """
    if left.scale is None or right.scale is None:
        return left.values @ right.values.t()
    return torch._scaled_mm(
        left.values,
        right.values.t(),
        scale_a=left.scale,
        scale_b=right.scale.t(),  # (1, n), contiguous since (n, 1) is
        out_dtype=dtype,
        use_fast_accum=True,  # the only way of row-wise scales on Hopper
    )
