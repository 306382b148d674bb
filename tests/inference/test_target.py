"""Whom `run=` can name besides a run: an adapter, a model."""

import json
from pathlib import Path

import pytest

from medreason.config import Checkpoint, ConfigError, Format, Precision
from medreason.core.json_lines import read_json_lines
from medreason.inference.target import find_answerer
from medreason.models.load import local_path
from medreason.train.run import save_config
from support import TINY, composed, run_command

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def write_adapter(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    settings = LORA | {"base_model_name_or_path": local_path(TINY)} | changes
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_is_taken_with_its_own_settings(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", use_rslora=True, revision="main")
    template = "{% for message in messages %}[its own] {{ message['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    found = find_answerer(str(folder), style=Format.seed)
    assert (found.adapter, found.run, found.folder) == (folder, None, folder)
    assert found.config.model.path == local_path(TINY) and found.config.model.revision == "main"
    assert found.config.model.chat_template == template and found.config.data.format is Format.seed
    lora = found.config.lora
    assert (lora.r, lora.alpha, lora.target_modules, lora.rslora) == (4, 8, ["q_proj", "v_proj"], True)
    assert find_answerer(str(folder), base=True).adapter is None


def test_a_model_alone_answers_in_sixteen_bits_on_a_cpu() -> None:
    for given in ("embedded:tiny", local_path(TINY)):
        found = find_answerer(given)
        assert (found.adapter, found.run, found.folder) == (None, None, Path("runs/tiny"))
        assert found.config.model.path == given and found.config.model.precision is Precision.half
        assert find_answerer(given, precision=Precision.nf4).config.model.precision is Precision.nf4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "not LoRA over a list of target modules"),
        ({"peft_type": None}, "not LoRA over a list of target modules"),
        ({"target_modules": ".*_proj"}, "not LoRA over a list of target modules"),
        ({"rank_pattern": {"q_proj": 8}}, "an adapter with rank_pattern, which this project does not know"),
        ({"base_model_name_or_path": "/nowhere/model"}, "the model /nowhere/model is neither here nor to be had"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    folder = write_adapter(tmp_path / "adapter", **changes)
    with pytest.raises(ConfigError, match=said):
        find_answerer(str(folder))


def test_a_runs_two_adapters_are_taken_by_name_and_the_best_is_the_usual_one(tmp_path: Path) -> None:
    save_config(composed("model=tiny", "trainer=cpu"), tmp_path)
    best = write_adapter(tmp_path / "adapter")

    def taken(checkpoint: Checkpoint | None) -> Path | None:
        return find_answerer(str(tmp_path), checkpoint=checkpoint).adapter

    with pytest.raises(
        ConfigError, match=r"checkpoint=best: .*adapter is not known to be the best step's; leave it out"
    ):
        taken(Checkpoint.best)  # of an earlier release
    (tmp_path / "run.json").write_text(json.dumps({"results": {"adapter_step": 4}}))
    assert taken(None) == taken(Checkpoint.best) == taken(Checkpoint.last) == best, "the last step is the best"
    last = write_adapter(tmp_path / "adapter_last")
    assert (taken(None), taken(Checkpoint.best), taken(Checkpoint.last)) == (best, best, last)
    with pytest.raises(ConfigError, match="no run directory, so checkpoint=last means nothing"):
        find_answerer(str(best), checkpoint=Checkpoint.last)


def test_what_is_nowhere_and_an_unknown_embedded_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for given, said in (
        (str(tmp_path), "no run directory, adapter or model there"),
        ("embedded:tyni", "no such model; known"),
        ("nobody/nothing", "the model nobody/nothing is neither here nor to be had from the hub"),
    ):
        with pytest.raises(ConfigError, match=said):
            find_answerer(given)


def test_an_adapter_answers_as_its_run_does_and_keeps_its_answers_beside_it(taught_run: Path, tmp_path: Path) -> None:
    asked = ["benchmarks=[clinical_cases]", "method=generate", "limit=2", "max_new_tokens=4"]
    texts = []
    for given in (taught_run, taught_run / "adapter"):
        said = run_command("evaluate", f"run={given}", *asked, f"output={tmp_path / given.name}")
        assert said.returncode == 0, said.stderr[-3000:]
        records = read_json_lines(tmp_path / given.name / "clinical_cases.jsonl")
        texts.append([record["text"] for record in records])
    assert texts[0] == texts[1] and len(texts[0]) == 2
    refused = run_command("evaluate", f"run={taught_run}/adapter", "benchmarks=[held_out]")
    assert refused.returncode == 2 and "only a run has rows that it held out" in refused.stderr
