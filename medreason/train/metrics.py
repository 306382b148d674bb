"""Numbers of each optimizer step to the loggers, and a line on how far the run is."""

import math
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from medreason.batch import PackedBatch
from medreason.config import RunFailed
from medreason.core.progress import short_number
from medreason.core.progress_line import ProgressLine, hours
from medreason.models.flops import attention_flops, fp8_peak_flops, peak_flops, shape_of, token_flops

Mark = float | torch.cuda.Event  # a moment: of the host's clock in seconds, or of the GPU's work


@dataclass(frozen=True)
class Step:
    """An optimizer step that the GPU may still be at work on. Numbers are there once it has reached `end`."""

    number: int  # from 0, as loggers count
    epoch: int
    logged: dict[str, Tensor]  # on the host
    counts: Tensor  # tokens, targets, operations of all processes; on the host
    end: Mark
    waited: float  # seconds for data, since the run began
    memory: float  # GiB, the peak so far


class StepMetrics(Callback):
    """Writes to the loggers what each optimizer step logged (`train/...`) and how fast it was, all devices together:

    `train/tokens_per_second` (of documents, padding left out), `train/targets_per_second` (those that count in the
    loss), `train/tokens` (since the run began), `train/memory_gib` (peak so far), `train/data_wait` (share of the
    step's time) and where the GPU's peak is known `train/mfu` (share of it that the model's own operations take). A
    base that is multiplied in 8 bits is told against the 8-bit peak, twice the 16-bit one, though attention and head
    run in 16.

    The number beside what is logged says how many optimizer steps its weights had behind them: 0 for the loss of the
    first step and for a validation before it, 1 for the loss of the second and for a validation after the first.

    Nothing waits for the GPU in mid-training, so that it always has the next step before it: a step is written when the
    one after it has been launched. All are written before a validation and before a checkpoint.

    Raises RunFailed for a loss that is no number any more, before a checkpoint with broken weights is saved.
    """

    def __init__(self, model: Any) -> None:
        self.shape = shape_of(model.config)
        self.per_token = token_flops(self.shape, sum(p.numel() for p in model.parameters() if p.requires_grad))
        packed = getattr(model, "packed", None)
        peak = fp8_peak_flops if packed is not None and packed.fp8 else peak_flops
        self.peak = peak(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.total = 0  # tokens since the run began
        self.step = -1  # optimizer steps behind the one in hand
        self.own = (0, 0, 0)  # tokens, targets, operations of this process in the step in hand
        self.counts = torch.zeros(3, dtype=torch.float64)  # of all processes
        self.before: tuple[Mark, float] | None = None  # end of the step before, seconds waited for data until then
        self.pending: Step | None = None
        self.latest: dict[str, float] = {}  # what was written last
        self.written = 0  # optimizer steps behind it
        self.trainer: L.Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        self.write_pending()  # a resumed run goes on after the rows that are there
        return {"total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total = state_dict["total"]

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.trainer, self.step = trainer, trainer.global_step
        self.written = self.step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PackedBatch, batch_idx: int
    ) -> None:
        if self.before is None:
            self.before = mark(pl_module.device), self.waited()
        tokens, targets, operations = self.own
        operations += self.per_token * batch.tokens + attention_flops(self.shape, batch.lengths)
        self.own = tokens + batch.tokens, targets + batch.targets, operations

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        self.counts = torch.tensor(self.own, dtype=torch.float64)
        self.own = (0, 0, 0)
        if trainer.world_size > 1:
            self.counts = trainer.strategy.reduce(self.counts.to(pl_module.device), reduce_op="sum")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            return  # in the middle of accumulation
        self.step = trainer.global_step
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        step = Step(
            number=self.step - 1,
            epoch=trainer.current_epoch,
            logged={name: value.to("cpu", non_blocking=True) for name, value in logged.items()},
            counts=self.counts.to("cpu", non_blocking=True),
            end=mark(pl_module.device),
            waited=self.waited(),
            memory=peak_memory_gib(),
        )
        self.write_pending()
        self.pending = step
        if done_at_once(pl_module.device):
            self.write_pending()

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.write_pending()
        # the number that Lightning writes a validation under; its own is one less, and counts steps that were skipped
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.before = None  # the time of a validation is not training's
        check_finite("val/loss", trainer.callback_metrics.get("val/loss"), trainer.global_step)

    def on_train_end(self, *_: Any) -> None:
        self.write_pending()

    def on_exception(self, *_: Any) -> None:
        with suppress(Exception):  # what came before is told, not that the GPU says it again
            self.write_pending()

    def waited(self) -> float:
        return float(getattr(self.trainer and self.trainer.train_dataloader, "seconds", 0.0))

    def write_pending(self) -> None:
        """Writes the step that is not written yet, if there is one, once the GPU is done with it."""
        step, self.pending = self.pending, None
        if step is None or self.trainer is None:
            return
        if isinstance(step.end, torch.cuda.Event):
            step.end.synchronize()
        tokens, targets, operations = step.counts.tolist()
        self.total += int(tokens)
        values = {name: value.item() for name, value in step.logged.items()}
        values |= {"train/tokens": float(self.total), "train/memory_gib": step.memory}
        if self.before is not None:
            (begin, waited), world = self.before, self.trainer.world_size
            seconds = seconds_between(begin, step.end)
            values["train/tokens_per_second"] = tokens / seconds
            values["train/targets_per_second"] = targets / seconds
            values["train/data_wait"] = (step.waited - waited) / seconds
            if self.peak:
                values["train/mfu"] = operations / seconds / (self.peak * world)
        self.before, self.latest, self.written = (step.end, step.waited), values, step.number + 1
        for logger in self.trainer.loggers:
            logger.log_metrics(values | {"epoch": step.epoch}, step=step.number)
            logger.save()
        check_finite("train/loss", values.get("train/loss"), step.number + 1)


class StepLine(Callback):
    """Tells how far the run is, in place of Lightning's bars.

    step 22/44  loss 0.123  held-out 0.456  12,345 tok/s  0:12 left

    By the step that StepMetrics wrote last: to ask for the one in hand would wait for the GPU. The time left is what
    the remaining steps take at the speed since the first one, validations and answers included.
    """

    def __init__(self, metrics: StepMetrics, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.metrics, self.total_steps, self.clock = metrics, total_steps, clock
        self.line = ProgressLine(clock)
        self.step: int | None = None  # told last
        self.first: tuple[int, float] | None = None  # a step that was written, and when
        self.began = clock()
        self.held_out: float | None = None

    def on_train_start(self, *_: Any) -> None:
        self.began = self.clock()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if self.metrics.written != self.step and self.metrics.latest:
            self.step = self.metrics.written
            self.first = self.first or (self.step, self.clock())
            self.tell(self.left())

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self.tell([f"validating {batch_idx + 1}/{trainer.num_val_batches[0]}"])

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        held_out = trainer.callback_metrics.get("val/loss")
        self.held_out = None if held_out is None else float(held_out)
        self.tell(self.left(), milestone=True)

    def on_train_end(self, *_: Any) -> None:
        if self.metrics.latest:
            self.tell([f"in {hours(self.clock() - self.began)}"])
        self.line.end(stands=True)

    def on_exception(self, *_: Any) -> None:
        self.line.end(stands=True)

    def left(self) -> list[str]:
        """The time that the remaining steps take; nothing before there is one to go by."""
        done, (first, since) = self.metrics.written, self.first or (self.metrics.written, 0.0)
        if done <= first:
            return []
        return [f"{hours((self.total_steps - done) * (self.clock() - since) / (done - first))} left"]

    def tell(self, last: list[str], *, milestone: bool = False) -> None:
        latest = self.metrics.latest
        parts = [f"step {self.metrics.written:,}/{self.total_steps:,}"]
        parts += [f"loss {latest['train/loss']:.3f}"] if "train/loss" in latest else []
        parts += [f"held-out {self.held_out:.3f}"] if self.held_out is not None else []
        speed = latest.get("train/tokens_per_second")
        parts += [f"{speed:,.0f} tok/s"] if speed is not None else []
        rate = [f"lr {short_number(format(latest['train/lr'], '.2g'))}"] if "train/lr" in latest else []
        self.line.tell([*parts, *last], rate, milestone=milestone)


def done_at_once(device: torch.device) -> bool:
    """Whether a device has done what it was given by the time that the host goes on."""
    return device.type == "cpu"


def mark(device: torch.device) -> Mark:
    """Now; on a GPU the moment at which it will be done with what it has been given so far."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float) and isinstance(end, float)
        return end - start
    return float(start.elapsed_time(end)) / 1e3


def check_finite(metric: str, value: Any, step: int) -> None:
    """Raises RunFailed for an infinity and for nan."""
    if value is not None and not math.isfinite(value):
        raise RunFailed(
            f"{metric} became {float(value)} at step {step}; lower optim.lr, or lengthen optim.warmup_steps"
        )


def peak_memory_gib() -> float:
    """Most memory that this process has held so far: reserved on its GPU, without one resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
