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


class Rows(NamedTuple):
    """A matrix: `values` (rows, columns) in E4M3 with `scale` (rows, 1) float32, or in 16 or 32 bits without."""

    values: Tensor
    scale: Tensor | None

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
    """For each row the power of two that scales its largest number to between 224 and 448: (rows, 1) float32."""
    largest = matrix.abs().amax(-1, keepdim=True).float()
    _, exponent = torch.frexp(torch.where(largest > 0, largest, LARGEST) / LARGEST)
    return torch.ldexp(torch.ones_like(largest), exponent)


def quantise_frozen(matrix: Tensor) -> Rows:
    """Rows in E4M3 under powers of two: transposed under others such, numbers keep their bits but for the smallest."""
    scale = scales_of_two(matrix)
    return Rows((matrix.float() / scale).contiguous().to(E4M3), scale)


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
