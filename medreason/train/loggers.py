"""Metrics for TensorBoard, MLflow and Trackio, beside metrics.csv: offline, without an account, in the run's directory.

    logger=tensorboard   RUN/tensorboard/
    logger=mlflow        RUN/mlflow/         or a server of yours: MLFLOW_TRACKING_URI
    logger=trackio       RUN/trackio/        and a Space of yours: TRACKIO_SPACE_ID

Each holds what metrics.csv holds. A run that is resumed begins these anew, as it does metrics.csv, with what its
checkpoint has behind it: what came after that is trained again. W&B has a module of its own (report/wandb.py).
"""

import contextlib
import io
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from medreason.config import LoggerKind, TrainConfig
from medreason.core.progress import describe_swept, say
from medreason.core.run_directory import as_number, settings_of


def outside_logger(
    config: TrainConfig, run: Path, swept: Mapping[str, str], earlier: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Lightning's logger of the kind that the configuration asks for, holding `earlier`, rows of a metrics.csv."""
    kind, settings = config.logger.kind, config.logger
    if kind in (LoggerKind.csv, LoggerKind.wandb):
        return []
    folder = run / kind.value
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = settings.name or describe_swept(swept) or run.name
    logger: Any
    if kind is LoggerKind.tensorboard:
        from lightning.pytorch.loggers import TensorBoardLogger

        logger = TensorBoardLogger(run, name=kind.value, version="", default_hp_metric=False)
        say(f"TensorBoard: tensorboard --logdir {shlex.quote(str(run.parent))}")
    elif kind is LoggerKind.mlflow:
        logger = mlflow_logger(folder, settings.project, name, settings.tags)
    else:
        logger = TrackioLogger(folder, settings.project, name, settings_of(config))
        say(f"Trackio: TRACKIO_DIR={shlex.quote(str(folder))} trackio show --project {shlex.quote(settings.project)}")
    logger.log_hyperparams(settings_of(config))
    for row in earlier:
        cells = {name: as_number(str(cell)) for name, cell in row.items() if name != "step"}
        numbers = {name: number for name, number in cells.items() if number is not None}
        logger.log_metrics(numbers, step=int(row["step"]))
    return [logger]


def mlflow_logger(folder: Path, project: str, name: str, tags: Sequence[str]) -> Any:
    """A run in the experiment `project` of the server in MLFLOW_TRACKING_URI, without one of a database in `folder`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports usage home otherwise
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):  # a line for every table that is made
        logging.getLogger(chatty).setLevel(logging.WARNING)
    server = os.environ.get("MLFLOW_TRACKING_URI")
    store = server or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    client = MlflowClient(store)
    if client.get_experiment_by_name(project) is None:
        own = None if server else (folder / "artifacts").resolve().as_uri()
        client.create_experiment(project, artifact_location=own)
    logger = MLFlowLogger(project, name, tracking_uri=store, tags=dict.fromkeys(tags, ""), synchronous=True)
    assert logger.run_id  # asked for, it begins the run, and names its store in the environment
    if not server:
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # else the next run of a grid would take it for a server of ours
        say(f"MLflow: mlflow ui --backend-store-uri {shlex.quote(store)}")
    return logger


class TrackioLogger(Logger):
    """Trackio, whose interface is W&B's, for Lightning."""

    def __init__(self, folder: Path, project: str, name: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self.folder, self.project, self.settings = folder, project, settings
        self._name = name
        self.trackio: Any = None  # while a run of its is under way

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Trackio is told them when the run begins."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.trackio is None:
            self.trackio = trackio_in(self.folder)
            with contextlib.redirect_stdout(io.StringIO()):  # six lines of its own
                self.trackio.init(
                    project=self.project, name=self._name, config=self.settings, resume="allow", embed=False,
                    auto_log_gpu=False, auto_log_cpu=False,
                )  # fmt: skip
        self.trackio.log(dict(metrics), step)

    def finalize(self, status: str) -> None:
        """Writes what is left; called at the end of a validation too, after which the run goes on."""
        if self.trackio is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                self.trackio.finish()
            self.trackio = None


def trackio_in(folder: Path) -> Any:
    """Trackio keeping its files in `folder`. It reads where when it is imported, so the next run of a grid, in this
    process too, imports it anew.
    """
    if os.environ.get("TRACKIO_DIR") != str(folder):
        os.environ["TRACKIO_DIR"] = str(folder)
        for module in [module for module in sys.modules if module.partition(".")[0] == "trackio"]:
            del sys.modules[module]
    import trackio

    return trackio
