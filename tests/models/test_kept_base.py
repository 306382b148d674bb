"""A base that one run after another uses: every number is that of a run which loaded it itself."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fast_engine import four_cases, pass_over, with_updates

from medreason.batch import PackedBatch
from medreason.config import ComputeDtype, LoraConfig, ModelConfig, Precision, Recompute, TrainingEngine
from medreason.models import kept_base
from medreason.models.kept_base import Kept, keep_bases, kept
from medreason.models.load import load_model
from medreason.models.prompts import Example
from support import TINY, lora

LORAS = (  # channels beside the weight and none, dropout after none, fewer targets
    lora(),
    replace(lora(), r=32, alpha=64),
    replace(lora(), target_modules=["q_proj", "down_proj"]),
)
MODELS = {
    "unsloth": TINY,
    "unsloth_nf4": replace(TINY, precision=Precision.nf4),
    "fast_bf16": replace(TINY, engine=TrainingEngine.fast, precision=Precision.bf16),
    "fast_fp8": replace(TINY, engine=TrainingEngine.fast, precision=Precision.fp8, compute_dtype=ComputeDtype.fp8),
    "fast_nf4_in_fp8": replace(
        TINY, engine=TrainingEngine.fast, precision=Precision.nf4, compute_dtype=ComputeDtype.fp8
    ),
}


@pytest.fixture
def batch(tokenizer: Any, cases: list[Example]) -> PackedBatch:
    return four_cases(tokenizer, cases)


@pytest.fixture
def keeping() -> Iterator[None]:
    keep_bases()
    yield
    Kept.wanted, Kept.key, Kept.loaded = False, None, None


def first_step(model: ModelConfig, settings: LoraConfig, batch: PackedBatch, copies: int = 1) -> Any:
    loaded = load_model(model, settings, row_tokens=1024, recompute=Recompute.none, seed=1, copies=copies)
    loaded.eval()  # answers in mid-training
    tokens = torch.arange(6, 16).view(1, 10)
    settings_of_answer: dict[str, Any] = {"max_new_tokens": 3, "pad_token_id": 3, "do_sample": False}
    with torch.inference_mode():
        answer = loaded.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **settings_of_answer)
    loaded.train()
    return (*pass_over(with_updates(loaded), batch), answer.tolist())


@pytest.mark.parametrize("name", MODELS)
def test_adapters_come_and_go_and_every_number_is_as_if_alone(name: str, batch: PackedBatch, keeping: None) -> None:
    several = LORAS if name.startswith("fast") else (*LORAS, replace(lora(), dropout=0.1), lora())
    copies = (2, 0, 1, 1, 1)  # the fast engine's
    found = [first_step(MODELS[name], one, batch, count) for one, count in zip(several, copies, strict=False)]
    Kept.wanted, Kept.loaded = False, None
    for one, (loss, gradients, answer) in zip(several, found, strict=True):
        alone = first_step(MODELS[name], one, batch)
        assert loss == alone[0] and answer == alone[2]
        assert gradients.keys() == alone[1].keys() and len(gradients) > 2
        assert all(torch.equal(gradients[key], grad) for key, grad in alone[1].items())


def test_a_base_is_loaded_once_for_a_key_and_only_the_last_is_kept(keeping: None) -> None:
    calls: list[str] = []
    for key in ("a", "a", "b", "a"):
        assert kept(key, lambda: calls.append(key) or key) == key  # noqa: B023
    assert calls == ["a", "b", "a"]


def test_nothing_is_kept_where_nobody_asked() -> None:
    with patch.object(kept_base.copy, "deepcopy") as copied:
        assert [kept("a", lambda: object()) is kept("a", lambda: object()), Kept.loaded] == [False, None]
        model = torch.nn.Linear(2, 2)
        assert kept_base.own_modules(model) is model and not copied.called
