import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT


def run(rows: Path, folder: Path, processes: int, rows_per_batch: int) -> list[dict[str, Any]]:
    """What each process of a run saw."""
    folder.mkdir()
    command = [sys.executable, "tests/two_processes.py", rows, folder, str(processes), str(rows_per_batch)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert said.returncode == 0, said.stderr[-3000:]
    return [json.loads((folder / f"seen{process}.json").read_text()) for process in range(processes)]


def test_two_processes_train_as_one_does_on_the_same_rows(rows_file: Path, tmp_path: Path) -> None:
    (alone,) = run(rows_file, tmp_path / "one", 1, 2)
    both = run(rows_file, tmp_path / "two", 2, 1)
    # every row once, whoever takes it; the last row has no partner, so one process makes a step for nothing
    assert len(alone["rows"]) % 2 == 1, "an even number would prove less"
    assert sorted(alone["rows"]) == sorted(both[0]["rows"] + both[1]["rows"])
    assert {process["steps"] for process in both} == {alone["steps"]} == {alone["expected_steps"]}
    # losses per target token are those of the whole step on every process, though the processes' counts differ
    for process in both:
        assert process["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert process["norms"] == pytest.approx(alone["norms"], rel=1e-4)
        assert process["validation"] == pytest.approx(alone["validation"], rel=1e-5)
    weights = [torch.load(tmp_path / name, weights_only=True) for name in
               ("one/weights0.pt", "two/weights0.pt", "two/weights1.pt")]  # fmt: skip
    for name, expected in weights[0].items():
        for other in weights[1:]:
            key = next(key for key in other if key.endswith(name))
            assert torch.allclose(other[key], expected, rtol=1e-3, atol=1e-4), name
