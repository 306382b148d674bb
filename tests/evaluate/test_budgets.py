import json
from pathlib import Path

import pytest

from medreason.core.run_directory import read_json
from medreason.evaluate.budgets import picture
from support import run_command

QUESTIONS = [
    {
        "id": str(number),
        "question": f"Which of them is number {number}?",
        "options": {"A": "one", "B": "two"},
        "answer": "A",
    }
    for number in range(3)
]


def evaluated(file: Path, output: Path, *more: str) -> tuple[int, str, str]:
    said = run_command(
        "evaluate", "run=embedded:tiny", f"benchmarks=[{file}]", "method=generate", "max_new_tokens=6",
        "batching=static", f"output={output}", *more,
    )  # fmt: skip
    return said.returncode, said.stdout, said.stderr


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return path


def test_each_budget_is_an_evaluation_and_all_stand_together(questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, said, errors = evaluated(questions, output, "thinking_tokens=[8,4]")
    assert code == 0, errors[-3000:]
    found = read_json(output / "thinking.json")["benchmarks"]["questions"]
    assert [one["budget"] for one in found] == [4, 8]
    for one in found:
        assert one["questions"] == 3 and one["tokens"] <= one["budget"] + 6
        part = output / f"thinking_{one['budget']}"
        assert read_json(part / "scores.json")["evaluated"]["thinking_tokens"] == [one["budget"]]
        assert len((part / "questions.jsonl").read_text().splitlines()) == 3
    assert (output / "thinking.png").stat().st_size > 10_000
    assert said.count("loading") <= 1 and "thinking_4" in said
    # what is answered is not answered again
    code, said, errors = evaluated(questions, output, "thinking_tokens=[4,8]")
    assert code == 0 and said.count("3 questions, 0 to answer") == 2, said + errors


def test_what_cannot_be_a_budget_is_told_in_a_line(questions: Path, tmp_path: Path) -> None:
    for given, line in (
        ("thinking_tokens=[0]", "thinking_tokens must be of 1 to"),
        ("thinking_tokens=[]", "thinking_tokens must name budgets"),
        ("thinking_tokens=[4,4]", "thinking_tokens must name budgets"),
        ("against=DIR", "no evaluation there|against: each budget"),
    ):
        more = [given] if "thinking" in given else [given, "thinking_tokens=[4]"]
        code, _, errors = evaluated(questions, tmp_path / "out", *more)
        assert code == 2 and len(errors.splitlines()) == 1, errors
        assert any(part in errors for part in line.split("|")), errors
    said = run_command("evaluate", "run=embedded:tiny", f"benchmarks=[{questions}]", "thinking_tokens=[4]")
    assert "thinking_tokens must be null where nothing is written here" in said.stderr


def test_a_benchmark_without_accuracy_is_drawn_by_its_tokens_alone() -> None:
    figure = picture({"held_out": [{"budget": budget, "questions": 3, "tokens": 2.0 * budget} for budget in (4, 8)]})
    above, below = figure.axes
    assert not above.lines and [list(map(float, line.get_ydata())) for line in below.lines] == [[8.0, 16.0]]
