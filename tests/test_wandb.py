import json
from pathlib import Path

from conftest import run_train, tiny_run


def test_wandb_without_an_account_logs_offline_and_does_not_hang(tmp_path: Path, rows_file: Path) -> None:
    run = tmp_path / "run"
    said = run_train(*tiny_run(run, rows_file, "logger=wandb", "trainer.max_steps=2", "trainer.answer_questions=0"))
    assert said.returncode == 0, said.stderr[-3000:]
    assert "no account here, logging offline" in said.stdout
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_a_failed_run_is_recorded_as_failed_with_its_reason(tmp_path: Path, rows_file: Path) -> None:
    run = tmp_path / "run"
    said = run_train(*tiny_run(run, rows_file, "lora.target_modules=[query]"))
    assert said.returncode == 2
    assert "lora.target_modules: the model has no 'query'" in said.stderr.splitlines()[-1]
    assert json.loads((run / "run.json").read_text())["status"].startswith("failed: ConfigError: lora.target_modules")
