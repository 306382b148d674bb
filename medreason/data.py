"""Examples -> packed, resumable batches.

Example --prompts--> text --tokenizer--> Document --packing--> row --PackedLoader--> PackedBatch
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from medreason.config import ConfigError, TooLong
from medreason.packing import fill, pack
from medreason.prompts import Example, completion_text, prompt_text
from medreason.records import Split

IGNORE = -100  # torch's cross entropy leaves these labels out


@dataclass(frozen=True)
class Document:
    """One example as tokens: the first `prompt_tokens` of them are read, the rest is learned."""

    tokens: list[int]
    prompt_tokens: int

    @property
    def targets(self) -> int:
        return len(self.tokens) - self.prompt_tokens


@dataclass  # not frozen: Lightning writes the moved tensors into a copy
class PackedBatch:
    """Rows for one forward pass. Labels are not shifted: the token at i is predicted from those before i."""

    input_ids: Tensor  # (rows, row_tokens) int64
    labels: Tensor  # (rows, row_tokens) int64, IGNORE where nothing is learned
    position_ids: Tensor  # (rows, row_tokens) int64, from 0 in each document
    lengths: tuple[int, ...]  # tokens of each document, row after row, padding included; sums to rows x row_tokens
    tokens: int  # of documents: padding left out
    targets: int  # labels that count in this batch
    step_targets: int  # labels that count in the optimizer step that this batch belongs to


def tokenize(examples: Sequence[Example], tokenizer: Any) -> list[Document]:
    """One document per example, ending with the end-of-sequence token.

    Prompt and completion are tokenized as one text and parted by character offsets, so that no token differs from
    what a tokenizer makes of the whole. A token that reaches into the completion is a target.
    """
    prompts = [prompt_text(tokenizer, example.question) for example in examples]
    texts = [
        prompt + completion_text(example) + tokenizer.eos_token
        for prompt, example in zip(prompts, examples, strict=True)
    ]
    # the chat template writes BOS itself; add_special_tokens would write it twice
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        Document(tokens, sum(end <= len(prompt) for _, end in offsets))
        for tokens, offsets, prompt in zip(encoded["input_ids"], encoded["offset_mapping"], prompts, strict=True)
    ]


def fit(documents: Sequence[Document], row_tokens: int, too_long: TooLong) -> list[Document]:
    """The documents that fit a row, by the policy for those that do not.

    Raises ConfigError under `error` for any too long, and for one that has nothing left to learn.
    """
    long = [number for number, document in enumerate(documents, 1) if len(document.tokens) > row_tokens]
    if long and too_long is TooLong.error:
        longest = max(len(document.tokens) for document in documents)
        raise ConfigError(
            f"{len(long)} of {len(documents)} documents exceed data.row_tokens={row_tokens} "
            f"(the longest has {longest}); raise it, or set data.too_long=drop or truncate"
        )
    if too_long is TooLong.drop:
        documents = [document for document in documents if len(document.tokens) <= row_tokens]
    kept = [Document(document.tokens[:row_tokens], document.prompt_tokens) for document in documents]
    for number, document in enumerate(kept, 1):
        if document.targets <= 0:
            raise ConfigError(
                f"document {number} has no token to learn: its prompt alone has {document.prompt_tokens} tokens of "
                f"data.row_tokens={row_tokens}; raise it, or set data.too_long=drop"
            )
    if not kept:
        raise ConfigError(f"no document fits data.row_tokens={row_tokens}; raise it")
    return kept


class PackedLoader:
    """A sized, resumable iterable of PackedBatch; Lightning saves and restores its position.

    The order of rows is a function of seed and epoch alone, so a resumed run sees what an unbroken one would.
    `seed=None` keeps the order of packing (validation).
    """

    def __init__(
        self,
        documents: Sequence[Document],
        row_tokens: int,
        *,
        pad_token: int,
        rows_per_batch: int = 1,
        accumulate: int = 1,
        seed: int | None = None,
    ) -> None:
        self.documents, self.row_tokens, self.pad_token = documents, row_tokens, pad_token
        self.rows_per_batch, self.accumulate, self.seed = rows_per_batch, accumulate, seed
        self.rows = pack([len(document.tokens) for document in documents], row_tokens)
        self.epoch = self.next_batch = 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.rows_per_batch)

    def __iter__(self) -> Iterator[PackedBatch]:
        if self.next_batch >= len(self):
            self.epoch, self.next_batch = self.epoch + 1, 0
        order = self.order(self.epoch)
        while self.next_batch < len(self):
            batch = self.batch(order, self.next_batch)
            self.next_batch += 1  # before the yield: a checkpoint during the step names the batch after it
            yield batch

    def order(self, epoch: int) -> list[int]:
        """Rows in the order of an epoch."""
        if self.seed is None:
            return list(range(len(self.rows)))
        shuffle = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(len(self.rows), generator=shuffle).tolist()

    def batch(self, order: Sequence[int], index: int) -> PackedBatch:
        """The index-th batch of an epoch in which rows come in `order`."""
        size, step = self.rows_per_batch, self.rows_per_batch * self.accumulate
        first = index * size
        rows = [self.rows[row] for row in order[first : first + size]]
        in_step = first - first % step
        step_rows = [self.rows[row] for row in order[in_step : in_step + step]]
        tokens, labels, positions, lengths = zip(*(self.row(members) for members in rows), strict=True)
        return PackedBatch(
            input_ids=torch.tensor(tokens),
            labels=torch.tensor(labels),
            position_ids=torch.tensor(positions),
            lengths=tuple(length for row in lengths for length in row),
            tokens=sum(len(self.documents[member].tokens) for row in rows for member in row),
            targets=self.count_targets(rows),
            step_targets=self.count_targets(step_rows),
        )

    def row(self, members: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Tokens, labels, positions (each row_tokens long) and document lengths of one row."""
        tokens: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        for document in (self.documents[member] for member in members):
            tokens += document.tokens
            labels += [IGNORE] * document.prompt_tokens + document.tokens[document.prompt_tokens :]
            positions += range(len(document.tokens))
            lengths.append(len(document.tokens))
        padding = self.row_tokens - len(tokens)
        if padding:
            tokens += [self.pad_token] * padding
            labels += [IGNORE] * padding
            positions += range(padding)
            lengths.append(padding)
        return tokens, labels, positions, lengths

    def count_targets(self, rows: Sequence[Sequence[int]]) -> int:
        return sum(self.documents[member].targets for row in rows for member in row)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]


