import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medreason.config import ConfigError, LoggerConfig, LoggerKind
from medreason.core.run_directory import read_metrics, series
from medreason.dashboard import LEARNING, SAMPLES, SPEED
from medreason.report.wandb import (
    agent_parameters,
    check_wandb_names,
    has_wandb_account,
    log_scores,
    wandb_logger,
)
from support import ROOT, composed, run_command, run_train, tiny_run
from wandb_offline import read_offline_run


def test_an_offline_run_holds_everything_that_a_dashboard_shows(tmp_path: Path, rows_file: Path) -> None:
    run = tmp_path / "run"
    said = run_train(
        *tiny_run(run, rows_file, "logger=wandb", "logger.tags=[a,b]", "trainer.max_steps=3", "trainer.answer_share=0")
    )
    assert said.returncode == 0, said.stderr[-3000:]
    assert "W&B: logging offline, as it is told to" in said.stdout
    logged = read_offline_run(run)
    for metric in (*LEARNING, *(one for one in SPEED if one != "train/mfu")):  # a CPU's peak is not known
        assert logged.values(metric), metric
    _, losses = series(read_metrics(run / "metrics.csv"), "train/loss")
    assert logged.values("train/loss") == pytest.approx(losses)
    assert logged.config["lora"]["r"] == 16
    assert logged.config["optim"]["algorithm"] == "adamw"
    assert logged.tags == ["a", "b"]
    assert (logged.job_type, logged.group, logged.name, logged.exit_code) == ("train", "", "run", 0)
    samples = json.loads((run / "samples.json").read_text())
    table = logged.table(SAMPLES)
    assert [(row["question"], row["when"]) for row in table] == [
        (sample["question"], when) for sample in samples for when in ("before", "after")
    ]


def test_scores_of_an_evaluation_stand_in_the_summary_of_the_run_that_was_evaluated(
    tmp_path: Path, rows_file: Path
) -> None:
    run = tmp_path / "run"
    said = run_train(
        *tiny_run(
            run, rows_file, "logger=wandb", "trainer.max_steps=1", "optim.warmup_steps=0", "trainer.answer_questions=0"
        )
    )
    assert said.returncode == 0, said.stderr[-3000:]
    trained = read_offline_run(run).id
    shutil.rmtree(run / "wandb")  # the reader takes the one run that is there
    told = run_command("evaluate", f"run={run}", "benchmarks=[held_out]")
    assert told.returncode == 0, told.stderr[-3000:]
    logged = read_offline_run(run)
    assert logged.id == trained
    scores = json.loads((run / "evaluation" / "likelihood" / "scores.json").read_text())["scores"]
    assert logged.summary["evaluation/likelihood/held_out/loss"] == pytest.approx(scores["held_out"]["loss"]["mean"])


def test_a_failed_run_is_recorded_as_failed_with_its_reason(tmp_path: Path, rows_file: Path) -> None:
    run = tmp_path / "run"
    said = run_train(*tiny_run(run, rows_file, "logger=wandb", "optim.lr=1e30", "trainer.answer_questions=0"))
    assert said.returncode == 1
    last = said.stderr.splitlines()[-1]
    assert re.match(r"medreason.train: (train|val)/loss became nan at step \d+; lower optim.lr", last)
    assert json.loads((run / "run.json").read_text())["status"].endswith(last.removeprefix("medreason.train: "))
    assert read_offline_run(run).exit_code == 1


def test_a_mistake_found_before_the_weights_are_loaded_leaves_nothing(tmp_path: Path, rows_file: Path) -> None:
    run = tmp_path / "run"
    said = run_train(*tiny_run(run, rows_file, "lora.target_modules=[query]"))
    assert said.returncode == 2
    assert "lora.target_modules: the model has no 'query'" in said.stderr.splitlines()[-1]
    assert "loading embedded:tiny" not in said.stdout and not run.exists()


def logger(**changes: Any) -> LoggerConfig:
    return LoggerConfig(**({"kind": LoggerKind.wandb, "project": "p", "name": None, "tags": []} | changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tags": ["x" * 65]}, "logger.tags must have 1 to 64 characters each"),
        ({"tags": ["a", " "]}, "logger.tags must have 1 to 64 characters each"),
        ({"project": "a/b"}, "logger.project must be without"),
        ({"project": "a%b"}, "logger.project must be without"),
        ({"project": "a\nb"}, "logger.project must be without"),
        ({"project": "x" * 129}, "logger.project must have 1 to 128 characters"),
        ({"project": ""}, "logger.project must have 1 to 128 characters"),
        ({"name": "x" * 129}, "logger.name must have 1 to 128 characters"),
        ({"name": " "}, "logger.name must have 1 to 128 characters"),
    ],
)
def test_what_wandb_would_refuse_later_is_refused_at_once(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_wandb_names(logger(**change))


def test_what_wandb_takes_passes() -> None:
    check_wandb_names(logger(tags=["x" * 64, "病"], project="x" * 128, name="病 1"))


@pytest.mark.parametrize(
    ("mode", "key", "found"),
    [
        ("online", "", "no account"), ("online", "0" * 40, "online"), ("offline", "0" * 40, "offline"),
        ("dryrun", "", "offline"), ("run", "0" * 40, "online"), ("disabled", "0" * 40, "disabled"),
    ],
)  # fmt: skip
def test_wandbs_own_mode_counts(mode: str, key: str, found: str, tmp_path: Path) -> None:
    code = "from medreason.report.wandb import wandb_mode; print(wandb_mode())"
    own = {"WANDB_MODE": mode, "WANDB_API_KEY": key, "NETRC": str(tmp_path / "none")}
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | own, capture_output=True, text=True)
    assert said.stdout.strip() == found, said.stderr


def test_a_mode_that_wandb_does_not_know_is_one_line_before_anything_slow(tmp_path: Path, rows_file: Path) -> None:
    said = run_train(*tiny_run(tmp_path / "run", rows_file, "logger=wandb"), env=os.environ | {"WANDB_MODE": "banana"})
    assert said.returncode == 2
    assert said.stderr.splitlines() == ["medreason.train: WANDB_MODE must be online, offline or disabled, got 'banana'"]
    assert "Unsloth" not in said.stdout


def test_a_disabled_wandb_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medreason.report.wandb.wandb_mode", lambda: "disabled")
    config = composed("experiments=quickstart", "logger=wandb")
    assert wandb_logger(config, tmp_path, {}, None) == []
    assert "W&B: disabled" in capsys.readouterr().out
    log_scores(config, tmp_path, "likelihood", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_a_key_is_found_wherever_a_login_has_left_it(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_wandb_account()
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    assert has_wandb_account()


def test_what_an_agent_of_wandb_was_given_tells_its_run_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert agent_parameters() == {}
    path = tmp_path / "parameters.yaml"
    OmegaConf.save({"wandb_version": 1, "lora.r": {"value": 16}, "optim.lr": {"value": 0.0001}}, path)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    assert agent_parameters() == {"lora.r": "16", "optim.lr": "0.0001"}
