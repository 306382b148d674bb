"""python -m medreason.train: configuration -> a run directory with a fine-tuned adapter in it.

What is cheap and can fail comes first: configuration, hardware, rows. Then Unsloth's import, tokens, the model.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from medreason.config import LoggerKind, RunFailed, TrainConfig
from medreason.core.cli import command, swept_settings
from medreason.core.machines import (
    BEAT_SECONDS,
    Presence,
    end_here,
    ended_elsewhere,
    ended_here,
    forget,
    gone,
    log_name,
    lost_connection,
    one_of_several,
    take_place,
)
from medreason.core.overrides import command_line, given_overrides, override
from medreason.core.processes import alone, carry_out, describe_exit, run_command
from medreason.core.progress import describe_corpus, first_process, quieten, say
from medreason.core.recorded import finite, mapping
from medreason.core.resume import nothing_left, repeated
from medreason.core.run_directory import (
    check_resumed,
    nearby,
    provenance,
    read_json,
    repeatable,
    resolve_checkpoint,
    resumed_at,
    write_json,
    write_settings,
)
from medreason.core.run_log import child_output, kept_log, told_traceback
from medreason.core.what_next import after_run
from medreason.data.corpus import read_split
from medreason.data.sources import needs_hub
from medreason.export.model_card import write_cards
from medreason.models.checks import check_logger, check_run, lightning_precision
from medreason.models.kept_base import is_kept
from medreason.report.wandb import agent_parameters, check_wandb, finish_wandb
from medreason.sweep import sweepers
from medreason.train.prepare import prepared, settled, trained_tokens
from medreason.train.summary import summarize

if TYPE_CHECKING:
    from medreason.data.corpus import Split
    from medreason.data.datamodule import MedicalReasoningData


INTERRUPTED = 130  # exit code of a run that was asked to stop, as a shell has it for Ctrl-C


def train(config: TrainConfig) -> None:
    hydra = HydraConfig.get()
    run = Path(hydra.runtime.output_dir)
    given = hydra.mode is RunMode.MULTIRUN or any(one.startswith("hydra.run.dir=") for one in hydra.overrides.hydra)
    take_place(config.trainer, given_overrides(), given)
    with kept_log(run / log_name()):
        if goes_on(config) and (line := nothing_left(config, run)):
            say(line)
            return
        let_segments_grow()
        with alone(run):
            train_alone(config, run)


def goes_on(config: TrainConfig) -> bool:
    """Whether a run that lies in the folder already is gone on with.

    On several machines without being asked: a scheduler starts the same command again.
    """
    return config.trainer.nodes > 1 or (config.resume is not None and not one_of_several())


def let_segments_grow() -> None:
    """Asks torch, before anybody imports it, to hold a GPU's memory in segments that grow.

    In blocks of fixed sizes a run that recomputes strands a gibibyte and more between them.
    """
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def train_alone(config: TrainConfig, run: Path) -> None:
    """Trains in a directory that no other process trains in."""
    if child_output() is not None and not one_of_several():  # somebody may be looking
        say(f"log: {nearby(run)}/train.log")
    check_run(config, needs_hub(config.data))
    if config.logger.kind is LoggerKind.wandb:
        check_wandb(config.logger)
    check_logger(config.logger)
    resumed = resolve_checkpoint(config.ckpt, run) or earlier_checkpoint(config, run)
    if resumed is not None:
        check_resumed(config, resumed)
    split = read_split(config.data, say)
    read, *more = describe_corpus(split.corpus.report, split.left_out)
    for line in (f"{len(split.corpus):,} examples: {read}", *more):
        say(line)
    if config.trainer.world_size > 1 and not one_of_several():
        # a mistake is told once, and here; the processes find the rows made
        prepared(config, split, resumed, lambda line: None)
        train_on_several(config, run, resumed)
    else:
        train_here(config, run, resumed, split)


def earlier_checkpoint(config: TrainConfig, run: Path) -> Path | None:
    """Where the same command ended before, of a run on several machines."""
    last = run / "checkpoints" / "last.ckpt"
    return resolve_checkpoint(str(last), run) if config.trainer.nodes > 1 and last.is_file() else None


def overrides_of(config: TrainConfig, run: Path) -> list[str]:
    """The overrides that train this run again, from its beginning."""
    given = list(HydraConfig.get().overrides.task)
    return repeatable(given if config.resume is None else repeated(given, run))


def train_on_several(config: TrainConfig, run: Path, resumed: Path | None) -> None:
    """Trains with a process for each device of this machine. Raises RunFailed with what they put on record."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    earlier = read_json(run / "run.json") if resumed is not None and resumed.is_relative_to(run) else {}
    swept = swept_settings() or mapping(earlier.get("swept"))
    nodes, devices = config.trainer.nodes, config.trainer.devices
    if first_process():
        write_json(
            run / "run.json",
            earlier | {"status": "starting", "swept": swept, "overrides": overrides_of(config, run)},
        )
    say(f"starting {devices} processes" + (f" on each of {nodes} machines" if nodes > 1 else ""))
    log = run / log_name()
    behind = log.stat().st_size if log.is_file() else 0
    forget(run)
    code = carry_out(run_command(overrides, run, nodes, devices))
    if code == 0:
        return
    status = str(read_json(run / "run.json").get("status")) if first_process() else ended_here(run)
    if nodes > 1 and status in ("starting", "running"):
        raise RunFailed(f"{describe_exit(code)}, {gone(None)}; see {log}")
    if not status.startswith(("failed: RunFailed", "failed: ConfigError")):
        print(*told_traceback(log, behind), sep="\n", file=sys.stderr)  # their errors go into the log
    if status == "interrupted":
        raise SystemExit(INTERRUPTED)
    raise RunFailed(status.removeprefix("failed: ") if status.startswith("failed") else describe_exit(code))


