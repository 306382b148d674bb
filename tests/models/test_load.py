import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from medreason.config import ConfigError, Format, Precision, Recompute
from medreason.core.cli import composed
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import tokenize
from medreason.models.load import (
    context_tokens,
    document_losses,
    load_model,
    load_tokenizer,
    load_trained,
    local_path,
    plan_memory,
    summed_loss,
)
from medreason.models.memory import GIB
from medreason.models.prompts import Example
from medreason.train.run import take_own_gpu
from support import TINY, lora

PRECISIONS = {"half": 1e-5, "nf4": 2e-2}  # largest difference of logits: rounding of the engine


def one_row(tokenizer: Any, cases: list[Example]) -> PackedLoader:
    documents = tokenize(cases, tokenizer, Format.think)
    return PackedLoader(documents, sum(len(document) for document in documents) + 9, pad_token=3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_document_alone_gives_the_logits_it_gives_inside_a_row(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], precision: str
) -> None:
    model = make_model(replace(TINY, precision=Precision(precision)))
    row = one_row(tokenizer, cases[:4])
    batch = row.batch([0], 0)
    with torch.no_grad():
        together = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]
        start = 0
        for length in batch.lengths[:-1]:
            tokens = batch.input_ids[:, start : start + length]
            alone = model(input_ids=tokens, use_cache=False).logits[0]
            assert (together[start : start + length] - alone).abs().max() < PRECISIONS[precision]
            start += length
        # the test can fail: without positions that start again, documents do see each other
        blurred = model(input_ids=batch.input_ids, use_cache=False).logits[0]
    assert (together - blurred).abs().max() > 0.05


def test_gradients_of_a_row_are_the_sum_of_its_documents_gradients(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example]
) -> None:
    model = make_model()

    def gradient(examples: list[Example]) -> torch.Tensor:
        model.zero_grad()
        summed_loss(model, one_row(tokenizer, examples).batch([0], 0)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    together = gradient(cases[:3])
    apart = sum((gradient([case]) for case in cases[:3]), torch.zeros_like(together))
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-5)
    assert together.norm() > 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_documents_padded_in_a_batch_lose_what_they_lose_packed_in_a_row(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], precision: str
) -> None:
    model = make_model(replace(TINY, precision=Precision(precision)))
    packed = one_row(tokenizer, cases[:5])
    padded = PackedLoader(packed.documents, None, pad_token=3, rows_per_batch=5)
    with torch.no_grad():
        losses = [summed_loss(model, loader.batch(loader.order(0), 0)).item() for loader in (packed, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=PRECISIONS[precision] / 10)


@pytest.mark.parametrize("precision", [*PRECISIONS, "bf16", "fp8"])
def test_a_document_loses_in_a_row_of_several_what_it_loses_alone(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], precision: str
) -> None:
    model = make_model(replace(TINY, precision=Precision(precision)))
    several, rel = one_row(tokenizer, cases[:5]), PRECISIONS.get(precision, 5e-3)
    losses = document_losses(model, several.batch([0], 0))
    alone = [document_losses(model, one_row(tokenizer, [case]).batch([0], 0)).item() for case in cases[:5]]
    by_place = [alone[member] for member in several.members(0)]
    assert losses.tolist() == pytest.approx(by_place, rel=rel)
    assert max(alone) > 1.05 * min(alone), "alike documents would not tell their order"
    assert losses.sum().item() == pytest.approx(summed_loss(model, several.batch([0], 0)).item(), rel=rel / 10)
    assert len(document_losses(model, replace(several.batch([0], 0), targets=0))) == 0


