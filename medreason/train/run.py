"""python -m medreason.train: configuration -> a run directory with a fine-tuned adapter in it.

What is cheap and can fail comes first: configuration, hardware, rows. Then Unsloth's import, tokens, the model.
"""

import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from medreason.config import ConfigError, Format, LoggerKind, Recompute, RunFailed, TrainConfig, steps_of
from medreason.core.cli import command, swept_settings
from medreason.core.disk import whole_folder
from medreason.core.outside import literal, one_line
from medreason.core.overrides import command_line, override
from medreason.core.processes import alone, carry_out, describe_exit, one_of_several, run_command
from medreason.core.progress import describe_corpus, describe_data, first_process, quieten, say, spoken
from medreason.core.recorded import finite, mapping
from medreason.core.resume import nothing_left, repeated
from medreason.core.run_directory import (
    ADAPTER,
    LAST_ADAPTER,
    check_resumed,
    checkpoint_position,
    checkpoint_step,
    nearby,
    provenance,
    read_json,
    repeatable,
    resolve_checkpoint,
    resumed_at,
    run_config,
    write_json,
    write_settings,
)
from medreason.core.run_log import child_output, logged, told_traceback
from medreason.core.what_next import after_run
from medreason.data.corpus import read_split
from medreason.data.sources import needs_hub
from medreason.export.model_card import write_cards
from medreason.models.checks import check_logger, check_run, check_steps, describe_few, lightning_precision
from medreason.report.wandb import agent_parameters, check_wandb, finish_wandb, log_samples, wandb_logger
from medreason.sweep import sweepers

if TYPE_CHECKING:
    from medreason.data.corpus import Split
    from medreason.data.datamodule import MedicalReasoningData
    from medreason.models.memory import Need
    from medreason.train.finetuner import Finetuner


@logged("train.log")
def train(config: TrainConfig) -> None:
    run = Path(HydraConfig.get().runtime.output_dir)
    if config.resume is not None and not one_of_several() and (line := nothing_left(config, run)):
        say(line)
        return
    with alone(run):
        train_alone(config, run)


def train_alone(config: TrainConfig, run: Path) -> None:
    """Trains in a directory that no other process trains in."""
    if child_output() is not None and not one_of_several():  # somebody may be looking
        say(f"log: {nearby(run)}/train.log")
    check_run(config, needs_hub(config.data))
    if config.logger.kind is LoggerKind.wandb:
        check_wandb(config.logger)
    check_logger(config.logger)
    resumed = resolve_checkpoint(config.ckpt, run)
    if resumed is not None:
        check_resumed(config, resumed)
    split = read_split(config.data, say)
    say(f"{len(split.corpus):,} examples of {split.corpus.source}")
    for line in describe_corpus(split.corpus.report, split.left_out):
        say(line)
    if config.trainer.devices > 1 and not one_of_several():
        prepared(
            config, split, resumed, lambda line: None
        )  # a mistake is told once, and here; the processes find it made
        train_on_several(config, run, resumed)
    else:
        train_here(config, run, resumed, split)


def prepared(
    config: TrainConfig, split: "Split", resumed: Path | None, say: Callable[[str], None]
) -> tuple[Any, "MedicalReasoningData"]:
    """Tokenizer and rows of a run. Raises ConfigError for what it could not train on, or would learn nothing from."""
    from medreason.data.datamodule import ResumeMismatch, prepare
    from medreason.models.load import check_lora, load_tokenizer

    check_lora(config.model, config.lora)
    tokenizer = load_tokenizer(config.model)
    data = prepare(config, split, tokenizer, say)
    say(describe_data(data.report()))
    trainer, loader = config.trainer, data.loaders["train"]
    if resumed is not None:
        try:
            loader.check(checkpoint_position(resumed), trainer.devices)
        except ResumeMismatch as error:
            raise ConfigError(f"ckpt={resumed}: {error}; resume with the settings it was trained with") from error
    total_steps = data.total_steps(trainer.max_epochs, trainer.max_steps, trainer.devices)
    behind = checkpoint_step(resumed) if resumed is not None else 0
    for line in planned_otherwise(config, data, total_steps, resumed, behind):
        say(line)
    for line in check_steps(config, len(loader.rows), total_steps, resumed, behind):
        say(line)
    if resumed is None:
        held_out = len(data.loaders["validation"].documents)
        for line in describe_few(config, len(loader.rows), total_steps, max(map(len, loader.documents)), held_out):
            say(line)
    return tokenizer, data


