from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medreason.batch import IGNORE_INDEX, PackedBatch
from medreason.config import ConfigError
from medreason.data.corpus import read_split
from medreason.data.datamodule import MedicalReasoningData, PackedLoader, ResumeMismatch
from medreason.data.tokenization import Document
from medreason.models.prompts import Example
from support import data_config, write_rows


def document(tokens: list[int], prompt_tokens: int) -> Document:
    return Document(np.array(tokens, np.int32), prompt_tokens)


DOCUMENTS = [document([5, *range(10, 10 + length - 1)], 1 + length // 3) for length in (3, 9, 4, 7, 5, 5, 8, 2, 6, 10)]


def loader(**changes: Any) -> PackedLoader:
    return PackedLoader(DOCUMENTS, 12, **({"pad_token": 0, "seed": 1} | changes))


def test_a_row_holds_documents_labels_and_positions_as_drawn() -> None:
    batch = PackedLoader([document([1, 2, 3, 4], 2), document([5, 6, 7], 1)], 9, pad_token=0).batch([0], 0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE_INDEX, IGNORE_INDEX, 3, 4, IGNORE_INDEX, 6, 7, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert (batch.lengths, batch.tokens, batch.targets, batch.step_targets) == ((4, 3, 2), 7, 4, 4)


def test_the_first_token_of_a_document_is_never_a_target() -> None:
    for batch in loader(rows_per_batch=2):
        assert torch.all(batch.labels[batch.position_ids == 0] == IGNORE_INDEX)
        assert int((batch.labels != IGNORE_INDEX).sum()) == batch.targets
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


def test_a_position_in_other_data_or_other_batches_is_refused() -> None:
    state = loader(fingerprint="one").state_dict()
    for changes, says in (
        ({"fingerprint": "two"}, "data was one when it was saved, and is two here"),
        ({"fingerprint": "one", "rows_per_batch": 2}, "rows in a batch was 1 when it was saved, and is 2 here"),
        ({"fingerprint": "one", "accumulate": 2}, "batches in a step was 1 when it was saved, and is 2 here"),
        ({"fingerprint": "one", "seed": 2}, "order's seed was 1"),
    ):
        with pytest.raises(ResumeMismatch, match=says):
            loader(**changes).load_state_dict(state)
    with pytest.raises(ResumeMismatch, match="in the middle of an optimizer step"):
        loader(accumulate=2).load_state_dict(loader(accumulate=2).state_dict() | {"next_batch": 3})
    loader(fingerprint="one", rows_per_batch=1, processes=1).load_state_dict(state)


@pytest.mark.parametrize("rows_per_batch", [1, 2, 3])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_rows_of_an_epoch_and_agree_on_what_a_step_holds(
    rows_per_batch: int, processes: int
) -> None:
    def shared(process: int) -> list[PackedBatch]:
        return list(loader(rows_per_batch=rows_per_batch, accumulate=2, process=process, processes=processes))

    def documents_in(batch: PackedBatch) -> list[tuple[int, ...]]:
        if not batch.tokens:
            return []  # a row that counts for nothing
        rows = batch.input_ids.tolist()
        return [tuple(row) for row in rows]

    parts = [shared(process) for process in range(processes)]
    assert len({len(part) for part in parts}) == 1, "a process with fewer batches would leave the others waiting"
    seen = [row for part in parts for batch in part for row in documents_in(batch)]
    alone = [row for batch in loader() for row in documents_in(batch)]
    assert sorted(seen) == sorted(alone)
    for start in range(0, len(parts[0]), 2):
        step = [batch for part in parts for batch in part[start : start + 2]]
        assert {batch.step_targets for batch in step} == {sum(batch.targets for batch in step)}
    # the same rows make up a step as on one process with batches as large as all the processes' together
    whole = list(loader(rows_per_batch=rows_per_batch * processes, accumulate=2))
    assert [batch.step_targets for batch in whole] == [batch.step_targets for batch in parts[0]]


def test_a_row_that_counts_for_nothing_has_labels_and_no_targets() -> None:
    last = list(loader(process=1, processes=2))[-1]
    assert (last.tokens, last.targets) == (0, 0)
    assert bool((last.labels != IGNORE_INDEX).any()), "a loss over no label at all would not be a number"


def test_without_packing_each_document_has_a_row_as_long_as_the_longest_of_its_batch() -> None:
    batches = list(PackedLoader(DOCUMENTS, None, pad_token=0, rows_per_batch=4, seed=1))
    assert [len(batch.input_ids) for batch in batches] == [4, 4, 2]
    for batch in batches:
        lengths = (batch.position_ids.diff(dim=1) == 1).long().cumprod(1).sum(1) + 1
        assert int(lengths.max()) == batch.input_ids.shape[1]
        assert sum(batch.lengths) == batch.input_ids.numel()
    assert sum(batch.tokens for batch in batches) == sum(map(len, DOCUMENTS))
    assert PackedLoader(DOCUMENTS, None, pad_token=0, rows_per_batch=4, seed=1).slots() == sum(
        batch.input_ids.numel() for batch in batches
    )


def module(path: Path, tokenizer: Any, *overrides: str, **options: Any) -> MedicalReasoningData:
    config = data_config(path, "deduplicate=off", "validation_share=0.2", "row_tokens=1024", *overrides)
    data = MedicalReasoningData(config, read_split(config), tokenizer, **options)
    data.setup()
    return data


def test_the_module_tells_what_training_will_see(tokenizer: Any, rows_file: Path, cases: list[Example]) -> None:
    data = module(rows_file, tokenizer, rows_per_batch=2, accumulate=3)
    report = data.report()
    train, validation = data.train_dataloader(), data.val_dataloader()
    assert report["train_documents"] + report["validation_documents"] == len(cases)
    assert report["train_tokens"] == sum(batch.tokens for batch in train)
    assert report["train_targets"] == sum(batch.targets for batch in train)
    assert report["fill"] == pytest.approx(report["train_tokens"] / (report["train_rows"] * 1024), abs=1e-4)
    assert data.total_steps(2, -1) == 2 * -(-report["train_rows"] // 6)
    assert data.total_steps(2, 1) == 1
    assert data.total_steps(1, -1, processes=2) == -(-report["train_rows"] // 12)
    assert [batch.input_ids.tolist() for batch in validation] == [batch.input_ids.tolist() for batch in validation]


def test_documents_too_long_are_counted_as_the_policy_treats_them(tokenizer: Any, rows_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"exceed data\.row_tokens=200"):
        module(rows_file, tokenizer, "row_tokens=200")
    dropped = module(rows_file, tokenizer, "row_tokens=200", "too_long=drop").report()
    cut = module(rows_file, tokenizer, "row_tokens=200", "too_long=truncate").report()
    assert dropped["dropped_documents"] > 0 == dropped["truncated_documents"]
    assert cut["truncated_documents"] > 0
    assert cut["dropped_documents"] + cut["truncated_documents"] == dropped["dropped_documents"]


def test_a_row_with_a_control_token_in_its_text_is_a_bad_row(
    tokenizer: Any, tmp_path: Path, cases: list[Example]
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [*cases, Example("What does </s> mean?", "r", "a"), Example("q", "r [INST] r", "a")])
    with pytest.raises(
        ConfigError, match=r"2 of 62 .*2 hold a control token of the tokenizer .rows.jsonl:61, rows.jso"
    ):
        module(path, tokenizer)
    said: list[str] = []
    data = module(path, tokenizer, "on_bad_row=skip", "max_bad_share=0.05", say=said.append)
    assert data.report()["dropped_documents"] == 2
    reason = "hold a control token of the tokenizer"
    assert data.corpus_report()["rejects"] == {reason: {"count": 2, "places": ["rows.jsonl:61", "rows.jsonl:62"]}}
    assert f"skipped 2 rows: {reason} (rows.jsonl:61, rows.jsonl:62)" in said


def test_the_share_of_bad_rows_is_one_over_all_reasons_together(
    tokenizer: Any, tmp_path: Path, cases: list[Example]
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [*cases[:18], Example("q", "", "a"), Example("What does </s> mean?", "r", "a")])
    with pytest.raises(ConfigError, match=r"2 of 20 rows .*: 1 empty Complex_CoT .*; 1 hold a control token") as caught:
        module(path, tokenizer, "on_bad_row=skip", "max_bad_share=0.05")
    assert "more than data.max_bad_share=0.05" in str(caught.value)
    data = module(path, tokenizer, "on_bad_row=skip", "max_bad_share=0.1")
    assert [found["count"] for found in data.corpus_report()["rejects"].values()] == [1, 1]


def test_rows_that_a_weight_repeats_are_seen_so_often(tokenizer: Any, rows_file: Path) -> None:
    once, thrice = module(rows_file, tokenizer), module(rows_file, tokenizer, "weight=3")
    assert thrice.report()["train_documents"] == 3 * once.report()["train_documents"]
    assert thrice.report()["validation_documents"] == once.report()["validation_documents"]
