"""When to validate and what is saved then: the best step, the last one, random states; whole files, killed or not."""

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

from medreason.core.disk import whole_file
from medreason.core.progress import first_process, say


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


class Stopped(Exception):
    """Training was asked to stop, and has saved its last checkpoint."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning writes it to the system's temporary folder and moves it, which between two disks is a copy: a kill or a
    full disk would leave half of it in the place of the one before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as draft, draft.open("wb") as file:
            torch.save(checkpoint, file)  # which says oddly that a disk is full: core/disk.py knows how


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
