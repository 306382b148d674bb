"""The chat as a web page, by Gradio: streamed answers, reasoning folded above them, sample questions."""

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from medreason.chat.conversation import NOTICE, Conversation, Piece, Turn, words
from medreason.config import ConfigError
from medreason.core.outside import markdown

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it reports usage home otherwise, when it is imported
import gradio as gr

CSS = """
#notice { border-left: 4px solid #b45309; background: #fffbeb; color: #451a03; padding: 8px 14px; }
#notice * { color: #451a03 !important; }
.example-content { max-height: 8em; overflow: hidden; }
footer { display: none !important; }
"""
NOTHING = "\u2060"  # a word joiner: no width, no break; where it stands, no tag and no image begins
FONTS = ["system-ui", "sans-serif"]  # nothing is fetched from elsewhere


@dataclass(frozen=True)
class Page:
    """What a page asks and says."""

    ask: Callable[..., Generator[Piece]]  # conversation, question, temperature; base=True: the model before training
    title: str
    samples: list[str]
    alone: bool  # the model is told no earlier turns
    temperature: float  # that it begins with
    has_base: bool  # whether the model before training can be asked


def open_page(page: Page, host: str, port: int) -> None:
    """Serves the page until Ctrl-C."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it is there
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    blocks(page).launch(server_name=host, server_port=port, theme=theme, css=CSS, quiet=True)


def blocks(page: Page) -> Any:
    """The page as Gradio's blocks, not yet open."""

    def answer(
        question: str, history: list[dict[str, Any]], temperature: float, compare: bool
    ) -> Iterator[tuple[list[Any], str]]:
        conversation = Conversation(turns_of(history))
        before = Conversation(list(conversation.turns))
        try:
            pieces = page.ask(conversation, question, temperature)
            base = page.ask(before, question, temperature, base=True) if compare else None
        except ConfigError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if conversation.dropped:
            gr.Info("Too long a conversation: the model no longer sees the oldest turns.")
        with closing(pieces):
            for shown in messages(pieces):
                yield shown, ""
        turn = conversation.turns[-1]
        if turn.ending == "cut":
            gr.Info("The answer was cut: max_new_tokens is reached.", duration=5)
        own = said(turn.reasoning, turn.answer or "*(no answer)*", thinking=False)
        yield own, speed(turn)
        if base is not None:
            with closing(base):
                for text in grown(base):
                    yield [*own, untrained(text, done=False)], speed(turn)
            theirs = before.turns[-1]
            text = f"{theirs.reasoning}\n\n{theirs.answer}".strip() or "(no answer)"
            yield [*own, untrained(text, done=True)], f"{speed(turn)}; before training {speed(theirs)}"

    with gr.Blocks(title=f"medreason: {page.title}", fill_height=True, analytics_enabled=False) as made:
        gr.Markdown(f"### medreason: {markdown(page.title)}")
        notice = f"**{NOTICE}** Do not enter data of real patients."
        gr.Markdown(notice + (" Each question stands alone." if page.alone else ""), elem_id="notice")
        temperature = gr.Slider(0, 2, page.temperature, step=0.1, label="Temperature (0: always the likeliest token)")
        compare = gr.Checkbox(False, label="Also ask the model before training", visible=page.has_base)
        fast = gr.Markdown("")
        gr.ChatInterface(
            answer,
            chatbot=gr.Chatbot(
                show_label=False,
                scale=1,
                height=None,
                buttons=["copy", "copy_all"],
                feedback_options=None,
                placeholder="Ask a medical question.",
            ),
            examples=[[sample, page.temperature, False] for sample in page.samples],
            additional_inputs=[temperature, compare],
            additional_outputs=[fast],
            run_examples_on_click=False,
            flagging_mode="never",
            api_name="chat",
        )
    return made


def speed(turn: Turn) -> str:
    return "" if turn.tokens_per_second is None else f"{turn.tokens_per_second:,.1f} tokens per second"


def grown(pieces: Iterable[Piece]) -> Iterator[str]:
    """A text as it grows, reasoning and answer in one."""
    text, last = "", None
    for kind, piece in pieces:
        text += ("\n\n" if last not in (None, kind) else "") + piece
        last = kind
        yield text


def untrained(text: str, *, done: bool) -> Any:
    """What the model before training says: under a title of its own, so that no later turn is told it as an answer."""
    title = "The model before training"
    return gr.ChatMessage(harmless(text), metadata={"title": title, "status": "done" if done else "pending"})


def harmless(text: str) -> str:
    """An answer as the page may show it: an image or an element that it names is read, not fetched or obeyed."""
    return text.replace("![", f"!{NOTHING}[").replace("<", f"<{NOTHING}")


def as_said(shown: str) -> str:
    """An answer as the model gave it, of what the page shows."""
    return shown.replace(NOTHING, "")


def messages(pieces: Iterable[Piece]) -> Iterator[list[Any]]:
    """What the page shows, again and again, while an answer grows."""
    reasoning, answer = "", ""
    for kind, text in pieces:
        if kind == "reasoning":
            reasoning += text
        else:
            answer += text
        yield said(reasoning, answer, thinking=kind == "reasoning")


def said(reasoning: str, answer: str, *, thinking: bool) -> list[Any]:
    """Reasoning, open while it is written and folded afterwards, and the answer."""
    shown = []
    if reasoning:
        title = "Reasoning" if thinking else f"Reasoning, {words(reasoning)}"
        shown.append(
            gr.ChatMessage(harmless(reasoning), metadata={"title": title, "status": "pending" if thinking else "done"})
        )
    return [*shown, gr.ChatMessage(harmless(answer))] if answer else shown


def turns_of(history: list[dict[str, Any]]) -> list[Turn]:
    """The page's messages as turns; what is not an answer, the reasoning, is left out."""
    turns: list[Turn] = []
    for message in history:
        if message["role"] == "user":
            turns.append(Turn(text_of(message), "", "", "whole"))
        elif turns and not (message.get("metadata") or {}).get("title"):
            turns[-1] = Turn(turns[-1].question, "", as_said(text_of(message)), "whole")
    return turns


def text_of(message: dict[str, Any]) -> str:
    """A message's text, which Gradio keeps in parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
