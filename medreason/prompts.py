"""Question, reasoning and answer <-> the text that a model reads and writes.

    prompt      <s>[INST] A 45-year-old man presents with ...[/INST]      written by the chat template, no loss
    completion  <think>                                                   loss on every token from here ...
                His haemoglobin is low, so ...
                </think>

                Aplastic anaemia is the most likely cause.</s>            ... to the end-of-sequence token

Training, sampling and evaluation all build their prompts here, so a model is asked as it was taught.
"""

from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<think>", "</think>"

# Mistral's own instruct form, for its tokenizer files that carry no chat template (the raw tokenizer.model).
MISTRAL_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }}[/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


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


def prompt_text(tokenizer: Any, question: str) -> str:
    """The text before the model's turn, special tokens of the chat template included."""
    turns = [{"role": "user", "content": question}]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def completion_text(example: Example) -> str:
    """What the model should write, without the end-of-sequence token. No reasoning, no think block."""
    if not example.reasoning:
        return example.answer
    return f"{OPEN}\n{example.reasoning}\n{CLOSE}\n\n{example.answer}"


def parse_answer(text: str) -> Answer:
    """Takes reasoning and answer apart again.

    A block that is opened and never closed (cut by the length limit) is all reasoning and no answer;
    a closing tag without an opening one (the template wrote it into the prompt) ends the reasoning.
    """
    before, opened, after = text.partition(OPEN)
    body = after if opened else before
    reasoning, closed, answer = body.rpartition(CLOSE)
    if closed:
        return Answer(reasoning.strip(), answer.strip())
    return Answer(body.strip(), "") if opened else Answer("", body.strip())
