"""A run beside its base, from the command to the file and the exit code."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medreason.core.json_lines import read_json_lines
from support import run_command


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "quiz.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": str(i), "question": f"{i} days ill?", "options": ["fever", "cough"], "answer": i % 2} for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(path, path.with_name("general.jsonl"))
    return path


@pytest.fixture(scope="module")
def judged(taught_run: Path, quiz: Path) -> Path:
    """The folder of a verdict on two benchmarks."""
    general = quiz.with_name("general.jsonl")
    said = run_command("verdict", f"run={taught_run}", f"benchmarks=[{quiz}]", f"forgetting=[{general}]", "margin=2")
    assert said.returncode == 0, said.stderr[-3000:]
    assert "general (forgetting)" in said.stdout and "not enough questions to tell on quiz, general" in said.stdout
    return taught_run / "evaluation" / "verdict_likelihood"


def test_a_verdict_holds_both_models_answers_and_what_they_say(judged: Path) -> None:
    found = json.loads((judged / "verdict.json").read_text())
    assert found["benchmarks"]["quiz"]["questions"] == 12 and found["margin"] == 0.02
    assert found["benchmarks"]["general"]["forgetting"] and not found["benchmarks"]["quiz"]["forgetting"]
    assert found["benchmarks"]["quiz"]["needed"] > 12
    for part in ("run", "base"):
        assert len(read_json_lines(judged / part / "quiz.jsonl")) == 12
        scores = json.loads((judged / part / "scores.json").read_text())["scores"]
        assert scores["quiz"]["accuracy"] == found["benchmarks"]["quiz"]["tuned" if part == "run" else "base"]


def test_a_worse_run_ends_a_script_that_asked_for_it(judged: Path, taught_run: Path, quiz: Path) -> None:
    """With the answers on file made wrong and right: the same command takes them as they are."""
    for part, choice in (("run", "C"), ("base", None)):
        path = judged / part / "quiz.jsonl"
        records = [record | {"choice": choice or record["gold"]} for record in read_json_lines(path)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = [f"run={taught_run}", f"benchmarks=[{quiz}]"]
    assert run_command("verdict", *given).returncode == 0
    said = run_command("verdict", *given, "fail_if_worse=true")
    assert said.returncode == 1 and "beside its base, the run is worse on quiz\n" in said.stdout
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=embedded:tiny"], "run=embedded:tiny: a model alone, and no run or adapter to compare with its base"),
        (["run={run}", "benchmarks=[held_out]"], "benchmarks=held_out: its answers are neither right nor wrong"),
        (["run={run}", "benchmarks=[{open}]"], "no rule knows its right answers; see medreason.evaluate judge=URL"),
        (["run={run}", "benchmarks=[clinical_cases]"], "its answers have no letters; set method=generate"),
        (["run={run}", "margin=-1"], "margin must be in 0 to 100, got -1"),
        (["run={run}", "benchmarks=[]"], "benchmarks must name at least one"),
        (["run={run}/none"], "none: no run directory, adapter or model there"),
    ],
)
def test_a_mistake_is_one_line(taught_run: Path, quiz: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "open.jsonl").write_text('{"question": "Why?", "answer": "Because."}\n')
    given = [word.format(run=taught_run, open=tmp_path / "open.jsonl") for word in words]
    given += [] if any(word.startswith("benchmarks") for word in words) else [f"benchmarks=[{quiz}]"]
    told = run_command("verdict", *given)
    assert told.returncode == 2 and said in told.stderr and told.stderr.count("\n") == 1
