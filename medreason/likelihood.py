"""Log-probabilities of a question's options, as lm-evaluation-harness defines them, and of expected answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medreason.documents import Document


@dataclass(frozen=True)
class Row:
    """Tokens for one pass, and the options that can be read off it."""

    question: int
    tokens: tuple[int, ...]
    options: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]  # of each option, its tokens; the row holds all of them but the last


def rows_of(question: int, tokenizer: Any, prompt: str, continuations: Sequence[str]) -> list[Row]:
    """One row for all options that are one token, one for each that is several.

    An option is tokenized together with its prompt, as a model would have to write it.
    """
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    short: list[tuple[int, tuple[int, ...]]] = []
    rows = []
    for option, continuation in enumerate(continuations):
        whole = tokenizer(prompt + continuation, add_special_tokens=False).input_ids
        own = tuple(whole[len(before) :])
        if len(own) == 1 and whole[: len(before)] == before:
            short.append((option, own))
        else:
            rows.append(Row(question, tuple(whole[:-1]), (option,), (own,)))
    if short:
        rows.append(Row(question, tuple(before), tuple(o for o, _ in short), tuple(own for _, own in short)))
    return rows


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

    Prompts hold their special tokens. The model must be in evaluation mode.
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
        logits: Tensor = model(input_ids=torch.tensor(padded, device=model.device), use_cache=False).logits
        for row, lines in zip(batch, logits, strict=True):
            width = len(row.continuations[0])
            logprobs = lines[len(row.tokens) - width : len(row.tokens)].float().log_softmax(-1)
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
        logits: Tensor = model(input_ids=torch.from_numpy(padded).to(model.device), use_cache=False).logits
        for row, lines, member in zip(padded, logits, members, strict=True):
            document = documents[member]
            targets = torch.from_numpy(row[document.prompt_tokens : len(document)]).to(lines.device)
            predicted = lines[document.prompt_tokens - 1 : len(document) - 1].float()
            losses[member] = cross_entropy(predicted, targets, reduction="sum").item()
    return losses
