"""What tests share: no network, a cache of their own, the tiny model, rows of every length."""

import os
import signal
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two in each of several processes would wait for each other
os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MEDREASON_CACHE"] = os.environ.get("MEDREASON_TEST_CACHE") or tempfile.mkdtemp(prefix="medreason-tests-")

import unsloth  # noqa: F401, I001  # before anything that imports transformers
import functools
import json
import socket
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
from warm_start import warm_python

# a shell that starts the tests in the background has them ignore Ctrl-C, and all that they start, which tests send it
signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture(scope="session")
def taught_run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The directory of a finished run, whose adapter has a tiny model know one answer, reasoning included."""
    import torch
    from omegaconf import OmegaConf
    from transformers import AutoModelForCausalLM

    from medreason.model import local_path
    from medreason.prompts import completion_text, prompt_text

    folder = tmp_path_factory.mktemp("taught")
    base = AutoModelForCausalLM.from_pretrained(local_path(TINY), dtype="auto")
    base.lm_head.weight.data *= 20  # else no hidden state could be sure of a token
    base = base.to(torch.bfloat16).float()  # the same weights on a CPU that holds 16 bits in bfloat16 as on another
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    settings = [f"model.path={folder}/base", "data.row_tokens=256", "lora.r=16", "lora.alpha=32"]
    config = composed("model=tiny", "trainer=cpu", "data=clinical_cases", *settings)
    prompt = prompt_text(tokenizer, TAUGHT.question, config.data.format)
    completion = completion_text(TAUGHT, config.data.format) + tokenizer.eos_token
    model = load_model(config.model, config.lora, row_tokens=256, recompute=Recompute.none, seed=1).float()
    asked, tokens = (
        tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
        for text in (prompt, prompt + completion)
    )
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other all the time where tests share the cores
    for _ in range(150):
        logits = model(input_ids=tokens, use_cache=False).logits[0, asked.shape[1] - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.float(), tokens[0, asked.shape[1] :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    assert loss < 0.05, "an answer that was not learned would prove nothing"
    model.save_pretrained(folder / "run" / "adapter")
    tokenizer.save_pretrained(folder / "run" / "adapter")
    OmegaConf.save(OmegaConf.structured(config), folder / "run" / "config.yaml")
    return folder / "run"
