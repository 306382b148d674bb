"""A run in W&B: online with an account, offline otherwise, never a question asked."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medreason.config import Format, LoggerKind, TrainConfig
from medreason.progress import describe_swept, say
from medreason.prompts import parse_answer
from medreason.run_directory import read_json


def wandb_logger(config: TrainConfig, run: Path, swept: Mapping[str, str], identity: str | None) -> list[Any]:
    """A W&B logger where the configuration asks for one; `identity` is that of the W&B run which a resumed one goes on.

    The jobs of a sweep stand in one group, named by what tells them apart.
    """
    if config.logger.kind is not LoggerKind.wandb:
        return []
    from lightning.pytorch.loggers import WandbLogger
    from omegaconf import OmegaConf

    offline = os.environ.get("WANDB_MODE") == "offline" or not has_wandb_account()
    if offline:
        say(f"W&B: no account here, logging offline; later: wandb sync {run}/wandb/offline-run-*")
    # in an agent's process W&B itself says which run this is, and drops our id
    settings: dict[str, Any] = {
        "name": config.logger.name or describe_swept(swept) or run.name,
        "group": run.parent.name if swept else None,
        "job_type": "trial" if swept else "train",
        "tags": config.logger.tags,
        "config": OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True),
    }
    if identity:
        settings |= {"id": identity, "resume": "allow"}
    return [WandbLogger(project=config.logger.project, save_dir=run, offline=offline, **settings)]


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

    `evaluation/NAME/BENCHMARK/accuracy`, its interval's `low` and `high`, and `loss`, where a benchmark has them.
    """
    identity = read_json(run / "run.json").get("wandb_id")
    if config.logger.kind is not LoggerKind.wandb or not identity:
        return
    import wandb

    offline = os.environ.get("WANDB_MODE") == "offline" or not has_wandb_account()
    logged: dict[str, float] = {}
    for task, score in scores.items():
        if score.get("accuracy") is not None:
            low, high = score["interval"]
            logged |= {f"{task}/accuracy": score["accuracy"], f"{task}/low": low, f"{task}/high": high}
        if "loss" in score:
            logged[f"{task}/loss"] = score["loss"]["mean"]
    resumed: Any = wandb.init(
        project=config.logger.project, dir=run, id=identity, resume="allow", mode="offline" if offline else "online"
    )
    resumed.summary.update({f"evaluation/{name}/{key}": value for key, value in logged.items()})
    resumed.finish()


def agent_parameters() -> dict[str, str]:
    """What an agent of W&B's own sweeps gave this process: settings and values; nothing without an agent."""
    given = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not given:
        return {}
    from omegaconf import OmegaConf

    entries = OmegaConf.to_container(OmegaConf.load(given))
    assert isinstance(entries, dict)
    return {str(key): str(entry["value"]) for key, entry in entries.items() if isinstance(entry, dict)}


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
