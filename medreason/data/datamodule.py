"""Documents -> packed, resumable batches, shared out among processes.

Split --documents--> tokens --fit, packing--> rows --PackedLoader--> PackedBatch
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from medreason.batch import IGNORE_INDEX, PackedBatch
from medreason.config import DataConfig, Packing, TrainConfig
from medreason.core.progress import named
from medreason.data.corpus import Split
from medreason.data.examples import SHOWN, settle_rejects
from medreason.data.packing import Rows, pack
from medreason.data.tokenization import Document, fit, read_documents
from medreason.models.load import positions

CONTROL_TOKEN = "hold a control token of the tokenizer"  # a row's reason


class ResumeMismatch(ValueError):
    """A checkpoint's position in the data means nothing for the data at hand."""


class PackedLoader:
    """A sized, resumable iterable of PackedBatch; Lightning saves and restores its position.

    The order of rows is a function of seed and epoch alone, so a resumed run sees what an unbroken one would.
    `seed=None` keeps the order of packing (validation).

    Of every `rows_per_batch x processes` rows in that order, each process takes its own `rows_per_batch`:

        row      0 1 | 2 3 | 4 5 | 6            rows_per_batch 2, processes 2
        process   0     1     0     1           process 1's last batch holds one row

    A process for which the last rows do not suffice gets a row that counts for nothing, so that all make as many steps.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        row_tokens: int | None,
        *,
        pad_token: int,
        rows_per_batch: int = 1,
        accumulate: int = 1,
        seed: int | None = None,
        process: int = 0,
        processes: int = 1,
        fingerprint: str = "",
    ) -> None:
        """`row_tokens=None` gives each document a row of its own, padded to the longest of its batch.

        `fingerprint` names the data in checkpoints.
        """
        self.documents, self.row_tokens, self.pad_token = documents, row_tokens, pad_token
        self.lengths = np.fromiter(map(len, documents), np.int32, len(documents))
        self.targets = np.fromiter((document.targets for document in documents), np.int64, len(documents))
        lengths = self.lengths.tolist()
        self.rows: Rows = (
            [[index] for index in range(len(lengths))] if row_tokens is None else pack(lengths, row_tokens)
        )
        self.rows_per_batch, self.accumulate, self.seed = rows_per_batch, accumulate, seed
        self.process, self.processes, self.fingerprint = process, processes, fingerprint
        self.epoch = self.next_batch = 0
        self.seconds = 0.0  # spent on making batches, which training waited for

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.rows_per_batch * self.processes))

    def __iter__(self) -> Iterator[PackedBatch]:
        if self.next_batch >= len(self):
            self.epoch, self.next_batch = self.epoch + 1, 0
        order = self.order(self.epoch)
        while self.next_batch < len(self):
            began = time.perf_counter()
            batch = self.batch(order, self.next_batch)
            self.seconds += time.perf_counter() - began
            self.next_batch += 1  # before the yield: a checkpoint during the step names the batch after it
            yield batch

    def order(self, epoch: int) -> list[int]:
        """Rows in the order of an epoch."""
        if self.seed is None:
            return list(range(len(self.rows)))
        shuffle = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(len(self.rows), generator=shuffle).tolist()

    def batch(self, order: Sequence[int], index: int) -> PackedBatch:
        """This process's part of the index-th batch of an epoch in which rows come in `order`."""
        together = self.rows_per_batch * self.processes  # rows of one batch on all processes
        step = together * self.accumulate
        first = index * together + self.process * self.rows_per_batch
        in_step = index * together - index * together % step
        step_targets = self.count_targets(order[in_step : in_step + step])
        own = order[first : first + self.rows_per_batch]
        if not own:
            return replace(self.collate(order[:1], step_targets), tokens=0, targets=0)
        return self.collate(own, step_targets)

    def members(self, index: int) -> list[int]:
        """Documents of this process's part of the index-th batch of an epoch, by their place in `documents`."""
        first = (index * self.processes + self.process) * self.rows_per_batch
        rows = self.order(self.epoch)[first : first + self.rows_per_batch]
        return [member for row in rows for member in self.rows[row]]

    def collate(self, rows: Sequence[int], step_targets: int) -> PackedBatch:
        """The batch of these rows."""
        members = [[self.documents[member] for member in self.rows[row]] for row in rows]
        longest = max(sum(map(len, documents)) for documents in members)
        width = self.row_tokens or longest
        tokens, labels, positions, lengths = zip(*(self.row(documents, width) for documents in members), strict=True)
        return PackedBatch(
            input_ids=on_host(np.stack(tokens)),
            labels=on_host(np.stack(labels)),
            position_ids=on_host(np.stack(positions)),
            lengths=tuple(length for row in lengths for length in row),
            tokens=sum(len(document) for documents in members for document in documents),
            targets=self.count_targets(rows),
            step_targets=step_targets,
        )

    def row(self, documents: Sequence[Document], width: int) -> tuple[Any, Any, Any, list[int]]:
        """Tokens, labels, positions (each (width,) int64) and document lengths of one row."""
        tokens, labels = np.full(width, self.pad_token, np.int64), np.full(width, IGNORE_INDEX, np.int64)
        positions = np.zeros(width, np.int64)
        lengths = [len(document) for document in documents]
        start = 0
        for document in documents:
            end, learned = start + len(document), start + document.prompt_tokens
            tokens[start:end] = document.tokens
            labels[learned:end] = tokens[learned:end]
            positions[start:end] = np.arange(len(document))
            start = end
        if start < width:
            positions[start:] = np.arange(width - start)
            lengths.append(width - start)
        return tokens, labels, positions, lengths

    def slots(self) -> int:
        """Tokens of all rows of the first epoch, padding included."""
        if self.row_tokens:
            return len(self.rows) * self.row_tokens
        lengths = self.lengths[self.order(0)]
        size = self.rows_per_batch
        batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        return sum(len(batch) * int(batch.max()) for batch in batches)

    def count_targets(self, rows: Sequence[int]) -> int:
        return sum(int(self.targets[member]) for row in rows for member in self.rows[row])

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "next_batch": self.next_batch} | self.meaning(self.processes)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on at a saved position. Raises ResumeMismatch where it was one in other data or other batches."""
        self.check(state, self.processes)
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]

    def check(self, state: dict[str, Any], processes: int) -> None:
        """Raises ResumeMismatch where a saved position means nothing to so many processes on this data."""
        for name, value in self.meaning(processes).items():
            if state.get(name, value) != value:  # a new name is in no old checkpoint
                raise ResumeMismatch(f"{name} was {state[name]} when it was saved, and is {value} here")
        batches = -(-len(self.rows) // (self.rows_per_batch * processes))
        if state["next_batch"] % self.accumulate and state["next_batch"] < batches:
            raise ResumeMismatch("it was saved in the middle of an optimizer step, and holds no gradients")

    def meaning(self, processes: int) -> dict[str, Any]:
        """What must be the same for a position to mean the same."""
        return {
            "data": self.fingerprint,
            "rows": len(self.rows),
            "rows in a batch": self.rows_per_batch * processes,
            "batches in a step": self.accumulate,
            "order's seed": self.seed,
        }


def on_host(rows: np.ndarray) -> Tensor:
    """Rows as a GPU can fetch them itself: to copy them from other memory, the host would wait for the GPU's work."""
    tensor = torch.from_numpy(rows)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


