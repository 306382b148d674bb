"""Every kernel of medreason/engine/triton_kernels.py against its plain twin, on a GPU, else in Triton's interpreter:

    pytest tests/kernel_twins.py                                        on a GPU
    TRITON_INTERPRET=1 pytest tests/kernel_twins.py                     without

Not collected with the other tests: Triton decides once in a process whether it interprets. tests/test_fp8.py calls it.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medreason.engine import kernels, triton_kernels
from medreason.engine.attention import Documents, attend, attend_backward, flash_attn_4
from medreason.engine.fp8 import TAIL, Rows, quantise, quantise_frozen, scales_of_two

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16 = torch.bfloat16
ADAPTER = BF16 if DEVICE == "cuda" else torch.float32  # the interpreter knows no product in bfloat16
WIDTHS = [96, 200]  # no power of two: a kernel's last columns are outside of the row


@pytest.fixture(autouse=True, scope="module")
def rounding_of_a_gpu() -> Any:
    """The interpreter forgets to carry into the exponent where it rounds to few bits; torch's casts do not."""
    if DEVICE == "cuda":
        yield
        return
    from triton.runtime import interpreter

    kinds = {"fp8e4nv": torch.float8_e4m3fn, "bf16": BF16, "fp16": torch.float16, "fp32": torch.float32}
    theirs = interpreter._convert_float
    bits = {1: (np.uint8, torch.uint8), 2: (np.uint16, torch.int16), 4: (np.uint32, torch.int32)}

    def convert(data: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if str(given) not in kinds or str(wanted) not in kinds:
            return theirs(data, given, wanted, mode)
        source, target = kinds[str(given)], kinds[str(wanted)]
        raw = np.ascontiguousarray(data).view(bits[source.itemsize][0]).astype(np.int64)
        same_bits = torch.from_numpy(raw).to(bits[source.itemsize][1]).view(source)
        made = same_bits.float().to(target).view(bits[target.itemsize][1])
        return made.numpy().view(bits[target.itemsize][0]).reshape(data.shape)

    interpreter._convert_float = convert
    yield
    interpreter._convert_float = theirs


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape).to(dtype).to(DEVICE)


def numbers(found: Any) -> list[Tensor]:
    """The matrices that a function gave back."""
    if isinstance(found, Tensor):
        return [found.float().cpu()]
    if isinstance(found, Rows):
        return [found.dense().float().cpu()]
    return [matrix for one in found for matrix in numbers(one)]


def assert_twins(name: str, *given: Any, **settings: Any) -> None:
    """Both get copies, for some work in place. They may differ by a rounding to the type of the result."""
    copies = [one.clone() if isinstance(one, Tensor) else one for one in given]
    ours = numbers(getattr(triton_kernels, name)(*copies, **settings))
    plain = numbers(getattr(kernels, name)(*map(to_cpu, given), **settings))
    eight = settings.get("fp8") or name == "transposed"
    for found, wanted in zip(ours, plain, strict=True):
        assert found.shape == wanted.shape and wanted.norm() > 0
        assert not torch.isnan(found).any()
        apart = (found - wanted).abs()
        # of E4M3's numbers neighbours are at most an eighth apart, of bfloat16's a 128th
        allowed = (0.14 if eight else 0.02) * wanted.abs() + 2e-3 * wanted.abs().amax()
        assert (apart <= allowed).all(), f"{name}: {apart.max():.4g} of {wanted.abs().max():.4g}"
        # and few of them do: two that are rounded each by itself would be 0.037 apart in E4M3
        assert apart.norm() / wanted.norm() < (0.02 if eight else 0.004), f"{name}: {apart.norm() / wanted.norm():.4g}"


def to_cpu(one: Any) -> Any:
    if isinstance(one, Rows):
        return Rows(one.values.cpu(), None if one.scale is None else one.scale.cpu())
    return one.cpu() if isinstance(one, Tensor) else one


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_passes_over_rows(fp8: bool, width: int) -> None:
    x, delta, grad, weight = random(9, width), random(9, width), random(9, width), random(width).abs()
    x[3] = 0  # a row of zeros has a scale, too
    assert_twins("cast_rows", x, fp8=fp8)
    assert_twins("rms_norm", x, weight, 1e-5, fp8=fp8)
    assert_twins("rms_norm", x, weight, 1e-5, delta, fp8=fp8)
    x[3] = 1
    grad += 2 * x  # else nearly nothing of it would point along its row
    assert_twins("rms_norm_backward", grad, x, weight, 1e-5, fp8=fp8)
    assert_twins("rms_norm_backward", grad, x, weight, 1e-5, delta, fp8=fp8)
    assert_twins("swiglu", random(9, 2 * width), fp8=fp8)
    assert_twins("swiglu_backward", grad, random(9, 2 * width), fp8=fp8)


