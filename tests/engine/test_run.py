"""A run of the fast engine from its command line: resumed, evaluated, exported like any other."""

import json
import shutil
from pathlib import Path

import pytest

from medreason.core.json_lines import read_json_lines
from medreason.core.run_directory import read_metrics, series
from support import run_command, run_train, tiny_run

LIKE = ["model.precision=fp8", "lora.dropout=0", "optim.decay=constant", "trainer.checkpoint_every_steps=3",
        "trainer.validate_every_steps=3", "trainer.answer_share=0"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    said = run_train(*tiny_run(run, rows_file, *LIKE, "trainer.max_steps=6"))
    assert said.returncode == 0, said.stderr[-3000:]
    assert "Unsloth" not in said.stdout
    return run


def test_the_loss_falls_and_every_step_is_logged(run: Path) -> None:
    rows = read_metrics(run / "metrics.csv")
    steps, losses = series(rows, "train/loss")
    assert steps == [0, 1, 2, 3, 4, 5] and losses[-1] < losses[0]
    waits = series(rows, "train/data_wait")[1]
    assert len(waits) == 6 and all(0 <= wait < 1 for wait in waits)
    assert all(rate > 0 for rate in series(rows, "train/targets_per_second")[1])
    record = json.loads((run / "run.json").read_text())
    assert record["recompute"] == "none" and record["memory"] is None  # nothing is planned without a GPU


def test_a_resumed_run_ends_as_the_whole_one(run: Path, rows_file: Path, tmp_path: Path) -> None:
    half = run_train(*tiny_run(tmp_path / "half", rows_file, *LIKE, "trainer.max_steps=3"))
    assert half.returncode == 0, half.stderr[-3000:]
    checkpoint = f"ckpt={tmp_path}/half/checkpoints/last.ckpt"
    said = run_train(*tiny_run(tmp_path / "rest", rows_file, *LIKE, "trainer.max_steps=6", checkpoint))
    assert said.returncode == 0, said.stderr[-3000:]
    whole, resumed = (read_metrics(folder / "metrics.csv") for folder in (run, tmp_path / "rest"))
    assert series(resumed, "train/loss") == series(whole, "train/loss")
    assert series(resumed, "val/loss")[1][-1] == series(whole, "val/loss")[1][-1]


def test_it_is_evaluated_with_the_loss_that_it_logged(run: Path) -> None:
    said = run_command("evaluate", f"run={run}", "benchmarks=[held_out]")
    assert said.returncode == 0, said.stderr[-3000:]
    scores = json.loads((run / "evaluation" / "likelihood" / "scores.json").read_text())["scores"]["held_out"]
    logged = json.loads((run / "run.json").read_text())["results"]["val_loss_after"]
    assert scores["loss"]["mean"] == pytest.approx(logged, rel=2e-3)
    other = run_command("evaluate", f"run={run}", "benchmarks=[held_out]", "precision=half", f"output={run}/other")
    assert other.returncode == 0, other.stderr[-3000:]
    half = json.loads((run / "other" / "scores.json").read_text())["scores"]["held_out"]
    assert half["loss"]["mean"] == pytest.approx(logged, rel=1e-2)  # its adapter, on Unsloth's engine


def test_it_writes_answers_on_a_cpu_in_its_own_eight_bits(run: Path) -> None:
    asked = ["benchmarks=[clinical_cases]", "method=generate", "limit=2", "max_new_tokens=4"]
    said = run_command("evaluate", f"run={run}", *asked)
    assert said.returncode == 0, said.stderr[-3000:]
    records = read_json_lines(run / "evaluation" / "generate" / "clinical_cases.jsonl")
    assert len(records) == 2 and all(record["cut"] in (True, False) for record in records)


def test_its_merged_export_answers_alike(run: Path) -> None:
    said = run_command("export", f"run={run}", "format=merged", "questions=3", "max_new_tokens=4")
    assert said.returncode == 0, said.stderr[-3000:]
    assert json.loads((run / "export_merged" / "parity.json").read_text())["holds"]
    shutil.rmtree(run / "export_merged")
