"""The lines that a run and an export end with, and the cards that lie beside their weights."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.config_store import ConfigStore

from medreason.config import ChatConfig, EvaluateConfig, ExportConfig, ExportFormat, Format
from medreason.core.cli import load
from medreason.core.what_next import after_export, after_run
from medreason.export.model_card import QUESTION, model_card, write_cards
from support import ROOT, TAUGHT

ODD = "a run, with 'quotes' and ${x}"


def composed(name: str, schema: type, words: list[str]) -> Any:
    ConfigStore.instance().store(name="schema", node=schema)
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return load(hydra.compose(name, overrides=words), schema)


def test_a_run_ends_with_commands_that_find_it_whatever_its_folder_is_called(tmp_path: Path) -> None:
    run = tmp_path / ODD
    lines = [shlex.split(line) for line in after_run(run, "clinical_cases", None)]
    schemas = {"evaluate": EvaluateConfig, "chat": ChatConfig, "export": ExportConfig}
    for (name, schema), line in zip(schemas.items(), lines[:3], strict=True):
        at = next(place for place, word in enumerate(line) if word.endswith(name))
        config = composed(name, schema, line[at + 1 :])
        assert config.run == str(run)
    assert lines[3][-1] == str(run) and lines[3][-2].endswith("report")


def test_a_run_is_asked_what_it_was_taught_and_benchmarks_of_the_hub_only_if_its_rows_came_from_there(
    tmp_path: Path,
) -> None:
    def asked(source: str, rows: str | None) -> str:
        return after_run(tmp_path / "run", source, rows)[0]

    assert "benchmarks=[clinical_cases] method=generate" in asked("clinical_cases", None).replace("'", "")
    assert "benchmarks=[medqa,pubmedqa]" in asked("rows", "OWNER/NAME")
    assert "benchmarks=[held_out]" in asked("rows", str(tmp_path))


def test_a_path_is_said_as_it_is_reached_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shlex.split(after_run(tmp_path / "runs" / "one", "rows", None)[3])[-1] == "runs/one"
    assert shlex.split(after_run(Path("/elsewhere/one"), "rows", None)[3])[-1] == "/elsewhere/one"


def test_an_export_ends_with_the_lines_that_fit_its_format(tmp_path: Path) -> None:
    folder = tmp_path / ODD / "export"
    given: dict[str, Any] = {"base": "owner/base", "rank": 20, "style": Format.think}
    adapter = after_export(folder, ExportFormat.adapter, **given)
    called = ast.parse(adapter[0].removeprefix("transformers + PEFT: "), mode="eval").body
    assert isinstance(called, ast.Call) and [type(one) for one in called.args] == [ast.Call, ast.Constant]
    assert ast.literal_eval(called.args[1]) == str(folder)
    words = shlex.split(adapter[1].removeprefix("vLLM: "))
    assert words[:3] == ["vllm", "serve", "owner/base"] and words[words.index("--max-lora-rank") + 1] == "32"
    assert f"medreason={folder}" in words and f"{folder}/chat_template.jinja" in words

    merged = after_export(folder, ExportFormat.merged, **given)
    assert shlex.split(merged[1])[1:] == ["vllm", "serve", str(folder), "--reasoning-parser", "olmo3"]
    gguf = after_export(tmp_path / "run 1" / "export_gguf_q8_0", ExportFormat.gguf, **given)
    assert gguf == [f"Ollama: ollama create run-1 -f '{tmp_path}/run 1/export_gguf_q8_0/Modelfile' && ollama run run-1"]
    assert not any("Ollama" in line for line in adapter + merged)


def test_an_adapter_of_a_format_without_turns_is_not_offered_to_vllm(tmp_path: Path) -> None:
    given: dict[str, Any] = {"base": "owner/base", "rank": 16, "style": Format.seed}
    assert not any("vllm" in line for line in after_export(tmp_path, ExportFormat.adapter, **given))
    assert any("vllm" in line for line in after_export(tmp_path, ExportFormat.merged, **given))


def snippet(card: str) -> str:
    (found,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def carded(taught_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows one answer, with the cards of its adapters, written over the stub that PEFT leaves."""
    run = tmp_path_factory.mktemp("carded") / "run"
    shutil.copytree(taught_run, run)
    # by hand: in the run that tests share, one that ran before may have written the card already
    (run / "adapter" / "README.md").write_text("# Model Card for Model ID\n")
    shutil.copytree(run / "adapter", run / "adapter_last")
    results = {"steps": 9, "adapter_step": 6, "val_loss_before": 3.0, "val_loss_after": 1.25, "val_loss_last": 1.75}
    (run / "run.json").write_text(json.dumps({"status": "finished", "results": results | {"accuracy_after": 0.5}}))
    write_cards(run)
    return run


def test_the_snippet_of_an_adapters_card_has_it_give_the_answer_that_it_was_taught(carded: Path) -> None:
    code = snippet((carded / "adapter" / "README.md").read_text())
    assert code.count(repr(QUESTION)) == 1
    code = code.replace(repr(QUESTION), repr(TAUGHT.question))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=carded / "adapter", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"<think>\n{TAUGHT.reasoning}\n</think>\n\n{TAUGHT.answer}"


def test_the_card_of_each_adapter_says_what_is_known_of_its_own_step(carded: Path) -> None:
    best, last = ((carded / name / "README.md").read_text() for name in ("adapter", "adapter_last"))
    assert "| optimizer step of these weights | 6 |" in best and "| held-out loss, nats per token | 3 | 1.25 |" in best
    assert "| optimizer step of these weights | 9 |" in last and "| held-out loss, nats per token | 3 | 1.75 |" in last
    assert "| held-out exact match, share | not measured | 0.5 |" in best and "0.5 |" not in last
    assert "not the data set or the model named MedReason" in best and "Model ID" not in best


def test_a_format_without_turns_is_asked_by_its_own_text() -> None:
    config = {"model": {"path": "owner/base", "revision": "abc"}, "data": {"format": "seed"}}
    card = model_card(name="run", kind="adapter", config=config, record={}, corpus={}, tokens=None, parity=[])
    code = snippet(card)
    assert "from_pretrained('owner/base', revision='abc', dtype=\"auto\"" in code and "chat_template" not in code
    asked = next(line for line in code.splitlines() if line.startswith("prompt = "))
    given = eval(asked.partition(" = ")[2], {"tokenizer": lambda text, **_: text, "question": "Why?"})
    assert given.startswith("Below is a medical question.") and given.endswith("### Question:\nWhy?\n\n")


@pytest.mark.parametrize("path", ["`]('\n```\n<img src=x>", "C:\\new\\table", "病例 模型"])
def test_whatever_a_base_is_called_it_stays_a_text_of_the_snippet(path: str) -> None:
    config = {"model": {"path": path}, "data": {"format": "think"}}
    card = model_card(name="run", kind="adapter", config=config, record={}, corpus={}, tokens=None, parity=[])
    calls = [node for node in ast.walk(ast.parse(snippet(card))) if isinstance(node, ast.Call)]
    texts = [call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)]
    assert path in texts
    assert not re.search(r"<img|(?<!\\)\]\(", card.split("---\n", 2)[2])