def test_a_part_of_wider_rows_is_cast_alike() -> None:
    assert_twins("cast_rows", random(9, 300)[:, 100:196], fp8=True)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("heads", "key_heads", "head"), [(4, 2, 16), (3, 1, 40)])
def test_rotation(fp8: bool, heads: int, key_heads: int, head: int) -> None:
    angles = torch.rand(9, head // 2) * 6
    cos, sin = (torch.cat((turn, turn), -1).to(BF16).to(DEVICE) for turn in (angles.cos(), angles.sin()))
    if not fp8:
        assert_twins("rotate", random(9, (heads + 2 * key_heads) * head), cos, sin, heads + key_heads)
    q, k, v = random(9, heads, head), random(9, key_heads, head), random(9, key_heads, head)
    assert_twins("rotate_backward", q, k, v, cos, sin, fp8=fp8)


@pytest.mark.parametrize("tokens", [9, 70, 600])
@pytest.mark.parametrize("rank", [3, 16, 48, 150])  # the last is more than a program multiplies at once
def test_adapters_products(tokens: int, rank: int) -> None:
    held = quantise(random(tokens, 160))
    assert_twins("narrow", held, random(rank, 160, dtype=ADAPTER), 0.5)
    assert_twins("narrow", held, random(160, rank, dtype=ADAPTER).t())
    few, y = random(tokens, rank, dtype=ADAPTER), random(tokens, 160, dtype=ADAPTER)
    assert_twins("summed_outer", held, few)
    assert_twins("add_product", y, few, random(rank, 160, dtype=ADAPTER))
    assert_twins("add_product", y, few, random(160, rank, dtype=ADAPTER).t(), random(tokens, 160, dtype=ADAPTER))


@pytest.mark.parametrize("kib", [99, 163, 227])  # of an RTX 4090 or an L4, an A100, an H100
@pytest.mark.parametrize("rank", [16, 32, 64, 200])
def test_adapters_products_have_room_on_smaller_gpus(kib: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    chosen = triton_kernels.stages
    found_here = torch.cuda.get_device_properties  # Triton asks for others of a GPU's properties

    class Smaller:
        shared_memory_per_block_optin = kib * 1024

        def __getattr__(self, name: str) -> Any:
            return getattr(found_here(0), name)

    monkeypatch.setattr("torch.cuda.get_device_properties", lambda *_: Smaller())

    def noted(wanted: int, tile_bytes: int, device: torch.device) -> int:
        found = chosen(wanted, tile_bytes, torch.device("cuda", 0))
        asked.append((found, tile_bytes))
        return found

    monkeypatch.setattr(triton_kernels, "stages", noted)
    held = quantise(random(70, 160))
    assert_twins("narrow", held, random(rank, 160, dtype=ADAPTER), 0.5)
    assert_twins("summed_outer", held, random(70, rank, dtype=ADAPTER))
    assert len(asked) == 2 and all(found * tile <= kib * 1024 for found, tile in asked), asked
    if kib == 227 and rank <= 32:
        assert asked[0][0] == 5, "an H100 has room for what was fastest there"


def test_frozen_weights_transposed() -> None:
    weight = random(144, 272, dtype=torch.float32)
    assert_twins("transposed", quantise_frozen(weight), scales_of_two(weight.t()))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("height", "width"), [(48, 192), (33, 2112)])  # within a program's columns, and beyond
def test_four_bits_are_decoded_as_bitsandbytes_does(height: int, width: int, nested: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(random(height, width), quant_type="nf4", compress_statistics=nested)
    wide = dequantize_4bit(packed, state)
    found = torch.empty_like(wide)
    triton_kernels.decode_four(packed, state, found)
    assert torch.equal(found, wide)
    for matrix, turned in ((wide, False), (wide.t(), True)):
        scale = scales_of_two(matrix)
        wider = torch.zeros(len(matrix), matrix.shape[1] + 40, dtype=torch.float8_e4m3fn, device=DEVICE)
        part = wider[:, 8 : 8 + matrix.shape[1]]  # as one of several layers has it
        triton_kernels.decode_four(packed, state, part, scale, turned=turned)
        assert torch.equal(part.float(), (matrix.float() / scale).to(torch.float8_e4m3fn).float())
        assert not wider[:, :8].float().any() and not wider[:, 8 + matrix.shape[1] :].float().any()


@pytest.mark.parametrize("rank", [3, 16, 32, 42])
@pytest.mark.parametrize("size", [0.0, 1e-4, 3.0])  # B at the start, after a step, and far away
def test_an_adapter_is_written_as_channels(rank: int, size: float) -> None:
    x, few, update = random(9, 200), random(9, rank), random(70, rank) * size
    weight = quantise_frozen(random(70, 200, dtype=torch.float32) * torch.rand(70, 1).to(DEVICE))
    ratio = torch.zeros(1, device=DEVICE)
    triton_kernels.largest_ratio(update, weight.scale, ratio)
    plain = torch.zeros(1)
    kernels.largest_ratio(update.cpu(), weight.scale.cpu(), plain)
    assert torch.allclose(ratio.cpu(), plain)
    rows, wanted = triton_kernels.cast_with_tail(x, few, ratio), kernels.cast_with_tail(x.cpu(), few.cpu(), plain)
    ours, plain_rows = rows.dense().cpu(), wanted.dense()
    assert torch.allclose(ours[:, :200], plain_rows[:, :200], rtol=0.13, atol=1e-3 * plain_rows.max().item())
    # what is rounded up in the high part is less in the low one: together they are the same
    together = [one[:, 200 + rank :][:, :rank] + one[:, 200 + 2 * rank :][:, :rank] for one in (ours, plain_rows)]
    assert torch.allclose(*together, rtol=0.01, atol=1e-3 * plain_rows.max().item())
    found, held = torch.empty(2, 70, TAIL, device=DEVICE).to(torch.float8_e4m3fn)
    triton_kernels.write_tail(update, weight.scale, ratio, found)
    kernels.write_tail(update.cpu(), weight.scale.cpu(), plain, cpu := held.cpu())
    assert torch.equal(found.cpu().float(), cpu.float()), "scales are powers of two: nothing is rounded twice"
    # and together they are the adapter's product, nearly as exact as in 16 bits
    product = rows.dense()[:, 200:] @ (found.float() * weight.scale).t()
    exact = few.float() @ update.float().t()
    assert (product - exact).norm() <= 0.006 * exact.norm()


@pytest.mark.skipif(DEVICE == "cpu", reason="attention's kernels are not Triton's: they need a GPU")
@pytest.mark.parametrize(("window", "head"), [(None, 64), (None, 128), (150, 64)])
@pytest.mark.parametrize("installed", [True, False])  # flash-attn-4 where it is there; without it
def test_attention(window: int | None, head: int, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr("medreason.engine.attention.flash_attn_4", lambda device: None)
    elif flash_attn_4(torch.device("cuda", 0)) is None:
        pytest.skip("no flash-attn-4 here, or no Hopper")
    lengths = (200, 1, 330, 69)
    qkv = random(600, 8, head)
    grad = random(600, 4, head)
    found = []
    for device in ("cuda", "cpu"):
        q, k, v = qkv.to(device).float().to(BF16 if device == "cuda" else torch.float32).split((4, 2, 2), 1)
        documents = Documents.of(lengths, window, q.device)
        out, state = attend(q, k, v, documents)
        with torch.inference_mode():  # as validations are
            assert torch.equal(attend(q, k, v, documents)[0], out)
        back = attend_backward(grad.to(device).to(q.dtype), q, k, v, out, state, documents)
        found.append([one.float().cpu() for one in (out, *back)])
    for ours, exact in zip(*found, strict=True):
        assert ours.shape == exact.shape and (ours - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("vocabulary", [50, 9000])  # less and more than a kernel holds at once
def test_cross_entropy(vocabulary: int) -> None:
    logits = random(6, vocabulary) * 4
    labels = torch.tensor([3, -100, 0, vocabulary - 1, 7, -100]).to(DEVICE)
    assert_twins("cross_entropy", logits, labels)
    ours, plain = logits.clone(), logits.cpu()
    triton_kernels.cross_entropy(ours, labels)
    kernels.cross_entropy(plain, labels.cpu())
    assert torch.allclose(ours.cpu().float(), plain.float(), atol=4e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_kernel_runs_on_the_device_of_its_tensors_whichever_is_current() -> None:
    documents = Documents.of((40, 24), None, torch.device("cuda:1"))
    q, k, v = (torch.randn(64, heads, 64).to(BF16).to("cuda:1") for heads in (4, 2, 2))
    x = torch.randn(64, 96).to(BF16).to("cuda:1")
    with torch.cuda.device(0):
        rows = kernels.cast_rows(x, fp8=True)
        attended, _ = attend(q, k, v, documents)
    assert rows.values.device == attended.device == x.device
    torch.testing.assert_close(rows.dense(), quantise(x).dense(), rtol=0.13, atol=1e-3)
    assert torch.isfinite(attended).all()
