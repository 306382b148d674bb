"""python -m medreason.chat run=DIR: ask a run's model, in the terminal, or with page=true on a web page.

question --prompts, with earlier turns--> AnswerStream --split_stream--> reasoning, dimmed | answer
"""

import os
import sys
import time
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from medreason.chat.conversation import Conversation, Ending, Piece, Turn, fit, split_stream
from medreason.config import ChatConfig, Checkpoint, Format
from medreason.core.cache import cache_folder
from medreason.core.cli import command
from medreason.core.progress import quieten, say
from medreason.core.run_log import kept_log
from medreason.inference.target import Answerer, find_answerer, questions_of
from medreason.models.checks import check_installed, check_port, check_precision
from medreason.models.control_tokens import encode
from medreason.models.prompts import FORMATS, conversation_text, opens_reasoning

SAMPLES = 3  # questions that the page offers


@dataclass(frozen=True)
class Speaker:
    """A loaded model that answers questions."""

    model: Any
    tokenizer: Any
    style: Format
    context_tokens: int  # prompt and answer
    max_new_tokens: int
    temperature: float

    def ask(
        self, conversation: Conversation, question: str, temperature: float | None = None, *, base: bool = False
    ) -> Generator[Piece]:
        """The answer's pieces as they come. At their end, or where they are left, the conversation has the turn.

        `base` has the model answer as it was before training.
        Raises ConfigError, before any piece, for a question that is too long.
        """

        def tokens_of(earlier: Any) -> list[int]:
            return encode(self.tokenizer, conversation_text(self.tokenizer, earlier, question, self.style))

        room = min(self.max_new_tokens, self.context_tokens // 2)
        prompt = fit(conversation, tokens_of, context_tokens=self.context_tokens, answer_tokens=room)
        warmth = self.temperature if temperature is None else temperature
        return self.answer(conversation, question, prompt, warmth, base)

    @property
    def has_base(self) -> bool:
        """Whether the model before training can answer too: an adapter can be left out, a merged one cannot."""
        return hasattr(self.model, "disable_adapter")

    def answer(
        self, conversation: Conversation, question: str, prompt: list[int], temperature: float, base: bool
    ) -> Generator[Piece]:
        from medreason.inference.streaming import AnswerStream

        opened = opens_reasoning(self.tokenizer, self.style)
        limit = min(self.max_new_tokens, self.context_tokens - len(prompt))
        with self.model.disable_adapter() if base else nullcontext():
            started = time.monotonic()
            stream = AnswerStream(self.model, self.tokenizer, prompt, max_new_tokens=limit, temperature=temperature)
            ending: Ending = "stopped"
            try:
                yield from split_stream(stream, self.style, opened=opened)
                ending = "cut" if stream.cut else "whole"
            finally:
                turn = Turn.of(question, stream.text, self.style, ending, opened=opened)
                tokens = len(self.tokenizer(stream.text, add_special_tokens=False).input_ids)
                conversation.turns.append(replace(turn, tokens_per_second=tokens / (time.monotonic() - started)))
                stream.stop()


def chat(config: ChatConfig) -> None:
    answerer = check_chat(config)
    title = f"{answerer.folder.resolve().name}, {what(answerer, config.checkpoint)}"
    with kept_log((answerer.folder if answerer.folder.is_dir() else cache_folder()) / "chat.log"):
        speaker = load_speaker(config, answerer)
    if config.page:
        from medreason.chat.page import Page, open_page

        say(f"the page: http://{config.host}:{config.port} (Ctrl-C ends it)")
        samples = questions_of(answerer.folder, SAMPLES)
        page = Page(speaker.ask, title, samples, stands_alone(speaker.style), config.temperature, speaker.has_base)
        open_page(page, config.host, config.port)
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        from medreason.chat.terminal import Terminal, typed_lines

        Terminal(speaker.ask, title, stands_alone(speaker.style), colour).talk(typed_lines())


def what(answerer: Answerer, checkpoint: Checkpoint | None) -> str:
    """Which weights of a run answer."""
    if answerer.adapter is None:
        return "before training"
    return "as trained" if checkpoint is None else f"its {checkpoint.value} step"


def check_chat(config: ChatConfig) -> Answerer:
    """Who is to talk. Raises ConfigError, before anything slow, where there can be no chat."""
    answerer = find_answerer(config.run, base=config.base, checkpoint=config.checkpoint, precision=config.precision)
    if config.page:
        check_installed("chat", "gradio")
        check_port(config.host, config.port)
    check_precision(answerer.config.model, "precision")
    return answerer


def load_speaker(config: ChatConfig, answerer: Answerer) -> Speaker:
    from medreason.models.load import context_tokens, import_unsloth, load_tokenizer, load_trained

    trained = answerer.config
    if not trained.model.fast:
        say("importing Unsloth (10 to 30 seconds)")
        import_unsloth()
    quieten()
    from transformers import logging

    from medreason.inference.batched import widen

    logging.set_verbosity_error()  # warnings would stand in the middle of answers
    tokenizer = load_tokenizer(trained.model)
    say(f"loading {trained.model.path} in {trained.model.precision.value}")
    model = load_trained(trained, answerer.adapter)
    widen(model, trained.model.precision)
    if not trained.model.fast:
        model.for_inference()
    room = context_tokens(trained.model)
    return Speaker(model, tokenizer, trained.data.format, room, config.max_new_tokens, config.temperature)


def stands_alone(style: Format) -> bool:
    """Whether a format knows no turns, so that a question is asked without those before it."""
    return FORMATS[style].prompt is not None


def main() -> None:
    command(chat, "chat", ChatConfig)
