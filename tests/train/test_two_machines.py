"""One run on two machines, both of them this one, on addresses of its own."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from medreason.core.run_directory import read_json, read_metrics, series
from support import ROOT, free_port, python, run_train, tiny_run

LENGTH = [
    "trainer.max_steps=40", "trainer.max_epochs=40", "trainer.validate_every_steps=10",
    "trainer.checkpoint_every_steps=5", "lora.r=4", "lora.alpha=8", "optim.lr=1e-3",
]  # fmt: skip
SEVERAL = ["trainer.nodes=2", "trainer.devices=1"]


def slurm(run: Path, rows: Path, place: int, *more: str) -> "subprocess.Popen[str]":
    """A task of a step of SLURM's, on one of its two machines."""
    step = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": str(place), "SLURM_STEP_NODELIST": "127.0.0.[1,2]",
    }  # fmt: skip
    command = [python(), "-m", "medreason.train", *tiny_run(run, rows, *LENGTH, *SEVERAL, *more)]
    return started(command, step)


def started(command: list[str], environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said = process.communicate(timeout=200)
    return process.returncode, said[1]


def pull_the_plug(process: "subprocess.Popen[str]") -> None:
    """Ends all processes of one machine at once, as far as they are found: its command, torchrun, what that started."""
    for number in [process.pid, *below(process.pid)]:
        os.kill(number, signal.SIGKILL)


def below(number: int) -> list[int]:
    """Processes that a process has started, theirs included."""
    found = []
    for task in Path(f"/proc/{number}/task").glob("*"):
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *below(child)]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    for process in [slurm(run, rows_file, place) for place in (0, 1)]:
        code, said = ended(process)
        assert code == 0, said[-3000:]
    return run


def test_two_machines_train_as_one_process_does(whole: Path, rows_file: Path, tmp_path: Path) -> None:
    said = run_train(*tiny_run(tmp_path / "alone", rows_file, *LENGTH, "lora.dropout=0", "trainer.rows_per_batch=2"))
    assert said.returncode == 0, said.stderr[-3000:]
    one, both = (read_metrics(run / "metrics.csv") for run in (tmp_path / "alone", whole))
    for metric in ("train/tokens", "train/lr"):
        assert series(both, metric) == series(one, metric)
    for metric in ("train/loss", "val/loss"):  # not equal: what dropout leaves out is each process's own
        assert series(both, metric)[1] == pytest.approx(series(one, metric)[1], rel=2e-2), metric
    assert read_json(whole / "run.json")["status"] == "finished"
    assert (whole / "train.1.log").is_file()


def test_one_machine_lost_the_other_ends_with_a_line_and_the_same_command_resumes_exactly(
    whole: Path, rows_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "lost"
    first, second = (slurm(run, rows_file, place) for place in (0, 1))
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").is_file():
        assert time.monotonic() < deadline and first.poll() is None, "it never trained"
        time.sleep(0.02)
    pull_the_plug(second)
    code, said = ended(first)
    assert code == 1
    assert len(said.splitlines()) == 1 and "another process of this run is gone" in said, said
    assert len(series(read_metrics(run / "metrics.csv"), "train/loss")[0]) < 40, "it was lost too late to be missed"
    # by torchrun this time, as where there is no scheduler
    words = tiny_run(run, rows_file, *LENGTH, *SEVERAL)
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    command = [python(), "-m", "torch.distributed.run", *meet, "-m", "medreason.train", *words]
    for process in [started(command) for _ in (0, 1)]:
        code, said = ended(process)
        assert code == 0, said[-3000:]
    found, expected = (read_metrics(one / "metrics.csv") for one in (run, whole))
    for metric in ("train/loss", "train/grad_norm", "val/loss", "train/tokens"):
        assert series(found, metric) == series(expected, metric), metric
    assert read_json(run / "run.json")["resumed_at"], "it began anew"


def test_a_mistake_is_told_in_a_line_before_any_machine_waits_for_another(rows_file: Path, tmp_path: Path) -> None:
    said: Any = run_train(*tiny_run(tmp_path / "alone", rows_file, "trainer.nodes=2"))
    assert said.returncode == 2 and len(said.stderr.splitlines()) == 1
    assert "medreason.train: trainer.nodes=2: this is one machine; with SLURM: srun --nodes=2" in said.stderr
    assert not (tmp_path / "alone").exists()
