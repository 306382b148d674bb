"""A run in W&B: online with an account, offline otherwise, never a question asked."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from medreason.config import ConfigError, Format, LoggerConfig, LoggerKind, TrainConfig, check
from medreason.core.overrides import agents_settings, spelled
from medreason.core.progress import describe_swept, say
from medreason.core.run_directory import read_json, settings_of
from medreason.models.prompts import parse_answer

# W&B's limits: the client checks projects and tags, the server the rest
LONGEST_NAME, LONGEST_TAG = 128, 64  # characters


def wandb_logger(config: TrainConfig, run: Path, swept: Mapping[str, str], identity: str | None) -> list[Any]:
    """A W&B logger where the configuration asks for one; `identity` is that of the W&B run which a resumed one goes on.

    The jobs of a sweep stand in one group, named by what tells them apart.
    """
    if config.logger.kind is not LoggerKind.wandb:
        return []
    mode = wandb_mode()
    if mode == "disabled":
        say("W&B: disabled, by WANDB_MODE or `wandb disabled`; metrics.csv has every number")
        return []
    from lightning.pytorch.loggers import WandbLogger

    if offline := mode != "online":
        why = "no account here, logging offline" if mode == "no account" else "logging offline, as it is told to"
        say(f"W&B: {why}; later: wandb sync {shlex.quote(str(run))}/wandb/offline-run-*")
    # in an agent's process W&B itself says which run this is, and drops our id
    settings: dict[str, Any] = {
        "name": config.logger.name or (describe_swept(swept) or run.name)[:LONGEST_NAME],
        "group": run.parent.name[:LONGEST_NAME] if swept else None,
        "job_type": "trial" if swept else "train",
        "tags": config.logger.tags,
        "mode": "offline" if offline else "online",  # said to wandb itself: it has read its environment already
        "config": settings_of(config),
    }
    if identity:
        settings |= {"id": identity, "resume": "allow"}
    logger = WandbLogger(project=config.logger.project, save_dir=run, offline=offline, **settings)
    if not offline:
        say(f"W&B: {logger.experiment.url}")  # its run begins here
    return [logger]


def log_samples(samples: Sequence[Mapping[str, Any]], style: Format) -> None:
    """Puts sample answers into the W&B run of this process, if there is one, as the table `samples`.

    Its column `when` is before, a training step, or after.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None or not samples:
        return
    table = wandb.Table(["question", "expected", "when", "reasoning", "answer"])
    for sample in samples:
        texts = {"before": sample.get("before"), **sample.get("during", {}), "after": sample.get("after")}
        for when, text in texts.items():
            if text is not None:
                written = parse_answer(text, style)
                table.add_data(sample["question"], sample["answer"], when, written.reasoning, written.answer)
    wandb.run.log({"samples": table})


def log_scores(config: TrainConfig, run: Path, name: str, scores: Mapping[str, Any]) -> None:
    """Puts an evaluation's scores into the summary of a run's own W&B run, where it has one.

    `evaluation/NAME/BENCHMARK/accuracy`, its interval's `low` and `high`, `loss` and `judged`, where there are such.
    """
    identity = read_json(run / "run.json").get("wandb_id")
    if config.logger.kind is not LoggerKind.wandb or not identity:
        return
    import wandb

    mode = wandb_mode()
    if mode == "disabled":
        return
    logged: dict[str, float] = {}
    for task, score in scores.items():
        if score.get("accuracy") is not None:
            low, high = score["interval"]
            logged |= {f"{task}/accuracy": score["accuracy"], f"{task}/low": low, f"{task}/high": high}
        if "loss" in score:
            logged[f"{task}/loss"] = score["loss"]["mean"]
        if score.get("judged", {}).get("mean") is not None:
            logged[f"{task}/judged"] = score["judged"]["mean"]
    how: Literal["online", "offline"] = "online" if mode == "online" else "offline"
    resumed: Any = wandb.init(project=config.logger.project, dir=run, id=identity, resume="allow", mode=how)
    resumed.summary.update({f"evaluation/{name}/{key}": value for key, value in logged.items()})
    resumed.finish()


def agent_parameters() -> dict[str, str]:
    """The same, as people are told it."""
    return {name: value if isinstance(value, str) else spelled(value) for name, value in agents_settings().items()}


def check_wandb(logger: LoggerConfig) -> None:
    """Raises ConfigError for what W&B would refuse later: a name of its own, or a variable of the environment."""
    check_wandb_names(logger)
    wandb_mode()


def check_wandb_names(logger: LoggerConfig) -> None:
    """Raises ConfigError for a project, a run's name or a tag that W&B does not take."""
    project = logger.project
    check(0 < len(project.strip()) <= LONGEST_NAME, "logger.project", f"have 1 to {LONGEST_NAME} characters", project)
    wrong = [one for one in project if one in "/\\#?%:" or not one.isprintable()]
    check(not wrong, "logger.project", r"be without / \ # ? % : and line breaks", project)
    fits = logger.name is None or 0 < len(logger.name.strip()) <= LONGEST_NAME
    check(fits, "logger.name", f"have 1 to {LONGEST_NAME} characters", logger.name)
    for tag in logger.tags:
        fits = len(tag.strip()) > 0 and len(tag) <= LONGEST_TAG
        check(fits, "logger.tags", f"have 1 to {LONGEST_TAG} characters each", tag)


def wandb_mode() -> str:
    """online, offline or disabled, as WANDB_MODE or W&B's own settings have it; `no account`: offline for want of one.

    Raises ConfigError for a variable of the environment that W&B does not understand.
    """
    import wandb

    try:
        mode = wandb.setup().settings.mode
        if mode in ("offline", "dryrun", "disabled"):
            return "disabled" if mode == "disabled" else "offline"
        return "online" if has_wandb_account() else "no account"
    except (ValueError, OSError, wandb.Error) as error:  # pydantic's are ValueErrors
        modes = ("online", "offline", "disabled", "shared", "dryrun", "run")
        if os.environ.get("WANDB_MODE", "online") not in modes:
            why = f"WANDB_MODE must be online, offline or disabled, got {os.environ['WANDB_MODE']!r}"
        else:
            why = f"W&B does not take its settings: {' '.join(str(error).split())[:300]}"
        raise ConfigError(why) from error


def has_wandb_account() -> bool:
    """Whether W&B finds a key without asking: in the environment, or in the netrc file that `wandb login` writes."""
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    hosts = [urlsplit(wandb.Settings().base_url).netloc]
    if "WANDB_BASE_URL" not in os.environ:
        hosts.append("api.wandb.ai")  # what earlier releases of wandb wrote there
    try:
        found = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(found.authenticators(host) for host in hosts)


def finish_wandb(*, failed: bool) -> None:
    """Ends this process's W&B run, marked failed where it did: else the next job would log into it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
