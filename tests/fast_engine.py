"""Loss and gradients of a model over a packed row, by the fast engine and by transformers; for tests of the engine."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from medreason.batch import PackedBatch
from medreason.config import Format
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import tokenize
from medreason.models.load import summed_loss
from medreason.models.prompts import Example

Gradients = dict[str, Tensor]


def four_cases(tokenizer: Any, cases: list[Example]) -> PackedBatch:
    """Four documents in a row, and nine tokens of padding."""
    documents = tokenize(cases[:4], tokenizer, Format.think)
    return PackedLoader(documents, sum(map(len, documents)) + 9, pad_token=3).batch([0], 0)


def with_updates(model: Any) -> Any:
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


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
