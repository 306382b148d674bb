"""What a trial keeps of its validations while it trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest

from medreason.config import Algorithm, Decay, Format, OptimConfig
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import tokenize
from medreason.models.prompts import Example
from medreason.sweep.paired import read_losses
from medreason.sweep.pruning import DocumentLosses
from medreason.train.finetuner import Finetuner

OPTIM = OptimConfig(Algorithm.adamw, 1e-2, 1.0, [0.9, 0.999], 1e-8, 0.0, 0, Decay.constant, 0.0)


def test_losses_by_document_are_those_of_the_validation_at_each_of_its_steps(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], tmp_path: Path
) -> None:
    documents = tokenize(cases[:20], tokenizer, Format.think)
    train = PackedLoader(documents[:8], 1024, pad_token=3)
    held_out = PackedLoader(documents[8:], 1024, pad_token=3, rows_per_batch=2)
    assert held_out.rows != sorted(held_out.rows), "packed in order, a mistaken place would not be seen"
    seen: list[float] = []

    class Seen(L.pytorch.callbacks.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            seen.append(float(trainer.callback_metrics["val/loss"]))

    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, val_check_interval=1, num_sanity_val_steps=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[DocumentLosses(tmp_path), Seen()],
    )  # fmt: skip
    trainer.fit(Finetuner(make_model(), OPTIM, 2), train, held_out)
    kept = read_losses(tmp_path)
    assert kept is not None and kept.steps.tolist() == [1, 2]
    assert kept.targets.tolist() == [document.targets for document in held_out.documents]
    assert (kept.losses.sum(1) / kept.targets.sum()).tolist() == pytest.approx(seen, rel=1e-5)
    # by place: a byte-level model that knows nothing loses about as much at each token
    assert np.corrcoef(kept.losses[0], kept.targets)[0, 1] > 0.99