class MedicalReasoningData(L.LightningDataModule):
    """Tokenizes and packs a split of examples, once. `setup` raises ConfigError for rows that cannot be trained on."""

    def __init__(
        self,
        split: Split,
        tokenizer: Any,
        *,
        row_tokens: int,
        too_long: TooLong = TooLong.error,
        rows_per_batch: int = 1,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.split, self.tokenizer = split, tokenizer
        self.row_tokens, self.too_long = row_tokens, too_long
        self.rows_per_batch, self.accumulate, self.seed = rows_per_batch, accumulate, seed
        self.loaders: dict[str, PackedLoader] = {}
        self.documents_read = 0

    def setup(self, stage: str | None = None) -> None:
        if self.loaders:
            return
        for name, examples, accumulate, seed in (
            ("train", self.split.train, self.accumulate, self.seed),
            ("validation", self.split.validation, 1, None),
        ):
            documents = tokenize(examples, self.tokenizer)
            self.documents_read += len(documents)
            self.loaders[name] = PackedLoader(
                fit(documents, self.row_tokens, self.too_long),
                self.row_tokens,
                pad_token=self.tokenizer.pad_token_id,
                rows_per_batch=self.rows_per_batch,
                accumulate=accumulate,
                seed=seed,
            )

    def train_dataloader(self) -> PackedLoader:
        return self.loaders["train"]

    def val_dataloader(self) -> PackedLoader:
        return self.loaders["validation"]

    def total_steps(self, max_epochs: int, max_steps: int) -> int:
        """Optimizer steps of a run that ends with its epochs or after `max_steps` (-1: no limit)."""
        by_epochs = max_epochs * -(-len(self.loaders["train"]) // self.accumulate)
        return by_epochs if max_steps == -1 else min(by_epochs, max_steps)

    def report(self) -> dict[str, int | float]:
        """What training will see, in documents, rows, tokens."""
        train, validation = self.loaders["train"], self.loaders["validation"]
        lengths = [len(document.tokens) for document in train.documents]
        kept = len(train.documents) + len(validation.documents)
        return {
            "train_documents": len(train.documents),
            "validation_documents": len(validation.documents),
            "dropped_documents": self.documents_read - kept,
            "truncated_documents": self.truncated(),
            "train_rows": len(train.rows),
            "train_tokens": sum(lengths),
            "train_targets": train.count_targets(train.rows),
            "longest_document": max(lengths),
            "row_tokens": self.row_tokens,
            "fill": round(fill(lengths, train.rows, self.row_tokens), 4),
        }

    def truncated(self) -> int:
        """Documents that lost their end to the row length."""
        documents = [document for loader in self.loaders.values() for document in loader.documents]
        return sum(document.tokens[-1] != self.tokenizer.eos_token_id for document in documents)
