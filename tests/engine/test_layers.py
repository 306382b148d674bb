"""The fast engine against transformers, against Unsloth, and eight bits against sixteen; all on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from medreason.batch import PackedBatch
from medreason.config import ConfigError, Format, Precision, Recompute
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import tokenize
from medreason.engine import kernels
from medreason.engine.attention import Documents, attend, attend_backward, by_document, in_own_graph
from medreason.engine.fp8 import quantise
from medreason.engine.layers import adapt, check_architecture
from medreason.models import embedded
from medreason.models.load import load_model, summed_loss
from medreason.models.prompts import Example
from support import TINY, lora, run_train, tiny_run

Gradients = dict[str, Tensor]


def tiny(fp8: bool = False, recompute: Recompute = Recompute.none, copies: int = 2, **config: Any) -> Any:
    """A small model of the fast engine in 32 bits; LoRA's B is not zero, so that every adapter weight matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.from_pretrained(embedded.materialize("tiny"), **config)
    base = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    model = adapt(base, lora(), fp8=fp8, copies=copies, recompute=recompute, seed=1)
    return with_updates(model)


def with_updates(model: Any) -> Any:
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture
def batch(tokenizer: Any, cases: list[Example]) -> PackedBatch:
    documents = tokenize(cases[:4], tokenizer, Format.think)
    return PackedLoader(documents, sum(map(len, documents)) + 9, pad_token=3).batch([0], 0)


def gradients(model: Any) -> Gradients:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def pass_over(model: Any, batch: PackedBatch) -> tuple[float, Gradients]:
    model.zero_grad()
    loss = summed_loss(model, batch)
    loss.backward()
    return loss.item(), gradients(model)


def pass_of_transformers(model: Any, batch: PackedBatch) -> tuple[float, Gradients]:
    """The same through transformers' and PEFT's own layers, each document alone."""
    model.zero_grad()
    total, start = 0.0, 0
    for length in batch.lengths:
        tokens, labels = (one[0, start : start + length] for one in (batch.input_ids, batch.labels))
        logits = model(input_ids=tokens[None], use_cache=False).logits[0]
        if (labels[1:] >= 0).any():
            loss = cross_entropy(logits[:-1], labels[1:], reduction="sum")
            loss.backward()
            total += loss.item()
        start += length
    return total, gradients(model)