def planned_otherwise(
    config: TrainConfig, data: "MedicalReasoningData", total_steps: int, resumed: Path | None, behind: int
) -> list[str]:
    """A line on the learning rate's new course where a run is resumed that was planned for another number of steps."""
    try:
        earlier = None if resumed is None else run_config(resumed.parent.parent)
    except ConfigError:  # a checkpoint without its run
        earlier = None
    if earlier is None or behind >= total_steps:
        return []
    trainer = earlier.trainer
    from medreason.train.optimizer import describe_course

    planned = data.total_steps(trainer.max_epochs, trainer.max_steps, trainer.devices)
    return [] if planned == total_steps else [describe_course(config.optim, behind, planned, total_steps)]


def overrides_of(config: TrainConfig, run: Path) -> list[str]:
    """The overrides that train this run again, from its beginning."""
    given = list(HydraConfig.get().overrides.task)
    return repeatable(given if config.resume is None else repeated(given, run))


def train_on_several(config: TrainConfig, run: Path, resumed: Path | None) -> None:
    """Trains with a process for each device. Raises RunFailed with what the first of them put on record."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    earlier = read_json(run / "run.json") if resumed is not None and resumed.is_relative_to(run) else {}
    swept = swept_settings() or mapping(earlier.get("swept"))
    write_json(
        run / "run.json",
        earlier | {"status": "starting", "swept": swept, "overrides": overrides_of(config, run)},
    )
    say(f"starting {config.trainer.devices} processes")
    log = run / "train.log"
    behind = log.stat().st_size if log.is_file() else 0
    code = carry_out(run_command(overrides, run, config.trainer.devices))
    status = str(read_json(run / "run.json").get("status"))
    if code == 0:
        return
    if not status.startswith(("failed: RunFailed", "failed: ConfigError")):
        print(*told_traceback(log, behind), sep="\n", file=sys.stderr)  # their errors go into the log
    if status == "interrupted":
        raise SystemExit(INTERRUPTED)
    raise RunFailed(status.removeprefix("failed: ") if status.startswith("failed") else describe_exit(code))


INTERRUPTED = 130  # exit code of a run that was asked to stop, as a shell has it for Ctrl-C


def train_here(config: TrainConfig, run: Path, resumed: Path | None, split: Any) -> None:
    """Trains in this process, alone or as one of several. Whatever happens, run.json says how it ended."""
    from medreason.models.load import import_unsloth, load_model, plan_memory, trained_dtype
    from medreason.models.memory import GIB, out_of_memory

    take_own_gpu()
    if not config.model.precision.compiled:
        say("importing Unsloth (10 to 30 seconds)")
        import_unsloth()
    from medreason.sweep.pruning import Pruned, own_checkpoint
    from medreason.train.callbacks import Stopped

    resumed = resumed or own_checkpoint(run)
    tokenizer, data = prepared(config, split, resumed, say)
    earlier = read_json(run / "run.json")
    given = earlier if earlier.get("status") == "starting" else {}  # by the process that started this one for a job
    goes_on = resumed is not None and resumed.is_relative_to(run)
    record: dict[str, Any] = {
        "status": "running",
        "started": earlier.get("started") if goes_on else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **provenance(),
        "overrides": given.get("overrides") or overrides_of(config, run),
        "swept": given.get("swept")
        or swept_settings()
        or agent_parameters()
        or (mapping(earlier.get("swept")) if goes_on else {}),
        "resumed_from": str(resumed) if resumed else None,
        "resumed_at": resumed_at(resumed),
        "wandb_id": earlier.get("wandb_id") if goes_on else None,
        "data": {
            "source": split.corpus.source,
            "sha256": split.fingerprint,
            **data.report(),
            "left_out": split.left_out,
        },
        "results": mapping(earlier.get("results")) if goes_on else {},
    }
    seconds_before = finite(earlier.get("seconds")) or 0.0 if goes_on else 0.0
    began = time.monotonic()
    if first_process():
        save_config(config, run)
        write_json(run / "data.json", data.corpus_report())
        write_json(run / "run.json", record)
    import lightning as L

    quieten()
    free_memory()
    L.seed_everything(config.seed, verbose=False)
    try:
        plan = plan_memory(config, trained_tokens(config, data))
        recompute = settled(config.trainer.recompute, plan)
        record["memory"] = None if plan is None else {"expected_gib": round(plan.total / GIB, 2), "copies": plan.copies}
        record["recompute"] = recompute.value
        record["precision"] = lightning_precision(config.trainer)
        say(f"loading {config.model.path} in {config.model.precision.value}")
        model = load_model(
            config.model,
            config.lora,
            row_tokens=config.data.row_tokens * config.trainer.rows_per_batch,
            recompute=recompute,
            seed=config.seed,
            copies=1 if plan is None else plan.copies,
            dtype=trained_dtype(record["precision"]),
        )
        fit(config, run, resumed, model, tokenizer, data, record)
        record["status"] = "finished"
    except Pruned:
        record["status"] = "pruned"
        say(f"pruned: other trials of the sweep had a lower {config.monitor} by now")
    except (KeyboardInterrupt, SystemExit, Stopped) as error:  # Lightning makes SystemExit of KeyboardInterrupt
        record["status"] = "interrupted"
        if not isinstance(error, Stopped):
            say("stopped")
        elif not (run / "trial.json").is_file():
            goes_on_with = command_line("train", [override("resume", nearby(run))])
            say(f"stopped after step {error}; it goes on with: {goes_on_with}")
        if "WANDB_SWEEP_ID" in os.environ:
            record["status"] = "pruned"  # so W&B stops a hopeless run; its agent would count an exit code as a failure
            return
        raise SystemExit(INTERRUPTED) from None
    except BaseException as error:
        if out_of_memory(error):
            error = RunFailed(
                f"out of memory ({str(error).splitlines()[0][:200]}); lower data.row_tokens, trainer.rows_per_batch or "
                "lora.r, or set trainer.recompute=unsloth"
            )
        record["status"] = f"failed: {type(error).__name__}: {error}"
        raise error
    finally:
        if first_process():
            record["seconds"] = round(seconds_before + time.monotonic() - began, 1)
            # on a full disk, that it is full is told, not that this could not be written either
            with suppress(OSError) if record["status"].startswith("failed") else nullcontext():
                write_json(run / "run.json", record)
        finish_wandb(failed=record["status"] not in ("finished", "pruned"))
    if record["status"] == "finished" and first_process():
        write_cards(run)
        summarize(run, record["results"], config.data.format)
        if not record["swept"]:  # one of many is gone on with by the sweep's end
            print("next:", *after_run(run, config.data.source.value, config.data.path), sep="\n  ")


def trained_tokens(config: TrainConfig, data: Any) -> int:
    """Tokens of all rows that the run will train on, padding included."""
    loader, trainer = data.loaders["train"], config.trainer
    rows = data.total_steps(trainer.max_epochs, trainer.max_steps, trainer.devices) * trainer.accumulate
    return int(rows * trainer.rows_per_batch * trainer.devices * loader.slots() / len(loader.rows))


def settled(asked: Recompute, plan: "Need | None") -> Recompute:
    """What is recomputed: as asked for, as the plan has it, or nothing."""
    if asked is not Recompute.auto:
        return asked
    return Recompute.none if plan is None else plan.recompute


def take_own_gpu() -> None:
    """Makes the GPU of one of several processes its current one: Lightning would do so once the model is loaded."""
    import torch

    if torch.cuda.is_available() and one_of_several():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def free_memory() -> None:
    """Gives back what an earlier job of a multirun in this process left behind."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def fit(
    config: TrainConfig, run: Path, resumed: Path | None, model: Any, tokenizer: Any, data: Any, record: dict[str, Any]
) -> None:
    """Trains, measuring before and after; puts results into `record`. The run directory is complete afterwards."""
    import lightning as L
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    from medreason.core.run_directory import metrics_logger
    from medreason.report.run_curves import draw_curves
    from medreason.sweep.pruning import reports
    from medreason.train.callbacks import (
        BestCheckpoint,
        Patience,
        StepLine,
        StepMetrics,
        WholeCheckpoints,
        checkpoints,
        peak_memory_gib,
    )
    from medreason.train.finetuner import AdapterMismatch, Finetuner
    from medreason.train.loggers import outside_logger
    from medreason.train.sample_answers import SampleAnswers

    processes = config.trainer.devices
    total_steps = data.total_steps(config.trainer.max_epochs, config.trainer.max_steps, processes)
    finetuner = Finetuner(model, config.optim, total_steps)
    accumulate = config.trainer.accumulate
    loggers = []
    if first_process():
        metrics_file = metrics_logger(run, resumed)
        loggers = [metrics_file, *wandb_logger(config, run, record["swept"], record["wandb_id"])]
        # a logger has no version before its run has begun
        record["wandb_id"] = loggers[1].experiment.id if len(loggers) > 1 else None
        loggers += outside_logger(config, run, record["swept"], metrics_file.experiment.metrics)
    asked = data.split.examples(data.split.validation[: config.trainer.answer_questions])
    samples = SampleAnswers(config, tokenizer, asked, run / "samples.json", total_steps, resumed=resumed is not None)
    metrics = StepMetrics(model)
    kept = checkpoints(
        run / "checkpoints",
        monitor=config.monitor,
        validate_every_steps=steps_of(config.trainer.validate_every_steps, total_steps),
        every_steps=steps_of(config.trainer.checkpoint_every_steps, total_steps),
        total_steps=total_steps,
    )
    keeper = next(one for one in kept if isinstance(one, BestCheckpoint))
    patience = Patience(config.monitor, config.trainer.patience, total_steps)
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=processes,
        strategy=several_gpus() if processes > 1 else "auto",
        # not left to Lightning: in a job of SLURM's it would leave starting processes to SLURM
        plugins=[TorchElasticEnvironment() if processes > 1 else LightningEnvironment(), WholeCheckpoints()],
        precision=record["precision"],
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=1,  # callbacks.Validations says when
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=0,  # StepMetrics does it
        logger=loggers,
        callbacks=[
            metrics,
            StepLine(metrics, total_steps),
            samples,
            patience,
            *reports(run, config.monitor),
            *kept,
        ],
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=run,
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"training {trained / 1e6:.1f}M weights (LoRA r={config.lora.r}) for {total_steps} optimizer steps")

    results: dict[str, Any] = record["results"]
    if resumed is None:
        before = trainer.validate(finetuner, data, verbose=False)[0]
        results["val_loss_before"] = before["val/loss"]
        results |= {f"{name}_before": value for name, value in samples.ask(model, "before").items()}
    try:
        trainer.fit(finetuner, data, ckpt_path=resumed, weights_only=True)
    except AdapterMismatch as error:
        raise ConfigError(f"ckpt={config.ckpt}: {error}") from error
    finally:
        results |= {"steps": trainer.global_step, "peak_memory_gib": round(peak_memory_gib(), 2)}
        if finetuner.skipped_steps:
            results["skipped_steps"] = finetuner.skipped_steps
    if trainer.global_step and not taught(model):
        raise RunFailed(
            f"{trainer.global_step} optimizer steps changed nothing, the adapter is still zero; raise optim.lr, or "
            "give gradients more room (trainer.precision=auto)"
        )
    record["ended_early"] = patience.reason
    if finetuner.validated_step != trainer.global_step:  # no step was made: it was resumed at its end
        trainer.validate(finetuner, data, verbose=False)
    measured = finetuner.validated_loss
    monitored: Any = trainer.callback_metrics.get(config.monitor, math.nan)
    last = Kept(trainer.global_step, measured if config.monitor == "val/loss" else float(monitored), measured)
    trainer.strategy.barrier()  # the first process has written the best checkpoint to its end
    best = hand_out(run, finetuner, tokenizer, keeper.best(), last)
    say(describe_kept(best, last, config.monitor))
    if trainer.global_step and not taught(model):
        say(f"its weights are still zero: training has only raised the {spoken(config.monitor)}; lower optim.lr")
    results |= {"adapter_step": best.step, "val_loss_after": best.val_loss, "val_loss_last": last.val_loss}
    results |= {"monitored": best.monitored, "monitored_last": last.monitored}
    results["answer_time_share"] = round(samples.time_share, 4)
    results |= {f"{name}_after": value for name, value in samples.ask(model, "after", best.step).items()}
    if not first_process():
        return
    samples.save()
    log_samples(samples.samples, config.data.format)
    draw_curves(run, record)


