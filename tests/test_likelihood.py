from collections.abc import Callable
from typing import Any

import pytest
import torch

from conftest import SHARED
from medreason.json_lines import read_json_lines
from medreason.likelihood import option_logprobs, rows_of


def prompts_of(questions: list[dict[str, Any]]) -> list[str]:
    return [
        "<s>" + question["question"] + "".join(f"\n{k}. {v}" for k, v in question["options"].items()) + "\nAnswer:"
        for question in questions
    ]


QUESTIONS = [
    {"question": "Which vitamin prevents scurvy?", "options": {"A": "A", "B": "B12", "C": "C", "D": "D"}},
    {"question": "A short one?", "options": {"A": "yes", "B": "no"}},
    {"question": "A longer question about the kidney, " * 9, "options": {"A": "x", "B": "y", "C": "z"}},
]


@pytest.mark.parametrize("space", ["", " "])  # this tokenizer makes one token of "A", two of " A"
def test_log_probabilities_are_those_of_each_option_alone(
    make_model: Callable[..., Any], tokenizer: Any, space: str
) -> None:
    model = make_model().eval()
    prompts = prompts_of(QUESTIONS)
    letters = [[space + letter for letter in question["options"]] for question in QUESTIONS]
    found = option_logprobs(model, tokenizer, prompts, letters, batch_size=2)
    for prompt, options, values in zip(prompts, letters, found, strict=True):
        before = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        for option, value in zip(options, values, strict=True):
            tokens = tokenizer(prompt + option, add_special_tokens=False).input_ids
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
            alone = sum(logprobs[place - 1, tokens[place]].item() for place in range(before, len(tokens)))
            assert value == pytest.approx(alone, abs=1e-4)


def test_options_of_one_token_share_a_pass(tokenizer: Any) -> None:
    assert len(rows_of(0, tokenizer, "<s>Answer:", ["A", "B", "C"])) == 1
    assert len(rows_of(0, tokenizer, "<s>Answer:", ["A", "BC", "C"])) == 2


def test_log_probabilities_equal_those_of_the_evaluation_harness(
    make_model: Callable[..., Any], tokenizer: Any
) -> None:
    """Runs where lm-eval is installed, on real questions where they lie."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    path = SHARED / "mcq_mmlu_medical_test.jsonl"
    questions = read_json_lines(path)[:12] if path.is_file() else QUESTIONS
    model = make_model().eval()
    prompts = prompts_of(questions)
    letters = [[f" {letter}" for letter in question["options"]] for question in questions]
    ours = option_logprobs(model, tokenizer, prompts, letters, batch_size=4)
    harness = HFLM(pretrained=model.base_model.model, tokenizer=tokenizer, batch_size=4, max_length=8192)
    asked = [
        Instance("loglikelihood", {}, (prompt.removeprefix("<s>"), letter), 0)
        for prompt, options in zip(prompts, letters, strict=True)
        for letter in options
    ]
    theirs = [value for value, _ in harness.loglikelihood(asked, disable_tqdm=True)]
    assert [value for options in ours for value in options] == pytest.approx(theirs, abs=1e-4)
