"""python -m medreason.dashboard: lays out a W&B workspace for the project that runs with logger=wandb log to.

Takes every setting of `python -m medreason.train`; logger.project counts. Each call saves a view of its own.
"""

import importlib.util
import os
from typing import TYPE_CHECKING

from medreason.config import ConfigError, TrainConfig
from medreason.core.cli import command
from medreason.report.wandb import check_wandb_names, has_wandb_account
from medreason.sweep import sweepers

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

STEP = "trainer/global_step"  # Lightning's count of optimizer steps; W&B's own Step counts calls of its log
LEARNING = ("train/loss", "val/loss", "train/lr", "train/grad_norm")
SPEED = ("train/tokens_per_second", "train/mfu", "train/memory_gib")
GOAL = "val/loss"
SEARCHED = ("lora.r", "lora.alpha", "optim.lr")  # settings that sweeps search
SAMPLES = "samples"  # the table of questions and answers that a run logs


def lay_out(config: TrainConfig) -> None:
    """Saves the workspace and prints its address. Raises ConfigError where the package or the account is missing."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("wandb-workspaces is not installed; pip install 'medreason[dashboard]'")
    check_wandb_names(config.logger)
    if not has_wandb_account():
        raise ConfigError("no W&B account here; run `wandb login`, or set WANDB_API_KEY")
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # no wandb.Error, though the API raises it

    try:
        workspace(entity_of_account(), config.logger.project).save()  # prints the address
    except (wandb.Error, WandbApiFailedError) as error:
        raise ConfigError(f"W&B does not take the workspace: {error}") from error


def entity_of_account() -> str:
    """WANDB_ENTITY, or the account's default. Raises ConfigError for an account without one."""
    import wandb

    entity = os.environ.get("WANDB_ENTITY") or wandb.Api(timeout=20).default_entity
    if not entity:
        raise ConfigError("the W&B account has no default entity; set WANDB_ENTITY")
    return entity


def workspace(entity: str, project: str) -> "ws.Workspace":
    """The workspace, not saved yet: samples, curves, and what a sweep's settings did to the validation loss.

    Runs are sorted by validation loss and not grouped: grouped, a sweep would be one averaged line in the panels that
    compare its runs. A panel of its own compares groups.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    goal = wr.SummaryMetric(GOAL)
    axes = [wr.ParallelCoordinatesPlotColumn(wr.Config(name), name, log=name == "optim.lr") for name in SEARCHED]
    lr = wr.Config("optim.lr")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{project}: curves, sweeps, samples",
        sections=[
            ws.Section(name="Learning", is_open=True, panels=[curve(name) for name in LEARNING]),
            ws.Section(
                name="Sweeps",
                is_open=True,
                panels=[
                    wr.ParallelCoordinatesPlot(
                        title=f"{', '.join(SEARCHED)} and {GOAL}",
                        columns=[*axes, wr.ParallelCoordinatesPlotColumn(goal, GOAL)],
                    ),
                    wr.ParameterImportancePlot(with_respect_to=GOAL),
                    wr.ScatterPlot(title=f"optim.lr and {GOAL}", x=lr, y=goal, log_x=True),
                    curve(GOAL, grouped=True),
                ],
            ),
            ws.Section(
                name="Samples",
                is_open=True,
                panels=[wr.WeavePanelSummaryTable(table_name=SAMPLES)],
                layout_settings=ws.SectionLayoutSettings(columns=1, rows=1),
            ),
            ws.Section(name="Speed", is_open=True, panels=[curve(name) for name in SPEED]),
        ],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            order=[ws.Ordering(ws.Summary(GOAL), ascending=True)],
            pinned_columns=["run:displayName", f"summary:{GOAL}", "run:group", *map(column, SEARCHED)],
        ),
    )


def curve(metric: str, *, grouped: bool = False) -> "wr.LinePlot":
    """A metric over optimizer steps: one line a run, or one a group, with the range of its runs."""
    import wandb_workspaces.reports.v2 as wr

    if not grouped:
        return wr.LinePlot(title=metric, x=STEP, y=[metric])
    return wr.LinePlot(
        title=f"{metric}, mean and range of each group",
        x=STEP,
        y=[metric],
        groupby="Group",
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def column(setting: str) -> str:
    """W&B's name of a setting's column: the dictionary of a group stands under `value`."""
    group, _, name = setting.partition(".")
    return f"config:{group}.value.{name}"


def main() -> None:
    command(lay_out, "dashboard", TrainConfig, plugins=sweepers.register)


if __name__ == "__main__":
    main()
