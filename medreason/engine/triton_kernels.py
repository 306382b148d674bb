"""medreason/engine/kernels.py on a GPU: the same functions, each a Triton kernel. What they compute is written there.

One program makes one row where a row's largest value is wanted, or a block of tokens for products with few columns.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from medreason.engine.fp8 import E4M3, LARGEST, TAIL, Rows

WIDE = 8192  # columns that one pass of a row's program holds at once
RANKS = 64  # of an adapter, that one program multiplies at once
SHARES = 8  # of the tokens, summed each by itself: enough programs for a big GPU, few enough to be added up cheaply


def power_of_two(width: int) -> int:
    return int(triton.next_power_of_2(width))


def warps(block: int) -> int:
    """Enough that a thread holds 16 values or fewer, as far as that goes."""
    return max(1, min(16, block // 512))


def ranks_at_once(rank: int) -> int:
    """As many as there are, but no fewer than a product takes, and no more than a program has room for."""
    return max(16, min(RANKS, power_of_two(rank)))


def stages(wanted: int, tile_bytes: int, device: torch.device) -> int:
    """Tiles that a program has on their way at once: as many as were fastest on an H100, where there is room for them.

    A multiprocessor of an H100 shares 227 KiB, of an A100 163, of an RTX 3090, 4090 or 5090 or an L4 99.
    """
    if device.type != "cuda":
        return wanted
    room: int = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    return max(1, min(wanted, int(0.9 * room) // tile_bytes))  # a tenth for what the compiler adds


def empty_rows(tokens: int, width: int, like: Tensor, fp8: bool) -> tuple[Tensor, Tensor]:
    """Values, and scales where they are wanted (else a tensor that is not looked at)."""
    values = torch.empty(tokens, width, dtype=E4M3 if fp8 else like.dtype, device=like.device)
    return values, torch.empty((tokens, 1) if fp8 else (1, 1), dtype=torch.float32, device=like.device)


def as_rows(values: Tensor, scale: Tensor, fp8: bool) -> Rows:
    return Rows(values, scale if fp8 else None)


@triton.jit
def store_row(values, at, mask, out, scale, row, FP8: tl.constexpr, LARGEST: tl.constexpr):
    if FP8:
        largest = tl.max(tl.abs(values))
        largest = tl.where(largest > 0, largest, LARGEST)
        tl.store(scale + row, largest / LARGEST)
        values = values * (LARGEST / largest)
    tl.store(out + at, values.to(out.dtype.element_ty), mask=mask)


@triton.jit
def cast_rows_kernel(x, out, scale, width, stride, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    values = tl.load(x + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    store_row(values, row * width + columns, mask, out, scale, row, True, LARGEST)


def cast_rows(matrix: Tensor, *, fp8: bool) -> Rows:
    if not fp8:
        return Rows(matrix, None)
    tokens, width = matrix.shape
    matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
    values, scale = empty_rows(tokens, width, matrix, True)
    block = power_of_two(width)
    cast_rows_kernel[(tokens,)](
        matrix, values, scale, width, matrix.stride(0), BLOCK=block, LARGEST=LARGEST, num_warps=warps(block)
    )
    return Rows(values, scale)


@triton.jit
def rms_norm_kernel(
    x, delta, weight, total, out, scale, width, eps,
    DELTA: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    at = row * width + columns
    values = tl.load(x + at, mask=mask, other=0.0)
    if DELTA:
        values = (values.to(tl.float32) + tl.load(delta + at, mask=mask, other=0.0).to(tl.float32)).to(values.dtype)
        tl.store(total + at, values, mask=mask)
    values = values.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values) / width + eps)
    values = values * inverse * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    store_row(values, at, mask, out, scale, row, FP8, LARGEST)


def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None, *, fp8: bool) -> tuple[Tensor, Rows]:
    tokens, width = x.shape
    values, scale = empty_rows(tokens, width, x, fp8)
    total = x if delta is None else torch.empty_like(x)
    block = power_of_two(width)
    rms_norm_kernel[(tokens,)](
        x, x if delta is None else delta, weight, total, values, scale, width, eps,
        DELTA=delta is not None, FP8=fp8, BLOCK=block, LARGEST=LARGEST, num_warps=warps(block),
    )  # fmt: skip
    return total, as_rows(values, scale, fp8)


@triton.jit
def rms_norm_backward_kernel(
    grad, x, weight, residual, out, rows, scale, width, eps,
    RESIDUAL: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    at = row * width + columns
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    slope = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    slope = slope * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values) / width + eps)
    values = values * inverse
    result = inverse * (slope - values * (tl.sum(slope * values) / width))
    if RESIDUAL:
        result += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    result = result.to(out.dtype.element_ty)
    tl.store(out + at, result, mask=mask)
    if FP8:
        store_row(result.to(tl.float32), at, mask, rows, scale, row, True, LARGEST)


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *, fp8: bool
) -> tuple[Tensor, Rows]:
    tokens, width = x.shape
    out = torch.empty_like(x)
    values, scale = empty_rows(tokens, width, x, True) if fp8 else (out, out)
    block = power_of_two(width)
    rms_norm_backward_kernel[(tokens,)](
        grad, x, weight, x if residual is None else residual.contiguous(), out, values, scale, width, eps,
        RESIDUAL=residual is not None, FP8=fp8, BLOCK=block, LARGEST=LARGEST, num_warps=warps(block),
    )  # fmt: skip
    return out, as_rows(values, scale, fp8)


@triton.jit
def swiglu_kernel(gate_up, out, scale, width, FP8: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    at = row * 2 * width + columns
    gate = tl.load(gate_up + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at + width, mask=mask, other=0.0).to(tl.float32)
    store_row(gate * tl.sigmoid(gate) * up, row * width + columns, mask, out, scale, row, FP8, LARGEST)


def swiglu(gate_up: Tensor, *, fp8: bool) -> Rows:
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    values, scale = empty_rows(tokens, width, gate_up, fp8)
    block = power_of_two(width)
    swiglu_kernel[(tokens,)](
        gate_up, values, scale, width, FP8=fp8, BLOCK=block, LARGEST=LARGEST, num_warps=warps(block)
    )
    return as_rows(values, scale, fp8)


@triton.jit
def swiglu_slopes(grad, gate_up, row, columns, width):
    mask = columns < width
    at = row * 2 * width + columns
    gate = tl.load(gate_up + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at + width, mask=mask, other=0.0).to(tl.float32)
    slope = tl.load(grad + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    return slope * up * sigmoid * (1 + gate * (1 - sigmoid)), slope * gate * sigmoid


@triton.jit
def swiglu_backward_kernel(
    grad, gate_up, out, scale, width, FP8: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr
):
    # a row of three tensors does not fit a program's registers: its scale first, then the row again, from the cache
    row = tl.program_id(0).to(tl.int64)
    factor = 1.0
    if FP8:
        found = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(0, width, BLOCK):
            gate_grad, up_grad = swiglu_slopes(grad, gate_up, row, start + tl.arange(0, BLOCK), width)
            found = tl.maximum(found, tl.maximum(tl.abs(gate_grad), tl.abs(up_grad)))
        largest = tl.max(found)
        largest = tl.where(largest > 0, largest, LARGEST)
        tl.store(scale + row, largest / LARGEST)
        factor = LARGEST / largest
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        gate_grad, up_grad = swiglu_slopes(grad, gate_up, row, columns, width)
        at = row * 2 * width + columns
        tl.store(out + at, (gate_grad * factor).to(out.dtype.element_ty), mask=columns < width)
        tl.store(out + at + width, (up_grad * factor).to(out.dtype.element_ty), mask=columns < width)


def swiglu_backward(grad: Tensor, gate_up: Tensor, *, fp8: bool) -> Rows:
    tokens, width = grad.shape
    values, scale = empty_rows(tokens, 2 * width, gate_up, fp8)
    block = min(WIDE, power_of_two(width))
    swiglu_backward_kernel[(tokens,)](
        grad, gate_up, values, scale, width, FP8=fp8, BLOCK=block, LARGEST=LARGEST, num_warps=warps(block)
    )
    return as_rows(values, scale, fp8)


@triton.jit
def turned(x, row, pair, count, stride, cos, sin, SIGN: tl.constexpr, HALF: tl.constexpr):
    """Both halves of each pair, rotated, and where they stand in a row of heads."""
    mask = pair < count
    at = pair // HALF * 2 * HALF + pair % HALF
    first = tl.load(x + row * stride + at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + row * stride + at + HALF, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(cos + row * 2 * HALF + pair % HALF, mask=mask, other=0.0).to(tl.float32)
    s = SIGN * tl.load(sin + row * 2 * HALF + pair % HALF, mask=mask, other=0.0).to(tl.float32)
    return first * c - second * s, second * c + first * s, at, mask


@triton.jit
def rotate_kernel(qkv, cos, sin, pairs, stride, HALF: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first, second, at, mask = turned(qkv, row, tl.arange(0, BLOCK), pairs, stride, cos, sin, 1, HALF)
    tl.store(qkv + row * stride + at, first.to(qkv.dtype.element_ty), mask=mask)
    tl.store(qkv + row * stride + at + HALF, second.to(qkv.dtype.element_ty), mask=mask)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, rotated_heads: int) -> Tensor:
    half = cos.shape[-1] // 2
    pairs = rotated_heads * half
    block = power_of_two(pairs)
    rotate_kernel[(len(qkv),)](qkv, cos, sin, pairs, qkv.stride(0), HALF=half, BLOCK=block, num_warps=warps(block))
    return qkv


@triton.jit
def rotate_backward_kernel(
    q, k, v, cos, sin, out, scale, q_pairs, k_pairs, v_width, q_stride, k_stride, v_stride,
    HALF: tl.constexpr, Q: tl.constexpr, K: tl.constexpr, V: tl.constexpr, FP8: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    q1, q2, q_at, q_mask = turned(q, row, tl.arange(0, Q), q_pairs, q_stride, cos, sin, -1, HALF)
    k1, k2, k_at, k_mask = turned(k, row, tl.arange(0, K), k_pairs, k_stride, cos, sin, -1, HALF)
    v_at = tl.arange(0, V)
    v_mask = v_at < v_width
    values = tl.load(v + row * v_stride + v_at, mask=v_mask, other=0.0).to(tl.float32)
    factor = 1.0
    if FP8:
        largest = tl.maximum(tl.max(tl.maximum(tl.abs(q1), tl.abs(q2))), tl.max(tl.maximum(tl.abs(k1), tl.abs(k2))))
        largest = tl.maximum(largest, tl.max(tl.abs(values)))
        largest = tl.where(largest > 0, largest, LARGEST)
        tl.store(scale + row, largest / LARGEST)
        factor = LARGEST / largest
    kind = out.dtype.element_ty
    start = out + row * (2 * q_pairs + 2 * k_pairs + v_width)
    tl.store(start + q_at, (q1 * factor).to(kind), mask=q_mask)
    tl.store(start + q_at + HALF, (q2 * factor).to(kind), mask=q_mask)
    start += 2 * q_pairs
    tl.store(start + k_at, (k1 * factor).to(kind), mask=k_mask)
    tl.store(start + k_at + HALF, (k2 * factor).to(kind), mask=k_mask)
    start += 2 * k_pairs
    tl.store(start + v_at, (values * factor).to(kind), mask=v_mask)


def rotate_backward(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *, fp8: bool) -> Rows:
    q, k, v = (one.flatten(1) for one in (q, k, v))
    tokens, half = len(q), cos.shape[-1] // 2
    values, scale = empty_rows(tokens, q.shape[1] + k.shape[1] + v.shape[1], q, fp8)
    q_pairs, k_pairs = q.shape[1] // 2, k.shape[1] // 2
    rotate_backward_kernel[(tokens,)](
        q, k, v, cos, sin, values, scale, q_pairs, k_pairs, v.shape[1], q.stride(0), k.stride(0), v.stride(0),
        HALF=half, Q=power_of_two(q_pairs), K=power_of_two(k_pairs), V=power_of_two(v.shape[1]),
        FP8=fp8, LARGEST=LARGEST, num_warps=4,
    )  # fmt: skip
    return as_rows(values, scale, fp8)


@triton.jit
def narrow_kernel(
    x, scale, weight, out, tokens, width, rank, x_stride, rank_stride, width_stride, factor,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    ranks = tl.program_id(1) * RANK + tl.arange(0, RANK)
    total = tl.zeros([TOKENS, RANK], dtype=tl.float32)
    for start in range(0, width, WIDTH):
        column = start + tl.arange(0, WIDTH)
        inside = column < width
        part = tl.load(x + token[:, None] * x_stride + column, mask=(token < tokens)[:, None] & inside, other=0.0)
        other = tl.load(
            weight + column[:, None] * width_stride + ranks * rank_stride,
            mask=inside[:, None] & (ranks < rank),
            other=0.0,
        )
        total = tl.dot(part.to(tl.float32).to(other.dtype), other, total)
    total = total * (factor * tl.load(scale + token, mask=token < tokens, other=0.0)[:, None])
    at = out + token[:, None] * rank + ranks
    tl.store(at, total.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & (ranks < rank))


def narrow(x: Rows, weight: Tensor, factor: float = 1.0) -> Tensor:
    if x.scale is None:
        return x.values @ weight.t() if factor == 1.0 else (x.values @ weight.t()).mul_(factor)
    (tokens, width), rank = x.values.shape, len(weight)
    out = torch.empty(tokens, rank, dtype=weight.dtype, device=weight.device)
    ranks = ranks_at_once(rank)
    block = 32 if ranks == 16 else 64
    tile = 256 * (block + 2 * ranks)
    narrow_kernel[(triton.cdiv(tokens, block), triton.cdiv(rank, ranks))](
        x.values, x.scale, weight, out, tokens, width, rank, x.values.stride(0), *weight.stride(), factor,
        TOKENS=block, WIDTH=256, RANK=ranks, num_warps=4,
        num_stages=stages(5 if ranks <= 32 else 3, tile, weight.device),
    )  # fmt: skip
    return out


@triton.jit
def summed_outer_kernel(
    x, scale, few, out, tokens, width, rank, x_stride, few_stride, share,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    ranks = tl.program_id(2) * RANK + tl.arange(0, RANK)
    total = tl.zeros([RANK, WIDTH], dtype=tl.float32)
    begin = tl.program_id(1).to(tl.int64) * share
    for start in range(0, share, TOKENS):
        token = begin + start + tl.arange(0, TOKENS)
        there = token < tokens
        part = tl.load(x + token[:, None] * x_stride + column, mask=there[:, None] & (column < width), other=0.0)
        # the row's scale goes to the few columns, of which there is less to do
        other = tl.load(few + token * few_stride + ranks[:, None], mask=there & (ranks < rank)[:, None], other=0.0)
        scaled = other.to(tl.float32) * tl.load(scale + token, mask=there, other=0.0)
        total = tl.dot(scaled.to(other.dtype), part.to(tl.float32).to(other.dtype), total)
    at = out + (tl.program_id(1) * rank + ranks[:, None]) * width + column
    tl.store(at, total, mask=(ranks < rank)[:, None] & (column < width))


def summed_outer(x: Rows, few: Tensor) -> Tensor:
    if x.scale is None:
        return (few.t() @ x.values).float()
    (tokens, width), rank = x.values.shape, few.shape[1]
    ranks = ranks_at_once(rank)
    block = 256 if ranks <= 32 else 128
    share = triton.cdiv(triton.cdiv(tokens, SHARES), 64) * 64
    tile = 64 * (block + 2 * ranks)
    # shares are added up afterwards, not by atomics: the same numbers at each repetition
    out = torch.empty(SHARES, rank, width, dtype=torch.float32, device=few.device)
    summed_outer_kernel[(triton.cdiv(width, block), SHARES, triton.cdiv(rank, ranks))](
        x.values, x.scale, few, out, tokens, width, rank, x.values.stride(0), few.stride(0), share,
        TOKENS=64, WIDTH=block, RANK=ranks, num_warps=4, num_stages=stages(3, tile, few.device),
    )  # fmt: skip
    return out.sum(0)


@triton.jit
def add_product_kernel(
    y, few, weight, other, tokens, width, rank, y_stride, few_stride, rank_stride, width_stride, other_stride,
    OTHER: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    there, inside = (token < tokens)[:, None], column < width
    mask = there & inside
    at = y + token[:, None] * y_stride + column
    for part in tl.static_range(PARTS):
        ranks = part * RANK + tl.arange(0, RANK)
        kept = ranks < rank
        left = tl.load(few + token[:, None] * few_stride + ranks, mask=there & kept, other=0.0)
        right = tl.load(
            weight + ranks[:, None] * rank_stride + column * width_stride, mask=kept[:, None] & inside, other=0.0
        )
        if part == 0:
            total = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            if OTHER:
                total += tl.load(other + token[:, None] * other_stride + column, mask=mask, other=0.0).to(tl.float32)
        total = tl.dot(left, right, total)
    tl.store(at, total.to(y.dtype.element_ty), mask=mask)


def add_product(y: Tensor, few: Tensor, weight: Tensor, other: Tensor | None = None) -> Tensor:
    (tokens, width), rank = y.shape, few.shape[1]
    ranks = ranks_at_once(rank)
    other_or_y = y if other is None else other
    add_product_kernel[(triton.cdiv(width, 128), triton.cdiv(tokens, 64))](
        y, few, weight, other_or_y, tokens, width, rank,
        y.stride(0), few.stride(0), *weight.stride(), other_or_y.stride(0),
        OTHER=other is not None, TOKENS=64, WIDTH=128, RANK=ranks, PARTS=triton.cdiv(rank, ranks), num_warps=4,
    )  # fmt: skip
    return y


@triton.jit
def transposed_kernel(
    x, x_scale, out, out_scale, height, width, stride, out_stride, TALL: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64) * TALL + tl.arange(0, TALL)
    column = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    mask = (row < height)[:, None] & (column < width)
    values = tl.load(x + row[:, None] * stride + column, mask=mask, other=0.0).to(tl.float32)
    values = values * tl.load(x_scale + row, mask=row < height, other=0.0)[:, None]
    values = values / tl.load(out_scale + column, mask=column < width, other=1.0)
    values = tl.trans(values.to(out.dtype.element_ty))
    at = out + column[:, None] * out_stride + row
    tl.store(at, values, mask=(column < width)[:, None] & (row < height))


def transposed(x: Rows, scale: Tensor, room: int = 0) -> Rows:
    height, width = x.values.shape
    values = torch.empty(width, height + room, dtype=E4M3, device=scale.device)
    transposed_kernel[(triton.cdiv(width, 128), triton.cdiv(height, 128))](
        x.values,
        x.scale,
        values,
        scale,
        height,
        width,
        x.values.stride(0),
        values.stride(0),
        TALL=128,
        WIDTH=128,
        num_warps=8,
    )
    return Rows(values, scale)


@triton.jit
def decode_four_kernel(
    packed, levels, absmax, absmax_levels, absmax_scale, offset, scale, out, height, pairs, out_stride,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, ABSMAX_BLOCK: tl.constexpr, NESTED: tl.constexpr, SCALED: tl.constexpr,
    TURNED: tl.constexpr, TALL: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * TALL + tl.arange(0, TALL)
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    mask = (row < height)[:, None] & (pair < pairs)
    at = row[:, None] * pairs + pair
    byte = tl.load(packed + at, mask=mask, other=0).to(tl.int32)
    block = at // (BLOCK // 2)
    if NESTED:  # the blocks' scales are held in eight bits themselves (Dettmers et al. 2023)
        largest = tl.load(absmax_levels + tl.load(absmax + block, mask=mask, other=0).to(tl.int32))
        largest = largest * tl.load(absmax_scale + block // ABSMAX_BLOCK, mask=mask, other=0.0) + tl.load(offset)
    else:
        largest = tl.load(absmax + block, mask=mask, other=0.0)
    first = (tl.load(levels + (byte >> 4)) * largest).to(WIDE)
    second = (tl.load(levels + (byte & 15)) * largest).to(WIDE)
    values = tl.interleave(first, second)
    column = tl.program_id(0) * (2 * PAIRS) + tl.arange(0, 2 * PAIRS)
    there = (row < height)[:, None] & (column < 2 * pairs)
    if SCALED:  # by a power of two: exact
        if TURNED:
            factor = 1.0 / tl.load(scale + column, mask=column < 2 * pairs, other=1.0)
            values = (values.to(tl.float32) * factor).to(out.dtype.element_ty)
        else:
            factor = 1.0 / tl.load(scale + row, mask=row < height, other=1.0)
            values = (values.to(tl.float32) * factor[:, None]).to(out.dtype.element_ty)
    if TURNED:
        tl.store(out + column[:, None] * out_stride + row, tl.trans(values), mask=tl.trans(there))
    else:
        tl.store(out + row[:, None] * out_stride + column, values, mask=there)


WIDES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def decode_four(packed: Tensor, state, out: Tensor, scale: Tensor | None = None, turned: bool = False) -> None:
    height, width = state.shape
    absmax_levels, absmax_scale, offset, block = (
        (state.state2.code, state.state2.absmax, state.offset, state.state2.blocksize)
        if state.nested
        else (out, out, out, 1)
    )
    tall, pairs, warps_each = (128, 64, 8) if turned else (4, 512, 4)
    decode_four_kernel[(triton.cdiv(width // 2, pairs), triton.cdiv(height, tall))](
        packed, state.code, state.absmax, absmax_levels, absmax_scale, offset, out if scale is None else scale, out,
        height, width // 2, out.stride(0), WIDE=WIDES[state.dtype], BLOCK=state.blocksize, ABSMAX_BLOCK=block,
        NESTED=state.nested, SCALED=scale is not None, TURNED=turned, TALL=tall, PAIRS=pairs, num_warps=warps_each,
    )  # fmt: skip


@triton.jit
def largest_ratio_kernel(
    update, scale, out, height, rank, row_stride, rank_stride, TALL: tl.constexpr, RANK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * TALL + tl.arange(0, TALL)
    ranks = tl.arange(0, RANK)
    mask = (row < height)[:, None] & (ranks < rank)
    values = tl.load(update + row[:, None] * row_stride + ranks * rank_stride, mask=mask, other=0.0).to(tl.float32)
    values = tl.abs(values) / tl.load(scale + row, mask=row < height, other=1.0)[:, None]
    # of numbers that are not negative the bits are in their order
    tl.atomic_max(out, tl.max(values).to(tl.int32, bitcast=True))


def largest_ratio(update: Tensor, scale: Tensor, out: Tensor) -> None:
    height, rank = update.shape
    largest_ratio_kernel[(triton.cdiv(height, 128),)](
        update, scale, out.view(torch.int32), height, rank, *update.stride(), TALL=128, RANK=power_of_two(rank)
    )


@triton.jit
def balance(ratio, LARGEST: tl.constexpr):
    found = tl.load(ratio)
    return tl.where(found > 0, tl.exp2(tl.ceil(tl.log2(found / LARGEST))), 1.0)


@triton.jit
def write_tail_kernel(
    update, scale, ratio, out, height, rank, row_stride, rank_stride, out_stride,
    TALL: tl.constexpr, WIDTH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TALL + tl.arange(0, TALL)
    column = tl.arange(0, WIDTH)
    part, ranks = column // rank, column % rank
    mask = (row < height)[:, None] & (part < 3)
    values = tl.load(update + row[:, None] * row_stride + ranks * rank_stride, mask=mask, other=0.0).to(tl.float32)
    held = tl.load(scale + row, mask=row < height, other=1.0) * balance(ratio, LARGEST)
    values = values / held[:, None]
    high = values.to(out.dtype.element_ty)
    low = values - high.to(tl.float32)
    values = tl.where(part == 1, low, high.to(tl.float32))  # columns beyond the parts are 0
    tl.store(out + row[:, None] * out_stride + column, values.to(out.dtype.element_ty), mask=(row < height)[:, None])


def write_tail(update: Tensor, scale: Tensor, ratio: Tensor, out: Tensor) -> None:
    height, rank = update.shape
    write_tail_kernel[(triton.cdiv(height, 32),)](
        update, scale, ratio, out, height, rank, *update.stride(), out.stride(0),
        TALL=32, WIDTH=out.shape[1], LARGEST=LARGEST, num_warps=4,
    )  # fmt: skip


@triton.jit
def cast_with_tail_kernel(
    x, few, ratio, out, scale, width, rank, stride, few_stride,
    BLOCK: tl.constexpr, TAIL: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    values = tl.load(x + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    tail = tl.arange(0, TAIL)
    part = tail // rank
    channels = tl.load(few + row * few_stride + tail % rank, mask=part < 3, other=0.0).to(tl.float32)
    channels = channels * balance(ratio, LARGEST)
    largest = tl.maximum(tl.max(tl.abs(values)), tl.max(tl.abs(channels)))
    largest = tl.where(largest > 0, largest, LARGEST)
    tl.store(scale + row, largest / LARGEST)
    factor = LARGEST / largest
    out += row * (width + TAIL)
    tl.store(out + columns, (values * factor).to(out.dtype.element_ty), mask=mask)
    high = (channels * factor).to(out.dtype.element_ty)
    low = channels * factor - high.to(tl.float32)
    tl.store(out + width + tail, tl.where(part == 2, low, high.to(tl.float32)).to(out.dtype.element_ty))


def cast_with_tail(x: Tensor, few: Tensor, ratio: Tensor) -> Rows:
    tokens, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    values, scale = empty_rows(tokens, width + TAIL, x, True)
    block = power_of_two(width)
    cast_with_tail_kernel[(tokens,)](
        x, few, ratio, values, scale, width, few.shape[1], x.stride(0), few.stride(0),
        BLOCK=block, TAIL=TAIL, LARGEST=LARGEST, num_warps=warps(block),
    )  # fmt: skip
    return Rows(values, scale)


@triton.jit
def cross_entropy_kernel(logits, labels, losses, vocabulary, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    logits += row * stride
    peaks = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    sums = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(logits + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peaks, values)
        kept = tl.where(higher > float("-inf"), tl.exp(peaks - higher), 0.0)
        added = tl.where(values > float("-inf"), tl.exp(values - higher), 0.0)
        sums = sums * kept + added
        peaks = higher
    peak = tl.max(peaks)
    total = peak + tl.log(tl.sum(tl.where(peaks > float("-inf"), sums * tl.exp(peaks - peak), 0.0)))
    counts = label >= 0
    chosen = tl.load(logits + tl.maximum(label, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(counts, total - chosen, 0.0))
    tl.debug_barrier()  # the chosen logit is read before its place is written
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(logits + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        slope = tl.exp(values - total) - tl.where(column == label, 1.0, 0.0)
        slope = tl.where(counts, slope, 0.0)
        tl.store(logits + column, slope.to(logits.dtype.element_ty), mask=column < vocabulary)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    tokens, vocabulary = logits.shape
    losses = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    block = min(WIDE, power_of_two(vocabulary))
    cross_entropy_kernel[(tokens,)](
        logits, labels, losses, vocabulary, logits.stride(0), BLOCK=block, num_warps=warps(block)
    )
    return losses