class MedicalReasoningData(L.LightningDataModule):
    """Tokenizes and packs a split of examples, once. `setup` raises ConfigError for rows that cannot be trained on."""

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        tokenizer: Any,
        *,
        rows_per_batch: int = 1,
        accumulate: int = 1,
        positions: int = sys.maxsize,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`positions` are the model's: no document may be longer."""
        super().__init__()
        self.config, self.split, self.tokenizer, self.say = config, split, tokenizer, say
        self.rows_per_batch, self.accumulate, self.positions = rows_per_batch, accumulate, positions
        self.loaders: dict[str, PackedLoader] = {}
        self.dropped = 0
        self.rejects = split.corpus.rejects  # and those that only the tokenizer finds, once set up

    def setup(self, stage: str | None = None) -> None:
        if self.loaders:
            return
        config, corpus = self.config, self.split.corpus
        documents = read_documents(corpus, self.tokenizer, config.format)
        places = corpus.table["place"]
        marked = [places[index].as_py() for index in np.flatnonzero(~documents.sound).tolist()]
        for place in marked:
            self.rejects.add(CONTROL_TOKEN, place)
        # once for all reasons together: each share may be allowed where their sum is not
        settle_rejects(self.rejects, corpus.rows, corpus.source, config.on_bad_row, config.max_bad_share)
        if marked:
            self.say(f"skipped {len(marked):,} rows: {CONTROL_TOKEN} ({named(marked[:SHOWN], len(marked))})")
        fingerprint = self.split.fingerprint
        for name, indices in (("train", self.split.train), ("validation", self.split.validation)):
            found = documents.take(indices[documents.sound[indices]])
            fitting = fit(found, config.row_tokens, self.positions, config.too_long)
            self.dropped += len(indices) - len(fitting)
            self.loaders[name] = PackedLoader(
                fitting,
                config.row_tokens if config.packing is Packing.best_fit else None,
                pad_token=self.tokenizer.pad_token_id,
                rows_per_batch=self.rows_per_batch,
                accumulate=self.accumulate if name == "train" else 1,
                seed=config.seed if name == "train" else None,
                fingerprint=fingerprint,
            )

    def train_dataloader(self) -> PackedLoader:
        return self.share("train")

    def val_dataloader(self) -> PackedLoader:
        return self.share("validation")

    def share(self, name: str) -> PackedLoader:
        """A loader of what falls to this process of the trainer's."""
        loader = self.loaders[name]
        if self.trainer is not None:
            loader.process, loader.processes = self.trainer.global_rank, self.trainer.world_size
        return loader

    def total_steps(self, max_epochs: int, max_steps: int, processes: int = 1) -> int:
        """Optimizer steps of a run that ends with its epochs or after `max_steps` (-1: no limit)."""
        step_rows = self.rows_per_batch * processes * self.accumulate
        by_epochs = max_epochs * -(-len(self.loaders["train"].rows) // step_rows)
        return by_epochs if max_steps == -1 else min(by_epochs, max_steps)

    def corpus_report(self) -> dict[str, Any]:
        """The corpus's report, in which the rows that hold control tokens are rejects too."""
        return self.split.corpus.report | {"rejects": self.rejects.report()}

    def report(self) -> dict[str, int | float]:
        """What training will see, in documents, rows, tokens."""
        train, validation = self.loaders["train"], self.loaders["validation"]
        tokens = int(train.lengths.sum(dtype=np.int64))
        return {
            "train_documents": len(train.documents),
            "validation_documents": len(validation.documents),
            "left_out_documents": sum(self.split.left_out.values()),
            "dropped_documents": self.dropped,
            "truncated_documents": self.truncated(),
            "train_rows": len(train.rows),
            "train_tokens": tokens,
            "train_targets": train.count_targets(range(len(train.rows))),
            "longest_document": int(train.lengths.max()),
            "row_tokens": train.row_tokens or 0,  # 0: a document a row, padded to its batch
            "fill": round(tokens / train.slots(), 4),
        }

    def truncated(self) -> int:
        """Documents that lost their end to the row length."""
        documents = itertools.chain.from_iterable(loader.documents for loader in self.loaders.values())
        return sum(int(document.tokens[-1]) != self.tokenizer.eos_token_id for document in documents)


def prepare(config: TrainConfig, split: Split, tokenizer: Any, say: Callable[[str], None]) -> MedicalReasoningData:
    """The data of a run, set up. Raises ConfigError for rows that cannot be trained on."""
    trainer = config.trainer
    data = MedicalReasoningData(
        config.data,
        split,
        tokenizer,
        rows_per_batch=trainer.rows_per_batch,
        accumulate=trainer.accumulate,
        positions=positions(config.model),
        say=say,
    )
    data.setup()
    return data
