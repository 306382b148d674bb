"""Trains with Lightning, measuring before and after, and leaves the weights of the best step."""

import math
import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from medreason.config import ConfigError, RunFailed, TrainConfig, steps_of
from medreason.core.disk import whole_folder
from medreason.core.progress import first_process, say, spoken
from medreason.core.run_directory import ADAPTER, LAST_ADAPTER, metrics_logger
from medreason.data.datamodule import MedicalReasoningData
from medreason.report.run_curves import draw_curves
from medreason.report.wandb import log_samples, wandb_logger
from medreason.sweep.pruning import reports
from medreason.train.checkpoints import BestCheckpoint, WholeCheckpoints, checkpoints
from medreason.train.early_stopping import Patience
from medreason.train.finetuner import AdapterMismatch, Finetuner, take_weights
from medreason.train.loggers import outside_logger
from medreason.train.metrics import StepLine, StepMetrics, peak_memory_gib
from medreason.train.sample_answers import SampleAnswers


def fit(
    config: TrainConfig,
    run: Path,
    resumed: Path | None,
    model: Any,
    tokenizer: Any,
    data: MedicalReasoningData,
    record: dict[str, Any],
) -> None:
    """Trains, measuring before and after; puts results into `record`. The run directory is complete afterwards."""
    settings = config.trainer
    total_steps = data.total_steps(settings.max_epochs, settings.max_steps, settings.world_size)
    finetuner = Finetuner(model, config.optim, total_steps)
    loggers = all_loggers(config, run, resumed, record) if first_process() else []
    asked = data.split.examples(data.split.validation[: settings.answer_questions])
    samples = SampleAnswers(config, tokenizer, asked, run / "samples.json", total_steps, resumed=resumed is not None)
    metrics, patience = StepMetrics(model), Patience(config.monitor, settings.patience, total_steps)
    kept = checkpoints(
        run / "checkpoints",
        monitor=config.monitor,
        validate_every_steps=steps_of(settings.validate_every_steps, total_steps),
        every_steps=steps_of(settings.checkpoint_every_steps, total_steps),
        total_steps=total_steps,
    )
    callbacks = [metrics, StepLine(metrics, total_steps), samples, patience, *reports(run, config.monitor), *kept]
    trainer = lightning_trainer(config, run, record["precision"], loggers, callbacks)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"training {trained / 1e6:.1f}M weights (LoRA r={config.lora.r}) for {total_steps} optimizer steps")

    results: dict[str, Any] = record["results"]
    if resumed is None:
        results["val_loss_before"] = trainer.validate(finetuner, data, verbose=False)[0]["val/loss"]
        results |= {f"{name}_before": value for name, value in samples.ask(model, "before").items()}
    try:
        trainer.fit(finetuner, data, ckpt_path=resumed, weights_only=True)
    except AdapterMismatch as error:
        raise ConfigError(f"ckpt={config.ckpt}: {error}") from error
    finally:
        results |= {"steps": trainer.global_step, "peak_memory_gib": round(peak_memory_gib(), 2)}
        if finetuner.skipped_steps:
            results["skipped_steps"] = finetuner.skipped_steps
    check_taught(trainer.global_step, model)
    record["ended_early"] = patience.reason

    last = last_step(config.monitor, trainer, finetuner, data)
    keeper = next(one for one in kept if isinstance(one, BestCheckpoint))
    trainer.strategy.barrier()  # the first process has written the best checkpoint to its end
    best = hand_out(run, finetuner, tokenizer, keeper.best(), last)
    say(describe_kept(best, last, config.monitor))
    if trainer.global_step and not taught(model):
        say(f"its weights are still zero: training has only raised the {spoken(config.monitor)}; lower optim.lr")
    results |= {"adapter_step": best.step, "val_loss_after": best.val_loss, "val_loss_last": last.val_loss}
    results |= {"monitored": best.monitored, "monitored_last": last.monitored}
    results["answer_time_share"] = round(samples.time_share, 4)
    results |= {f"{name}_after": value for name, value in samples.ask(model, "after", best.step).items()}
    if first_process():
        samples.save()
        log_samples(samples.samples, config.data.format)
        draw_curves(run, record)


