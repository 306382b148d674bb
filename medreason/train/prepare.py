"""Rows and tokenizer of a run, checked against what it is to do with them, before a model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medreason.config import ConfigError, Recompute, TrainConfig
from medreason.core.progress import describe_data
from medreason.core.run_directory import checkpoint_position, checkpoint_step, run_config
from medreason.models.checks import check_steps, describe_few

if TYPE_CHECKING:
    from medreason.data.corpus import Split
    from medreason.data.datamodule import MedicalReasoningData
    from medreason.models.memory import Need


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
            loader.check(checkpoint_position(resumed), trainer.world_size)
        except ResumeMismatch as error:
            raise ConfigError(f"ckpt={resumed}: {error}; resume with the settings it was trained with") from error
    total_steps = data.total_steps(trainer.max_epochs, trainer.max_steps, trainer.world_size)
    behind = checkpoint_step(resumed) if resumed is not None else 0
    for line in planned_otherwise(config, data, total_steps, resumed, behind):
        say(line)
    for line in check_steps(config, len(loader.rows), total_steps, resumed, behind):
        say(line)
    if resumed is None:
        held_out = len(data.loaders["validation"].documents)
        for line in describe_few(config, len(loader.rows), total_steps, int(loader.lengths.max()), held_out):
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

    planned = data.total_steps(trainer.max_epochs, trainer.max_steps, trainer.world_size)
    return [] if planned == total_steps else [describe_course(config.optim, behind, planned, total_steps)]


def trained_tokens(config: TrainConfig, data: Any) -> int:
    """Tokens of all rows that the run will train on, padding included."""
    loader, trainer = data.loaders["train"], config.trainer
    rows = data.total_steps(trainer.max_epochs, trainer.max_steps, trainer.world_size) * trainer.accumulate
    return int(rows * trainer.rows_per_batch * trainer.world_size * loader.slots() / len(loader.rows))


def settled(asked: Recompute, plan: "Need | None") -> Recompute:
    """What is recomputed: as asked for, as the plan has it, or nothing."""
    if asked is not Recompute.auto:
        return asked
    return Recompute.none if plan is None else plan.recompute
