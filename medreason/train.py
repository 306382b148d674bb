"""python -m medreason.train: configuration -> a run directory with a fine-tuned adapter in it.

What is cheap and can fail comes first: configuration, hardware, rows. Then Unsloth's import, tokens, the model.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from medreason.command import command, swept_settings
from medreason.config import ConfigError, Format, LoggerKind, Recompute, RunFailed, TrainConfig
from medreason.corpus import read_split
from medreason.disk import whole_folder
from medreason.model_card import write_cards
from medreason.outside import literal, one_line
from medreason.overrides import command_line, override
from medreason.own_process import carry_out, describe_exit, one_of_several, run_command
from medreason.preflight import check_run, check_steps, lightning_precision
from medreason.progress import describe_corpus, describe_data, first_process, quieten, say
from medreason.run_directory import (
    check_resumed,
    checkpoint_position,
    checkpoint_step,
    provenance,
    read_json,
    repeatable,
    resolve_checkpoint,
    write_json,
    write_settings,
)
from medreason.sweep_results import finite, mapping
from medreason.wandb_runs import agent_parameters, check_wandb, finish_wandb, log_samples, wandb_logger
from medreason.what_next import after_run

if TYPE_CHECKING:
    from medreason.corpus import Split
    from medreason.datamodule import MedicalReasoningData
    from medreason.memory import Need


def train(config: TrainConfig) -> None:
    run = Path(HydraConfig.get().runtime.output_dir)
    check_run(config)
    if config.logger.kind is LoggerKind.wandb:
        check_wandb(config.logger)
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
        train_on_several(config, run)
    else:
        train_here(config, run, resumed, split)


def prepared(
    config: TrainConfig, split: "Split", resumed: Path | None, say: Callable[[str], None]
) -> tuple[Any, "MedicalReasoningData"]:
    """Tokenizer and rows of a run. Raises ConfigError for what it could not train on, or would learn nothing from."""
    from medreason.datamodule import ResumeMismatch, prepare
    from medreason.model import check_lora, load_tokenizer

    check_lora(config.model, config.lora)
    tokenizer = load_tokenizer(config.model)
    data = prepare(config, split, tokenizer, say)
    say(describe_data(split.corpus.source, data.report()))
    trainer, loader = config.trainer, data.loaders["train"]
    if resumed is not None:
        try:
            loader.check(checkpoint_position(resumed), trainer.devices)
        except ResumeMismatch as error:
            raise ConfigError(f"ckpt={resumed}: {error}; resume with the settings it was trained with") from error
    total_steps = data.total_steps(trainer.max_epochs, trainer.max_steps, trainer.devices)
    behind = checkpoint_step(resumed) if resumed is not None else 0
    for line in check_steps(config, len(loader.rows), total_steps, resumed, behind):
        say(line)
    return tokenizer, data


def train_on_several(config: TrainConfig, run: Path) -> None:
    """Trains with a process for each device. Raises RunFailed with what the first of them put on record."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    start = {"status": "starting", "swept": swept_settings(), "overrides": repeatable(overrides)}
    write_json(run / "run.json", start)
    say(f"starting {config.trainer.devices} processes")
    code = carry_out(run_command(overrides, run, config.trainer.devices))
    status = str(read_json(run / "run.json").get("status"))
    if code == 0:
        return
    if status == "interrupted":
        raise SystemExit(INTERRUPTED)
    raise RunFailed(status.removeprefix("failed: ") if status.startswith("failed") else describe_exit(code))


INTERRUPTED = 130  # exit code of a run that was asked to stop, as a shell has it for Ctrl-C


