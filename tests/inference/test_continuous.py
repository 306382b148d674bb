"""Continuous batching writes what plain batches write. On a CPU: slow, so few and short answers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from medreason.config import Format
from medreason.core.run_directory import run_config
from medreason.inference.batched import write_in_batches
from medreason.inference.continuous import load_merged, write_continuously
from medreason.models.control_tokens import encode
from medreason.models.load import load_trained
from medreason.models.prompts import prompt_text
from support import run_train, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    more = ["trainer.max_steps=8", "trainer.answer_questions=0", "model.precision=nf4", "optim.lr=2e-3"]
    said = run_train(*tiny_run(run, rows_file, *more))
    assert said.returncode == 0, said.stderr[-3000:]
    return run


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[str]:
    asked = ["Stage?", "Which anaemia has an MCV of 120 fL?", "Fever?", "Stage?", "Which weight class, at a BMI of 31?"]
    return [prompt_text(tokenizer, question, Format.think) for question in asked]


def test_the_merged_model_is_the_trained_one(run: Path, tokenizer: Any, prompts: list[str]) -> None:
    config = run_config(run)
    trained = load_trained(config, run / "adapter").float()
    merged, base = load_merged(config, run / "adapter"), load_merged(config, None)
    tokens = tokenizer(prompts[1], add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        ours, theirs, plain = (model(input_ids=tokens, use_cache=False).logits for model in (merged, trained, base))
        with trained.disable_adapter():
            unadapted = trained(input_ids=tokens, use_cache=False).logits
    width = (unadapted - plain).abs().mean()  # 4-bit products are computed in other widths, without an adapter too
    assert (ours - theirs).abs().mean() < 2 * width
    assert (ours - plain).abs().mean() > 8 * width


def test_answers_equal_those_of_plain_batches(run: Path, tokenizer: Any, prompts: list[str]) -> None:
    model = load_merged(run_config(run), run / "adapter")
    plain = dict(write_in_batches(model, tokenizer, prompts, max_new_tokens=12, batch_size=2))
    told: list[int] = []
    written = dict(write_continuously(model, tokenizer, prompts, max_new_tokens=12, progress=told.append))
    assert written == plain
    assert told == sorted(told) and told[-1] == sum(written.tokens + (not written.cut) for written in plain.values())
    assert sorted(written) == [0, 1, 2, 3, 4] and written[0] == written[3]


def test_samples_of_one_prompt_differ(run: Path, tokenizer: Any, prompts: list[str]) -> None:
    model = load_merged(run_config(run), run / "adapter")
    found = dict(write_continuously(model, tokenizer, [prompts[0]] * 4, max_new_tokens=8, temperature=1.0, seed=1))
    assert len({written.text for written in found.values()}) > 1


def test_no_prompts_no_answers() -> None:
    assert dict(write_continuously(None, None, [], max_new_tokens=3)) == {}


def test_few_slots_give_the_same_answers(run: Path, tokenizer: Any, prompts: list[str]) -> None:
    model = load_merged(run_config(run), run / "adapter")
    tokenizer = copy.deepcopy(tokenizer)
    long = dict(write_continuously(model, tokenizer, prompts, max_new_tokens=20))
    later = "".join(written.text[1:] for written in long.values())
    [tokenizer.eos_token_id] = encode(tokenizer, next(letter for letter in later if letter.isascii()))
    wanted = dict(write_in_batches(model, tokenizer, prompts, max_new_tokens=20, batch_size=1))
    assert len({written.tokens for written in wanted.values()}) > 1, "answers of several lengths"
    for at_once in (1, 2, None):
        found = list(write_continuously(model, tokenizer, prompts, max_new_tokens=20, at_once=at_once))
        assert dict(found) == wanted and len(found) == 5
    [(index, one)] = write_continuously(model, tokenizer, prompts[:1], max_new_tokens=1)
    assert index == 0 and one.tokens <= 1


def test_a_reader_that_stops_leaves_the_model_as_it_was(run: Path, tokenizer: Any, prompts: list[str]) -> None:
    model = load_merged(run_config(run), None)
    before = model.config._attn_implementation
    answers = write_continuously(model, tokenizer, prompts, max_new_tokens=4)
    next(answers)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    answers.close()
    assert model.config._attn_implementation == before
