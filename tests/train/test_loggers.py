"""TensorBoard, MLflow and Trackio hold what metrics.csv holds, in a resumed run too: one small run for all of them."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest

from medreason.config import ConfigError, TrainConfig
from medreason.core.run_directory import metrics_logger, read_cells, read_metrics
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import Document
from medreason.models.checks import LOGGERS, check_logger
from medreason.train.finetuner import Finetuner
from medreason.train.loggers import outside_logger
from medreason.train.metrics import StepMetrics
from support import composed, run_train, tiny_run
from toy import OPTIM, TOKENS, Toy

Points = dict[str, list[tuple[int, float]]]  # step and value of each metric, in order
KINDS = [kind.value for kind in LOGGERS]


def configured(kind: str, *more: str) -> TrainConfig:
    return composed("experiments=quickstart", f"logger={kind}", *more)


def of_csv(run: Path) -> Points:
    found: Points = {}
    for row in read_metrics(run / "metrics.csv"):
        for name, value in row.items():
            if name != "step":
                found.setdefault(name, []).append((int(row["step"]), value))
    return found


def of_tensorboard(run: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("_hparams_")
    }


def of_mlflow(run: Path) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run}/mlflow/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "medreason"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == run.name
    assert found.data.params["lora/r"] == "16"
    points = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    return {name: [(one.step, one.value) for one in history] for name, history in points.items()}


def of_trackio(run: Path) -> Points:
    import json

    found: Points = {}
    with sqlite3.connect(run / "trackio" / "medreason.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        (settings,) = database.execute("select config from configs where run_name = ?", [run.name]).fetchall()
    assert {name for name, _, _ in rows} == {run.name} and json.loads(settings[0])["lora"]["r"] == 16
    for _, step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, []).append((step, value))
    return found


READ: dict[str, Callable[[Path], Points]] = {
    "tensorboard": of_tensorboard, "mlflow": of_mlflow, "trackio": of_trackio
}  # fmt: skip


def train(run: Path) -> None:
    """Four optimizer steps with two validations among them, and one after, into every logger at once."""
    loggers = [metrics_logger(run, None)]
    for kind in KINDS:
        loggers += outside_logger(configured(kind), run, {}, [])
    random = np.random.default_rng(3)
    documents = [Document(random.integers(1, TOKENS, 9, np.int32), 2) for _ in range(4)]
    loader, held_out = (PackedLoader(documents, 9, pad_token=0, seed=seed) for seed in (3, None))
    model = Toy()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, val_check_interval=2, num_sanity_val_steps=0, log_every_n_steps=0,
        logger=loggers, callbacks=[StepMetrics(model)], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=run,
    )  # fmt: skip
    finetuner = Finetuner(model, OPTIM, 4)
    trainer.validate(finetuner, held_out, verbose=False)
    trainer.fit(finetuner, loader, held_out)
    trainer.validate(finetuner, held_out, verbose=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in LOGGERS.values():
        pytest.importorskip(package)
    run = tmp_path_factory.mktemp("runs") / "a run, 病"
    run.mkdir()
    train(run)
    return run


def of_32_bits(points: Points) -> dict[str, set[tuple[int, float]]]:
    """Points as TensorBoard keeps them; each once, as MLflow keeps those of a millisecond."""
    return {name: {(step, float(np.float32(value))) for step, value in found} for name, found in points.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_logger_holds_what_metrics_csv_holds(kind: str, trained: Path) -> None:
    expected = of_csv(trained)
    assert len(expected["train/loss"]) == 4 and len(expected["val/loss"]) == 4
    assert of_32_bits(READ[kind](trained)) == of_32_bits(expected)


def test_a_resumed_run_begins_with_what_its_checkpoint_has_behind_it(trained: Path, tmp_path: Path) -> None:
    earlier = [row for row in read_cells(trained / "metrics.csv") if int(row["step"]) < 2]
    run = tmp_path / trained.name
    for kind in KINDS:  # what the run left that was stopped: more than its checkpoint has
        shutil.copytree(trained / kind, run / kind)
    metrics_file = metrics_logger(run, None)
    metrics_file.experiment.metrics = list(earlier)
    loggers = [metrics_file]
    for kind in KINDS:
        loggers += outside_logger(configured(kind), run, {}, metrics_file.experiment.metrics)
    for logger in loggers:
        for step in (2, 3):
            logger.log_metrics({"train/loss": 1 / step, "epoch": 0}, step)
        logger.finalize("success")
    expected = of_csv(run)
    assert [step for step, _ in expected["train/loss"]] == [0, 1, 2, 3]
    for kind in KINDS:
        assert of_32_bits(READ[kind](run)) == of_32_bits(expected)


def test_the_next_run_of_a_grid_in_the_same_process_has_files_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    for name in ("0", "1"):
        (logger,) = outside_logger(configured("trackio"), tmp_path / name, {"lora.r": name}, [])
        logger.log_metrics({"train/loss": 1.0}, 0)
        logger.finalize("success")
        with sqlite3.connect(tmp_path / name / "trackio" / "medreason.db") as database:
            assert database.execute("select distinct run_name from metrics").fetchall() == [(f"r={name}",)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_one_line_with_the_command_that_brings_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medreason.models.checks.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"^no {kind} here; pip install 'medreason\[loggers\]'$"):
        check_logger(configured(kind).logger)


def test_a_server_that_does_not_answer_and_a_name_that_is_none_are_refused_before_anything_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(ConfigError, match="does not answer") as refused:
        check_logger(configured("mlflow").logger)
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"logger.project must have 1 to 128 characters"):
        check_logger(configured("tensorboard", "logger.project=' '").logger)
    check_logger(configured("csv").logger)


def test_a_real_run_logs_to_its_own_folder(tmp_path: Path, rows_file: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    environment = {key: value for key, value in os.environ.items() if key != "TRACKIO_DIR"}
    said = run_train(*tiny_run(run, rows_file, "logger=tensorboard", "trainer.max_steps=3"), env=environment)
    assert said.returncode == 0, said.stderr[-3000:]
    assert f"TensorBoard: tensorboard --logdir {tmp_path}" in said.stdout
    assert of_32_bits(of_tensorboard(run)) == of_32_bits(of_csv(run))
