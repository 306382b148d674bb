"""What is counted in optimizer steps, over a model so small that a whole run takes no time."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger

from medreason.config import Decay
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import Document
from medreason.train.checkpoints import BestCheckpoint, checkpoints
from medreason.train.early_stopping import Patience
from medreason.train.finetuner import Finetuner
from medreason.train.fit import Kept, describe_kept, hand_out
from medreason.train.metrics import StepMetrics
from toy import OPTIM, TOKENS, Toy


class Numbers(Logger):
    """A logger that keeps each number by its name and step."""

    name, version = "numbers", "0"

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, int], float] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        names = ("train/loss", "train/grad_norm", "train/lr", "val/loss")
        self.found |= {(name, int(step or 0)): metrics[name] for name in names if name in metrics}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def steps(self, name: str) -> list[int]:
        """Optimizer steps behind each number, for a training loss its own step included."""
        return [step + name.startswith("train/") for known, step in self.found if known == name]


class Run:
    """A run whose every checkpoint is kept under the step it was saved at."""

    def __init__(
        self, folder: Path, batches: int, accumulate: int, *, epochs: int = 2, max_steps: int = -1,
        validate: int = 2, save: int = 1, decay: Decay = Decay.linear, patience: int | None = None,
        resume: Path | None = None,
    ) -> None:  # fmt: skip
        def loader(rows: int, seed: int | None, accumulate: int) -> PackedLoader:
            random = np.random.default_rng(rows)
            documents = [Document(random.integers(1, TOKENS, 9, np.int32), 2) for _ in range(rows)]
            return PackedLoader(documents, 9, pad_token=0, seed=seed, accumulate=accumulate)

        self.folder = folder
        total = epochs * -(-batches // accumulate)
        total = total if max_steps == -1 else min(total, max_steps)
        self.model, self.logger, self.kept = Toy(), Numbers(), folder / "kept"
        self.kept.mkdir(parents=True)
        L.seed_everything(1, verbose=False)
        given = checkpoints(
            folder, monitor="val/loss", validate_every_steps=validate, every_steps=save, total_steps=total
        )
        self.patience = Patience("val/loss", patience, total)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=epochs, max_steps=max_steps, accumulate_grad_batches=accumulate,
            val_check_interval=1, check_val_every_n_epoch=None, num_sanity_val_steps=0, log_every_n_steps=0,
            logger=self.logger, callbacks=[StepMetrics(self.model), self.patience, *given], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        write = trainer.save_checkpoint

        def save_checkpoint(path: Any, *more: Any, **options: Any) -> None:
            write(path, *more, **options)
            shutil.copy(path, self.kept / f"{trainer.global_step:02}_{Path(path).name}")

        trainer.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
        self.finetuner = Finetuner(self.model, replace(OPTIM, decay=decay), total)
        self.keeper = next(one for one in given if isinstance(one, BestCheckpoint))
        loaders = loader(batches, 3, accumulate), loader(4, None, 1)
        trainer.fit(self.finetuner, *loaders, ckpt_path=resume, weights_only=True)
        self.total, self.steps = total, trainer.global_step

    def from_step(self, step: int) -> dict[tuple[str, int], float]:
        """What was logged once `step` steps were behind it, and its validation told."""
        return {key: value for key, value in self.logger.found.items() if key[1] >= step + (key[0] == "val/loss")}

    def weights(self) -> list[torch.Tensor]:
        return list(self.model.state_dict().values())


CASES = [  # batches of an epoch, accumulation, more
    (9, 2, {}),  # an epoch ends in the middle of accumulation
    (9, 2, {"validate": 5}),  # validations at an epoch's short last step
    (9, 2, {"validate": 1, "epochs": 3}),
    (9, 2, {"max_steps": 7}),
    (9, 4, {"validate": 3, "epochs": 4, "save": 2}),
    (3, 4, {"validate": 2, "epochs": 5}),  # an epoch is less than a step
    (8, 2, {"validate": 4}),
    (5, 1, {"validate": 3}),
    (1, 1, {"validate": 2, "epochs": 6, "max_steps": 5}),
    (7, 3, {"validate": 100}),  # more than the run has
]


@pytest.mark.parametrize(("batches", "accumulate", "more"), CASES)
def test_validations_and_checkpoints_fall_on_optimizer_steps_and_every_checkpoint_resumes_exactly(
    batches: int, accumulate: int, more: dict[str, int], tmp_path: Path
) -> None:
    whole = Run(tmp_path / "whole", batches, accumulate, **more)
    assert whole.steps == whole.total and whole.logger.steps("train/loss") == list(range(1, whole.total + 1))
    every = more.get("validate", 2)
    due = [step for step in range(1, whole.total + 1) if step % every == 0 or step == whole.total]
    assert whole.logger.steps("val/loss") == due
    kept = sorted(whole.kept.iterdir())
    assert {int(path.name[:2]) for path in kept if path.name.endswith("best.ckpt")} <= set(due)
    assert kept[0].name[3:] in ("last.ckpt", "best.ckpt") and kept[-1].name == f"{whole.total:02}_last.ckpt"
    for checkpoint in kept:
        step = int(checkpoint.name[:2])
        resumed = Run(tmp_path / checkpoint.stem, batches, accumulate, resume=checkpoint, **more)
        assert resumed.from_step(step) == whole.from_step(step), checkpoint.name
        assert len(resumed.logger.steps("train/loss")) == whole.total - step, checkpoint.name
        assert all(map(torch.equal, resumed.weights(), whole.weights())), checkpoint.name


def test_a_best_checkpoint_is_there_though_the_run_is_shorter_than_the_steps_between_validations(
    tmp_path: Path,
) -> None:
    Run(tmp_path / "run", 7, 3, validate=100)
    assert (tmp_path / "run" / "best.ckpt").is_file()


@pytest.mark.parametrize(("validate", "then"), [(2, 3), (5, 5), (5, 100), (3, 1)])
def test_a_checkpoint_resumes_exactly_with_more_epochs_and_other_steps_between_validations(
    validate: int, then: int, tmp_path: Path
) -> None:
    constant = {"decay": Decay.constant}  # any other would depend on the length of the run
    long = Run(tmp_path / "long", 9, 2, epochs=4, validate=then, **constant)
    short = Run(tmp_path / "short", 9, 2, epochs=2, validate=validate, **constant)
    for checkpoint in sorted(short.kept.iterdir()):
        resumed = Run(tmp_path / checkpoint.stem, 9, 2, epochs=4, validate=then, resume=checkpoint, **constant)
        step = int(checkpoint.name[:2])
        assert resumed.from_step(step) == long.from_step(step), checkpoint.name
        assert all(map(torch.equal, resumed.weights(), long.weights())), checkpoint.name


def test_a_run_resumed_elsewhere_takes_the_best_checkpoint_along(tmp_path: Path) -> None:
    grows = {"decay": Decay.constant, "validate": 1, "epochs": 3}  # its held-out loss, after a few steps
    whole = Run(tmp_path / "whole", 9, 2, **grows)
    losses = [value for (name, _), value in whole.logger.found.items() if name == "val/loss"]
    best = 1 + losses.index(min(losses))
    assert 1 < best < 10, "a best step at an end would prove nothing"
    first = Run(tmp_path / "first", 9, 2, max_steps=10, **grows)
    Run(tmp_path / "second", 9, 2, resume=first.kept / "10_last.ckpt", **grows)
    Run(tmp_path / "third", 9, 2, resume=tmp_path / "second" / "best.ckpt", **grows)
    for folder in ("whole", "first", "second", "third"):
        assert torch.load(tmp_path / folder / "best.ckpt", weights_only=True)["global_step"] == best, folder


def test_a_best_checkpoint_that_is_gone_is_no_reason_not_to_go_on(tmp_path: Path) -> None:
    first = Run(tmp_path / "first", 9, 2, max_steps=4)
    (tmp_path / "first" / "best.ckpt").unlink()
    Run(tmp_path / "second", 9, 2, resume=first.kept / "04_last.ckpt")
    assert torch.load(tmp_path / "second" / "best.ckpt", weights_only=True)["global_step"] > 4


GROWS = {"decay": Decay.constant, "validate": 1, "epochs": 4}  # its held-out loss, after a few steps


def held_out(run: Run) -> list[float]:
    """Losses of the validations, one a step."""
    return [value for (name, _), value in run.logger.found.items() if name == "val/loss"]


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("overfitted") / "run", 9, 2, **GROWS)
    best = 1 + held_out(run).index(min(held_out(run)))
    assert 1 < best < run.total - 4, "a best step at an end would prove nothing"
    return run


def test_patience_ends_training_so_many_validations_after_the_best_one(overfitted: Run, tmp_path: Path) -> None:
    losses = held_out(overfitted)
    best = 1 + losses.index(min(losses))
    run = Run(tmp_path / "run", 9, 2, patience=3, **GROWS)
    assert run.steps == best + 3
    assert held_out(run) == losses[: run.steps]
    assert run.patience.reason == "trainer.patience=3: the last 3 validations brought no lower held-out loss"
    last = torch.load(run.folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == run.steps and overfitted.patience.reason is None
    for checkpoint in sorted(run.kept.iterdir()):
        resumed = Run(tmp_path / checkpoint.stem, 9, 2, patience=3, resume=checkpoint, **GROWS)
        assert resumed.steps == run.steps and resumed.patience.reason == run.patience.reason, checkpoint.name
        assert all(map(torch.equal, resumed.weights(), run.weights())), checkpoint.name


def test_a_run_at_the_end_of_its_patience_goes_on_with_more_as_if_it_had_never_stopped(
    overfitted: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", 9, 2, patience=3, **GROWS)
    more = Run(tmp_path / "more", 9, 2, patience=5, resume=run.folder / "last.ckpt", **GROWS)
    assert more.steps == run.steps + 2
    endless = Run(tmp_path / "endless", 9, 2, resume=run.folder / "last.ckpt", **GROWS)
    assert all(map(torch.equal, endless.weights(), overfitted.weights()))


def test_patience_that_ends_with_the_run_is_no_early_end(overfitted: Run, tmp_path: Path) -> None:
    losses = held_out(overfitted)
    rest = overfitted.total - 1 - losses.index(min(losses))
    run = Run(tmp_path / "run", 9, 2, patience=rest, **GROWS)
    assert (run.steps, run.patience.reason) == (overfitted.total, None)


class Files:
    """A tokenizer, as far as a run's adapter needs one."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").touch()