def test_only_lora_is_trained_and_in_float32(make_model: Callable[..., Any]) -> None:
    model = make_model(replace(TINY, precision=Precision.nf4))
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert set(trained.values()) == {torch.float32}
    assert any(p.dtype == torch.uint8 for p in model.parameters()), "the base should be held in 4-bit"


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_kinds_of_lora_are_honoured(make_model: Callable[..., Any], kind: str) -> None:
    plain, other = make_model(), make_model(**{kind: True})
    tokens = torch.arange(6, 30)[None]
    with torch.no_grad():
        assert not torch.allclose(plain(input_ids=tokens).logits, other(input_ids=tokens).logits, atol=1e-3)
    if kind == "dora":
        assert any("magnitude" in name for name, _ in other.named_parameters())


def test_an_unknown_target_module_is_named(make_model: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"no 'query'; it has .*q_proj"):
        make_model(target_modules=["query"])


@pytest.fixture
def own_tiny(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be altered."""
    return Path(shutil.copytree(local_path(TINY), tmp_path / "model"))


def test_padding_is_not_the_end_of_sequence_nor_beyond_the_embeddings(tokenizer: Any, own_tiny: Path) -> None:
    assert tokenizer.pad_token == "<pad>"
    added = AutoTokenizer.from_pretrained(own_tiny)
    for pad in ("</s>", "<new>"):  # the second becomes a token that only the tokenizer knows
        added.pad_token = pad
        added.save_pretrained(own_tiny)
        assert load_tokenizer(replace(TINY, path=str(own_tiny))).pad_token == "<pad>"


def test_a_tokenizer_that_ends_a_text_as_the_model_cannot_is_refused(own_tiny: Path) -> None:
    added = AutoTokenizer.from_pretrained(own_tiny)
    added.eos_token = "<|im_end|>"
    added.save_pretrained(own_tiny)
    with pytest.raises(ConfigError, match=r"ends a text with <\|im_end\|> .*use the tokenizer that the model"):
        load_tokenizer(replace(TINY, path=str(own_tiny)))


def test_a_model_that_answers_reads_prompts_longer_than_the_rows_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # Unsloth cuts prompts on a GPU at what it was loaded for; this CPU's engine does not, so the call is looked at
    asked: list[int] = []

    def load(model: Any, lora: Any, *, row_tokens: int, **_: Any) -> torch.nn.Module:
        asked.append(row_tokens)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr("medreason.models.load.load_model", load)
    config = composed("model=tiny", "trainer=cpu", "data=clinical_cases", "data.row_tokens=64")
    load_trained(config, None)
    assert asked == [context_tokens(config.model)] and asked[0] > 1000


def test_memory_is_planned_for_the_gpu_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: current.__setitem__(0, device))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: ((1, 79)[current[0]] * GIB, 80 * GIB))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: f"GPU {current[0]}")
    capped: list[tuple[float, int]] = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda *given: capped.append(given))
    config = composed("model=tiny", "trainer=ddp", "data=clinical_cases", "trainer.memory_gib=20")
    take_own_gpu()
    found = plan_memory(config, train_tokens=10_000)
    assert found is not None and found.recompute is Recompute.none
    assert capped == [(0.25,)]


def test_positions_are_not_stretched_for_rows_longer_than_the_models_context(
    own_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((own_tiny / "config.json").read_text(encoding="utf-8"))
    (own_tiny / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 512}), encoding="utf-8")
    from unsloth import FastLanguageModel

    asked: list[int] = []
    theirs = FastLanguageModel.from_pretrained

    def load(*given: Any, **settings: Any) -> Any:
        asked.append(settings["max_seq_length"])
        return theirs(*given, **settings)

    monkeypatch.setattr(FastLanguageModel, "from_pretrained", load)
    model = load_model(
        replace(TINY, path=str(own_tiny)), lora(), row_tokens=2048, recompute=Recompute.none, seed=1
    ).float()
    assert asked == [512]
    tokens, positions = torch.arange(1024)[None] % 200, torch.arange(1024)[None] % 512
    with torch.no_grad():
        logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        alone = model(input_ids=tokens[:, 512:], use_cache=False).logits
    assert logits.shape[1] == 1024, "a row may be longer than its documents can be"
    torch.testing.assert_close(logits[:, 512:], alone, rtol=1e-4, atol=1e-4)
