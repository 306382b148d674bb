"""A sweep's trial as seen from within its run: what the study is told while training, and when it says stop.

The sweep leaves trial.json in the run directory; a run without one is no trial.
"""

import math
from pathlib import Path
from typing import Any

import lightning as L
import optuna
import torch
from lightning.pytorch.callbacks import Callback

from medreason.config import ConfigError, Pruner
from medreason.core.recorded import mapping
from medreason.core.run_directory import read_json, resolve_checkpoint
from medreason.sweep.paired import keep_losses
from medreason.sweep.study import make_pruner, open_study


class Pruned(Exception):
    """The study has seen enough of this trial."""


def reports(run: Path, monitor: str) -> list[Callback]:
    """The callback that reports a trial to its study; none where there is nobody to report to."""
    study = mapping(read_json(run / "trial.json").get("study"))
    if "pruner" not in study:  # no trial, or one that is not to be stopped early
        return []
    try:
        kind = Pruner(study["pruner"])
        pruner = make_pruner(kind, study["min_steps"], study["reduction_factor"], run.parent)
        opened = open_study(str(study["url"]), str(study["name"]), pruner)
        kept = [DocumentLosses(run)] if kind is Pruner.paired else []  # before they are asked for
        return [*kept, TrialReport(optuna.trial.Trial(opened, study["trial_id"]), monitor)]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{run / 'trial.json'}: damaged; remove {run}, and the sweep goes on without it") from error


def own_checkpoint(run: Path) -> Path | None:
    """Where an interrupted trial goes on; None in a new one, and in a run that is no trial."""
    if not (run / "trial.json").is_file():
        return None
    try:
        return resolve_checkpoint(str(run / "checkpoints" / "last.ckpt"), run)
    except ConfigError:  # killed before its first checkpoint, or the disk lost it: from the start
        return None


class DocumentLosses(Callback):
    """Keeps what each held-out document loses at each validation, for the paired pruner."""

    def __init__(self, run: Path) -> None:
        self.run, self.losses = run, torch.zeros(0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.by_document = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.losses = torch.zeros(len(loader_of(trainer).documents), dtype=torch.float64)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if outputs is not None:
            self.losses[loader_of(trainer).members(batch_idx)] = outputs.cpu()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        # each process has scored its own share, and holds zeros for the others
        losses = trainer.strategy.reduce(self.losses.to(pl_module.device), reduce_op="sum")
        if trainer.is_global_zero:
            keep_losses(self.run, trainer.global_step, losses.cpu().numpy(), loader_of(trainer).targets)


def loader_of(trainer: L.Trainer) -> Any:
    """The PackedLoader of the held-out documents."""
    return trainer.val_dataloaders


class TrialReport(Callback):
    """Reports the monitored metric after each validation, by optimizer steps; raises Pruned where the study says so."""

    def __init__(self, trial: optuna.Trial, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return  # measured before or after training
        value: Any = trainer.callback_metrics.get(self.monitor)
        stop = False
        if trainer.is_global_zero and value is not None and math.isfinite(value):
            self.trial.report(float(value), trainer.global_step)
            # a trial that has made all its steps, or is at the end of its patience, has its result: nothing is saved
            # by throwing it away
            over = trainer.should_stop or trainer.global_step >= pl_module.total_steps
            stop = not over and self.trial.should_prune()
        if trainer.strategy.broadcast(stop):
            raise Pruned