def assert_equal(found: tuple[float, Gradients], wanted: tuple[float, Gradients]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, grad in wanted[1].items():
        assert torch.allclose(found[1][name], grad, rtol=1e-3, atol=1e-4), name
    assert max(grad.abs().max() for grad in wanted[1].values()) > 0.1


def cosine(left: Gradients, right: Gradients) -> float:
    joined = [torch.cat([grads[name].flatten() for name in sorted(left)]) for grads in (left, right)]
    return cosine_similarity(*joined, dim=0).item()


@pytest.mark.parametrize("config", [{}, {"num_key_value_heads": 4}, {"sliding_window": 40}, {"head_dim": 32}])
def test_loss_and_gradients_of_a_row_are_those_of_its_documents_in_transformers(
    batch: PackedBatch, config: dict[str, Any]
) -> None:
    model = tiny(**config)
    assert_equal(pass_over(model, batch), pass_of_transformers(model, batch))


def test_loss_and_gradients_are_unsloths(make_model: Callable[..., Any], batch: PackedBatch) -> None:
    unsloth = make_model()
    fast = with_updates(load_model(replace(TINY, precision=Precision.bf16), lora(), **SETTINGS))
    assert sorted(name for name, p in fast.named_parameters() if p.requires_grad) == sorted(gradients_of(unsloth))
    adopt(fast, unsloth)
    ours, theirs = pass_over(fast, batch), pass_over(unsloth, batch)
    assert ours[0] == pytest.approx(theirs[0], rel=2e-3)  # 16 bits against 32
    assert cosine(ours[1], theirs[1]) > 0.999


SETTINGS: dict[str, Any] = {"row_tokens": 1024, "recompute": Recompute.none, "seed": 1}


def gradients_of(model: Any) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def adopt(model: Any, other: Any) -> None:
    """Gives a model the adapter of another, by PEFT's names."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    assert not set_peft_model_state_dict(model, get_peft_model_state_dict(other)).unexpected_keys


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp8])
def test_an_adapter_of_one_engine_answers_alike_in_the_other(
    make_model: Callable[..., Any], batch: PackedBatch, precision: Precision, tmp_path: Path
) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    trained = with_updates(load_model(replace(TINY, precision=precision), lora(), **SETTINGS))
    trained.save_pretrained(tmp_path)
    unsloth = make_model()
    torch.nn.init.zeros_(unsloth.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight)
    result = set_peft_model_state_dict(unsloth, load_file(tmp_path / "adapter_model.safetensors"))
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora" in key]
    with torch.no_grad():
        losses = [summed_loss(model, batch).item() for model in (trained, unsloth)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("recompute", [Recompute.selective, Recompute.full])
def test_what_is_recomputed_is_what_was_kept(batch: PackedBatch, fp8: bool, recompute: Recompute) -> None:
    kept, again = pass_over(tiny(fp8), batch), pass_over(tiny(fp8, recompute), batch)
    assert kept[0] == again[0]
    assert all(torch.equal(kept[1][name], grad) for name, grad in again[1].items())


def test_a_weight_held_once_gives_the_gradients_of_one_held_for_each_direction(batch: PackedBatch) -> None:
    twice, once = tiny(fp8=True), tiny(fp8=True, copies=1)
    assert all(layer.down.transposed is None for layer in once.packed.layers)
    assert twice.packed.layers[0].down.transposed is not None
    kept, made = pass_over(twice, batch), pass_over(once, batch)
    assert kept[0] == made[0]
    assert all(torch.equal(kept[1][name], grad) for name, grad in made[1].items())


def test_a_gradient_is_cast_once_on_its_way_down(batch: PackedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cast = tiny(fp8=True), []
    monkeypatch.setattr(kernels, "cast_rows", lambda rows, fp8: cast.append(rows) or quantise(rows))
    loss = summed_loss(model, batch)
    cast.clear()  # the forward pass casts what attention gathers
    loss.backward()
    assert len(cast) == 1  # the gradient of the last layer's output


def test_adapters_of_some_linears_leave_the_others_alone(batch: PackedBatch) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(embedded.materialize("tiny")))
    some = replace(lora(), target_modules=["q_proj", "v_proj", "down_proj"])
    model = with_updates(adapt(base, some, fp8=False, copies=1, recompute=Recompute.none, seed=1))
    assert_equal(pass_over(model, batch), pass_of_transformers(model, batch))


def test_documents_in_one_row_do_not_see_each_other(batch: PackedBatch) -> None:
    model = tiny()
    changed = replace(batch, input_ids=batch.input_ids.clone(), labels=batch.labels.clone())
    changed.input_ids[0, : batch.lengths[0]] = 77
    changed.labels[0, : batch.lengths[0]] = -100
    first_left_out = replace(batch, labels=changed.labels)
    with torch.no_grad():
        assert summed_loss(model, changed).item() == pytest.approx(summed_loss(model, first_left_out).item(), rel=1e-6)
        # the test can fail: in one document, what comes later does see the change
        lengths = (sum(batch.lengths),)
        joined = [summed_loss(model, replace(one, lengths=lengths)).item() for one in (changed, first_left_out)]
    assert abs(joined[0] - joined[1]) > 0.1


def test_a_batch_that_counts_for_nothing_has_no_loss_and_no_gradient(batch: PackedBatch) -> None:
    loss, grads = pass_over(tiny(), replace(batch, targets=0))
    assert loss == 0 and all(grad.abs().max() == 0 for grad in grads.values())


def test_eight_bits_train_as_sixteen_do(batch: PackedBatch) -> None:
    exact, rounded = pass_over(tiny(), batch), pass_over(tiny(fp8=True), batch)
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3) and rounded[0] != exact[0]
    assert cosine(rounded[1], exact[1]) > 0.99


@pytest.mark.parametrize("fp8", [False, True])
def test_answers_of_a_padded_batch_are_those_of_each_prompt_alone(fp8: bool) -> None:
    model = tiny(fp8).eval()
    tokens = torch.arange(6, 46).view(2, 20)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 3}
    with torch.inference_mode():
        together = model.generate(input_ids=tokens, attention_mask=mask, **settings)
        alone = model.generate(input_ids=tokens[:1, 7:], attention_mask=mask[:1, 7:], **settings)
    assert together[0, 20:].tolist() == alone[0, 13:].tolist()


def test_the_base_is_held_in_eight_bits_once_for_each_direction() -> None:
    model = tiny(fp8=True)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    layer = model.packed.layers[0]
    held = model.base_model.model.model.layers[0].self_attn.k_proj.base_layer.weight
    assert held.dtype == torch.float8_e4m3fn
    joint = layer.qkv.weight.values
    assert held.untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()
    assert not [name for name, _ in model.named_parameters() if "_proj" in name and "lora_" not in name]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gemma"}, "know llama and mistral models, not gemma; use model.precision=nf4"),
        ({"attention_bias": True}, "without biases; use model.precision=nf4"),
        ({"hidden_act": "gelu"}, "layers with SiLU"),
    ],
)
def test_another_architecture_is_refused_with_the_alternative(changes: dict[str, Any], says: str) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=says):
        check_architecture(config)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_run_trains_with_the_fast_engine_from_end_to_end(tmp_path: Path, rows_file: Path, precision: str) -> None:
    run = tmp_path / "run"
    said = run_train(*tiny_run(run, rows_file, f"model.precision={precision}", "lora.dropout=0", "trainer.max_steps=4"))
    assert said.returncode == 0, said.stderr[-2000:]
    assert "importing Unsloth" not in said.stdout
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_attention_by_another_package_trains_and_validates() -> None:
    """Its own graph is gone back through; a validation, which is in inference mode, has none."""
    documents = Documents.of((5, 1, 3), None, torch.device("cpu"))
    q, k, v, grad = (torch.randn(9, heads, 16) for heads in (4, 2, 2, 4))

    def package(*qkv: torch.Tensor, cu_seqlens_q: torch.Tensor, causal: bool, **_: Any) -> tuple[torch.Tensor, None]:
        assert causal and cu_seqlens_q[:4].tolist() == [0, 5, 6, 9]
        return by_document(*qkv, documents), None

    with torch.no_grad():  # as inside a function of autograd
        out, state = in_own_graph(package, q, k, v, documents)
        back = attend_backward(grad, q, k, v, out, state, documents)
        plain, _ = attend(q, k, v, documents)
        expected = attend_backward(grad, q, k, v, plain, None, documents)
    with torch.inference_mode():
        validated, _ = in_own_graph(package, q, k, v, documents)
    assert torch.equal(out, plain) and torch.equal(validated, plain)
    assert all(map(torch.allclose, back, expected))
