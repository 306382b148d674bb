import csv
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from medreason.config import Format
from medreason.core.run_directory import run_config
from support import ROOT, python, run_train, tiny_run

LENGTH = [
    "trainer.max_steps=14",
    "trainer.max_epochs=2",
    "trainer.validate_every_steps=6",
    "trainer.checkpoint_every_steps=4",
    "optim.warmup_steps=5",
]


def logged(run: Path) -> dict[str, dict[str, str]]:
    """Every logged number but the speed, as the text it was logged as."""
    found: dict[str, dict[str, str]] = {}
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for key in ("train/loss", "train/grad_norm", "train/lr", "val/loss"):
                if row[key]:
                    found.setdefault(key, {})[row["step"]] = row[key]
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    said = run_train(*tiny_run(run, rows_file, *LENGTH))
    assert said.returncode == 0, said.stderr[-3000:]
    return run


def test_a_run_killed_in_mid_epoch_and_resumed_logs_the_same_numbers_bit_for_bit(
    unbroken: Path, rows_file: Path
) -> None:
    runs = unbroken.parent
    command = [python(), "-m", "medreason.train", *tiny_run(runs / "killed", rows_file, *LENGTH)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = runs / "killed" / "metrics.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # one step beyond the checkpoint at step 8, which is to be lost
        if metrics.is_file() and "\n0,9," in metrics.read_text():
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    checkpoint = runs / "killed" / "checkpoints" / "last.ckpt"
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert step == 8
    assert not (runs / "killed" / "adapter").exists(), "it was killed too late to prove anything"

    said = run_train(*tiny_run(runs / "resumed", rows_file, *LENGTH, f"ckpt={checkpoint}"))
    assert said.returncode == 0, said.stderr[-3000:]
    whole, resumed = logged(unbroken), logged(runs / "resumed")
    assert len(whole["train/loss"]) == 14
    del whole["val/loss"]["0"]  # measured before training; the killed run has it, as it had steps 0 to 7
    resumed["val/loss"].pop("0", None)
    assert resumed == whole
    assert json.loads((runs / "resumed" / "run.json").read_text())["resumed_at"] == [8], "marked in curves.png"


def test_a_run_stopped_by_ctrl_c_saves_its_step_and_goes_on_with_the_command_it_says(
    unbroken: Path, rows_file: Path
) -> None:
    run = unbroken.parent / "stopped"
    command = [python(), "-m", "medreason.train", *tiny_run(run, rows_file, *LENGTH)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not ((run / "metrics.csv").is_file() and "\n0,5," in (run / "metrics.csv").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    before = json.loads((run / "run.json").read_text())
    told = next(line for line in said.splitlines() if "it goes on with: " in line).partition("it goes on with: ")[2]
    assert told == f"python -m medreason.train resume={run}"
    again = run_train(*shlex.split(told)[3:])
    assert again.returncode == 0, again.stderr[-3000:]
    whole, resumed = logged(unbroken), logged(run)
    assert resumed == whole, "validations too"
    after = json.loads((run / "run.json").read_text())
    assert after["status"] == "finished" and after["results"]["steps"] == 14
    assert [after[key] for key in ("started", "overrides", "swept")] == [
        before[key] for key in ("started", "overrides", "swept")
    ]


def test_a_finished_run_says_so_and_trains_on_with_the_command_it_says(unbroken: Path) -> None:
    """In the folder of the run that was stopped."""
    run = unbroken.parent / "stopped"
    said = run_train(f"resume={run}")
    assert said.returncode == 0, said.stderr[-3000:]
    (line,) = said.stdout.splitlines()
    told = line.partition("to train on: ")[2]
    assert "has finished, after 14 optimizer steps" in line and told.endswith(
        "trainer.max_steps=28 trainer.max_epochs=4"
    )
    refused = run_train(f"resume={run}", "lora.r=3", "trainer.max_steps=28")
    assert refused.returncode == 2 and "importing" not in refused.stdout
    assert f"resume={run}: lora.r was 16, and is 3 here; a run goes on with" in refused.stderr.splitlines()[-1]
    before = logged(run)
    on = run_train(f"resume={run}", "trainer.max_steps=16", "trainer.patience=9")
    assert on.returncode == 0, on.stderr[-3000:]
    course = next(line for line in on.stdout.splitlines() if "learning rate: " in line)
    assert "it was to end at step 14 and ends at step 16 now; it goes on with 1.82e-03" in course
    after = logged(run)
    assert list(after["train/loss"]) == [str(step) for step in range(16)]
    assert {step: after["train/loss"][step] for step in before["train/loss"]} == before["train/loss"]
    assert [float(after["train/lr"][step]) for step in ("14", "15")] == pytest.approx([2e-2 / 11, 1e-2 / 11])
    record = json.loads((run / "run.json").read_text())
    assert record["overrides"][-2:] == ["trainer.max_steps=16", "trainer.patience=9"]
    assert sum(one.startswith("trainer.max_steps=") for one in record["overrides"]) == 1
    assert run_config(run).trainer.max_steps == 16


def test_last_finds_the_newest_checkpoint_and_another_rank_is_refused(unbroken: Path, rows_file: Path) -> None:
    said = run_train(*tiny_run(unbroken.parent / "wider", rows_file, *LENGTH, "ckpt=last", "lora.r=3"))
    assert said.returncode == 2
    assert "lora.r was 16 when it was saved, and is 3 here; resume with" in said.stderr.splitlines()[-1]
    assert "importing" not in said.stdout


def test_a_run_directory_names_everything_that_made_it(unbroken: Path) -> None:
    names = {path.name for path in unbroken.iterdir()}
    assert names >= {"config.yaml", "run.json", "metrics.csv", "curves.png", "samples.json", "adapter", "checkpoints"}
    record = json.loads((unbroken / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["results"]["steps"] == 14
    assert record["results"]["val_loss_after"] < record["results"]["val_loss_before"]
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(record["data"]["sha256"]) == 64
    assert {path.name for path in (unbroken / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert (unbroken / "checkpoints" / "last.ckpt").stat().st_size < 1e6, "the base must not be in it"


def test_a_cut_checkpoint_is_refused_in_one_line(unbroken: Path, rows_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes((unbroken / "checkpoints" / "last.ckpt").read_bytes()[:20_000])
    said = run_train(*tiny_run(tmp_path / "run", rows_file, f"ckpt={cut}"))
    assert said.returncode == 2
    assert f"ckpt={cut}: not a readable checkpoint" in said.stderr.splitlines()[-1]


def test_a_finished_run_can_be_trained_further(unbroken: Path, rows_file: Path, tmp_path: Path) -> None:
    checkpoint = unbroken / "checkpoints" / "last.ckpt"
    longer = [*LENGTH[1:], "trainer.max_steps=16", f"ckpt={checkpoint}"]
    said = run_train(*tiny_run(tmp_path / "longer", rows_file, *longer))
    assert said.returncode == 0, said.stderr[-3000:]
    before, after = logged(unbroken)["train/loss"], logged(tmp_path / "longer")["train/loss"]
    assert list(after) == [str(step) for step in range(16)]
    assert {step: after[step] for step in before} == before


def test_square_brackets_in_a_row_do_not_break_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medreason.train.summary import summarize

    sample = {"question": "Na [mmol/L] [/INST]?", "answer": "[/bold]", "after": "<think>[/]</think>[red"}
    (tmp_path / "samples.json").write_text(json.dumps([sample]))
    summarize(tmp_path, {"steps": 1, "val_loss_after": 1.0}, Format.think)
    assert "Na [mmol/L] [/INST]?" in capsys.readouterr().out


def test_a_summary_says_what_is_right_and_what_always_the_same_answer_would_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from medreason.train.summary import summarize

    answers = ["Stage G3b", "Stage G3b", "Stage G1", "Obese"]
    samples = [{"question": "Q?", "answer": answer, "after": "Stage G3b"} for answer in answers[1:] + answers[:1]]
    (tmp_path / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    summarize(tmp_path, {"steps": 1, "val_loss_after": 1.0, "accuracy_after": 0.5}, Format.think)
    said = capsys.readouterr().out
    assert "Stage G3b (right)" in said and "Stage G3b (wrong)" in said
    assert "always the same answer" in said and "50.0%" in said


def test_a_finished_run_resumed_without_more_steps_still_measures_itself(
    unbroken: Path, rows_file: Path, tmp_path: Path
) -> None:
    checkpoint = unbroken / "checkpoints" / "last.ckpt"
    said = run_train(*tiny_run(tmp_path / "again", rows_file, *LENGTH, f"ckpt={checkpoint}"))
    assert said.returncode == 0, said.stderr[-3000:]
    assert f"ckpt={checkpoint} has all 14 optimizer steps behind it: nothing is trained, only measured" in said.stdout
    results = [json.loads((run / "run.json").read_text())["results"] for run in (unbroken, tmp_path / "again")]
    assert results[1]["val_loss_after"] == pytest.approx(results[0]["val_loss_after"], rel=1e-6)


def test_a_checkpoint_is_not_resumed_on_other_rows(unbroken: Path, rows_file: Path, tmp_path: Path) -> None:
    checkpoint = unbroken / "checkpoints" / "last.ckpt"
    other = tmp_path / "rows.jsonl"
    other.write_text(rows_file.read_text().replace("Stage", "stage", 1))
    said = run_train(*tiny_run(tmp_path / "run", other, *LENGTH, "trainer.max_steps=16", f"ckpt={checkpoint}"))
    assert said.returncode == 2
    last = said.stderr.splitlines()[-1]
    assert last.startswith(f"medreason.train: ckpt={checkpoint}: data was ")
    assert last.endswith("resume with the settings it was trained with")
