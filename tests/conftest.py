"""What tests share: no network, a cache of their own, the tiny model, rows of every length."""

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MEDREASON_CACHE"] = os.environ.get("MEDREASON_TEST_CACHE") or tempfile.mkdtemp(prefix="medreason-tests-")

import unsloth  # noqa: F401, I001  # before anything that imports transformers
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from medreason.clinical_cases import generate_cases
from medreason.command import composed
from medreason.config import DataConfig, LoraConfig, ModelConfig, Precision, Recompute
from medreason.model import load_model, load_tokenizer
from medreason.prompts import Example

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"  # real rows; tests that need them skip without
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TINY = ModelConfig("embedded:tiny", None, Precision.half, None)


def data_config(path: Path | str, *overrides: str) -> DataConfig:
    return composed("data=local", f"data.path={path}", *(f"data.{override}" for override in overrides)).data


def lora(**changes: Any) -> LoraConfig:
    settings = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": LINEARS, "rslora": False, "dora": False}
    return LoraConfig(**(settings | changes))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer(TINY)


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """A fresh tiny model; LoRA's B is not zero, so that every adapter weight matters."""
    import torch

    def make(model: ModelConfig = TINY, **changes: Any) -> Any:
        made = load_model(model, lora(**changes), row_tokens=1024, recompute=Recompute.none, seed=1)
        if model.precision is Precision.half:
            made.float()  # a CPU with bfloat16 instructions would round, where tests ask for equality
        torch.manual_seed(2)
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return made

    return make


@pytest.fixture(scope="session")
def cases() -> list[Example]:
    return generate_cases(60, seed=7)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory, cases: list[Example]) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, cases)
    return path


def write_rows(path: Path, cases: list[Example]) -> None:
    rows = [{"Question": c.question, "Complex_CoT": c.reasoning, "Response": c.answer} for c in cases]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_train(*overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m medreason.train OVERRIDES` in a process of its own."""
    return run_command("train", *overrides, **options)


def run_command(name: str, *overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m medreason.NAME OVERRIDES` in a process of its own."""
    command = [sys.executable, "-m", f"medreason.{name}", *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


# a run of the tiny model that takes a second once its imports are done
def tiny_run(run: Path, rows: Path, *more: str) -> list[str]:
    return [
        "model=tiny", "trainer=cpu", "optim=adamw", "data=local", f"data.path={rows}", f"hydra.run.dir={run}",
        "data.row_tokens=1024", "data.validation_share=0.2", "data.deduplicate=off", "lora.dropout=0.1",
        "optim.lr=1e-2", "trainer.answer_questions=2", "trainer.max_answer_tokens=4", *more,
    ]  # fmt: skip
