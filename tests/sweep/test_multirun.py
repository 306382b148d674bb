import csv
import json
from pathlib import Path

import pytest

from medreason.core.progress import describe_swept
from support import run_train, tiny_run

SHORT = ["trainer.max_steps=3", "trainer.answer_questions=0", "logger=wandb"]


def losses(run: Path) -> list[str]:
    with (run / "metrics.csv").open(newline="") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    """Four jobs in one process."""
    folder = tmp_path_factory.mktemp("grid")
    command = tiny_run(folder / "unused", rows_file, *SHORT, f"hydra.sweep.dir={folder}/grid")
    said = run_train("--multirun", *command, "lora.r=2,4", "optim.lr=1e-2,1e-3")
    assert said.returncode == 0, said.stderr[-3000:]
    (folder / "said.txt").write_text(said.stdout)
    return folder / "grid"


def test_a_grid_runs_every_job_and_each_says_what_it_was_given(grid: Path) -> None:
    records = [json.loads((grid / str(job) / "run.json").read_text()) for job in range(4)]
    assert [record["swept"] for record in records] == [
        {"optim.lr": lr, "lora.r": r} for lr in ("0.01", "0.001") for r in ("2", "4")
    ]
    assert {record["status"] for record in records} == {"finished"}
    assert all(list((grid / str(job)).glob("wandb/offline-run-*/run-*.wandb")) for job in range(4))
    assert len({tuple(losses(grid / str(job))) for job in range(4)}) == 4


def test_a_grid_ends_with_its_ranking_and_the_command_of_its_report(grid: Path) -> None:
    said = (grid.parent / "said.txt").read_text()
    assert "next:" not in said, "a job of many is gone on with by the grid's end"
    *_, counted, first, second, third, fourth, report = said.splitlines()
    assert counted == "4 finished; the lowest val/loss first, its trial's folder last:"
    losses = [json.loads((grid / str(job) / "run.json").read_text())["results"]["monitored"] for job in range(4)]
    order = sorted(range(4), key=losses.__getitem__)
    for place, (line, job) in enumerate(zip((first, second, third, fourth), order, strict=True), 1):
        assert line.startswith(f"{place:3}. {losses[job]:.4f}  ") and line.endswith(f"({job})")
        assert f"lora.r={(2, 4)[job % 2]}" in line and "optim.lr=" in line
    assert report.startswith("report: ") and report.endswith(f" {grid}")


def test_what_tells_jobs_apart_is_said_as_people_write_it() -> None:
    swept = {"lora.r": "32", "optim.lr": "0.0001", "lora.alpha": "16.0", "model": "tiny", "optim.weight_decay": "0.0"}
    assert describe_swept(swept) == "r=32 lr=1e-4 alpha=16.0 model=tiny weight_decay=0.0"
    assert describe_swept({"optim.lr": "2.5e-05"}) == "lr=2.5e-5"


def test_a_job_of_a_grid_is_not_touched_by_those_before_it(grid: Path, rows_file: Path, tmp_path: Path) -> None:
    said = run_train(*tiny_run(tmp_path / "alone", rows_file, *SHORT, "lora.r=4", "optim.lr=1e-3"))
    assert said.returncode == 0, said.stderr[-3000:]
    assert losses(tmp_path / "alone") == losses(grid / "3")
    *_, next_, evaluate, chat, export, report = said.stdout.splitlines()
    assert next_ == "next:" and all(f"run={tmp_path}/alone" in line for line in (evaluate, chat, export))
    assert report.endswith(f"report {tmp_path}/alone")
    assert "trained with medreason" in (tmp_path / "alone" / "adapter" / "README.md").read_text()
    assert json.loads((tmp_path / "alone" / "run.json").read_text())["swept"] == {}
