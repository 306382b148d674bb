"""Ends a run whose validations bring nothing any more."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from medreason.core.progress import say, spoken
from medreason.train.checkpoints import at_the_end


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
