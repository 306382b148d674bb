"""A base in four bits: what bitsandbytes, Unsloth and PEFT hold, and what the fast engine makes of it; on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fast_engine import cosine, four_cases, pass_of_transformers, pass_over, with_updates
from torch import Tensor

from medreason.batch import PackedBatch
from medreason.config import ConfigError, Precision, Recompute, TrainingEngine
from medreason.engine.fp8 import product
from medreason.engine.layers import How, adapt, check_held, four_bits
from medreason.engine.weights import InFour, Weight, base_of, hold
from medreason.models import embedded
from medreason.models.load import load_model, summed_loss
from medreason.models.prompts import Example
from support import TINY, lora

FOUR = replace(TINY, precision=Precision.nf4, engine=TrainingEngine.fast)


@pytest.fixture
def batch(tokenizer: Any, cases: list[Example]) -> PackedBatch:
    return four_cases(tokenizer, cases)


def four(fp8: bool = False, copies: int = 0, recompute: Recompute = Recompute.none) -> Any:
    """A small model in four bits that computes in 32."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        embedded.materialize("tiny"), dtype=torch.float32, quantization_config=four_bits(torch.float32)
    )
    return with_updates(adapt(base, lora(), How(Precision.nf4, fp8, copies, recompute), seed=1))


def held(model: Any) -> dict[str, tuple[Tensor, ...]]:
    """All bits of each four-bit weight: numbers, scales of blocks, scales of scales."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if (state := getattr(weight, "quant_state", None)) is not None:
            name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found[name] = (weight.data.flatten(), state.absmax, state.state2.absmax, state.offset, state.code)
    return found


def test_the_base_is_held_bit_for_bit_as_unsloth_holds_it(make_model: Callable[..., Any]) -> None:
    ours = held(load_model(FOUR, lora(), row_tokens=1024, recompute=Recompute.none, seed=1))
    theirs = held(make_model(replace(TINY, precision=Precision.nf4)))
    assert len(ours) == 14 and ours.keys() == theirs.keys()
    for name, parts in ours.items():
        assert all(map(torch.equal, parts, theirs[name])), name


def test_loss_and_gradients_are_those_of_transformers_and_peft_on_the_same_base(batch: PackedBatch) -> None:
    model = four()
    ours, plain = pass_over(model, batch), pass_of_transformers(model, batch)
    assert ours[0] == pytest.approx(plain[0], rel=1e-5)
    assert cosine(ours[1], plain[1]) > 0.99999


def test_what_is_kept_of_the_weights_changes_no_number(batch: PackedBatch) -> None:
    for fp8, copies in ((True, (1, 2)), (False, (1,))):
        anew = pass_over(four(fp8, 0, Recompute.full), batch)
        for count in copies:
            kept = pass_over(four(fp8, count), batch)
            assert kept[0] == anew[0] and all(torch.equal(kept[1][name], grad) for name, grad in anew[1].items())


def test_four_bits_are_multiplied_in_eight_nearly_as_in_sixteen(batch: PackedBatch) -> None:
    exact, rounded = pass_over(four(), batch), pass_over(four(fp8=True), batch)
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3) and rounded[0] != exact[0]
    assert cosine(rounded[1], exact[1]) > 0.99


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp8])
def test_how_a_base_is_held_and_how_it_is_multiplied_go_together_freely(
    batch: PackedBatch, precision: Precision, fp8: bool
) -> None:
    from transformers import AutoModelForCausalLM

    found = []
    for how in (How(precision, fp8), How(Precision.bf16, False)):
        base = AutoModelForCausalLM.from_pretrained(embedded.materialize("tiny"), dtype=torch.float32)
        found.append(pass_over(with_updates(adapt(base, lora(), how, seed=1)), batch))
    assert found[0][0] == pytest.approx(found[1][0], rel=5e-3)
    assert cosine(found[0][1], found[1][1]) > 0.99


def test_answers_can_be_written_in_mid_training(batch: PackedBatch) -> None:
    model = load_model(FOUR, lora(), row_tokens=1024, recompute=Recompute.none, seed=1)
    before = summed_loss(model, batch).item()
    bits = held(model)
    model.eval()
    with torch.inference_mode():
        tokens = torch.arange(6, 46).view(2, 20)
        model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, pad_token_id=3)
    model.train()
    assert all(map(torch.equal, bits[name], parts) for name, parts in held(model).items())
    assert summed_loss(model, batch).item() == before


@pytest.mark.parametrize("fp8", [False, True])
def test_answers_come_from_the_weights_as_they_are_multiplied(fp8: bool) -> None:
    """A GPU before Ada has no product in eight bits, for answers neither."""
    layer = torch.nn.Linear(32, 16)
    owner = torch.nn.ModuleDict({"q": layer})
    exact = layer(x := torch.randn(3, 32))
    hold([layer], torch.device("cpu"), Precision.fp8, fp8, room=0).stand_in(owner, ["q"])
    with patch("medreason.engine.weights.product", side_effect=product) as multiplied:
        answer = owner["q"](x)
    assert multiplied.called is fp8
    assert 0 < (answer - exact).norm() < 0.06 * exact.norm()


def test_a_joint_weight_is_its_parts_one_below_the_other() -> None:
    attention = four().base_model.model.model.layers[0].self_attn
    parts = [base_of(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]
    joint = Weight(InFour(parts), fp8=True, copies=0)
    wide = torch.cat([InFour([part]).wide() for part in parts])
    rows, turned = joint.rows(), joint.turned()
    assert rows.values.dtype == torch.float8_e4m3fn and joint.kept is None
    assert torch.allclose(rows.dense(), wide, rtol=2**-4, atol=rows.scale.max().item() * 2**-9)
    assert torch.allclose(turned.dense().t(), rows.dense(), rtol=2**-3, atol=1e-3)
    assert (rows.dense() - wide).norm() > 0


@pytest.mark.parametrize(
    ("held", "precision", "says"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Precision.fp8, "in 4 bits already; use model.prec"),
        ({"quant_method": "gptq"}, Precision.nf4, "in gptq already; name the model's own weights in 16 bits"),
    ],
)
def test_a_model_held_in_other_bits_is_refused(held: dict[str, Any], precision: Precision, says: str) -> None:
    from transformers import MistralConfig

    with pytest.raises(ConfigError, match=says):
        check_held(MistralConfig(quantization_config=held), precision)
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    check_held(MistralConfig(quantization_config=four), Precision.nf4)
    check_held(MistralConfig(), precision)


def test_a_model_that_was_saved_in_four_bits_is_loaded_as_it_is(tmp_path: Path, batch: PackedBatch) -> None:
    from transformers import AutoModelForCausalLM

    settings = {"dtype": torch.bfloat16, "quantization_config": four_bits(torch.bfloat16)}
    AutoModelForCausalLM.from_pretrained(embedded.materialize("tiny"), **settings).save_pretrained(tmp_path)
    found = load_model(replace(FOUR, path=str(tmp_path)), lora(), row_tokens=64, recompute=Recompute.none, seed=1)
    plain = load_model(FOUR, lora(), row_tokens=64, recompute=Recompute.none, seed=1)
    assert summed_loss(found, batch).item() == summed_loss(plain, batch).item()
