"""Runs as things: listed, named last or best, cleaned away where nothing is in them. No run is trained here."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from medreason.config import ConfigError, EvaluateConfig, TrainConfig
from medreason.core import cli
from medreason.core.named_runs import find_run
from medreason.core.overrides import as_meant
from medreason.core.processes import claim
from medreason.core.run_directory import folder_name
from medreason.runs import age, clean, list_runs, print_runs, removable, size


def write_run(
    run: Path,
    *,
    loss: float | None = None,
    status: str = "finished",
    at: int = 0,
    data: str = "a.jsonl",
    **results: Any,
) -> Path:
    """A run's records as training leaves them; `loss` comes with an adapter. `at`: seconds after 2020 began."""
    run.mkdir(parents=True)
    found = {"steps": 44, **results} | ({} if loss is None else {"val_loss_after": loss})
    (run / "run.json").write_text(json.dumps({"status": status, "results": found}))
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"path": "m"}, "data": {"path": data}}))
    touched = [run / "run.json"]
    if loss is not None:
        (run / "adapter").mkdir()
        (run / "adapter" / "adapter_config.json").write_text("{}")
        touched.append(run / "adapter")
    for path in touched:
        os.utime(path, (1577836800 + at,) * 2)
    return run


def test_runs_and_sweeps_are_listed_with_the_newest_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "new_病例", loss=1.5, at=300, accuracy_after=0.5)
    write_run(tmp_path / "old", loss=2.5, at=100)
    write_run(tmp_path / "sweep" / "0", loss=3.5, at=200)
    write_run(tmp_path / "sweep" / "1", status="failed: OutOfMemory: no", at=201)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text("{")
    scores = tmp_path / "old" / "evaluation" / "likelihood" / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps({"scores": {"medqa": {"accuracy": 0.412}}}))
    runs = list_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["old", "sweep", "new_病例", "odd"]
    old, sweep, new, odd = runs
    assert (old.score, old.loss, old.steps, old.status) == ("41.2% medqa", 2.5, 44, "finished")
    assert (sweep.status, sweep.loss) == ("1 of 2 trials", 3.5)
    assert new.score == "50.0% held out" and "run.json cannot be read" in odd.status
    assert [run.folder.name for run in list_runs(tmp_path, trials=True)].count("1") == 1
    print_runs(runs, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5 and said[3].startswith("new_病例") and "50.0%" in said[3]


def test_last_is_the_newest_run_that_trained_and_best_the_lowest_loss_on_the_same_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "other_rows", loss=0.1, at=50, data="b.jsonl")
    best = write_run(tmp_path / "sweep" / "3", loss=1.0, at=100)
    last = write_run(tmp_path / "last_one", loss=2.0, at=200)
    write_run(tmp_path / "without_adapter", status="failed: x", at=300)
    assert find_run("last", tmp_path) == last
    assert find_run("best", tmp_path) == best


def test_no_run_to_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run=last: no run with an adapter in .*; name a run's folder"):
        find_run("last", tmp_path)


def test_run_last_means_that_run_wherever_there_is_a_run_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs" / "one, with=marks", loss=1.0)
    monkeypatch.chdir(tmp_path)
    assert cli.settle_run("run=last", EvaluateConfig) == 'run="runs/one, with=marks"'
    assert cli.settle_run("run=./last", EvaluateConfig) == "run=./last"
    assert cli.settle_run("run=last", TrainConfig) == "run=last"


def test_only_folders_that_hold_nothing_are_cleaned_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, failed = tmp_path / "empty", write_run(tmp_path / "failed", status="failed: out of memory")
    empty.mkdir()
    trained = write_run(tmp_path / "trained", status="failed: killed")
    (trained / "metrics.csv").write_text("step,train/loss\n0,1.5\n")
    noted = write_run(tmp_path / "noted", status="failed: x")
    (noted / "my notes.md").write_text("why it failed")
    write_run(tmp_path / "fine", loss=1.0)
    write_run(tmp_path / "starting", status="running")
    (tmp_path / "not_a_run").mkdir()
    (tmp_path / "not_a_run" / "data.json").write_text("{}")
    held = write_run(tmp_path / "held", status="failed: x")
    with claim(held):
        assert removable(tmp_path) == [empty, failed]
    clean(tmp_path, remove=False)
    assert empty.is_dir() and "would go" in capsys.readouterr().out
    clean(tmp_path, remove=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"trained", "noted", "fine", "starting", "not_a_run"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("embedded:tiny", "tiny"),
        ("unsloth/mistral-7b-v0.3-bnb-4bit", "mistral-7b-v0.3-bnb-4bit"),
        ("/models/Qwen3 (0.6B)/", "Qwen3-0.6B"),
        ("模型/医学", "医学"),
        ("..", "model"),
        (None, "model"),
    ],
)
def test_a_run_is_named_after_its_model(model: str | None, name: str) -> None:
    assert folder_name(model) == name


def test_sizes_and_ages_are_told_in_their_largest_unit() -> None:
    assert [size(count) for count in (0, 999, 12_300_000, 5_000_000_000_000)] == ["0 B", "999 B", "12 MB", "5,000 GB"]
    assert [age(seconds) for seconds in (5, 90, 7200, 200_000)] == ["5 s", "2 min", "2 h", "2 d"]


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    assert as_meant("trainer.max_steps=1e3", TrainConfig) == "trainer.max_steps=1000"
    assert as_meant("trainer.max_steps=20", TrainConfig) == "trainer.max_steps=20"
    for odd in ("1.5", "inf", "nan"):
        with pytest.raises(ConfigError, match=f"trainer.max_steps must be a whole number, got {odd}"):
            as_meant(f"trainer.max_steps={odd}", TrainConfig)
