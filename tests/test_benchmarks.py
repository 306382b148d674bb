import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT


@pytest.mark.parametrize(
    ("script", "before", "after", "says"),
    [
        ("lightning_overhead.py", ["bare", "embedded:tiny"], ["1024", "3"], "RESULT bare 32-true"),
        ("lightning_overhead.py", ["lightning", "embedded:tiny"], ["1024", "3"], "RESULT lightning 32-true"),
        ("gradient_fidelity.py", ["embedded:tiny"], ["512", "1", "fp8"], "gradient cosine"),
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
    results = json.loads((tmp_path / "training_speed.json").read_text())["results"]
    assert [result["name"] for result in results] == names, said.stdout
    assert all(result["tokens_per_second"] > 0 and result["steps"] == 4 for result in results)
    assert (tmp_path / "training_speed.png").stat().st_size > 5000
