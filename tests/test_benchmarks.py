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
        ("data_preparation.py", ["ours", "embedded:tiny"], ["1024"], "rows of 1,024"),
    ],
)
def test_a_benchmark_still_runs(rows_file: Path, script: str, before: list[str], after: list[str], says: str) -> None:
    command = [sys.executable, f"benchmarks/{script}", *before, str(rows_file), *after]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr[-2000:]
    assert says in said.stdout