def all_loggers(config: TrainConfig, run: Path, resumed: Path | None, record: dict[str, Any]) -> list[Any]:
    """metrics.csv, and the logger that was asked for beside it; W&B's id goes into the record."""
    metrics_file = metrics_logger(run, resumed)
    wandb = wandb_logger(config, run, record["swept"], record["wandb_id"])
    # a logger has no version before its run has begun
    record["wandb_id"] = wandb[0].experiment.id if wandb else None
    return [metrics_file, *wandb, *outside_logger(config, run, record["swept"], metrics_file.experiment.metrics)]


def lightning_trainer(
    config: TrainConfig, run: Path, precision: Any, loggers: list[Any], callbacks: list[L.Callback]
) -> L.Trainer:
    """Lightning's Trainer, with what this project does itself turned off."""
    settings = config.trainer
    several = settings.world_size > 1
    return L.Trainer(
        accelerator=settings.accelerator,
        num_nodes=settings.nodes,
        devices=settings.devices,
        strategy=several_gpus() if several else "auto",
        # not left to Lightning: in a job of SLURM's it would leave starting processes to SLURM
        plugins=[TorchElasticEnvironment() if several else LightningEnvironment(), WholeCheckpoints()],
        precision=precision,
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate,
        val_check_interval=1,  # checkpoints.Validations says when
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=0,  # StepMetrics does it
        logger=loggers,
        callbacks=callbacks,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=run,
    )


@dataclass(frozen=True)
class Kept:
    """An optimizer step whose adapter is kept."""

    step: int
    monitored: float  # the metric that picks the best
    val_loss: float


def hand_out(run: Path, finetuner: Finetuner, tokenizer: Any, best: dict[str, Any] | None, last: Kept) -> Kept:
    """Gives the model the weights of the best checkpoint, and leaves them in RUN/adapter; which step's they are.

    Where they are not those of the last step, these stay in RUN/adapter_last.
    """
    kept = last
    if best is not None and best["global_step"] != last.step:
        kept = Kept(best["global_step"], best["monitored"], best["val_loss"])
        if first_process():
            save_adapter(finetuner.model, tokenizer, run / LAST_ADAPTER)
        take_weights(finetuner, best)
    if first_process():
        save_adapter(finetuner.model, tokenizer, run / ADAPTER)
        if kept is last:
            shutil.rmtree(run / LAST_ADAPTER, ignore_errors=True)  # left by this run when it was shorter
    return kept


def describe_kept(best: Kept, last: Kept, monitor: str) -> str:
    """A line on which step's weights a run hands out, and why."""
    metric = spoken(monitor)
    if best.step == last.step:
        return f"adapter: step {last.step}, the last, with the lowest {metric}, {last.monitored:.3f}"
    return (
        f"adapter: step {best.step} of {last.step}, the lowest {metric}, {best.monitored:.3f}; the last, step "
        f"{last.step}, has {last.monitored:.3f} ({LAST_ADAPTER}, checkpoint=last)"
    )


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes LoRA in PEFT's format, and the tokenizer: all of it, or nothing."""
    with whole_folder(folder) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def several_gpus() -> Any:
    """Lightning's DDP for an adapter over a frozen base that each process has loaded itself."""
    return DDPStrategy(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        # one message after the backward pass: an adapter's gradients are small, and messages on their way before would
        # hold a part of the GPU until the slowest process has sent its own (two H200s: 95.1% -> 96.7% of twice)
        bucket_cap_mb=1024,
        timeout=timedelta(hours=2),  # waiting for a process that answers questions may take long
    )


def last_step(monitor: str, trainer: L.Trainer, finetuner: Finetuner, data: MedicalReasoningData) -> "Kept":
    """What was measured at the last step; measured now where a run was resumed at its end and made none."""
    if finetuner.validated_step != trainer.global_step:
        trainer.validate(finetuner, data, verbose=False)
    measured = finetuner.validated_loss
    monitored: Any = trainer.callback_metrics.get(monitor, math.nan)
    return Kept(trainer.global_step, measured if monitor == "val/loss" else float(monitored), measured)


def check_taught(steps: int, model: Any) -> None:
    """Raises RunFailed where steps were made and changed nothing."""
    if steps and not taught(model):
        raise RunFailed(
            f"{steps} optimizer steps changed nothing, the adapter is still zero; raise optim.lr, or give gradients "
            "more room (trainer.precision=auto)"
        )


def taught(model: Any) -> bool:
    """Whether an adapter does anything: LoRA's B is zero before training."""
    return any(bool(value.any()) for name, value in model.named_parameters() if "lora_B" in name)