def train_here(config: TrainConfig, run: Path, resumed: Path | None, split: "Split") -> None:
    """Trains in this process, alone or as one of several. Whatever happens, run.json says how it ended."""
    from medreason.models.load import import_unsloth

    take_own_gpu()
    if not config.model.fast:
        if not is_kept():
            say("importing Unsloth (10 to 30 seconds)")
        import_unsloth()
    from medreason.sweep.pruning import own_checkpoint
    from medreason.train.fit import fit

    resumed = resumed or own_checkpoint(run)
    tokenizer, data = prepared(config, split, resumed, say)
    record, seconds_before = begun(config, run, resumed, split, data)
    if first_process():
        save_config(config, run)
        write_json(run / "data.json", data.corpus_report())
        write_json(run / "run.json", record)
    import lightning as L

    quieten()
    free_memory()
    L.seed_everything(config.seed, verbose=False)
    with ExitStack() as around:
        if config.trainer.nodes > 1 and os.environ["LOCAL_RANK"] == "0":  # one process speaks for its machine
            around.enter_context(Presence(run, config.trainer.nodes, lambda line: end_alone(run, record, line)))
        around.enter_context(end_on_record(run, record, config.monitor, seconds_before))
        if config.trainer.nodes > 1:
            around.enter_context(loss_told(run, config.trainer.nodes))
        model = loaded(config, data, record)
        fit(config, run, resumed, model, tokenizer, data, record)
        record["status"] = "finished"
    if record["status"] == "finished" and first_process():
        write_cards(run)
        summarize(run, record["results"], config.data.format)
        if not record["swept"]:  # one of many is gone on with by the sweep's end
            print("next:", *after_run(run, config.data.source.value, config.data.path), sep="\n  ")


