from typing import Any

import pytest

from medreason.config import Format
from medreason.documents import tokenize
from medreason.prompts import Answer, Example, completion_text, parse_answer, prompt_text

EXAMPLE = Example("What is low here?", "The pH is low.\n\nSo it is acid.", "Acidosis.")


@pytest.mark.parametrize(
    ("style", "completion"),
    [
        (Format.think, "<think>\nThe pH is low.\n\nSo it is acid.\n</think>\n\nAcidosis."),
        (Format.huatuo, "## Thinking\n\nThe pH is low.\n\nSo it is acid.\n\n## Final Response\n\nAcidosis."),
        (Format.seed, "### Complex_CoT:\nThe pH is low.\n\nSo it is acid.\n\n### Response:\nAcidosis."),
    ],
)
def test_each_format_writes_what_it_is_known_by(style: Format, completion: str) -> None:
    assert completion_text(EXAMPLE, style) == completion


def test_prompts_come_from_the_chat_template_but_for_the_seeds(tokenizer: Any) -> None:
    assert prompt_text(tokenizer, "Why?", Format.think) == "<s>[INST] Why?[/INST]"
    assert prompt_text(tokenizer, "Why?", Format.huatuo) == "<s>[INST] Why?[/INST]"
    seed = prompt_text(tokenizer, "Why {question}?", Format.seed)
    assert seed.startswith("<s>Below is a medical question.")
    assert seed.endswith("\n\n### Question:\nWhy {question}?\n\n")


@pytest.mark.parametrize("style", Format)
def test_a_document_has_one_bos_one_eos_and_learns_from_its_completion_to_the_eos(
    tokenizer: Any, cases: list[Example], style: Format
) -> None:
    examples = [*cases, EXAMPLE, Example("q", "", "a")]
    for document, example in zip(tokenize(examples, tokenizer, style), examples, strict=True):
        tokens = document.tokens.tolist()
        assert tokenizer.decode(tokens[document.prompt_tokens :]) == (
            completion_text(example, style) + tokenizer.eos_token
        )
        assert tokens.count(tokenizer.bos_token_id) == 1
        assert tokens[0] == tokenizer.bos_token_id
        assert tokens.count(tokenizer.eos_token_id) == 1
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.pad_token_id not in tokens
        # asked as it was taught: the prompt alone gives the same tokens
        asked = tokenizer(prompt_text(tokenizer, example.question, style), add_special_tokens=False)["input_ids"]
        assert tokens[: document.prompt_tokens] == asked


@pytest.mark.parametrize(
    ("written", "reasoning", "answer"),
    [
        ("<think>\nlow pH\n</think>\n\nAcidosis", "low pH", "Acidosis"),
        ("<think>low pH</think>Acidosis", "low pH", "Acidosis"),
        ("low pH\n</think>\nAcidosis", "low pH", "Acidosis"),  # the template opened the block
        ("<think>low pH and then", "low pH and then", ""),  # cut by the length limit
        ("Acidosis", "", "Acidosis"),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("So: <think>low pH</think>Acidosis", "low pH", "Acidosis"),
        ("<think></think>", "", ""),
        ("", "", ""),
    ],
)
def test_reasoning_and_answer_are_taken_apart(written: str, reasoning: str, answer: str) -> None:
    assert parse_answer(written, Format.think) == Answer(reasoning, answer)
    for style, opening, closing in (
        (Format.huatuo, "## Thinking", "## Final Response"),
        (Format.seed, "### Complex_CoT:", "### Response:"),
    ):
        other = written.replace("<think>", opening).replace("</think>", closing)
        reasoned = reasoning.replace("</think>", closing)
        assert parse_answer(other, style) == Answer(reasoned, answer)


@pytest.mark.parametrize("style", Format)
def test_what_is_taught_can_be_parsed_back(style: Format) -> None:
    for example in (Example("q", "because\n\nof this", "B"), Example("q", "", "plain")):
        assert parse_answer(completion_text(example, style), style) == Answer(example.reasoning, example.answer)
