"""Log-probabilities of a question's options, as lm-evaluation-harness defines them, and of expected answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medreason.config import ConfigError
from medreason.data.tokenization import Document
from medreason.models.control_tokens import encode


@dataclass(frozen=True)
class Row:
    """Tokens for one pass, and the options that can be read off it."""

    question: int
    tokens: tuple[int, ...]
    options: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]  # of each option, its tokens; the row holds all of them but the last

    @property
    def first(self) -> int:
        """The position whose logits are those of the continuations' first token."""
        return len(self.tokens) - len(self.continuations[0])


def encode_pair(tokenizer: Any, prompt: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of a prompt, and of what continues it, as lm-evaluation-harness parts them (`_encode_pair`).

    Spaces at the prompt's end belong to the continuation, with whose first letter they may be one token; what the text
    as a whole has beyond the prompt's tokens is the continuation. Raises ConfigError where that is nothing.
    """
    bare = prompt.rstrip()
    before = encode(tokenizer, bare)
    own = encode(tokenizer, prompt + continuation)[len(before) :]
    if not own or not before:
        raise ConfigError(
            f"method=likelihood: {continuation!r} has no token of its own after a prompt that ends in {bare[-20:]!r}; "
            "end the chat template otherwise (model.chat_template), or set method=generate"
        )
    return tuple(before), tuple(own)


def rows_of(question: int, tokenizer: Any, prompt: str, continuations: Sequence[str]) -> list[Row]:
    """Rows from which every option can be read; options that differ in their last token alone share one.

    Raises ConfigError for an option that has no token of its own.
    """
    rows: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for option, continuation in enumerate(continuations):
        before, own = encode_pair(tokenizer, prompt, continuation)
        rows.setdefault((len(own), *before, *own[:-1]), []).append((option, own))
    return [
        Row(question, tuple(tokens), tuple(option for option, _ in found), tuple(own for _, own in found))
        for (_, *tokens), found in rows.items()
    ]


@torch.inference_mode()
def option_logprobs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    *,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[float]]:
    """For each prompt the log-probability of each of its continuations, summed over tokens; in nats.

    Prompts hold their special tokens. The model must be in evaluation mode. Raises ConfigError for a continuation that
    has no token of its own.
    """
    rows = [
        row for index, prompt in enumerate(prompts) for row in rows_of(index, tokenizer, prompt, continuations[index])
    ]
    rows.sort(key=lambda row: len(row.tokens))
    found = [[0.0] * len(options) for options in continuations]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        longest = max(len(row.tokens) for row in batch)
        # padded on the right: what comes after a token is nothing to a causal model, so no mask is needed
        padded = [list(row.tokens) + [tokenizer.pad_token_id] * (longest - len(row.tokens)) for row in batch]
        first = min(row.first for row in batch)
        logits = logits_from(model, torch.tensor(padded, device=model.device), first)
        for row, lines in zip(batch, logits, strict=True):
            logprobs = lines[row.first - first : len(row.tokens) - first].float().log_softmax(-1)
            for option, own in zip(row.options, row.continuations, strict=True):
                found[row.question][option] = sum(logprobs[place, token].item() for place, token in enumerate(own))
        progress(min(start + batch_size, len(rows)), len(rows))
    return found


@torch.inference_mode()
def completion_losses(model: Any, tokenizer: Any, documents: Sequence[Document], *, batch_size: int) -> list[float]:
    """Of each document the cross entropy of its completion, summed over its tokens; in nats."""
    order = sorted(range(len(documents)), key=lambda index: len(documents[index]))
    losses = [0.0] * len(documents)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        longest = max(len(documents[member]) for member in members)
        padded = np.full((len(members), longest), tokenizer.pad_token_id, np.int64)
        for row, member in zip(padded, members, strict=True):
            row[: len(documents[member])] = documents[member].tokens
        first = min(documents[member].prompt_tokens for member in members) - 1
        logits = logits_from(model, torch.from_numpy(padded).to(model.device), first)
        for row, lines, member in zip(padded, logits, members, strict=True):
            document = documents[member]
            targets = torch.from_numpy(row[document.prompt_tokens : len(document)]).to(lines.device)
            predicted = lines[document.prompt_tokens - 1 - first : len(document) - 1 - first].float()
            losses[member] = cross_entropy(predicted, targets, reduction="sum").item()
    return losses


def logits_from(model: Any, tokens: Tensor, first: int) -> Tensor:
    """Logits from a position on, (rows, tokens - first, vocabulary): the head is a large share of a short pass."""
    logits: Tensor = model(input_ids=tokens, use_cache=False, logits_to_keep=tokens.shape[1] - first).logits
    return logits
