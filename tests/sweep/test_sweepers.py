"""A real sweep of the tiny model: its processes are killed, one of its layers does not exist, a rate diverges."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medreason.core.overrides import command_line, override
from support import ROOT, python, run_command, run_train, tiny_run

GOOD, NONE = "[q_proj,v_proj]", "[query]"  # layers that the model has, and that it has not


def settings(folder: Path, rows: Path) -> list[str]:
    return [
        "sweeps=rank_alpha_lr",
        *[one for one in tiny_run(folder, rows) if not one.startswith(("hydra.run.dir", "optim.lr"))],
        override("hydra.sweep.dir", folder),
        f"lora.target_modules=choice({GOOD},{NONE})",
        "lora.r=4",
        "optim.lr=choice(1e-2,1e30)",
        "lora.alpha=2r",
        "trainer.max_steps=40",
        "trainer.max_epochs=9",
        "trainer.validate_every_steps=8",
        "trainer.checkpoint_every_steps=4",
        "trainer.answer_questions=0",
    ]


def trials(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What stands in each trial's folder, by rank and learning rate."""
    found = [
        json.loads(path.read_text()) | {"run": json.loads((path.parent / "run.json").read_text())}
        for path in folder.glob("[0-9]*/trial.json")
    ]
    return {(trial["params"]["lora.target_modules"], trial["params"]["optim.lr"]): trial for trial in found}


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    """The sweep, of which first the trial and then everything is killed in the middle of training, run to its end."""
    folder = tmp_path_factory.mktemp("sweeps") / "病例, a=b $x"

    def start() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "medreason.train", *settings(folder, rows_file)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)

    def training_beyond(step: int) -> list[int]:
        """The process of the good trial, once its current attempt is beyond a step; its checkpoint is older."""
        for metrics in folder.glob("[0-9]*/metrics.csv"):
            good = trials(folder).get((GOOD, "0.01"))
            if good and metrics.parent.name == str(good["number"]) and f",{step}," in metrics.read_text():
                log = metrics.with_name("train.log").read_text(encoding="utf-8")
                return [int(one) for one in re.findall(r"\(process (\d+)\)", log)[-1:]]
        return []

    sweep = start()
    wait_for(lambda: training_beyond(6))
    os.kill(training_beyond(6)[0], signal.SIGKILL)
    wait_for(lambda: trials(folder)[(GOOD, "0.01")]["died"])
    wait_for(lambda: training_beyond(14))
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
    again = subprocess.run(
        [python(), "-m", "medreason.train", *settings(folder, rows_file)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]
    assert "everything there is to try has been tried" in again.stdout
    return folder


def test_every_trial_is_accounted_for(disturbed: Path) -> None:
    found = trials(disturbed)
    assert {key: trial["state"] for key, trial in found.items()} == {
        (GOOD, "0.01"): "COMPLETE",
        (GOOD, "1e+30"): "FAIL",
        (NONE, "0.01"): "FAIL",
        (NONE, "1e+30"): "FAIL",
    }
    assert "train/loss became nan" in found[GOOD, "1e+30"]["reason"]
    assert "the model has no 'query'" in found[NONE, "0.01"]["reason"]
    assert found[GOOD, "0.01"]["died"] == ["killed by SIGKILL"]
    assert found[GOOD, "0.01"]["run"]["resumed_from"].endswith("checkpoints/last.ckpt")


def test_a_checkpoint_of_a_step_with_a_validation_knows_its_result(disturbed: Path) -> None:
    good = trials(disturbed)[GOOD, "0.01"]
    saved = torch.load(disturbed / str(good["number"]) / "checkpoints" / "last.ckpt", weights_only=True)
    (best,) = (state for name, state in saved["callbacks"].items() if name.startswith("ModelCheckpoint"))
    assert saved["global_step"] == 40
    assert float(best["best_model_score"]) == pytest.approx(good["value"])


def test_the_command_that_is_kept_repeats_a_trial_to_the_last_bit(disturbed: Path, tmp_path: Path) -> None:
    run = trials(disturbed)[GOOD, "0.01"]["run"]
    said = run_train(*run["overrides"], f"hydra.run.dir={tmp_path / 'again'}")
    assert said.returncode == 0, said.stderr[-3000:]
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert again["results"]["monitored"] == run["results"]["monitored"]
    assert (disturbed / "report.html").is_file()
    page = html.unescape((disturbed / "report.html").read_text(encoding="utf-8"))
    assert command_line("train", run["overrides"]) in page
    assert override("hydra.sweeper.sweep", disturbed) in page


def test_another_sweep_does_not_go_on_in_its_folder(disturbed: Path, rows_file: Path) -> None:
    said = run_train(*settings(disturbed, rows_file), "trainer.max_steps=41")
    assert said.returncode == 2
    assert "trainer.max_steps=40, this one has 41; give it another hydra.sweep.dir" in said.stderr.splitlines()[-1]


def test_the_best_trials_are_confirmed_with_other_seeds_through_another_launcher(disturbed: Path) -> None:
    said = run_train(
        "sweeps=confirm_best", override("hydra.sweeper.sweep", disturbed), "hydra.sweeper.top=1",
        "hydra.sweeper.seeds=2", "hydra.sweeper.parallel=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    records = [json.loads((disturbed / "confirmed" / name / "run.json").read_text()) for name in "01"]
    assert [record["swept"]["seed"] for record in records] == ["1", "2"]
    assert records[0]["results"]["monitored"] != records[1]["results"]["monitored"]
    report = run_command("report", str(disturbed))
    assert report.returncode == 0, report.stderr
    assert "95% interval" in (disturbed / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hydra.sweeper.trials=0"], "hydra.sweeper.trials must be positive or null, got 0"),
        (["hydra.sweeper.pruner=ashes"], "Invalid value 'ashes', expected one of [none, asha, hyperband, median, "),
        (["hydra.sweeper.pruner=paired", "data.format=choice(think,seed)"], "paired: with data.format among what is"),
        (["sweeps=lr_then_rank", "lora.alpha=choice(4,8)"], "lora.alpha: sweeps=lr_then_rank takes one"),
        (["hydra.sweeper.trails=3"], "hydra.sweeper.trails: no such setting"),
        (["data.pth=x"], "data.pth: no such setting (did you mean data.path?)"),
        (["lora.rank=choice(1,2)"], "lora.rank: no such setting (did you mean lora.r?)"),
        (["optim.lr=tag(log,interval(0,1))"], "optim.lr: cannot search optim.lr=tag(log,interval(0,1))"),
        (["data.path=none.jsonl"], "data.path=none.jsonl: no such file"),
        (["hydra.sweeper.storage=/x.db"], "hydra.sweeper.storage must be null, journal or a URL"),
        (["hydra.sweeper.storage=nosql://x"], "hydra.sweeper.storage=nosql://x:"),
        (["hydra.sweeper.storage=nosql://me:pw-to#hide@x/y"], "hydra.sweeper.storage=nosql://me@x/y:"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line_before_any_trial(
    overrides: list[str], said: str, tmp_path: Path, rows_file: Path
) -> None:
    told = run_train(*settings(tmp_path / "s", rows_file), *overrides)
    assert told.returncode == 2, told.stderr[-2000:]
    assert said in told.stderr.splitlines()[-1]
    assert len(told.stderr.splitlines()) == 1
    assert not list((tmp_path / "s").glob("[0-9]*"))
    assert "pw-to" not in told.stdout + told.stderr
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"pw-to" in file.read_bytes()]
