"""python -m medreason.train: configuration -> a run directory with a fine-tuned adapter in it.

What is cheap and can fail comes first: configuration, hardware, rows. Then Unsloth's import, tokens, the model.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from medreason.command import command, swept_settings
from medreason.config import ConfigError, Format, LoggerKind, Source, TrainConfig
from medreason.corpus import read_split
from medreason.preflight import check_run
from medreason.progress import describe_corpus, describe_data, quieten, say
from medreason.run_directory import provenance, resolve_checkpoint, write_json


def train(config: TrainConfig) -> None:
    run = Path(HydraConfig.get().runtime.output_dir)
    check_run(config)
    resumed = resolve_checkpoint(config.ckpt, run)
    split = read_split(config.data, say)
    say(f"{len(split.corpus):,} examples of {split.corpus.source}")
    for line in describe_corpus(split.corpus.report, split.left_out):
        say(line)

    say("importing Unsloth (10 to 30 seconds)")
    from medreason.model import import_unsloth, load_model, load_tokenizer

    import_unsloth()
    from medreason.datamodule import prepare

    tokenizer = load_tokenizer(config.model)
    data = prepare(config, split, tokenizer, say)
    counts = data.report()
    say(describe_data(split.corpus.source, counts))

    record: dict[str, Any] = {
        "status": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **provenance(),
        "swept": swept_settings(),
        "resumed_from": str(resumed) if resumed else None,
        "data": {"source": split.corpus.source, "sha256": split.fingerprint, **counts, "left_out": split.left_out},
    }
    save_config(run)
    write_json(run / "data.json", split.corpus.report)
    write_json(run / "run.json", record)
    import lightning as L

    quieten()
    free_memory()
    L.seed_everything(config.seed, verbose=False)
    try:
        say(f"loading {config.model.path} in {config.model.precision.value}")
        model = load_model(
            config.model,
            config.lora,
            row_tokens=config.data.row_tokens * config.trainer.rows_per_batch,
            recompute=config.trainer.recompute,
            seed=config.seed,
        )
        record |= {"results": fit(config, run, resumed, model, tokenizer, data), "status": "finished"}
    except BaseException as error:
        record["status"] = f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        write_json(run / "run.json", record)
        finish_wandb(failed=record["status"] != "finished")
    summarize(run, record["results"], config.data.format)


def free_memory() -> None:
    """Gives back what an earlier job of a multirun in this process left behind."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def fit(config: TrainConfig, run: Path, resumed: Path | None, model: Any, tokenizer: Any, data: Any) -> dict[str, Any]:
    """Trains, measuring before and after; returns the run's results. The run directory is complete afterwards."""
    import lightning as L
    import torch

    from medreason.callbacks import Throughput, checkpoints
    from medreason.datamodule import ResumeMismatch
    from medreason.finetuner import AdapterMismatch, Finetuner
    from medreason.run_directory import draw_curves, metrics_logger

    total_steps = data.total_steps(config.trainer.max_epochs, config.trainer.max_steps)
    finetuner = Finetuner(model, config.optim, total_steps)
    accumulate = config.trainer.accumulate
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,  # type: ignore[arg-type]  # TrainerConfig checks it
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=config.trainer.validate_every_steps * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=[metrics_logger(run, resumed), *wandb_logger(config, run)],
        callbacks=[
            *checkpoints(
                run / "checkpoints",
                monitor=config.monitor,
                every_steps=config.trainer.checkpoint_every_steps,
                total_steps=total_steps,
            ),
            Throughput(),
        ],
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run,
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"training {trained / 1e6:.1f}M weights (LoRA r={config.lora.r}) for {total_steps} optimizer steps")

    results: dict[str, Any] = {}
    asked = data.split.validation[: config.trainer.answer_questions]
    samples: list[dict[str, str]] = [asdict(example) for example in data.split.examples(asked)]
    if resumed is None:
        before = trainer.validate(finetuner, data, verbose=False)[0]
        results["val_loss_before"] = before["val/loss"]
        ask(config, model, tokenizer, samples, "before")
    try:
        trainer.fit(finetuner, data, ckpt_path=resumed, weights_only=True)
    except AdapterMismatch as error:
        raise ConfigError(f"ckpt={config.ckpt}: {error}") from error
    except ResumeMismatch as error:
        raise ConfigError(f"ckpt={config.ckpt}: {error}; resume with the settings it was trained with") from error
    results["steps"] = trainer.global_step
    model.save_pretrained(run / "adapter")
    tokenizer.save_pretrained(run / "adapter")
    # measured at the last step already, unless that was no multiple, or a finished run was resumed and made none
    measured: Any = trainer.callback_metrics.get("val/loss")
    if measured is None or trainer.global_step % config.trainer.validate_every_steps:
        measured = trainer.validate(finetuner, data, verbose=False)[0]["val/loss"]
    results["val_loss_after"] = float(measured)
    ask(config, model, tokenizer, samples, "after")
    if config.data.source is Source.clinical_cases and samples:
        results |= accuracies(samples, config.data.format)
    write_json(run / "samples.json", samples)
    if torch.cuda.is_available():
        results["peak_memory_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    draw_curves(run)
    return results


def ask(config: TrainConfig, model: Any, tokenizer: Any, samples: list[dict[str, str]], when: str) -> None:
    """Adds to each sample what the model writes now, under `when`."""
    from medreason.generate import generate_answers

    written = generate_answers(
        model,
        tokenizer,
        [sample["question"] for sample in samples],
        config.data.format,
        max_new_tokens=config.trainer.max_answer_tokens,
        batch_size=config.trainer.answer_batch,
        progress=lambda done, total: say(f"answering held-out questions, {when} training: {done} of {total}"),
    )
    for sample, text in zip(samples, written, strict=True):
        sample[when] = text


def accuracies(samples: Sequence[dict[str, str]], style: Format) -> dict[str, float]:
    """Share of samples whose parsed answer matches the expected one exactly, before and after."""
    from medreason.clinical_cases import answers_match
    from medreason.prompts import parse_answer

    return {
        f"accuracy_{when}": sum(answers_match(parse_answer(s[when], style).answer, s["answer"]) for s in samples)
        / len(samples)
        for when in ("before", "after")
        if when in samples[0]
    }


def wandb_logger(config: TrainConfig, run: Path) -> list[Any]:
    """A W&B logger where the configuration asks for one: online with an account, offline otherwise, never a prompt."""
    if config.logger.kind is not LoggerKind.wandb:
        return []
    from lightning.pytorch.loggers import WandbLogger
    from omegaconf import OmegaConf

    offline = os.environ.get("WANDB_MODE") == "offline" or not has_wandb_account()
    if offline:
        say(f"W&B: no account here, logging offline; later: wandb sync {run}/wandb/offline-run-*")
    resolved = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    swept = swept_settings()
    settings: dict[str, Any] = {
        "name": config.logger.name or describe_swept(swept) or run.name,
        "group": run.parent.name if swept else None,  # the jobs of a sweep stand together
        "job_type": "trial" if swept else "train",
        "tags": config.logger.tags,
        "config": resolved,
    }
    return [WandbLogger(project=config.logger.project, save_dir=run, offline=offline, **settings)]


def describe_swept(swept: Mapping[str, str]) -> str:
    """What tells a sweep's jobs apart, short: `r=32 lr=1e-4`."""
    return " ".join(f"{key.rpartition('.')[2]}={short_number(value)}" for key, value in swept.items())


def short_number(text: str) -> str:
    """A small number as people write it: 0.0001 as 1e-4. Any other text as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    if not 0 < abs(number) < 0.01:
        return text
    mantissa, exponent = f"{number:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def has_wandb_account() -> bool:
    """Whether W&B finds a key without asking: in the environment, or in the netrc file that `wandb login` writes."""
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].strip("/")
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def finish_wandb(*, failed: bool) -> None:
    """Ends this process's W&B run, marked failed where it did: else the next job would log into it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))


def save_config(run: Path) -> None:
    """RUN/config.yaml: what Hydra composed, interpolations resolved."""
    from omegaconf import OmegaConf

    composed = OmegaConf.load(run / ".hydra" / "config.yaml")
    OmegaConf.save(composed, run / "config.yaml", resolve=True)


def summarize(run: Path, results: dict[str, Any], style: Format) -> None:
    """The end of a run, to look at: two answers before and after, numbers, where everything lies."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from medreason.prompts import parse_answer

    console = Console(highlight=False)
    samples = json.loads((run / "samples.json").read_text())
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
    for label, name, shape in (("held-out loss", "val_loss", "{:.3f}"), ("held-out exact match", "accuracy", "{:.1%}")):
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
    command(train, "train")


if __name__ == "__main__":
    main()
