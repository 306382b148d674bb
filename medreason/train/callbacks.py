"""What a run does besides training: metrics of each step, checkpoints, random states in them, an early end."""

import io
import math
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from torch import Tensor

from medreason.batch import PackedBatch
from medreason.config import RunFailed
from medreason.core.disk import whole_file
from medreason.core.progress import first_process, say, short_number, spoken
from medreason.core.progress_line import ProgressLine, hours
from medreason.models.flops import attention_flops, fp8_peak_flops, peak_flops, shape_of, token_flops

Mark = float | torch.cuda.Event  # a moment: of the host's clock in seconds, or of the GPU's work


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
        refuse_no_number("val/loss", trainer.callback_metrics.get("val/loss"), trainer.global_step)

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
        refuse_no_number("train/loss", values.get("train/loss"), step.number + 1)


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


def refuse_no_number(metric: str, value: Any, step: int) -> None:
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


class Validations(Callback):
    """Has Lightning validate after every so many optimizer steps, and after the last one.

    Lightning itself counts batches. Where an epoch ends in the middle of accumulation, its last step has fewer of them;
    from then on that count would fall into the middle of steps, and a checkpoint saved there cannot be resumed, for it
    has no gradients in it.
    """

    def __init__(self, every_steps: int, total_steps: int) -> None:
        self.every_steps, self.total_steps, self.step = every_steps, total_steps, -1

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.step = trainer.global_step
        # a checkpoint saved after a validation: Lightning has to be told that there was one, whatever is set now
        self.settle(trainer, due=trainer.fit_loop.epoch_loop.restarted_on_last)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        ended, self.step = trainer.global_step != self.step, trainer.global_step
        self.settle(trainer, due=ended and (self.step % self.every_steps == 0 or at_the_end(trainer, self.total_steps)))

    def settle(self, trainer: L.Trainer, due: bool) -> None:
        """Whether Lightning validates after this batch: it does where `val_check_batch` divides the batches so far."""
        batches = trainer.fit_loop.total_batch_idx + 1
        trainer.val_check_batch = batches if due else batches + 1


def at_the_end(trainer: L.Trainer, total_steps: int) -> bool:
    """Whether no batch follows: all steps are made, or the last epoch is over and the scaler skipped some of them."""
    over = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
    return trainer.global_step == total_steps or over


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
        due = self.step % self.every_steps == 0 or at_the_end(trainer, self.total_steps)
        if self.stop or due or trainer.should_stop:  # Patience says so at a validation, before this
            trainer.save_checkpoint(self.path)

    def teardown(self, *_: Any, **__: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


class BestCheckpoint(ModelCheckpoint):
    """Saves `best.ckpt` by the monitored metric. A run that is resumed in another directory takes it along."""

    @property
    def state_key(self) -> str:
        return super().state_key.replace("BestCheckpoint", "ModelCheckpoint", 1)  # as checkpoints have it from before

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning would forget what was best before, and call the best one since then the best.

        It is forgotten where it is gone, or one that came after this checkpoint has taken its place.
        """
        own = Path(str(self.dirpath)) / "best.ckpt"
        score = state_dict["best_model_score"]
        # its own folder too: a run that was moved
        known = [path for path in (Path(state_dict["best_model_path"]), own) if self.score_in(path) == score]
        if score is None or not known:
            return
        if known[0] != own and first_process():
            own.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(own) as draft:
                shutil.copyfile(known[0], draft)
        paths = {"best_model_path": str(own), "kth_best_model_path": str(own), "dirpath": self.dirpath}
        super().load_state_dict(state_dict | paths | {"best_k_models": {str(own): score}})

    def best(self) -> dict[str, Any] | None:
        """The best checkpoint, with its metric as `monitored`; None where none is known that says its held-out loss."""
        path = Path(self.best_model_path)
        if self.best_model_score is None or not path.is_file():
            return None
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found["monitored"] = float(self.best_model_score)
        if self.monitor == "val/loss":  # which earlier releases did not write beside it
            found.setdefault("val_loss", found["monitored"])
        return found if "val_loss" in found else None

    def score_in(self, path: Path) -> Any:
        """The score of a best checkpoint, which a later one may have taken the place of; None where it has none."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return saved["callbacks"][self.state_key]["best_model_score"]
        except Exception:  # a cut or foreign file fails in many ways
            return None


class Patience(Callback):
    """Ends training once `validations` in a row have brought no lower `monitor`; None: never.

    A checkpoint knows of those behind it, so that a resumed run ends where an unbroken one would; resumed with more
    patience, it goes on. The metric is the same on all processes, and so is the step at which they end.
    """

    def __init__(self, monitor: str, validations: int | None, total_steps: int) -> None:
        self.monitor, self.validations, self.total_steps = monitor, validations, total_steps
        self.lowest, self.since = math.inf, 0
        self.reason: str | None = None  # why training ended early, if it did

    @property
    def state_key(self) -> str:
        return f"Patience({self.monitor})"  # of another metric, nothing is known

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "since": self.since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lowest, self.since = state_dict["lowest"], state_dict["since"]

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step < self.total_steps:
            self.settle(trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        value: Any = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or value is None:
            return  # measured before or after training
        lower = float(value) < self.lowest
        self.lowest, self.since = min(self.lowest, float(value)), 0 if lower else self.since + 1
        if not at_the_end(trainer, self.total_steps):
            self.settle(trainer)

    def settle(self, trainer: L.Trainer) -> None:
        if self.validations is None or self.since < self.validations:
            return
        often = "the last validation" if self.since == 1 else f"the last {self.since} validations"
        self.reason = f"trainer.patience={self.validations}: {often} brought no lower {spoken(self.monitor)}"
        say(f"training ends early, at step {trainer.global_step} of {self.total_steps}; {self.reason}")
        trainer.should_stop = True


class Stopped(Exception):
    """Training was asked to stop, and has saved its last checkpoint."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning writes it to the system's temporary folder and moves it, which between two disks is a copy: a kill or a
    full disk would leave half of it in the place of the one before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch says oddly that a disk is full
        torch.save(checkpoint, content)
        with whole_file(Path(path)) as draft:
            draft.write_bytes(content.getbuffer())


def checkpoints(
    folder: Path, *, monitor: str, validate_every_steps: int, every_steps: int, total_steps: int
) -> list[Callback]:
    """When to validate, and two files: `best.ckpt` by the monitored metric, `last.ckpt`, which knows of the best one.

    A kill at any moment leaves the one before (WholeCheckpoints).
    """
    best = BestCheckpoint(
        folder,
        "best",
        monitor=monitor,
        save_top_k=1,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    last = LastCheckpoint(folder / "last.ckpt", every_steps, total_steps)
    return [Validations(validate_every_steps, total_steps), RandomStates(), best, last]
