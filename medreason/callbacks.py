"""What a run does besides training: random states in checkpoints, throughput, checkpoints themselves."""

import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from medreason.datamodule import PackedBatch


class RandomStates(Callback):
    """Saves the generators of Python, NumPy, torch and CUDA; puts them back before the first resumed step.

    Not earlier: between the checkpoint's loading and that step, set-up draws random numbers of its own.
    """

    def __init__(self) -> None:
        self.pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        version, inner, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        return {  # plain lists and tensors: checkpoints are read with weights_only=True
            "python": [version, list(inner), gauss],
            "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pending = state_dict

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        if self.pending is None:
            return
        state, self.pending = self.pending, None
        version, inner, gauss = state["python"]
        random.setstate((version, tuple(inner), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"].cpu())
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


class Throughput(Callback):
    """Logs `train/tokens_per_second` of each optimizer step but the first: document tokens, padding left out."""

    def __init__(self) -> None:
        self.tokens, self.since, self.step = 0, 0.0, -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        self.tokens += batch.tokens
        if trainer.global_step == self.step:
            return  # in the middle of accumulation
        now = time.perf_counter()
        if self.since:
            pl_module.log("train/tokens_per_second", self.tokens / (now - self.since), prog_bar=True)
        self.tokens, self.since, self.step = 0, now, trainer.global_step

    def on_validation_end(self, *_: Any, **__: Any) -> None:
        self.since = 0.0  # the time of a validation is not training's
        self.tokens = 0


class LastStep(Callback):
    """Saves the last step of a run too, so that a finished run can be trained further.

    After `fit` it would be too late: Lightning then counts the epoch as done, and a resumed run would not go on in it.
    """

    def __init__(self, path: Path, total_steps: int) -> None:
        self.path, self.total_steps = path, total_steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.total_steps:
            trainer.save_checkpoint(self.path)


def checkpoints(folder: Path, *, monitor: str, every_steps: int, total_steps: int) -> list[Callback]:
    """Two files: `last.ckpt` to resume from, `best.ckpt` by the monitored metric.

    Lightning writes a checkpoint beside its name and renames it, so a kill at any moment leaves the one before.
    """
    last = ModelCheckpoint(folder, "last", every_n_train_steps=every_steps, save_top_k=1, enable_version_counter=False)
    best = ModelCheckpoint(
        folder,
        "best",
        monitor=monitor,
        save_top_k=1,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return [last, best, LastStep(folder / "last.ckpt", total_steps), RandomStates()]
