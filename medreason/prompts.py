"""Question, reasoning and answer <-> the text that a model reads and writes.

    prompt      <s>[INST] A 45-year-old man presents with ...[/INST]      written by the chat template, no loss
    completion  <think>                                                   loss on every token from here ...
                His haemoglobin is low, so ...
                </think>

                Aplastic anaemia is the most likely cause.</s>            ... to the end-of-sequence token

Drawn in the format `think`; FORMATS holds the others. Training, sampling and evaluation all build their prompts here,
so a model is asked as it was taught.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medreason.chat_template import templated
from medreason.config import Format


@dataclass(frozen=True)
class Marks:
    """What a format writes around the parts of an example."""

    opening: str  # before the reasoning
    closing: str  # between reasoning and answer
    prompt: str | None = None  # the text before the completion; None: the tokenizer's chat template


FORMATS = {
    Format.think: Marks("<think>\n", "\n</think>\n\n"),
    # as the authors of medical-o1 trained HuatuoGPT-o1
    Format.huatuo: Marks("## Thinking\n\n", "\n\n## Final Response\n\n"),
    # the shape of the notebook this project grew from: plain headings, no turns
    Format.seed: Marks(
        "### Complex_CoT:\n",
        "\n\n### Response:\n",
        "Below is a medical question. Reason about it step by step, then answer it.\n\n### Question:\n{question}\n\n",
    ),
}

# Mistral's own instruct form, for its tokenizer files that carry no chat template (the raw tokenizer.model).
MISTRAL_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }}[/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


ANY_QUESTION = "any question"


@dataclass(frozen=True)
class Example:
    """One case: what is asked, how a clinician would reason, what the answer is."""

    question: str
    reasoning: str
    answer: str


@dataclass(frozen=True)
class Answer:
    """What a model wrote, taken apart. `reasoning` is empty where it showed none."""

    reasoning: str
    answer: str


def prompt_text(tokenizer: Any, question: str, style: Format) -> str:
    """The text before the model's turn, special tokens included: tokenize it without adding any."""
    return conversation_text(tokenizer, [], question, style)


def conversation_text(tokenizer: Any, earlier: Sequence[tuple[str, str]], question: str, style: Format) -> str:
    """The prompt of a question that follows `earlier` questions and their answers, which come without reasoning.

    A format without turns (`seed`) leaves them out: each question stands alone.
    """
    template = FORMATS[style].prompt
    if template is None:
        turns = [
            {"role": role, "content": text}
            for pair in earlier
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        turns.append({"role": "user", "content": question})
        return templated(tokenizer, turns)
    return beginning(tokenizer) + template.replace("{question}", question)


def beginning(tokenizer: Any) -> str:
    """The token that a tokenizer puts before every text; nothing where it puts none."""
    begins = tokenizer.backend_tokenizer.encode("").ids[:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if begins else ""


def completion_text(example: Example, style: Format) -> str:
    """What the model should write, without the end-of-sequence token."""
    return joined_text(example.reasoning, example.answer, style)


def joined_text(reasoning: str, answer: str, style: Format) -> str:
    """Reasoning and answer as a model writes them. No reasoning, no block for it."""
    form = FORMATS[style]
    return f"{form.opening}{reasoning}{form.closing}{answer}" if reasoning else answer


def parse_answer(text: str, style: Format) -> Answer:
    """Takes reasoning and answer apart again.

    A block that is opened and never closed (cut by the length limit) is all reasoning and no answer;
    a closing mark without an opening one (the template wrote it into the prompt) ends the reasoning.
    """
    opening, closing = marks(style)
    before, opened, after = text.partition(opening)
    body = after if opened else before
    reasoning, closed, answer = body.rpartition(closing)
    if closed:
        return Answer(reasoning.strip(), answer.strip())
    return Answer(body.strip(), "") if opened else Answer("", body.strip())


def marks(style: Format) -> tuple[str, str]:
    """The opening and the closing mark, without the space around them that a model may leave out."""
    return FORMATS[style].opening.strip(), FORMATS[style].closing.strip()


def response_template(tokenizer: Any, style: Format) -> dict[str, Any]:
    """How transformers, serving a model, is to part reasoning (`thinking`) and answer (`content`)."""
    opening, closing, end = (re.escape(mark) for mark in (*marks(style), tokenizer.eos_token))
    thinking = {"open_pattern": rf"\s*{opening}\s*", "close_pattern": rf"\s*(?:{closing}\s*|{end})", "content": "text"}
    content = {"close_pattern": rf"\s*{end}", "content": "text"}
    after_question = prompt_text(tokenizer, ANY_QUESTION, style).rpartition(ANY_QUESTION)[2]
    return {
        "defaults": {"role": "assistant"},
        # where the model's turn begins; a mark after it, written by the chat template, counts as the model's own
        "start_anchor": after_question.partition(marks(style)[0])[0],
        "fields": {"thinking": thinking, "content": content},
    }


def served_chat_template(tokenizer: Any, style: Format) -> str:
    """The chat template for a server, which knows no other way to a prompt; that of `seed` takes the last question."""
    template = FORMATS[style].prompt
    if template is None:
        own: str = tokenizer.chat_template
        return own
    before, after = (json.dumps(part) for part in (beginning(tokenizer) + template).split("{question}"))
    return "{{ " + before + " + messages[-1]['content'] + " + after + " }}"
