import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from medreason.config import ConfigError
from medreason.core.json_lines import read_json_lines
from medreason.inference.likelihood import encode_pair, option_logprobs, rows_of
from medreason.models.load import load_tokenizer
from support import SHARED, TINY


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
    prompts += [f"{prompt} " for prompt in prompts]
    letters += [list(question["options"]) for question in questions]
    ours = option_logprobs(model, tokenizer, prompts, letters, batch_size=4)
    harness = HFLM(pretrained=model.base_model.model, tokenizer=tokenizer, batch_size=4, max_length=8192)
    asked = [
        Instance("loglikelihood", {}, (prompt.removeprefix("<s>"), letter), 0)
        for prompt, options in zip(prompts, letters, strict=True)
        for letter in options
    ]
    theirs = [value for value, _ in harness.loglikelihood(asked, disable_tqdm=True)]
    assert [value for options in ours for value in options] == pytest.approx(theirs, abs=1e-4)


def joining(*pairs: tuple[str, str]) -> Any:
    """The tiny tokenizer with tokens that join two characters, as those of real models join a space and a letter."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    settings = json.loads(load_tokenizer(TINY).backend_tokenizer.to_str())
    spare = iter(("\u0143", "\u0142", "\u0141", "\u0140", "\u013f"))  # bytes that no text here has
    for one, other in pairs:
        settings["model"]["vocab"][one + other] = settings["model"]["vocab"].pop(next(spare))
        settings["model"]["merges"].append([one, other])
    core = Tokenizer.from_str(json.dumps(settings))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


SPACE = "\u0120"  # as it stands in a byte-level vocabulary


def test_a_prompts_last_space_goes_to_the_letter_with_which_it_is_one_token() -> None:
    tokenizer = joining((SPACE, "A"), (SPACE, "B"))
    before = tuple(tokenizer("<s>Answer:", add_special_tokens=False).input_ids)
    for letter in "AB":
        own = tokenizer.convert_tokens_to_ids(f"{SPACE}{letter}")
        assert encode_pair(tokenizer, "<s>Answer: ", letter) == (before, (own,))
    assert len(rows_of(0, tokenizer, "<s>Answer: ", ["A", "B", "C"])) == 2  # C is two tokens
    assert len(rows_of(0, tokenizer, "<s>Answer: ", ["C", "D"])) == 1  # and shares its first with D


def test_a_letter_without_a_token_of_its_own_is_refused_in_a_line() -> None:
    tokenizer = joining((":", "A"))
    with pytest.raises(ConfigError, match="method=likelihood: 'A' has no token of its own after a prompt that ends in"):
        encode_pair(tokenizer, "<s>Answer:", "A")
    assert encode_pair(tokenizer, "<s>Answer:", "B")[1] == tuple(tokenizer("B", add_special_tokens=False).input_ids)
    with pytest.raises(ConfigError, match="no token of its own"):
        encode_pair(tokenizer, "<s>Answer:", "")


def test_where_tokens_merge_each_option_has_the_probability_that_a_plain_pass_gives_it(
    make_model: Callable[..., Any],
) -> None:
    model = make_model().eval()
    tokenizer = joining((SPACE, "A"), (SPACE, "B"), (SPACE, "k"), ("i", "d"))
    prompts = ["<s>Which? Answer: ", "<s>A longer one about the kidney? Answer:  ", "<s>Which?\nAnswer:\n\n"]
    continuations = [["A", "B", "C", "kidney"], ["A", "B"], ["kidney", "A kid", "liver"]]
    found = option_logprobs(model, tokenizer, prompts, continuations, batch_size=3)
    for prompt, options, values in zip(prompts, continuations, found, strict=True):
        for option, value in zip(options, values, strict=True):
            before = tokenizer(prompt.rstrip(), add_special_tokens=False).input_ids
            own = tokenizer(prompt + option, add_special_tokens=False).input_ids[len(before) :]
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([before + own]), use_cache=False).logits[0].log_softmax(-1)
            alone = sum(logprobs[len(before) + place - 1, token].item() for place, token in enumerate(own))
            assert value == pytest.approx(alone, abs=1e-4), (prompt, option)
        assert len(set(values)) == len(values), "no option is given another's probability"
