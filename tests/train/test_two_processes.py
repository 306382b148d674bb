import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medreason.core.run_directory import read_metrics, series
from support import run_train, tiny_run

LENGTH = [
    "trainer.max_epochs=2",
    "trainer.validate_every_steps=3",
    "lora.dropout=0.0",
    "lora.alpha=2r",
    "optim.lr=1e-3",
    "logger=wandb",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    """One process, two rows a step."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    said = run_train(*tiny_run(run, rows_file, *LENGTH, "lora.r=4", "trainer.rows_per_batch=2"))
    assert said.returncode == 0, said.stderr[-3000:]
    return run


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    """A multirun of two jobs, each of two processes that take one row a step."""
    folder = tmp_path_factory.mktemp("runs") / "several"
    command = tiny_run(folder / "unused", rows_file, *LENGTH, "trainer.devices=2", f"hydra.sweep.dir={folder}")
    said = run_train("--multirun", *command, "lora.r=4,2")
    assert said.returncode == 0, said.stderr[-3000:]
    return folder


def test_two_processes_train_as_one_does_on_the_same_rows(alone: Path, several: Path) -> None:
    rows = json.loads((alone / "run.json").read_text())["data"]["train_rows"]
    assert rows % 2 == 1, "an even number would not leave a process without a row"
    one, both = read_metrics(alone / "metrics.csv"), read_metrics(several / "0" / "metrics.csv")
    # the last row of an epoch has no partner; losses are those of the whole step, tokens those of both processes
    for metric in ("train/loss", "train/grad_norm", "val/loss", "train/tokens", "train/lr"):
        steps, values = series(one, metric)
        assert len(steps) > 2
        assert series(both, metric)[0] == steps
        assert series(both, metric)[1] == pytest.approx(values, rel=5e-4), metric
    expected, found = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (alone, several / "0"))
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-4), name


def test_jobs_of_several_processes_do_not_relaunch_the_multirun(several: Path) -> None:
    assert sorted(path.name for path in several.iterdir() if path.is_dir()) == ["0", "1"]
    records = [json.loads((several / job / "run.json").read_text()) for job in "01"]
    assert [record["status"] for record in records] == ["finished", "finished"]
    assert [record["swept"] for record in records] == [{"lora.r": "4"}, {"lora.r": "2"}]
    assert all(len(list((several / job / "wandb").glob("offline-run-*"))) == 1 for job in "01")


def test_processes_share_the_questions_and_keep_their_order(alone: Path, several: Path) -> None:
    one, both = (json.loads((run / "samples.json").read_text()) for run in (alone, several / "0"))
    assert [sample["question"] for sample in both] == [sample["question"] for sample in one]
    assert all("before" in sample and "after" in sample for sample in both)
    assert [sample["before"] for sample in both] == [sample["before"] for sample in one]


def test_the_fast_engine_trains_on_two_processes_as_on_one(tmp_path: Path, rows_file: Path) -> None:
    short = ["model.precision=fp8", "lora.dropout=0.0", "trainer.max_steps=3", "trainer.answer_questions=0"]
    for name, more in (("one", "trainer.rows_per_batch=2"), ("both", "trainer.devices=2")):
        said = run_train(*tiny_run(tmp_path / name, rows_file, *short, more))
        assert said.returncode == 0, said.stderr[-3000:]
    one, both = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "both"))
    for metric in ("train/loss", "train/grad_norm", "val/loss"):
        assert series(both, metric)[1] == pytest.approx(series(one, metric)[1], rel=5e-4), metric
