"""What tests share that is no fixture: places, settings of a tiny run, commands in processes of their own."""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from medreason.config import ComputeDtype, DataConfig, LoraConfig, ModelConfig, Precision, TrainingEngine
from medreason.core.cli import composed
from medreason.models.prompts import Example
from warm_start import warm_python

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"  # real rows; tests that need them skip without
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TINY = ModelConfig("embedded:tiny", None, Precision.half, None, TrainingEngine.auto, ComputeDtype.auto)


def data_config(path: Path | str, *overrides: str) -> DataConfig:
    return composed("data=local", f"data.path={path}", *(f"data.{override}" for override in overrides)).data


def lora(**changes: Any) -> LoraConfig:
    settings = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": LINEARS, "rslora": False, "dora": False}
    return LoraConfig(**(settings | changes))


def write_rows(path: Path, cases: list[Example]) -> None:
    rows = [{"Question": c.question, "Complex_CoT": c.reasoning, "Response": c.answer} for c in cases]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_train(*overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m medreason.train OVERRIDES` in a process of its own."""
    return run_command("train", *overrides, **options)


def run_command(name: str, *overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m medreason.NAME OVERRIDES` in a process of its own."""
    command = [python(), "-m", f"medreason.{name}", *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


@functools.cache
def python() -> str:
    """What carries out `-m medreason.X`: a stand-in whose process has its imports behind it, else Python itself."""
    if not sys.platform.startswith("linux") or Path("/dev/nvidiactl").exists():  # CUDA cannot be forked
        return sys.executable
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    return warm_python(Path(tempfile.gettempdir()) / f"medreason-warm-{session}")


# a run of the tiny model that takes a second once its imports are done
def tiny_run(run: Path, rows: Path, *more: str) -> list[str]:
    return [
        "model=tiny", "trainer=cpu", "optim=adamw", "data=local", f"data.path={rows}", f"hydra.run.dir={run}",
        "data.row_tokens=1024", "data.validation_share=0.2", "data.deduplicate=off", "lora.dropout=0.1",
        "optim.lr=1e-2", "trainer.answer_questions=2", "trainer.max_answer_tokens=4", *more,
    ]  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on, at least now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


TAUGHT = Example("What does a pH of 7.10 mean?", "7.10 is below 7.35.\nSo it is low.", "Acidaemia.")