def weights(folder: Path) -> torch.Tensor:
    return torch.load(folder / "weights.pt", weights_only=True)["head.weight"]


def test_the_adapter_is_that_of_the_best_step_and_the_last_stays_beside_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 9, 2, **GROWS)
    run.model.save_pretrained = lambda folder: torch.save(run.model.state_dict(), folder / "weights.pt")  # type: ignore
    losses, last = held_out(run), run.model.head.weight.clone()
    end = Kept(run.total, losses[-1], losses[-1])
    best = hand_out(tmp_path, run.finetuner, Files(), run.keeper.best(), end)
    assert best.step == 1 + losses.index(min(losses)) and best.monitored == best.val_loss == min(losses)
    saved = torch.load(run.folder / "best.ckpt", weights_only=True)["state_dict"]["model.head.weight"]
    assert torch.equal(weights(tmp_path / "adapter"), saved) and torch.equal(run.model.head.weight, saved)
    assert torch.equal(weights(tmp_path / "adapter_last"), last) and not torch.equal(last, saved)
    told = describe_kept(best, end, "val/loss")
    assert told.startswith(
        f"adapter: step {best.step} of {run.total}, the lowest held-out loss, {min(losses):.3f}; the"
    )
    # trained further until the last is the best: no other is left
    assert hand_out(tmp_path, run.finetuner, Files(), run.keeper.best(), replace(best)).step == best.step
    assert not (tmp_path / "adapter_last").exists() and (tmp_path / "adapter" / "tokenizer.json").is_file()


def test_a_best_checkpoint_of_a_lost_future_is_not_taken_for_that_of_the_past(overfitted: Run, tmp_path: Path) -> None:
    """Killed between two checkpoints: best.ckpt is from after last.ckpt. Other settings may never come there again."""
    losses = held_out(overfitted)
    best = 1 + losses.index(min(losses))
    folder = tmp_path / "run"
    first = Run(folder, 9, 2, max_steps=best, **GROWS)
    early = first.kept / f"{best - 1:02}_last.ckpt"
    again = Run(tmp_path / "other", 9, 2, max_steps=best - 1, resume=early, **GROWS)
    assert again.keeper.best() is None, "its only validation is behind it, and best.ckpt is of another step"


def test_a_run_that_was_moved_knows_its_best_checkpoint(overfitted: Run, tmp_path: Path) -> None:
    first = Run(tmp_path / "first", 9, 2, **GROWS)
    (tmp_path / "first").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "kept")
    moved = Run(tmp_path / "moved", 9, 2, resume=tmp_path / "moved" / "last.ckpt", **GROWS)
    kept = moved.keeper.best()
    assert kept is not None and kept["monitored"] == min(held_out(first))
