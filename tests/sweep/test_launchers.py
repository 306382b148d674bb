"""Sweeps through Hydra's launchers for SLURM (its local executor) and Ray; joblib's is in test_sweeper.py."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from medreason.core.run_directory import read_metrics
from support import ROOT, python, run_train, tiny_run


def sweep(folder: Path, rows: Path, *more: str) -> list[str]:
    single = [one for one in tiny_run(folder, rows) if not one.startswith("hydra.run.dir")]
    return ["sweeps=rank_alpha_lr", *single, f"hydra.sweep.dir={folder}", "lora.alpha=4", *more]


def test_a_job_that_its_scheduler_takes_away_goes_on_when_it_is_started_again(tmp_path: Path, rows_file: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder = tmp_path / "sweep"
    command = sweep(
        folder, rows_file, "hydra/launcher=submitit_local", "hydra.sweeper.trials=1", "lora.r=choice(2,4)",
        "trainer.max_steps=200", "trainer.max_epochs=90", "trainer.validate_every_steps=40",
        "trainer.checkpoint_every_steps=190", "trainer.answer_questions=0",
    )  # fmt: skip
    process = subprocess.Popen(
        [python(), "-m", "medreason.train", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    metrics, deadline = folder / "0" / "metrics.csv", time.monotonic() + 120
    while not (metrics.is_file() and ",50," in metrics.read_text()):
        assert time.monotonic() < deadline and process.poll() is None, "the trial never trained"
        time.sleep(0.02)
    jobs = [place for place in Path("/proc").glob("[0-9]*") if is_job(place, folder)]
    os.kill(int(jobs[0].name), signal.SIGUSR2)  # what SLURM sends before it takes the machine
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    run = json.loads((folder / "0" / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["resumed_from"] is not None, "it was not taken away, or began anew"
    assert "SIGTERM: stopping after this step" in (folder / "0" / "train.log").read_text()
    steps = [row["step"] for row in read_metrics(metrics) if "train/loss" in row]
    assert steps == list(range(200))


def is_job(place: Path, folder: Path) -> bool:
    """Whether a process is the one that submitit runs a job of this sweep in."""
    try:
        words = (place / "cmdline").read_text().split("\0")
    except OSError:
        return False
    return "submitit.core._submit" in words and any(word.startswith(str(folder)) for word in words)


def test_trials_run_on_a_ray_cluster(tmp_path: Path, rows_file: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    # ranks that the run refuses at once: what matters is that it was reached, and its answer kept
    command = sweep(
        tmp_path / "sweep", rows_file, "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false", "hydra.sweeper.parallel=2", "lora.r=choice(-1,-2)",
    )  # fmt: skip
    said = run_train(*command)
    assert said.returncode == 1, said.stderr[-3000:]
    assert "every trial failed, 2 in all: lora.r must be positive" in said.stderr.splitlines()[-1]
    trials = [json.loads((tmp_path / "sweep" / name / "trial.json").read_text()) for name in "01"]
    assert {trial["reason"] for trial in trials} == {f"lora.r must be positive, got {rank}" for rank in (-1, -2)}
