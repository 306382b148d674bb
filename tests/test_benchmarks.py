import json
import subprocess
import sys
from pathlib import Path

import pytest

from medreason.core.json_lines import json_lines, read_json_lines
from support import ROOT


@pytest.mark.parametrize(
    ("script", "before", "after", "says"),
    [
        ("lightning_overhead.py", ["bare", "embedded:tiny"], ["1024", "3"], "RESULT bare 32-true"),
        ("lightning_overhead.py", ["lightning", "embedded:tiny"], ["1024", "3"], "RESULT lightning 32-true"),
        ("gradient_fidelity.py", ["embedded:tiny"], ["512", "1", "fast_fp8"], "gradient cosine"),
        ("data_preparation.py", ["ours", "embedded:tiny"], ["1024"], "rows of 1,024"),
    ],
)
def test_a_benchmark_still_runs(rows_file: Path, script: str, before: list[str], after: list[str], says: str) -> None:
    command = [sys.executable, f"benchmarks/{script}", *before, str(rows_file), *after]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr[-2000:]
    assert says in said.stdout


def test_engines_and_a_peer_are_measured_side_by_side(rows_file: Path, tmp_path: Path) -> None:
    names = ["cpu_bf16", "hf_trl"]
    command = [
        sys.executable,
        "benchmarks/training_speed.py",
        "embedded:tiny",
        str(rows_file),
        str(tmp_path),
        "4",
        "512",
    ]
    said = subprocess.run([*command, *names], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr[-2000:]
    results = json.loads((tmp_path / "training_speed.json").read_text())["calls"][0]["results"]
    assert [result["name"] for result in results] == names, said.stdout
    assert all(result["tokens_per_second"] > 0 and result["steps"] == 4 for result in results)
    assert (tmp_path / "training_speed.png").stat().st_size > 5000


def test_speed_is_drawn_over_memory_in_a_line_for_each_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import training_speed

    names = [*training_speed.ENGINES, *training_speed.PEERS]
    results = [
        {"name": name, "tokens_per_second": 100.0 + place, "memory_gib": 7.0 + place}
        for place, name in enumerate(names)
    ]
    assert {training_speed.line_of(name) for name in names} == set(training_speed.LINES), "a line that nothing is on"
    made = {"device": "NVIDIA H100", "commit": None, "versions": {"torch": "2.11", "unsloth": None, "trl": None}}
    axes = training_speed.draw([{"provenance": made, "results": results}]).axes[0]
    assert [line.get_label() for line in axes.lines] == list(training_speed.LINES)
    assert sum(len(line.get_xdata()) for line in axes.lines) == len(names) == len(axes.texts)
    for line in axes.lines:
        assert list(line.get_xdata()) == sorted(line.get_xdata())
    assert axes.get_xlabel() == "peak GPU memory, GiB" and axes.get_ylabel().startswith("times Unsloth")
    base = next(one["tokens_per_second"] for one in results if one["name"] == "unsloth_trl_packed")
    assert axes.lines[-1].get_ydata()[0] == pytest.approx(results[-1]["tokens_per_second"] / base)
    at_home = [{"provenance": made | {"device": "CPU, 2 threads"}, "results": results[:2]}]
    axes = training_speed.draw(at_home).axes[0]
    assert "host" in axes.get_xlabel() and "tokens" in axes.get_ylabel() and len(axes.lines) == 1


def test_passes_of_the_fast_engine_stand_beside_their_bounds(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/roofline.py", str(tmp_path), "fp8", "embedded:tiny", "256", "100", "4"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr[-2000:]
    parts = json.loads((tmp_path / "roofline.json").read_text())["parts"]
    layers = 2  # of the tiny model
    assert parts["product"]["calls"] == 8 * layers and parts["attend_backward"]["calls"] == layers
    assert parts["narrow"]["calls"] == 8 * layers and parts["rms_norm_backward"]["calls"] == 2 * layers
    assert parts["cast_rows"]["calls"] == layers  # of what attention gathers; the gradient comes cast from above
    assert all(part["seconds"] > 0 and part["bound"] > 0 for part in parts.values())
    assert "tokens per second" in said.stdout and (tmp_path / "roofline.png").stat().st_size > 5000


def test_a_second_stage_that_nothing_was_sampled_for_ends_in_a_line(tmp_path: Path) -> None:
    given = ["tiny", "12", "4", "4", "4", "2", "data.validation_share=0.4", "optim.warmup_steps=1"]
    command = [sys.executable, "benchmarks/rejection_sampling.py", str(tmp_path), *given]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.stderr.endswith("first: no right answer to learn from; give more STEPS\n"), said.stderr[-2000:]
    parts = [read_json_lines(tmp_path / f"{name}.jsonl") for name in ("taught", "pool", "unseen")]
    assert [len(rows) for rows in parts] == [12, 4, 4] and ["reasoning" in rows[0] for rows in parts] == [
        True,
        False,
        False,
    ]
    assert len({row["question"] for rows in parts for row in rows}) == 20
    assert len(read_json_lines(tmp_path / "first" / "sampled" / "answers.jsonl")) == 4


def test_stages_are_compared_case_by_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rejection_sampling

    for name, correct in (("first", 20), ("longer", 30), ("second", 60)):
        (tmp_path / name / "unseen").mkdir(parents=True)
        lines = [{"id": str(number), "right": [number < correct]} for number in range(100)]
        (tmp_path / name / "unseen" / "answers.jsonl").write_text(json_lines(lines))
    (tmp_path / "first" / "sampled").mkdir()
    (tmp_path / "first" / "sampled" / "sample.json").write_text('{"counts": {"rows": 7}}')
    rejection_sampling.report(tmp_path)
    assert "second against first: " in (said := capsys.readouterr().out) and "+40.0 points" in said
    found = json.loads((tmp_path / "rejection_sampling.json").read_text())
    assert found["sampled"] == {"rows": 7} and found["right"] == {"first": 0.2, "longer": 0.3, "second": 0.6}
    assert found["second against"]["longer"]["points"] == pytest.approx(30)
    assert found["second against"]["longer"]["p"] < 1e-6