@dataclass(frozen=True)
class Kept:
    """An optimizer step whose adapter is kept."""

    step: int
    monitored: float  # the metric that picks the best
    val_loss: float


def hand_out(run: Path, finetuner: "Finetuner", tokenizer: Any, best: dict[str, Any] | None, last: Kept) -> Kept:
    """Gives the model the weights of the best checkpoint, and leaves them in RUN/adapter; which step's they are.

    Where they are not those of the last step, these stay in RUN/adapter_last.
    """
    from medreason.train.finetuner import take_weights

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
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        # one message after the backward pass: an adapter's gradients are small, and messages on their way before would
        # hold a part of the GPU until the slowest process has sent its own (two H200s: 95.1% -> 96.7% of twice)
        bucket_cap_mb=1024,
        timeout=timedelta(hours=2),  # waiting for a process that answers questions may take long
    )


def taught(model: Any) -> bool:
    """Whether an adapter does anything: LoRA's B is zero before training."""
    return any(bool(value.any()) for name, value in model.named_parameters() if "lora_B" in name)


def save_config(config: TrainConfig, run: Path) -> None:
    """RUN/config.yaml: every setting as the run has it."""
    write_settings(config, run / "config.yaml")


def summarize(run: Path, results: dict[str, Any], style: Format) -> None:
    """The end of a run, to look at: two answers before and after, cut to a line, numbers, where everything lies."""
    import json

    from rich.console import Console
    from rich.table import Table

    from medreason.data.clinical_cases import answers_match
    from medreason.models.prompts import parse_answer

    console = Console(highlight=False)
    samples = json.loads((run / "samples.json").read_text(encoding="utf-8"))
    exact = "accuracy_after" in results  # the answers can be checked
    for sample in samples[:2]:
        console.print()
        lines = [("Question", sample["question"], ""), ("Expected", sample["answer"], "")]
        for when in ("before", "after"):
            if when in sample:
                parsed = parse_answer(sample[when], style)
                mark = (" (right)" if answers_match(parsed.answer, sample["answer"]) else " (wrong)") if exact else ""
                lines.append((when, (parsed.answer or "(no answer)") + mark, parsed.reasoning or "none"))
        for label, text, reasoning in lines:
            shown = literal(f"{label:8}  ", "bold") + literal(" ".join(text.split()))
            shown += literal("  reasoning: " + " ".join(reasoning.split()), "dim") if reasoning else literal("")
            console.print(shown, no_wrap=True, overflow="ellipsis")
    table = Table("", "before", "after", box=None, pad_edge=False)
    measured = (
        ("held-out loss", "val_loss", "{:.3f}"),
        ("held-out exact match", "accuracy", "{:.1%}"),
        ("reasoning, then answer", "format", "{:.1%}"),
    )
    for label, name, shape in measured:
        if f"{name}_after" in results:
            cells = [
                shape.format(results[key]) if (key := f"{name}_{when}") in results else ""
                for when in ("before", "after")
            ]
            table.add_row(label, *cells)
    if exact:  # what a model scores that has learned nothing but which answer is frequent
        frequent = Counter(sample["answer"] for sample in samples).most_common(1)[0][1] / len(samples)
        table.add_row("always the same answer", *[f"{frequent:.1%}"] * 2)
    console.print()
    console.print(table)
    print(one_line(f"{results['steps']} optimizer steps, curves.png and all: {nearby(run)}"))


def main() -> None:
    command(train, "train", TrainConfig, plugins=sweepers.register)
