"""The chat as a web page, by Gradio: streamed answers, reasoning folded above them, sample questions."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

from medreason.config import ConfigError
from medreason.conversation import NOTICE, Ask, Conversation, Piece, Turn, words

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it reports usage home otherwise, when it is imported
import gradio as gr

CSS = """
#notice { border-left: 4px solid #b45309; background: #fffbeb; color: #451a03; padding: 8px 14px; }
#notice * { color: #451a03 !important; }
.example-content { max-height: 8em; overflow: hidden; }
footer { display: none !important; }
"""
FONTS = ["system-ui", "sans-serif"]  # nothing is fetched from elsewhere


def open_page(ask: Ask, title: str, samples: list[str], alone: bool, host: str, port: int) -> None:
    """Serves the page until Ctrl-C."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it is there
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    page(ask, title, samples, alone).launch(server_name=host, server_port=port, theme=theme, css=CSS, quiet=True)


def page(ask: Ask, title: str, samples: list[str], alone: bool) -> Any:
    """The page, not yet open. `alone`: the model is told no earlier turns."""

    def answer(question: str, history: list[dict[str, Any]]) -> Iterator[list[Any]]:
        conversation = Conversation(turns_of(history))
        try:
            pieces = ask(conversation, question)
        except ConfigError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if conversation.dropped:
            gr.Info("Too long a conversation: the model no longer sees the oldest turns.")
        with closing(pieces):
            yield from messages(pieces)
        turn = conversation.turns[-1]
        if turn.ending == "cut":
            gr.Info("The answer was cut: max_new_tokens is reached.", duration=5)
        yield said(turn.reasoning, turn.answer or "*(no answer)*", thinking=False)

    with gr.Blocks(title=f"medreason: {title}", fill_height=True, analytics_enabled=False) as blocks:
        gr.Markdown(f"### medreason: {title}")
        notice = f"**{NOTICE}** Do not enter data of real patients."
        gr.Markdown(notice + (" Each question stands alone." if alone else ""), elem_id="notice")
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
            examples=samples,
            run_examples_on_click=False,
            flagging_mode="never",
            api_name="chat",
        )
    return blocks


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
        shown.append(gr.ChatMessage(reasoning, metadata={"title": title, "status": "pending" if thinking else "done"}))
    return [*shown, gr.ChatMessage(answer)] if answer else shown


def turns_of(history: list[dict[str, Any]]) -> list[Turn]:
    """The page's messages as turns; what is not an answer, the reasoning, is left out."""
    turns: list[Turn] = []
    for message in history:
        if message["role"] == "user":
            turns.append(Turn(text_of(message), "", "", "whole"))
        elif turns and not (message.get("metadata") or {}).get("title"):
            turns[-1] = Turn(turns[-1].question, "", text_of(message), "whole")
    return turns


def text_of(message: dict[str, Any]) -> str:
    """A message's text, which Gradio keeps in parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
