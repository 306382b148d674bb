"""Memory does not grow with the rows: texts and tokens lie on the disk, and of a row memory holds a few numbers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

FEW, MANY = 4_000, 24_000  # rows
MOST = 1_500  # bytes a row; texts, tokens and what Python makes of them would take 11,000
WORDS = 120  # of a row
PREPARE = """
import sys, threading
from pathlib import Path
from support import composed
from medreason.data.corpus import read_split
from medreason.data.datamodule import MedicalReasoningData
from medreason.models.load import load_tokenizer

def anonymous():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def watch():
    while not ended.wait(0.005):
        peak[0] = max(peak[0], anonymous())

config = composed("model=tiny", "data=local", *sys.argv[1:])
tokenizer = load_tokenizer(config.model)
before, ended = anonymous(), threading.Event()
peak = [before]
watching = threading.Thread(target=watch)
watching.start()
data = MedicalReasoningData(config.data, read_split(config.data), tokenizer)
data.setup()
documents = data.report()["train_documents"] + data.report()["validation_documents"]
ended.set()
watching.join()
print(documents, peak[0] - before)
"""


def grown(path: Path, count: int) -> Path:
    """So many rows that have little in common."""
    rng = random.Random(count)
    known = [f"word{number}" for number in range(5_000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = rng.choices(known, k=WORDS)
            row = {"question": f"{' '.join(words[:30])} {number}?", "answer": " ".join(words[30:])}
            file.write(json.dumps(row) + "\n")
    return path


def peak(cache: Path, rows: Path, *more: str) -> int:
    """Bytes of anonymous memory beyond the imports that it takes at most to prepare these rows, in a fresh process."""
    environment = os.environ | {"MEDREASON_CACHE": str(cache), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", PREPARE, f"data.path={rows}", *more]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    documents, grew = map(int, done.stdout.split()[-2:])
    assert documents > 0
    return grew


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory is anonymous")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("".join(json.dumps({"question": f"What is the use of drug {n}?"}) + "\n" for n in range(20)))
    peaks = [
        peak(tmp_path / "cache", grown(tmp_path / f"{count}.jsonl", count), f"data.benchmarks=[{quiz}]")
        for count in (FEW, MANY)
    ]
    assert peaks[1] - peaks[0] < MOST * (MANY - FEW), f"{peaks[0]:,} and {peaks[1]:,} bytes"
