"""python -m medreason.train: configuration -> a run directory with a fine-tuned adapter in it.

What is cheap and can fail comes first: configuration, hardware, rows. Then Unsloth's import, tokens, the model.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from medreason.command import command, swept_settings
from medreason.config import ConfigError, Format, LoggerKind, Recompute, RunFailed, TrainConfig
from medreason.corpus import read_split
from medreason.overrides import command_line, override
from medreason.own_process import carry_out, describe_exit, one_of_several, run_command
from medreason.preflight import check_run
from medreason.progress import describe_corpus, describe_data, first_process, quieten, say
from medreason.run_directory import provenance, read_json, repeatable, resolve_checkpoint, write_json, write_settings
from medreason.sweep_results import finite, mapping
from medreason.wandb_runs import agent_parameters, check_wandb, finish_wandb, log_samples, wandb_logger

if TYPE_CHECKING:
    from medreason.memory import Need


def train(config: TrainConfig) -> None:
    run = Path(HydraConfig.get().runtime.output_dir)
    check_run(config)
    if config.logger.kind is LoggerKind.wandb:
        check_wandb(config.logger)
    resumed = resolve_checkpoint(config.ckpt, run)
    split = read_split(config.data, say)
    say(f"{len(split.corpus):,} examples of {split.corpus.source}")
    for line in describe_corpus(split.corpus.report, split.left_out):
        say(line)
    if config.trainer.devices > 1 and not one_of_several():
        train_on_several(config, run)
    else:
        train_here(config, run, resumed, split)


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
    from medreason.model import import_unsloth, load_model, load_tokenizer, plan_memory

    if not config.model.precision.compiled:
        say("importing Unsloth (10 to 30 seconds)")
        import_unsloth()
    from medreason.callbacks import Stopped
    from medreason.datamodule import prepare
    from medreason.trial import Pruned, own_checkpoint

    resumed = resumed or own_checkpoint(run)
    tokenizer = load_tokenizer(config.model)
    data = prepare(config, split, tokenizer, say)
    counts = data.report()
    say(describe_data(split.corpus.source, counts))

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
        "data": {"source": split.corpus.source, "sha256": split.fingerprint, **counts, "left_out": split.left_out},
        "results": mapping(earlier.get("results")) if goes_on else {},
    }
    seconds_before = finite(earlier.get("seconds")) or 0.0 if goes_on else 0.0
    began = time.monotonic()
    if first_process():
        save_config(config, run)
        write_json(run / "data.json", split.corpus.report)
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
        say(f"loading {config.model.path} in {config.model.precision.value}")
        model = load_model(
            config.model,
            config.lora,
            row_tokens=config.data.row_tokens * config.trainer.rows_per_batch,
            recompute=recompute,
            seed=config.seed,
            copies=1 if plan is None else plan.copies,
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
            write_json(run / "run.json", record)
        finish_wandb(failed=record["status"] not in ("finished", "pruned"))
    if record["status"] == "finished" and first_process():
        summarize(run, record["results"], config.data.format)


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
    from lightning.pytorch.strategies import DDPStrategy

    from medreason.callbacks import StepBar, StepMetrics, checkpoints, peak_memory_gib
    from medreason.datamodule import ResumeMismatch
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
        # every process has loaded the same weights; waiting for one that answers questions may take long
        strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, timeout=timedelta(hours=2))
        if processes > 1
        else "auto",
        # not left to Lightning: in a job of SLURM's it would leave starting processes to SLURM
        plugins=[TorchElasticEnvironment() if processes > 1 else LightningEnvironment()],
        precision=config.trainer.precision,  # type: ignore[arg-type]  # TrainerConfig checks it
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=config.trainer.validate_every_steps * accumulate,
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
    except ResumeMismatch as error:
        raise ConfigError(f"ckpt={config.ckpt}: {error}; resume with the settings it was trained with") from error
    finally:
        results |= {"steps": trainer.global_step, "peak_memory_gib": round(peak_memory_gib(), 2)}
    if first_process():
        model.save_pretrained(run / "adapter")
        tokenizer.save_pretrained(run / "adapter")
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


def save_config(config: TrainConfig, run: Path) -> None:
    """RUN/config.yaml: every setting as the run has it."""
    write_settings(config, run / "config.yaml")


def summarize(run: Path, results: dict[str, Any], style: Format) -> None:
    """The end of a run, to look at: two answers before and after, numbers, where everything lies."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from medreason.prompts import parse_answer

    console = Console(highlight=False)
    samples = json.loads((run / "samples.json").read_text(encoding="utf-8"))
    for sample in samples[:2]:
        # escaped: square brackets in a row are text, not Rich's markup
        console.print(f"\n[bold]Question[/]  {escape(sample['question'])}", soft_wrap=True)
        console.print(f"[bold]Expected[/]  {escape(sample['answer'])}", soft_wrap=True)
        for when in ("before", "after"):
            if when in sample:
                parsed = parse_answer(sample[when], style)
                console.print(f"[bold cyan]{when:8}[/]  reasoning: ", end="")
                console.print(parsed.reasoning or "(none shown)", style="dim", markup=False, soft_wrap=True)
                console.print("          answer:    ", end="")
                console.print(parsed.answer or "(none)", markup=False, soft_wrap=True)
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
    print(f"{results['steps']} optimizer steps; curves: {run / 'curves.png'}; everything: {run}")


def main() -> None:
    command(train, "train", TrainConfig)


if __name__ == "__main__":
    main()
