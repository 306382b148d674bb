import math

import pytest

from medreason.config import Algorithm, ConfigError, Precision, Recompute
from medreason.models.flops import Shape
from medreason.models.memory import FITS, GIB, Base, choose, describe, lora_weights, need, seconds, slowness

MISTRAL_7B = Shape(4096, 14336, 32, 32, 8, 128, 32768)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FP8, BF16 = Base(Precision.fp8, fast=True, fp8=True), Base(Precision.bf16, fast=True)
FOUR, FOUR_AS_16 = Base(Precision.nf4, fast=True, fp8=True), Base(Precision.nf4, fast=True)
NF4, HALF = Base(Precision.nf4), Base(Precision.half)
ADAPTER = lora_weights(MISTRAL_7B, 16, LINEARS)


def test_loras_weights_are_those_that_peft_makes() -> None:
    assert ADAPTER == 41_943_040  # as PEFT reports for Mistral-7B with r=16 on all seven linears
    assert lora_weights(MISTRAL_7B, 8, ["q_proj"]) == 8 * 32 * 8192


# one H100: reserved at the peak
@pytest.mark.parametrize(
    ("base", "recompute", "tokens", "measured"),
    [
        (NF4, Recompute.none, 8192, 35.4),
        (NF4, Recompute.none, 16384, 64.7),
        (NF4, Recompute.unsloth, 8192, 6.2),
        (HALF, Recompute.none, 8192, 44.4),
    ],
)
def test_the_estimate_of_unsloths_engine_is_what_was_measured(
    base: Base, recompute: Recompute, tokens: int, measured: float
) -> None:
    found = need(MISTRAL_7B, base, recompute=recompute, tokens=tokens, adapter_weights=ADAPTER,
                 algorithm=Algorithm.adamw_8bit)  # fmt: skip
    assert found.total / GIB == pytest.approx(measured, rel=0.05)


# one H100, whole runs of rows of 8,192 tokens but where another number stands: reserved at the peak, which must fit
@pytest.mark.parametrize(
    ("base", "recompute", "copies", "spared", "tokens", "algorithm", "measured"),
    [
        (FP8, Recompute.none, 2, 0, 8192, Algorithm.adamw, 44.56),
        (FP8, Recompute.selective, 1, 0, 8192, Algorithm.adamw, 18.14),
        (FP8, Recompute.full, 1, 0, 8192, Algorithm.adamw, 11.35),
        (FOUR, Recompute.none, 2, 0, 8192, Algorithm.adamw, 47.92),
        (FOUR, Recompute.selective, 0, 11, 8192, Algorithm.adamw, 21.54),
        (FOUR, Recompute.selective, 0, 0, 8192, Algorithm.adamw, 15.13),
        (FOUR, Recompute.full, 0, 9, 8192, Algorithm.adamw, 10.11),
        (FOUR, Recompute.full, 0, 0, 8192, Algorithm.adamw, 8.27),
        (FOUR, Recompute.full, 0, 0, 4096, Algorithm.adamw, 6.45),
        (FOUR_AS_16, Recompute.selective, 0, 0, 8192, Algorithm.adamw, 15.40),
        (FOUR_AS_16, Recompute.full, 0, 0, 8192, Algorithm.adamw_8bit, 8.42),
        (NF4, Recompute.none, 1, 0, 8192, Algorithm.adamw, 35.02),
    ],
)
def test_the_estimate_is_what_a_run_holds(
    base: Base, recompute: Recompute, copies: int, spared: int, tokens: int, algorithm: Algorithm, measured: float
) -> None:
    found = need(MISTRAL_7B, base, recompute=recompute, tokens=tokens, algorithm=algorithm, adapter_weights=ADAPTER,
                 copies=copies, spared=spared)  # fmt: skip
    assert found.total / GIB == pytest.approx(measured, rel=0.02)


def chosen(free: float, base: Base = FP8, recompute: Recompute = Recompute.auto,
           tokens: int = 8192) -> tuple[Recompute, int, int]:  # fmt: skip
    found = choose(MISTRAL_7B, base, recompute=recompute, tokens=tokens, adapter_weights=ADAPTER,
                   algorithm=Algorithm.adamw_8bit, free=free * GIB)  # fmt: skip
    assert found.total <= free * GIB
    return found.recompute, found.copies, found.spared


@pytest.mark.parametrize("base", [FP8, BF16, FOUR, FOUR_AS_16, NF4])
def test_auto_makes_use_of_the_memory_that_is_there(base: Base) -> None:
    before = math.inf
    for free in (8, 10, 12, 16, 24, 80):
        try:
            way = choose(MISTRAL_7B, base, recompute=Recompute.auto, tokens=8192, adapter_weights=ADAPTER,
                         algorithm=Algorithm.adamw_8bit, free=free * GIB)  # fmt: skip
        except ConfigError:
            continue
        assert way.total <= FITS * free * GIB
        slow = slowness(MISTRAL_7B, base, way)
        assert slow <= before, "more memory, and slower"
        before = slow
    assert slow < math.inf and way.recompute is Recompute.none


def test_auto_takes_the_least_recomputation_that_fits() -> None:
    assert chosen(79) == (Recompute.none, 2, 0)
    assert chosen(42) == (Recompute.none, 1, 0)
    recompute, copies, spared = chosen(24)  # a layer that recomputes nothing is worth more than a copy of the weights
    assert (recompute, copies) == (Recompute.selective, 1) and 5 < spared < 12
    recompute, copies, spared = chosen(16, FOUR)
    assert (recompute, copies) == (Recompute.selective, 0) or spared > 20
    assert chosen(79, NF4) == (Recompute.none, 1, 0)
    assert chosen(16, NF4) == (Recompute.unsloth, 1, 0)


def test_what_was_asked_for_is_not_changed() -> None:
    assert chosen(79, recompute=Recompute.full) == (Recompute.full, 2, 0)
    assert chosen(79, NF4, Recompute.full) == (Recompute.full, 1, 0)


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(ConfigError, match=r"needs 37.\d GiB .* 24.0 are free; what fits: trainer.recompute=auto"):
        chosen(24, recompute=Recompute.none)
    with pytest.raises(ConfigError, match=r"what fits: .*model.engine=fast model.precision=nf4$"):
        chosen(9)
    with pytest.raises(ConfigError, match=r"what fits: rows of 7,168 .*or model.engine=unsloth model.precision=nf4$"):
        chosen(8, FOUR)
    with pytest.raises(ConfigError, match=r"what fits: rows of 2,048 tokens \(data.row_tokens\), or model.engine=fast"):
        chosen(16, BF16)
    with pytest.raises(ConfigError, match="it needs a larger GPU or a smaller model"):
        chosen(2)


def test_the_line_says_memory_and_time() -> None:
    found = choose(MISTRAL_7B, NF4, recompute=Recompute.auto, tokens=8192,
                   adapter_weights=ADAPTER, algorithm=Algorithm.adamw_8bit, free=16 * GIB)  # fmt: skip
    duration = seconds(MISTRAL_7B, ADAPTER, NF4, found, 15_300_000, 989e12)
    assert duration == pytest.approx(15.3e6 / 9_000, rel=0.1)  # 8,980 tokens/s were measured
    line = describe(found, 16 * GIB, "NVIDIA H100", duration)
    assert line.startswith("6.2 of 16.0 GiB of NVIDIA H100 expected (base 3.9") and "about 28 min" in line
    assert seconds(MISTRAL_7B, ADAPTER, NF4, found, 1, None) is None
