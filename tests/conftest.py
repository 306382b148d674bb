"""Fixtures, and the environment of tests: no network, a cache of their own, a thread a process."""

import atexit
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two in each of several processes would wait for each other
os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
os.environ["WANDB_MODE"] = "offline"
# one for all processes of a session: they inherit the name
if "MEDREASON_TEST_CACHE" not in os.environ:
    os.environ["MEDREASON_TEST_CACHE"] = tempfile.mkdtemp(prefix="medreason-tests-")
    atexit.register(shutil.rmtree, os.environ["MEDREASON_TEST_CACHE"], ignore_errors=True)
os.environ["MEDREASON_CACHE"] = os.environ["MEDREASON_TEST_CACHE"]

import pytest

from medreason.config import ModelConfig, Precision, Recompute
from medreason.core.cli import composed
from medreason.data.clinical_cases import generate_cases
from medreason.models.prompts import Example
from support import TAUGHT, TINY, lora, write_rows

# a shell that starts the tests in the background has them ignore Ctrl-C, and all that they start, which tests send it
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = ("sweep", "train", "tests", "core", "engine", "evaluate", "models")

SLOW = ("test_ranges.py", "test_steps.py", "test_asking_judge.py")

# what the text of a file of tests holds that has a model in its own process, or starts others
MODELS = "unsloth|make_model|taught_run|load_model|load_trained|peft|trl"
PROCESSES = r"run_command|run_train|subprocess|Popen|python\(\)|Process\("


def says(path: Path, pattern: str) -> bool:
    return re.search(pattern, path.read_text(encoding="utf-8")) is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="without files that load models, start processes or take long"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--quick") or not collection_path.name.startswith("test_"):
        return None
    # every value for every setting, and real weights to convert: half a minute each; the other two take 20 s
    long = collection_path.name in SLOW or says(collection_path, "smollm2_135m")
    return True if long or says(collection_path, f"{MODELS}|{PROCESSES}") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rooms whose files take longest first: a long file at the end would have one of two processes wait for it."""
    last = len(LONGEST)
    items.sort(key=lambda item: LONGEST.index(item.path.parent.name) if item.path.parent.name in LONGEST else last)


def pytest_configure(config: pytest.Config) -> None:
    """Imports Unsloth, which must come before transformers, unless the files that were asked for do without."""
    asked = [Path(word.partition("::")[0]) for word in config.args]
    without = config.getoption("--quick") or all(path.is_file() and not says(path, MODELS) for path in asked)
    if not without:
        import unsloth  # noqa: F401


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from medreason.models.load import load_tokenizer

    return load_tokenizer(TINY)


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """A fresh tiny model; LoRA's B is not zero, so that every adapter weight matters."""
    import torch

    from medreason.models.load import load_model

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


@pytest.fixture(scope="session")
def taught_run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The directory of a finished run, whose adapter has a tiny model know one answer, reasoning included."""
    import torch
    from omegaconf import OmegaConf
    from transformers import AutoModelForCausalLM

    from medreason.models.load import load_model, local_path
    from medreason.models.prompts import completion_text, prompt_text

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
