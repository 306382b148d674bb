"""The LightningModule: a loss that is a mean over an optimizer step's target tokens, checkpoints of what is trained."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from medreason.batch import PackedBatch
from medreason.config import OptimConfig, RunFailed
from medreason.core.progress import say
from medreason.models.load import document_losses, summed_loss
from medreason.train.optimizer import build_optimizer, build_schedule, settle_rates


class AdapterMismatch(ValueError):
    """A checkpoint holds another adapter than the one being trained."""


class Finetuner(L.LightningModule):
    """Fine-tunes the trainable weights of a PEFT model on packed batches.

    Logs per optimizer step `train/loss` (mean over all its target tokens, whatever the accumulation and packing),
    `train/grad_norm` and `train/lr`; per validation `val/loss` (mean over all held-out target tokens).

    In float16 the loss is scaled, so that small gradients do not vanish. A step whose gradients then overflow changes
    nothing: the scaler halves its scale, and neither step count nor learning rate moves. `train/loss_scale` and
    `train/skipped_steps` tell of it.
    """

    strict_loading = False  # a checkpoint holds the adapter, not the frozen base

    def __init__(self, model: Any, optim: OptimConfig, total_steps: int) -> None:
        super().__init__()
        # not trainer.estimated_stepping_batches: asking it sets up the loaders before a checkpoint's position is
        # restored into them, and a resumed run would begin its epoch anew
        self.model, self.optim, self.total_steps = model, optim, total_steps
        # every process loads the frozen base itself; sending it would take long, and 8-bit floats cannot be sent
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        frozen = {name for name, _ in (*self.named_parameters(), *self.named_buffers())} - trained
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, frozen)  # type: ignore[no-untyped-call]
        self.step_loss: Tensor | None = None
        self.validation_loss, self.validation_targets = 0.0, 0
        self.by_document = False  # whether validations tell the loss of each document
        self.skipped, self.skipped_steps = False, 0  # whether the last step was; how many since the run began
        self.validated_step: int | None = None  # optimizer steps behind the last validation of this process
        self.validated_loss = math.nan  # held-out loss found there

    def cpu(self) -> "Finetuner":
        """Stays where it is: Lightning would carry the base to the host after each fit and each validation."""
        return self

    @property
    def scaler(self) -> Any:
        """Lightning's torch.amp.GradScaler in 16-mixed, else None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def on_fit_start(self) -> None:
        if self.scaler is not None:
            # Unsloth's cross entropy makes gradients in its forward pass: unscaled ones would vanish there
            self.model.get_base_model().accelerator_scaler = self.scaler

    def on_train_start(self) -> None:
        schedule: Any = self.lr_schedulers()
        settle_rates(schedule)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        share = summed_loss(self.model, batch) / batch.step_targets
        self.step_loss = share.detach() + (0 if self.step_loss is None else self.step_loss)
        # Lightning divides by the number of accumulated batches, and the processes' gradients are averaged; the count
        # of the step's targets, which are those of all batches and processes, has already done both
        return share * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.step_loss is not None
        # not on Lightning's progress bar: to show it there, the GPU would be waited for (callbacks.StepBar does not)
        loss = self.trainer.strategy.reduce(self.step_loss, reduce_op="sum")
        self.log("train/loss", loss)
        # a tensor on the host: Lightning would send a number to the GPU, and wait there for the whole backward pass
        self.log("train/lr", torch.tensor(optimizer.param_groups[0]["lr"]))
        self.step_loss = None
        if self.scaler is not None:
            self.log("train/loss_scale", torch.tensor(self.scaler.get_scale()))
            self.log("train/skipped_steps", torch.tensor(float(self.skipped_steps)))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        before = self.scaler and self.scaler.get_scale()
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        after = self.scaler and self.scaler.get_scale()
        self.skipped = self.scaler is not None and after < before
        if self.skipped:
            self.skipped_steps += 1
            uncount_step(self.trainer)
            tell_skipped(self.trainer, before, after)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not self.skipped:
            super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        limit = self.optim.max_grad_norm or float("inf")
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.log("train/grad_norm", clip_grad_norm_(trained, limit))

    def on_validation_epoch_start(self) -> None:
        self.validation_loss, self.validation_targets = 0.0, 0

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> Tensor | None:
        """The losses of the batch's documents, (documents,), where they are asked for."""
        losses = document_losses(self.model, batch) if self.by_document else None
        self.validation_loss += (summed_loss(self.model, batch) if losses is None else losses.sum()).item()
        self.validation_targets += batch.targets
        return losses

    def on_validation_epoch_end(self) -> None:
        sums = torch.tensor([self.validation_loss, self.validation_targets], device=self.device, dtype=torch.float64)
        loss, targets = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.log("val/loss", (loss / targets).float(), prog_bar=True)
        self.validated_step, self.validated_loss = self.trainer.global_step, float((loss / targets).float())

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.named_parameters(), self.optim, scaled=self.scaler is not None)
        schedule = build_schedule(optimizer, self.optim, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        checkpoint["skipped_steps"] = self.skipped_steps
        if self.validated_step is not None and self.validated_step == self.trainer.global_step:
            checkpoint["val_loss"] = self.validated_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        # strict_loading is off for the sake of the base; the adapter itself must match to the last weight
        trained = {name: p.shape for name, p in self.named_parameters() if p.requires_grad}
        stored = {name: value.shape for name, value in checkpoint["state_dict"].items()}
        if stored != trained:
            wrong = next(name for name in {**trained, **stored} if trained.get(name) != stored.get(name))
            raise AdapterMismatch(
                f"the checkpoint's adapter is not this run's: {wrong} is {shape(stored.get(wrong))} there and "
                f"{shape(trained.get(wrong))} here; resume with the settings it was trained with"
            )


def take_weights(finetuner: Finetuner, checkpoint: dict[str, Any]) -> None:
    """Gives the adapter the weights that a checkpoint of the same run holds."""
    own = dict(finetuner.named_parameters())
    with torch.no_grad():
        for name, value in checkpoint["state_dict"].items():
            own[name].copy_(value)


def uncount_step(trainer: L.Trainer) -> None:
    """Has Lightning not count the optimizer step in hand, which it counts whether or not the scaler skips it."""
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    for counts in (progress.total, progress.current):
        counts.ready -= 1
        counts.completed -= 1  # Lightning adds one after the step


def tell_skipped(trainer: L.Trainer, before: float, after: float) -> None:
    """Says that a step was skipped. Raises RunFailed where no scale would help."""
    step = trainer.global_step + 2  # one is uncounted, and people count from 1
    loss = trainer.callback_metrics.get("train/loss")
    if loss is not None and not math.isfinite(loss):
        raise RunFailed(f"train/loss became {float(loss)} at step {step}; lower optim.lr, or lengthen its warm-up")
    if after < 1:
        raise RunFailed(f"gradients at step {step} overflow float16 even unscaled; lower optim.lr")
    say(f"step {step} skipped: its gradients overflow float16 at a loss scale of {before:,.0f}; now {after:,.0f}")


def shape(size: torch.Size | None) -> str:
    return "missing" if size is None else "x".join(map(str, size))
