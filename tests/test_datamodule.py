from typing import Any

import pytest
import torch

from medreason.config import ConfigError, TooLong
from medreason.data import IGNORE, Document, PackedLoader, fit, tokenize
from medreason.prompts import Example, completion_text, prompt_text

DOCUMENTS = [Document([5, *range(10, 10 + length - 1)], 1 + length // 3) for length in (3, 9, 4, 7, 5, 5, 8, 2, 6, 10)]


def loader(**changes: Any) -> PackedLoader:
    return PackedLoader(DOCUMENTS, 12, **({"pad_token": 0, "seed": 1} | changes))


def test_a_document_is_its_prompt_then_its_completion_to_the_end_of_sequence(
    tokenizer: Any, cases: list[Example]
) -> None:
    for document, example in zip(tokenize(cases, tokenizer), cases, strict=True):
        learned = document.tokens[document.prompt_tokens :]
        assert tokenizer.decode(learned) == completion_text(example) + tokenizer.eos_token
        assert document.tokens.count(tokenizer.bos_token_id) == 1
        assert document.tokens[0] == tokenizer.bos_token_id
        assert document.tokens.count(tokenizer.eos_token_id) == 1
        # asked as it was taught: the prompt alone gives the same tokens
        asked = tokenizer(prompt_text(tokenizer, example.question), add_special_tokens=False)["input_ids"]
        assert document.tokens[: document.prompt_tokens] == asked


def test_a_row_holds_documents_labels_and_positions_as_drawn() -> None:
    batch = PackedLoader([Document([1, 2, 3, 4], 2), Document([5, 6, 7], 1)], 9, pad_token=0).batch([0], 0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE, 3, 4, IGNORE, 6, 7, IGNORE, IGNORE]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert (batch.lengths, batch.tokens, batch.targets, batch.step_targets) == ((4, 3, 2), 7, 4, 4)


def test_the_first_token_of_a_document_is_never_a_target() -> None:
    for batch in loader(rows_per_batch=2):
        assert torch.all(batch.labels[batch.position_ids == 0] == IGNORE)
        assert int((batch.labels != IGNORE).sum()) == batch.targets
        assert sum(batch.lengths) == batch.input_ids.numel()


def test_every_row_comes_once_an_epoch_in_an_order_of_seed_and_epoch() -> None:
    def epoch(batches: PackedLoader) -> list[list[int]]:
        return [batch.input_ids.flatten().tolist() for batch in batches]

    batches = loader()
    first, second = epoch(batches), epoch(batches)
    assert len(first) == len(batches) == len(batches.rows)
    assert sorted(first) == sorted(second) == sorted(epoch(loader(seed=None)))
    assert first != second
    again = loader()
    assert [epoch(again), epoch(again)] == [first, second]


def test_a_step_counts_the_targets_of_all_its_batches_the_last_one_included() -> None:
    batches = list(loader(rows_per_batch=2, accumulate=2))
    for start in range(0, len(batches), 2):
        step = batches[start : start + 2]
        assert {batch.step_targets for batch in step} == {sum(batch.targets for batch in step)}
    assert len(batches) % 2 == 1, "the last step must be a short one for this test to mean something"


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_restored_loader_goes_on_where_the_saved_one_stood(stop: int) -> None:
    unbroken = loader()
    expected = [batch.input_ids for _ in range(3) for batch in unbroken]
    first = loader()
    assert len(first) == 5
    for _ in range(stop):  # stopping at 5 is stopping at the end of an epoch
        next(iter(first))
    second = loader()
    second.load_state_dict(first.state_dict())
    rest = [batch.input_ids for _ in range(2) for batch in second]
    assert all(torch.equal(a, b) for a, b in zip(expected[stop:], rest, strict=False))


def test_a_document_longer_than_a_row_is_treated_as_the_policy_says() -> None:
    documents = [Document(list(range(5)), 2), Document(list(range(9)), 2)]
    with pytest.raises(ConfigError, match=r"1 of 2 documents exceed data.row_tokens=6 \(the longest has 9\)"):
        fit(documents, 6, TooLong.error)
    assert fit(documents, 6, TooLong.drop) == documents[:1]
    assert [len(document.tokens) for document in fit(documents, 6, TooLong.truncate)] == [5, 6]


def test_a_document_without_anything_to_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match="document 1 has no token to learn"):
        fit([Document(list(range(9)), 8)], 6, TooLong.truncate)
    with pytest.raises(ConfigError, match="no document fits"):
        fit([Document(list(range(9)), 2)], 6, TooLong.drop)
