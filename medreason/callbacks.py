"""What a run does besides training: random states in checkpoints, throughput, checkpoints themselves."""

import math
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from torch import Tensor

from medreason.config import RunFailed
from medreason.datamodule import PackedBatch
from medreason.flops import attention_flops, fp8_peak_flops, peak_flops, shape_of, token_flops
from medreason.progress import say


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
    """Logs, of all devices together, padding left out, with each optimizer step:

    `train/tokens` (since the run began) and `train/memory_gib` (peak so far); and of the step before it, from its start
    to the start of the next: `train/tokens_per_second` (document tokens), `train/targets_per_second` (those that count
    in the loss), `train/data_wait` (share of its time) and where the GPU's peak is known `train/mfu` (share of it that
    the model's own operations take). A base that is multiplied in 8 bits is told against the 8-bit peak, twice the
    16-bit one, though attention and head run in 16.

    Nothing here waits for the GPU: a step's own time would be known only after it, when the GPU had nothing to do.
    """

    def __init__(self, model: Any) -> None:
        self.shape = shape_of(model.config)
        self.per_token = token_flops(self.shape, sum(p.numel() for p in model.parameters() if p.requires_grad))
        packed = getattr(model, "packed", None)
        peak = fp8_peak_flops if packed is not None and packed.fp8 else peak_flops
        self.peak = peak(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.total: Tensor = torch.zeros((), dtype=torch.float64)  # tokens since the run began
        self.step = -1  # optimizer steps behind the one in hand
        self.own = (0, 0, 0)  # tokens, targets, operations of this process in the step in hand
        self.began: tuple[float, float] | None = None  # when it did, and the seconds waited for data until then
        self.counts: Tensor | None = None  # the sums of `own` over all processes, once they are known
        self.rates: dict[str, float] = {}  # of the step before

    def state_dict(self) -> dict[str, Any]:
        return {"total": int(self.total)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total = torch.tensor(state_dict["total"], dtype=torch.float64)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PackedBatch, batch_idx: int
    ) -> None:
        if trainer.global_step != self.step:  # else in the middle of accumulation
            self.end_step(trainer)
            self.step, self.own, self.began = trainer.global_step, (0, 0, 0), self.now(trainer)
        tokens, targets, operations = self.own
        operations += self.per_token * batch.tokens + attention_flops(self.shape, batch.lengths)
        self.own = tokens + batch.tokens, targets + batch.targets, operations

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        self.counts = torch.tensor(self.own, dtype=torch.float64)
        if trainer.world_size > 1:
            sent = self.counts.to(pl_module.device, non_blocking=True)
            self.counts = trainer.strategy.reduce(sent, reduce_op="sum")
        self.total = self.total.to(self.counts.device) + self.counts[0]
        pl_module.log("train/tokens", self.total.float())
        pl_module.log("train/memory_gib", torch.tensor(peak_memory_gib()))
        for name, value in self.rates.items():
            pl_module.log(name, torch.tensor(value), prog_bar=name == "train/tokens_per_second")

    def on_validation_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.end_step(trainer)  # the time of a validation is not training's

    def now(self, trainer: L.Trainer) -> tuple[float, float]:
        return time.perf_counter(), float(getattr(trainer.train_dataloader, "seconds", 0.0))

    def end_step(self, trainer: L.Trainer) -> None:
        """The rates of the step in hand, if there is one. Its metrics have been logged, so the GPU is done with it."""
        if self.began is None or self.counts is None:
            return
        (began, waited), (now, waited_now) = self.began, self.now(trainer)
        seconds, (tokens, targets, operations) = now - began, self.counts.tolist()
        self.rates = {
            "train/tokens_per_second": tokens / seconds,
            "train/targets_per_second": targets / seconds,
            "train/data_wait": (waited_now - waited) / seconds,
        }
        if self.peak:
            self.rates["train/mfu"] = operations / seconds / (self.peak * trainer.world_size)
        self.began = self.counts = None


def peak_memory_gib() -> float:
    """Most memory that this process has held so far: reserved on its GPU, without one resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


class FiniteLoss(Callback):
    """Ends training whose loss is no number any more, before a checkpoint holds it. Raises RunFailed."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.check(trainer, "train/loss")

    def on_validation_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.check(trainer, "val/loss")

    def check(self, trainer: L.Trainer, metric: str) -> None:
        value: Any = trainer.callback_metrics.get(metric)
        if value is not None and not math.isfinite(value):
            raise RunFailed(
                f"{metric} became {float(value)} at step {trainer.global_step}; lower optim.lr, or lengthen "
                "optim.warmup_steps"
            )


class LastCheckpoint(Checkpoint):
    """Saves `path` every so many optimizer steps, at the last one, and when the process is asked to stop.

    After the validation of a step where there is one: a checkpoint from before it would, resumed, never validate. And
    not after `fit`: Lightning then counts the epoch as done, and a resumed run would not go on in it.

    Asked to stop: by SIGINT (Ctrl-C), SIGTERM, or the signal of a scheduler about to take the machine away (SIGUSR2).
    The step in hand is ended and saved, then Stopped is raised; at the start of the next batch, for Lightning logs a
    step after its end. A second Ctrl-C does not wait for that.
    """

    def __init__(self, path: Path, every_steps: int, total_steps: int) -> None:
        self.path, self.every_steps, self.total_steps = path, every_steps, total_steps
        self.step, self.waiting, self.asked, self.stop = -1, False, False, False
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.step = trainer.global_step
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            self.handlers[number] = signal.signal(number, self.ask)

    def ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        say(f"{signal.Signals(number).name}: stopping after this step")

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        if self.stop:
            raise Stopped(self.step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            return  # in the middle of accumulation
        self.step = trainer.global_step
        self.waiting = (trainer.fit_loop.total_batch_idx + 1) % (trainer.val_check_batch or 1) == 0
        if not self.waiting:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.waiting:
            self.waiting = False
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        # all processes stop at the same step, whichever of them was asked
        self.stop = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        if self.stop or self.step % self.every_steps == 0 or self.step == self.total_steps:
            trainer.save_checkpoint(self.path)

    def teardown(self, *_: Any, **__: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


class Stopped(Exception):
    """Training was asked to stop, and has saved its last checkpoint."""


def checkpoints(folder: Path, *, monitor: str, every_steps: int, total_steps: int) -> list[Callback]:
    """Two files: `best.ckpt` by the monitored metric, `last.ckpt` to resume from, which knows of the best one.

    Lightning writes a checkpoint beside its name and renames it, so a kill at any moment leaves the one before.
    """
    best = ModelCheckpoint(
        folder,
        "best",
        monitor=monitor,
        save_top_k=1,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return [RandomStates(), best, LastCheckpoint(folder / "last.ckpt", every_steps, total_steps)]
