"""Where people run this: a notebook of Colab's, a container, a SLURM cluster. Nothing of theirs is needed here."""

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from medreason.config import EvaluateConfig
from medreason.core.cli import load
from support import ROOT, composed, tiny_run

NOTEBOOK = ROOT / "experiments" / "colab.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_one_and_holds_no_output() -> None:
    nbformat: Any = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_the_notebook_trains_scores_and_asks(
    tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = [one for one in tiny_run(run, rows_file, "trainer.max_steps=2") if not one.startswith("hydra.run.dir")]
    others = {
        "INSTALL": "true",
        "PYTHON": shlex.quote(sys.executable),
        "RUN": str(run),
        "TRAIN": shlex.join(settings),
        "EVALUATE": "'benchmarks=[held_out]'",
    }
    monkeypatch.setenv("MEDREASON_NOTEBOOK", json.dumps(others))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(ROOT / "experiments")  # where Jupyter starts it
    cells: dict[str, Any] = {}
    for cell in code_cells():
        exec(cell, cells)
    said = capfd.readouterr().out
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert (run / "evaluation" / "likelihood" / "scores.json").is_file()
    assert f"> {cells['QUESTION']}" in said


def test_a_cell_whose_command_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDREASON_NOTEBOOK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cells: dict[str, Any] = {}
    exec(code_cells()[0], cells)
    with pytest.raises(SystemExit, match="exit code 3"):
        cells["sh"]("exit 3")


def test_what_the_notebook_does_by_itself_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDREASON_NOTEBOOK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cells: dict[str, Any] = {}
    exec(code_cells()[0], cells)
    composed(*shlex.split(cells["TRAIN"]))
    of_command("evaluate", EvaluateConfig, "run=runs/colab", *shlex.split(cells["EVALUATE"]))
    targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert cells["INSTALL"].split()[-1] in targets


def of_command(name: str, schema: type, *overrides: str) -> None:
    """Raises for settings that a command would not take."""
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=schema)
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        load(hydra.compose(name, overrides=list(overrides)), schema)


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out of an image."""
    parts = path.split("/")
    for pattern in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        places = parts if pattern.startswith("**/") else ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        if any(fnmatch.fnmatch(place, pattern.removeprefix("**/")) for place in places):
            return True
    return False


def test_an_image_has_what_it_copies_and_its_commands_are_there() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["COPY"]:
            assert all((ROOT / source).exists() and not ignored(source) for source in words[1:-1]), line
        for module in re.findall(r"python -m ([\w.]+)", line):
            assert find_spec(module) is not None, line
    command = json.loads(next(line.removeprefix("CMD ") for line in lines if line.startswith("CMD")))
    assert command[:3] == ["python", "-m", "medreason.train"]
    composed(*command[3:])


def test_an_image_leaves_out_what_is_large_or_ones_own_and_nothing_that_a_run_reads() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needed = [path for path in tracked if path.split("/")[0] in ("medreason", "conf", "experiments", "sweeps")]
    assert not [path for path in [*needed, "pyproject.toml", "README.md", "LICENSE"] if ignored(path)]
    for path in (".git/config", ".venv/bin/python", "runs/a/adapter/x", "medreason/__pycache__/a.pyc", ".mypy_cache/a"):
        assert ignored(path), path


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with an srun that does as its lines say, one a call, and writes down what it was asked."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "runs" / "slurm_7" / "checkpoints").mkdir(parents=True)
    told = 'printf "%s\\n" "$(basename $0) $*" >> asked; '
    for name, does in {"srun": "code=$(head -1 codes); sed -i 1d codes; exit $code", "scontrol": "exit 0"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{told}{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def submit(cluster: Path, code: int, *settings: str) -> tuple[int, list[str]]:
    """Exit code of the job where the run ends with `code`, and what was asked of SLURM."""
    (cluster / "codes").write_text(f"{code}\n")
    (cluster / "asked").write_text("")
    environment = os.environ | {
        "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(cluster),
    }
    script = ["bash", str(ROOT / "experiments" / "train.sbatch"), *settings]
    ended = subprocess.run(script, env=environment, check=False).returncode
    return ended, (cluster / "asked").read_text().splitlines()


def test_a_job_that_is_told_in_time_queues_again_and_goes_on_from_its_checkpoint(cluster: Path) -> None:
    first = "srun .venv/bin/python -m medreason.train lora.r=32 hydra.run.dir=runs/slurm_7"
    for code in (130, 140):
        assert submit(cluster, code, "lora.r=32") == (code, [first, "scontrol requeue 7"])
    (cluster / "runs" / "slurm_7" / "checkpoints" / "last.ckpt").touch()
    again = f"{first} ckpt=runs/slurm_7/checkpoints/last.ckpt"
    assert submit(cluster, 0, "lora.r=32") == (0, [again]), "a run that has finished is not started again"


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_job_that_fails_does_not_queue_again(cluster: Path, code: int) -> None:
    ended, asked = submit(cluster, code)
    assert ended == code and len(asked) == 1


def test_the_exit_code_that_queues_a_job_again_is_that_of_a_run_that_was_stopped_and_saved() -> None:
    from medreason.train.run import INTERRUPTED

    script = (ROOT / "experiments" / "train.sbatch").read_text(encoding="utf-8")
    assert f'"$code" = {INTERRUPTED} ' in script and "--signal=USR2@" in script
    composed("lora.r=32", "optim.lr=1e-4", "trainer=ddp", "trainer.devices=2")
