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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medreason.config import Format
from medreason.models.chat_template import rendered
from medreason.models.control_tokens import encode, hide


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

# System turns wait for the user turn that they join, a blank line between them, as rows are read (data/examples.py).
SYSTEM_TURN = (
    "{% if message['role'] in ('system', 'developer') %}"
    "{% if message['content'] %}{% set waiting.text = waiting.text + message['content'] + '\\n\\n' %}{% endif %}"
)
# Mistral's own instruct form, for its tokenizer files that carry no chat template (the raw tokenizer.model). It has no
# system turn: Mistral puts that text at the beginning of the first user turn.
MISTRAL_CHAT_TEMPLATE = (
    "{{ bos_token }}{% set waiting = namespace(text='') %}{% for message in messages %}"
    + SYSTEM_TURN
    + "{% elif message['role'] == 'user' %}[INST] {{ waiting.text + message['content'] }}[/INST]"
    "{% set waiting.text = '' %}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no place for a turn of the role ' + message['role']) }}{% endif %}{% endfor %}"
    "{% if waiting.text %}{{ raise_exception('a system turn needs a user turn after it') }}{% endif %}"
)

DATE = '{%- set date_string = "26 Jul 2024" %}'  # the date that Llama-3.1's own template writes, on whatever day


def dated(template: str) -> str:
    """The chat template with a date of its own where it would write today's (Llama-3.2 and 3.3).

    Else a model is asked otherwise than it was taught, and the same run trains on other prompts tomorrow.
    """
    varies = "strftime_now" in template and "date_string" in template and not template.startswith(DATE)
    return DATE + template if varies else template


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
    """The text before the model's turn in training, special tokens included: tokenize it without adding any."""
    return templated(tokenizer, [], question, style)


def asked_text(tokenizer: Any, question: str, style: Format) -> str:
    """`prompt_text` for a question that anyone may have written: `encode` makes its tokens."""
    return conversation_text(tokenizer, [], question, style)


def conversation_text(tokenizer: Any, earlier: Sequence[tuple[str, str]], question: str, style: Format) -> str:
    """The prompt of a question that follows `earlier` questions and their answers, which come without reasoning.

    A format without turns (`seed`) leaves them out: each question stands alone. Control tokens that the turns name are
    hidden: `encode` makes its tokens.
    """
    quiet = [(hide(tokenizer, asked), hide(tokenizer, answered)) for asked, answered in earlier]
    return templated(tokenizer, quiet, hide(tokenizer, question), style)


def chat_tokens(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Tokens of the prompt of a chat in OpenAI's form (role, content); only the template writes control tokens."""
    quiet = [{**message, "content": hide(tokenizer, message["content"])} for message in messages]
    return encode(tokenizer, tokenizer.apply_chat_template(quiet, tokenize=False, add_generation_prompt=True))


def templated(tokenizer: Any, earlier: Sequence[tuple[str, str]], question: str, style: Format) -> str:
    template = FORMATS[style].prompt
    if template is None:
        turns = [
            {"role": role, "content": text}
            for pair in earlier
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        turns.append({"role": "user", "content": question})
        return rendered(tokenizer, turns)
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


def opens_reasoning(tokenizer: Any, style: Format) -> bool:
    """Whether the prompt itself ends with the opening mark, so that the model writes none."""
    return prompt_text(tokenizer, ANY_QUESTION, style).rstrip().endswith(marks(style)[0])


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
    """The chat template for a server, which knows no other way to a prompt.

    That of `seed`, which has no turns, takes the last question, and before it what system turns say.
    """
    template = FORMATS[style].prompt
    if template is None:
        own: str = tokenizer.chat_template
        return own
    before, after = (json.dumps(part) for part in (beginning(tokenizer) + template).split("{question}"))
    system = "{% for message in messages[:-1] %}" + SYSTEM_TURN + "{% endif %}{% endfor %}"
    question = "waiting.text + messages[-1]['content']"
    return "{% set waiting = namespace(text='') %}" + system + "{{ " + f"{before} + {question} + {after}" + " }}"
