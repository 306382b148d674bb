"""Texts at which an answer ends (`stop` of a request): it is what stands before the first of them, as OpenAI has it.

transformers finds only those that the vocabulary's tokens can spell, leaves them at the answer's end, and looks for
them in the reasoning, too: "\\n\\n", which harnesses ask for, stands between that and the answer.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers.cli.serving.utils import response_events_to_chunks


class Watch:
    """For `generate`: whether one of the stops stands in the answer so far. `parser` takes reasoning apart, if any."""

    def __init__(self, stops: Sequence[str], tokenizer: Any, parser: Any) -> None:
        self.stops, self.parser = stops, parser
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)._tokenizer
        self.decoding = DecodeStream([], skip_special_tokens=parser is None)
        self.kept = max(map(len, stops)) - 1  # characters in which a stop may have begun
        self.tail = ""

    def __call__(self, tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Of a single row of tokens, of which the last is new."""
        text = self.decoding.step(self.tokenizer, int(tokens[0, -1])) or ""
        if self.parser is not None:
            text = "".join(chunk for chunk in response_events_to_chunks(self.parser.feed(text)) if type(chunk) is str)
        seen = self.tail + text
        self.tail = seen[-self.kept :] if self.kept else ""
        return torch.full((1,), any(stop in seen for stop in self.stops), device=tokens.device, dtype=torch.bool)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def may_begin(text: str, stops: Sequence[str]) -> int:
    """How many of the text's last characters may be the beginning of a stop."""
    longest = min(max(map(len, stops)) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in stops)), 0)


class Held:
    """A queue of an answer's pieces, from which those come that stand before the first stop.

    What may be the beginning of one is held back until it is known not to be. Pieces other than plain texts (reasoning,
    calls of tools, the end) pass.
    """

    def __init__(self, queue: "asyncio.Queue[Any]", stops: Sequence[str]) -> None:
        self.queue, self.stops = queue, stops
        self.held, self.stopped = "", False
        self.ready: deque[Any] = deque()

    async def get(self) -> Any:
        while not self.ready:
            self.take(await self.queue.get())
        return self.ready.popleft()

    def get_nowait(self) -> Any:
        while not self.ready:
            self.take(self.queue.get_nowait())
        return self.ready.popleft()

    def take(self, piece: Any) -> None:
        if type(piece) is not str:  # reasoning is of a kind of str
            self.give(self.held)
            self.held = ""
            self.ready.append(piece)
            return
        seen = self.held + piece
        before = before_stop(seen, self.stops)
        self.held = ""
        if len(before) == len(seen) and (size := may_begin(seen, self.stops)):
            before, self.held = seen[:-size], seen[-size:]
        self.give(before)
        self.stopped |= len(before) + len(self.held) < len(seen)

    def give(self, text: str) -> None:
        if text and not self.stopped:
            self.ready.append(text)
