from typing import Any

import pytest
from jinja2 import TemplateError

from medreason.config import Columns, Format
from medreason.data.examples import Rejects, read_examples
from medreason.data.tokenization import tokenize
from medreason.models.prompts import (
    Answer,
    Example,
    completion_text,
    conversation_text,
    marks,
    parse_answer,
    prompt_text,
    response_template,
    served_chat_template,
)

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


def test_a_first_turn_of_a_conversation_is_the_prompt_of_training(tokenizer: Any) -> None:
    for style in Format:
        assert conversation_text(tokenizer, [], "Why?", style) == prompt_text(tokenizer, "Why?", style)


def test_a_follow_up_comes_after_the_turns_before_it_but_for_the_seeds(tokenizer: Any) -> None:
    earlier = [("What is low?", "The pH."), ("Sure?", "Yes.")]
    told = conversation_text(tokenizer, earlier, "Why?", Format.think)
    assert told == "<s>[INST] What is low?[/INST]The pH.</s>[INST] Sure?[/INST]Yes.</s>[INST] Why?[/INST]"
    assert conversation_text(tokenizer, earlier, "Why?", Format.seed) == prompt_text(tokenizer, "Why?", Format.seed)


@pytest.mark.parametrize("style", Format)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_server_parts_reasoning_and_answer_as_we_do(tokenizer: Any, style: Format, size: int) -> None:
    from transformers.utils.chat_parsing import ResponseParser

    opening, _ = marks(style)
    prompt = prompt_text(tokenizer, EXAMPLE.question, style)
    for text, already in (
        (completion_text(EXAMPLE, style), ""),
        (f"{opening}low and cut", ""),
        ("Acidosis.", ""),
        (completion_text(EXAMPLE, style).removeprefix(opening), opening),  # a chat template that opens the block
    ):
        parser = ResponseParser(response_template(tokenizer, style), prefix=prompt + already)
        written = text + tokenizer.eos_token
        events = [e for start in range(0, len(written), size) for e in parser.feed(written[start : start + size])]
        events += parser.finalize()[1]
        said = dict.fromkeys(("thinking", "content"), "")
        for event in events:
            said[event["field"]] += event.get("text") or ""
        assert Answer(said["thinking"], said["content"]) == parse_answer(text, style)


@pytest.mark.parametrize("style", Format)
def test_a_server_asks_as_training_did(tokenizer: Any, style: Format) -> None:
    question = 'Is "7.10" {low}, {{ or not }}?\n Why?'
    turns = [{"role": "user", "content": "Older"}, {"role": "assistant", "content": "answer"}]
    template = served_chat_template(tokenizer, style)
    asked = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": question}], chat_template=template, tokenize=False
    )
    assert asked == conversation_text(tokenizer, [("Older", "answer")], question, style)


def told(tokenizer: Any, *turns: str) -> str:
    """The text of turns such as `system: Be brief.`."""
    messages = [dict(zip(("role", "content"), turn.split(": "), strict=True)) for turn in turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return text


def test_mistrals_template_joins_a_system_turn_to_the_first_user_turn(tokenizer: Any) -> None:
    assert told(tokenizer, "system: Be brief.", "user: Why?") == "<s>[INST] Be brief.\n\nWhy?[/INST]"
    assert told(tokenizer, "system: Be brief.", "user: Why?", "assistant: So.", "user: And?") == (
        "<s>[INST] Be brief.\n\nWhy?[/INST]So.</s>[INST] And?[/INST]"
    )
    assert told(tokenizer, "system: A.", "developer: B.", "user: Why?") == "<s>[INST] A.\n\nB.\n\nWhy?[/INST]"
    assert told(tokenizer, "system: ", "user: Why?") == "<s>[INST] Why?[/INST]"
    # it is read as rows with a system turn are learned
    row = {"messages": [{"role": role, "content": role} for role in ("system", "user", "assistant")]}
    [(_, learned)], _ = read_examples([(1, row)], Columns(), Format.think, 1000, "rows", Rejects())
    question = learned.question
    assert told(tokenizer, "system: system", "user: user") == prompt_text(tokenizer, question, Format.think)


@pytest.mark.parametrize("turns", [("user: Why?", "system: Be brief."), ("tool: 7", "user: Why?")])
def test_mistrals_template_refuses_a_turn_that_it_has_no_place_for(tokenizer: Any, turns: tuple[str, ...]) -> None:
    with pytest.raises(TemplateError, match=r"system turn needs a user turn|no place for a turn of the role tool"):
        told(tokenizer, *turns)


@pytest.mark.parametrize("style", Format)
def test_a_server_puts_what_a_system_turn_says_before_the_question(tokenizer: Any, style: Format) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    template = served_chat_template(tokenizer, style)
    asked = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert asked == prompt_text(tokenizer, "Be brief.\n\nWhy?", style)