def begun(
    config: TrainConfig, run: Path, resumed: Path | None, split: "Split", data: "MedicalReasoningData"
) -> tuple[dict[str, Any], float]:
    """What run.json holds when training begins, and for how many seconds a run that goes on has trained before."""
    earlier = read_json(run / "run.json")
    given = earlier if earlier.get("status") == "starting" else {}  # by the process that started this one for a job
    goes_on = resumed is not None and resumed.is_relative_to(run)
    before = earlier if goes_on else {}
    rows = {"source": split.corpus.source, "sha256": split.fingerprint, **data.report(), "left_out": split.left_out}
    swept = given.get("swept") or swept_settings() or agent_parameters() or mapping(before.get("swept"))
    record = {
        "status": "running",
        "started": before.get("started") if goes_on else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **provenance(),
        "overrides": given.get("overrides") or overrides_of(config, run),
        "swept": swept,
        "resumed_from": str(resumed) if resumed else None,
        "resumed_at": resumed_at(resumed),
        "wandb_id": before.get("wandb_id"),
        "data": rows,
        "results": mapping(before.get("results")),
    }
    return record, finite(before.get("seconds")) or 0.0


def loaded(config: TrainConfig, data: "MedicalReasoningData", record: dict[str, Any]) -> Any:
    """The model with LoRA, by the plan of memory, which goes into the record."""
    from medreason.models.load import load_model, plan_memory, trained_dtype
    from medreason.models.memory import GIB

    plan = plan_memory(config, trained_tokens(config, data))
    recompute = settled(config.trainer.recompute, plan)
    record["memory"] = plan and {
        "expected_gib": round(plan.total / GIB, 2), "copies": plan.copies, "spared_layers": plan.spared,
    }  # fmt: skip
    record["recompute"] = recompute.value
    record["precision"] = lightning_precision(config.trainer)
    say(f"loading {config.model.path} in {config.model.precision.value}")
    return load_model(
        config.model,
        config.lora,
        row_tokens=config.data.row_tokens * config.trainer.rows_per_batch,
        recompute=recompute,
        seed=config.seed,
        copies=1 if plan is None else plan.copies,
        spared=0 if plan is None else plan.spared,
        dtype=trained_dtype(record["precision"]),
    )


@contextmanager
def loss_told(run: Path, nodes: int) -> Iterator[None]:
    """Makes RunFailed of what a process sees when another one, of this machine or another, is gone."""
    try:
        yield
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        time.sleep(BEAT_SECONDS)  # the other one may be about to say why it ended
        raise RunFailed(gone(ended_elsewhere(run, nodes))) from error


def end_alone(run: Path, record: dict[str, Any], line: str) -> NoReturn:
    """Ends this process, which waits for one that is gone, whatever it does at the moment."""
    line = gone(line)
    if first_process():
        record["status"] = f"failed: RunFailed: {line}"
        with suppress(OSError):
            write_json(run / "run.json", record)
    end_here(run, f"RunFailed: {line}")
    print(f"medreason.train: {line}", file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def end_on_record(run: Path, record: dict[str, Any], monitor: str, seconds_before: float) -> Iterator[None]:
    """Has run.json say how the training in this block ends, and turns what ends it into what a caller can use.

    A pruned run, and one that W&B's agent stops, end quietly; one that was asked to stop raises SystemExit; running out
    of memory is RunFailed with what to lower; anything else is raised as it came.
    """
    from medreason.models.memory import OUT_OF_MEMORY, out_of_memory
    from medreason.sweep.pruning import Pruned
    from medreason.train.checkpoints import Stopped

    began = time.monotonic()
    try:
        yield
    except Pruned:
        record["status"] = "pruned"
        say(f"pruned: other trials of the sweep had a lower {monitor} by now")
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
                f"{OUT_OF_MEMORY} ({str(error).splitlines()[0][:200]}); lower data.row_tokens, trainer.rows_per_batch "
                "or lora.r, or set trainer.recompute=unsloth"
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


def save_config(config: TrainConfig, run: Path) -> None:
    """RUN/config.yaml: every setting as the run has it."""
    write_settings(config, run / "config.yaml")


def main() -> None:
    command(train, "train", TrainConfig, plugins=sweepers.register)
