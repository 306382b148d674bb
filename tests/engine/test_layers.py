"""The fast engine against transformers, against Unsloth, and eight bits against sixteen; all on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_engine import assert_equal, cosine, four_cases, pass_of_transformers, pass_over, with_updates

from medreason.batch import PackedBatch
from medreason.config import ConfigError, Precision, Recompute
from medreason.engine import kernels
from medreason.engine.attention import Documents, attend, attend_backward, by_document, in_own_graph
from medreason.engine.fp8 import TAIL, quantise
from medreason.engine.layers import How, adapt, check_architecture
from medreason.models import embedded
from medreason.models.load import load_model, summed_loss
from medreason.models.prompts import Example
from support import TINY, lora, run_train, tiny_run


def how(fp8: bool = False, recompute: Recompute = Recompute.none, copies: int = 2, spared: int = 0) -> How:
    return How(Precision.fp8 if fp8 else Precision.bf16, fp8, copies, recompute, spared)


def tiny(
    fp8: bool = False, recompute: Recompute = Recompute.none, copies: int = 2, spared: int = 0, **config: Any
) -> Any:
    """A small model of the fast engine in 32 bits; LoRA's B is not zero, so that every adapter weight matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.from_pretrained(embedded.materialize("tiny"), **config)
    base = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    model = adapt(base, lora(), how(fp8, recompute, copies, spared), seed=1)
    return with_updates(model)


def other_family(name: str, recompute: Recompute = Recompute.none, fp8: bool = False, **config: Any) -> Any:
    """Two narrow layers of Qwen's shapes in 32 bits; the norms of heads and the biases are no ones and zeros."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vocabulary = AutoConfig.from_pretrained(embedded.materialize("tiny")).vocab_size
    settings = AutoConfig.for_model(name, **sizes, num_key_value_heads=2, head_dim=32, vocab_size=vocabulary, **config)
    base = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for label, parameter in base.named_parameters():
            if "norm" in label or "bias" in label:
                parameter.uniform_(0.5, 1.5)
    return with_updates(adapt(base, lora(), how(fp8, recompute), seed=1))


@pytest.fixture
def batch(tokenizer: Any, cases: list[Example]) -> PackedBatch:
    return four_cases(tokenizer, cases)


@pytest.mark.parametrize("config", [{}, {"num_key_value_heads": 4}, {"sliding_window": 40}, {"head_dim": 32}])
def test_loss_and_gradients_of_a_row_are_those_of_its_documents_in_transformers(
    batch: PackedBatch, config: dict[str, Any]
) -> None:
    model = tiny(**config)
    assert_equal(pass_over(model, batch), pass_of_transformers(model, batch))


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}),  # the second layer's alone
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True}),
    ("llama", {"attention_bias": True}),
]


@pytest.mark.parametrize(("name", "config"), FAMILIES)
def test_models_with_biases_and_norms_of_heads_are_those_of_transformers(
    batch: PackedBatch, name: str, config: dict[str, Any]
) -> None:
    model = other_family(name, **config)
    assert_equal(pass_over(model, batch), pass_of_transformers(model, batch))


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_they_train_in_eight_bits_and_recompute_what_was_kept(batch: PackedBatch, name: str) -> None:
    exact = pass_over(other_family(name), batch)
    rounded, again = (pass_over(other_family(name, how, fp8=True), batch) for how in (Recompute.none, Recompute.full))
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3) and rounded[0] != exact[0]
    assert cosine(rounded[1], exact[1]) > 0.99
    assert rounded[0] == again[0] and all(torch.equal(rounded[1][key], grad) for key, grad in again[1].items())


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


@pytest.mark.parametrize("size", [1e-4, 0.02, 0.2])  # of B: after a step, later, and where it outweighs W
def test_an_adapter_beside_the_weight_gives_what_one_added_to_the_result_does(
    batch: PackedBatch, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for tail in (TAIL, 0):  # with no columns it is added
        with monkeypatch.context() as patched:
            patched.setattr("medreason.engine.layers.TAIL", tail)
            model = tiny(True, intermediate_size=256)
            layer = model.packed.layers[0]
            assert layer.gate_up.tailed is layer.down.tailed_back is bool(tail)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data *= size / 0.05
            found.append(pass_over(model, batch))
    exact = tiny(intermediate_size=256)
    for name, parameter in exact.named_parameters():
        if "lora_B" in name:
            parameter.data *= size / 0.05
    wanted = pass_over(exact, batch)
    beside, added = found
    assert beside[0] == pytest.approx(added[0], rel=2e-3)
    assert cosine(beside[1], wanted[1]) > cosine(added[1], wanted[1]) - 2e-3
    assert cosine(beside[1], added[1]) > 0.995


@pytest.mark.parametrize("recompute", [Recompute.selective, Recompute.full])
def test_last_layers_may_recompute_less(batch: PackedBatch, recompute: Recompute) -> None:
    model = tiny(True, recompute, spared=1)
    steps = [layer.recompute for layer in model.packed.layers]
    assert steps == [recompute, Recompute.selective if recompute is Recompute.full else Recompute.none]
    kept, mixed = pass_over(tiny(True), batch), pass_over(model, batch)
    assert kept[0] == mixed[0] and all(torch.equal(kept[1][name], grad) for name, grad in mixed[1].items())


def test_a_weight_held_once_gives_the_gradients_of_one_held_for_each_direction(batch: PackedBatch) -> None:
    twice, once = tiny(fp8=True), tiny(fp8=True, copies=1)
    assert all(layer.down.weight.kept_turned is None for layer in once.packed.layers)
    assert twice.packed.layers[0].down.weight.kept_turned is not None
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
    model = with_updates(adapt(base, some, how(), seed=1))
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
    joint = layer.qkv.weight.rows().values
    assert held.untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()
    assert not [name for name, _ in model.named_parameters() if "_proj" in name and "lora_" not in name]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gemma"}, "knows llama, mistral, qwen2 and qwen3 models, not gemma; use model.engine=unsloth"),
        ({"mlp_bias": True}, "gated unit has no biases; use model.engine=unsloth"),
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