def train_here(config: TrainConfig, run: Path, resumed: Path | None, split: Any) -> None:
    """Trains in this process, alone or as one of several. Whatever happens, run.json says how it ended."""
    from medreason.memory import GIB, out_of_memory
    from medreason.model import import_unsloth, load_model, plan_memory, trained_dtype

    take_own_gpu()
    if not config.model.precision.compiled:
        say("importing Unsloth (10 to 30 seconds)")
        import_unsloth()
    from medreason.callbacks import Stopped
    from medreason.trial import Pruned, own_checkpoint

    resumed = resumed or own_checkpoint(run)
    tokenizer, data = prepared(config, split, resumed, say)
    earlier = read_json(run / "run.json")
    given = earlier if earlier.get("status") == "starting" else {}  # by whoever started this process for a job
    goes_on = resumed is not None and resumed.is_relative_to(run)
    record: dict[str, Any] = {
        "status": "running",
        "started": earlier.get("started") if goes_on else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **provenance(),
        "overrides": given.get("overrides") or repeatable(HydraConfig.get().overrides.task),
        "swept": given.get("swept") or swept_settings() or agent_parameters(),
        "resumed_from": str(resumed) if resumed else None,
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
        again = [one for one in record["overrides"] if not one.startswith("ckpt=")]
        if not isinstance(error, Stopped):
            say("stopped")
        elif not (run / "trial.json").is_file():
            checkpoint = run / "checkpoints" / "last.ckpt"
            goes_on_with = command_line("train", [*again, override("ckpt", checkpoint)])
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

    from medreason.callbacks import StepBar, StepMetrics, WholeCheckpoints, checkpoints, peak_memory_gib
    from medreason.finetuner import AdapterMismatch, Finetuner
    from medreason.run_directory import draw_curves, metrics_logger
    from medreason.sample_answers import SampleAnswers
    from medreason.trial import reports

    processes = config.trainer.devices
    total_steps = data.total_steps(config.trainer.max_epochs, config.trainer.max_steps, processes)
    finetuner = Finetuner(model, config.optim, total_steps)
    accumulate = config.trainer.accumulate
    loggers = []
    if first_process():
        loggers = [metrics_logger(run, resumed), *wandb_logger(config, run, record["swept"], record["wandb_id"])]
        # a logger has no version before its run has begun
        record["wandb_id"] = loggers[1].experiment.id if len(loggers) > 1 else None
    asked = data.split.examples(data.split.validation[: config.trainer.answer_questions])
    samples = SampleAnswers(config, tokenizer, asked, run / "samples.json", resumed=resumed is not None)
    metrics = StepMetrics(model)
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
            StepBar(metrics),
            samples,
            *reports(run, config.monitor),
            *checkpoints(
                run / "checkpoints",
                monitor=config.monitor,
                validate_every_steps=config.trainer.validate_every_steps,
                every_steps=config.trainer.checkpoint_every_steps,
                total_steps=total_steps,
            ),
        ],
        enable_model_summary=False,
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
    if first_process():
        with whole_folder(run / "adapter") as draft:
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    monitored: Any = trainer.callback_metrics.get(config.monitor)
    measured: Any = trainer.callback_metrics.get("val/loss")
    if finetuner.validated_step != trainer.global_step:  # the last step was none to validate at, or no step was made
        measured = trainer.validate(finetuner, data, verbose=False)[0]["val/loss"]
    results["val_loss_after"] = float(measured)
    results["monitored"] = float(measured if config.monitor == "val/loss" else monitored)
    results["answer_time_share"] = round(samples.time_share, 4)
    results |= {f"{name}_after": value for name, value in samples.ask(model, "after").items()}
    if not first_process():
        return
    samples.save()
    log_samples(samples.samples, config.data.format)
    draw_curves(run)


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
    """The end of a run, to look at: two answers before and after, numbers, where everything lies."""
    import json

    from rich.console import Console
    from rich.table import Table

    from medreason.prompts import parse_answer

    console = Console(highlight=False)
    samples = json.loads((run / "samples.json").read_text(encoding="utf-8"))
    for sample in samples[:2]:
        console.print("\n[bold]Question[/] ", literal(sample["question"]), soft_wrap=True)
        console.print("[bold]Expected[/] ", literal(sample["answer"]), soft_wrap=True)
        for when in ("before", "after"):
            if when in sample:
                parsed = parse_answer(sample[when], style)
                console.print(f"[bold cyan]{when:8}[/]  reasoning: ", end="")
                console.print(literal(parsed.reasoning or "(none shown)", "dim"), soft_wrap=True)
                console.print("          answer:    ", end="")
                console.print(literal(parsed.answer or "(none)"), soft_wrap=True)
    table = Table("", "before", "after")
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
    console.print()
    console.print(table)
    print(one_line(f"{results['steps']} optimizer steps; curves: {run / 'curves.png'}; everything: {run}"))


def main() -> None:
    command(train, "train", TrainConfig)


if __name__ == "__main__":
    main()
