import resource
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from medreason.config import ConfigError, EvaluateConfig
from medreason.core.run_directory import run_config
from support import ROOT, composed, run_train

QUICK = 9  # seconds of work, whatever else the machine has to do: about 3 on two cores; an import of Unsloth takes more


def work_of_children() -> float:
    """Seconds that processors have worked for the processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def options() -> list[str]:
    groups = [*(ROOT / "conf").iterdir(), ROOT / "experiments"]
    return [f"{group.name}={file.stem}" for group in groups if group.is_dir() for file in sorted(group.glob("*.yaml"))]


@pytest.mark.parametrize("option", options())
def test_every_option_of_every_group_composes(option: str) -> None:
    composed(option, *(["data.path=rows.jsonl"] if option == "data=local" else []))


def test_the_users_own_line_composes_over_mistral_and_medical_o1() -> None:
    config = composed("lora.r=32", "optim.lr=1e-4")
    assert (config.lora.r, config.optim.lr) == (32, 1e-4)
    assert config.model.path == "unsloth/mistral-7b-instruct-v0.3"
    assert config.data.path == "FreedomIntelligence/medical-o1-reasoning-SFT"


def test_a_named_run_wins_over_the_defaults_and_the_command_line_over_both() -> None:
    assert composed("experiments=quickstart").lora.alpha == 32
    assert composed("experiments=quickstart", "lora.alpha=8").lora.alpha == 8
    assert composed("experiments=quickstart").model.path == "embedded:smollm2_135m"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.rank=3", "lora.rank: no such setting (did you mean lora.r?)"),
        ("+lora.rank=3", "lora.rank: no such setting (did you mean lora.r?)"),
        ("optim.lrr=1", "optim.lrr: no such setting (did you mean optim.lr?)"),
        ("optm=adamw", "optm: no such setting (did you mean optim?)"),
        ("lora.r=abc", "Value 'abc' of type 'str' could not be converted to Integer; full_key: lora.r"),
        ("lora.r=-4", "lora.r must be positive, got -4"),
        ("optim.lr=0", "optim.lr must be positive, got 0.0"),
        ("lora.dropout=1", "lora.dropout must be in [0, 1), got 1.0"),
        ("optim.betas=[0.9]", "optim.betas must be two numbers in [0, 1), got [0.9]"),
        ("trainer.precision=bf16-true", "trainer.precision must be auto, 32-true, bf16-mixed or 16-mixed"),
        ("monitor=val/los", "monitor must be one of val/loss, train/loss, got 'val/los'"),
        ("optim.decay=quadratic", "expected one of [linear, cosine, constant]; full_key: optim.decay"),
        ("model=mistral_8b", "Could not find 'model/mistral_8b'; Available options in 'model': llama31_8b"),
        ("experiments=quick", "Could not find 'experiments/quick'; Available options in 'experiments': "),
        ("data=local", "data.path must name a file or a hub data set (data.path=FILE), got None"),
        ("model.path=./nowhere", "model.path=./nowhere: no such folder"),
        ("model.path=tests", "model.path=tests: no config.json there"),
        ("model.path=embedded:huge", "embedded:huge: no such model; known: smollm2_135m, tiny"),
        ("model.path=nobody/nothing", "neither a folder here nor to be had from the hub"),
        ("model=tiny", "there is no CUDA GPU here; use trainer=cpu"),
        ("experiments=quickstart model.precision=int8", "model.precision=int8 needs a CUDA GPU"),
        ("experiments=quickstart ckpt=nowhere.ckpt", "ckpt=nowhere.ckpt: no such file"),
        ("experiments=quickstart ckpt=README.md", "ckpt=README.md: not a readable checkpoint"),
        ("experiments=quickstart data.case_kinds=[flu]", "data.case_kinds: no kind 'flu'; known: kidney_stage"),
        ("experiments=quickstart data=local data.path=gone.csv", "data.path=gone.csv: no such file"),
        ("data.path=a,b.jsonl", "needs quotes: 'data.path=\"a,b.jsonl\"'"),
        ("data.path=/d/#1.jsonl", "Hydra reads this only in quotes; write 'data.path=\"/d/#1.jsonl\"'"),
        ("model.chat_template='{{'", "model.chat_template: not a Jinja template"),
        ("data.max_bad_share=2", "data.max_bad_share must be in [0, 1], got 2.0"),
        ("data.near_duplicate=0", "data.near_duplicate must be in (0, 1], got 0.0"),
        ("data.weight=0", "data.weight must be positive, got 0.0"),
        ("data.mix=[{path:a.jsonl,weight:-1}]", "data.mix: weight must be positive, got -1.0"),
        ("data.mix=[{weight:1}]", "data.mix[0].path"),
        ("data.packing=of", "expected one of [best_fit, off]; full_key: data.packing"),
        ("data.format=chatml", "expected one of [think, huatuo, seed]; full_key: data.format"),
        ("data.decontaminate=drop", "data.benchmarks must name what data.decontaminate=drop compares with"),
        ("data.decontaminate=off data.benchmarks=[a.jsonl]", "data.decontaminate must be report or drop where"),
        ("experiments=quickstart data=local data.path=README.md", "cannot read .md; known: .json, .jsonl"),
        ("experiments=quickstart data=local data.path=conf", "no JSON, JSONL, Parquet or CSV file in this folder"),
        ("experiments=quickstart data.benchmarks=[gone.jsonl]", "data.benchmarks=gone.jsonl: no such file"),
    ],
)
def test_a_mistake_answers_in_one_line_within_seconds_and_leaves_nothing(
    override: str, says: str, tmp_path: Path
) -> None:
    before = work_of_children()
    said = run_train(*override.split(), f"hydra.run.dir={tmp_path / 'run'}")
    seconds = work_of_children() - before
    lines = [line for line in said.stderr.splitlines() if line.strip()]
    assert said.returncode == 2, said.stderr[-2000:]
    assert len(lines) == 1, lines
    assert says in lines[0]
    assert not (tmp_path / "run").exists()
    assert seconds < QUICK


@pytest.mark.parametrize(
    "content",
    [
        b"", b"- 1", b"model: 3", b"a: [", b"!!python/object/apply:os.system ['true']", b"seed: !!python/name:os.x",
        b"seed: 2026-01-01", b"seed: !!binary aGk=", b"? [1]\n: 2", b"a: &a [*a]", b"\xff\xfe", b"\0",
        b"model: &m {path: *m}", b"lora: !!set {r}", b"seed: 99999999999999999999", b"[" * 5000,
        b"model: ${oc.env:HOME}",
    ],
)  # fmt: skip
def test_a_damaged_configuration_of_a_run_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml: not the settings of a run") as refused:
        run_config(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_directory_that_cannot_be_made_is_one_line() -> None:
    said = run_train("experiments=quickstart", "hydra.run.dir=/proc/nowhere/run")
    assert said.returncode == 2
    assert said.stderr.splitlines() == [
        "medreason.train: /proc/nowhere: No such file or directory; a run's directory cannot be made; "
        "give another hydra.run.dir"
    ]


def test_the_composed_job_is_printed_in_seconds() -> None:
    before = work_of_children()
    said = run_train("--cfg", "job")
    assert said.returncode == 0
    assert "path: unsloth/mistral-7b-instruct-v0.3" in said.stdout
    assert work_of_children() - before < QUICK


def test_a_training_run_composed_amid_another_command_leaves_it_its_own_schema() -> None:
    ConfigStore.instance().store(name="schema", node=EvaluateConfig)
    composed("model=tiny", "trainer=cpu")
    assert OmegaConf.get_type(ConfigStore.instance().repo["schema.yaml"].node) is EvaluateConfig
