"""Names from other tools are answered with ours, ready to be pasted, before anything slow."""

import subprocess
import sys

import pytest

from medreason.config import ConfigError, EvaluateConfig, ExportConfig, LrThenRankConfig, TrainConfig
from medreason.core import cli
from medreason.core.cli import composed, known_keys
from medreason.core.other_names import NAMES, NOTHING, SWITCHES, VALUES, answer, foreign
from support import ROOT

OPTIONS = ["--multirun", "-m", "--cfg", "-c", "--run", "--resolve", "--config-name", "-cn", "--help"]
KEYS = [*known_keys(TrainConfig), "experiments", "sweeps", *known_keys(LrThenRankConfig, "hydra.sweeper.")]


def said(line: str, schema: type = TrainConfig) -> str | None:
    return foreign(line.split(), OPTIONS, KEYS if schema is TrainConfig else known_keys(schema))


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("lr=1e-4", "optim.lr=1e-4"),
        ("learning_rate=1e-4", "optim.lr=1e-4"),
        ("+lr=1e-4", "optim.lr=1e-4"),
        ("batch_size=4", "trainer.rows_per_batch=4"),
        ("per_device_train_batch_size=4", "trainer.rows_per_batch=4"),
        ("micro_batch_size=4", "trainer.rows_per_batch=4"),
        ("gradient_accumulation_steps=8", "trainer.accumulate=8"),
        ("epochs=3", "trainer.max_epochs=3"),
        ("num_epochs=3", "trainer.max_epochs=3"),
        ("num_train_epochs=3", "trainer.max_epochs=3"),
        ("max_steps=100", "trainer.max_steps=100"),
        ("max_seq_length=2048", "data.row_tokens=2048"),
        ("sequence_len=2048", "data.row_tokens=2048"),
        ("cutoff_len=2048", "data.row_tokens=2048"),
        ("output_dir=/tmp/x", "hydra.run.dir=/tmp/x"),
        ("lora_r=8", "lora.r=8"),
        ("lora_rank=8", "lora.r=8"),
        ("lora_alpha=16", "lora.alpha=16"),
        ("lora_dropout=0.1", "lora.dropout=0.1"),
        ("warmup_ratio=0.03", "optim.warmup_steps=0.03"),
        ("warmup_steps=10", "optim.warmup_steps=10"),
        ("weight_decay=0.1", "optim.weight_decay=0.1"),
        ("sweep=rank_grid", "sweeps=rank_grid"),
        ("experiment=quickstart", "experiments=quickstart"),
        ("base_model=mistralai/Mistral-7B-v0.3", "model.path=mistralai/Mistral-7B-v0.3"),
        ("model_name=a/b", "model.path=a/b"),
        ("model_name_or_path=a/b", "model.path=a/b"),
        ("model=mistralai/Mistral-7B-v0.3", "model.path=mistralai/Mistral-7B-v0.3"),
        ("dataset=rows.jsonl", "data.path=rows.jsonl"),
        ("datasets=rows.jsonl", "data.path=rows.jsonl"),
        ("data=rows.jsonl", "data=local data.path=rows.jsonl"),
        ("val_set_size=0.1", "data.validation_share=0.1"),
        ("save_steps=50", "trainer.checkpoint_every_steps=50"),
        ("eval_steps=50", "trainer.validate_every_steps=50"),
        ("bf16=true", "trainer.precision=bf16-mixed"),
        ("fp16=True", "trainer.precision=16-mixed"),
        ("load_in_4bit=true", "model.precision=nf4"),
        ("load_in_8bit=true", "model.precision=int8"),
        ("report_to=wandb", "logger=wandb"),
        ("report_to=none", "logger=csv"),
        ("resume_from_checkpoint=a.ckpt", "ckpt=a.ckpt"),
        ("resume_from_checkpoint=true", "resume=last"),
        ("early_stopping_patience=3", "trainer.patience=3"),
        ("accumulate=4", "trainer.accumulate=4"),
        ("pruner=median", "hydra.sweeper.pruner=median"),
        ("--lr 1e-4", "optim.lr=1e-4"),
        ("--lr=1e-4", "optim.lr=1e-4"),
        ("--lora.r 32", "lora.r=32"),
        ("--max_steps 100", "trainer.max_steps=100"),
        ("--max-steps -1", "trainer.max_steps=-1"),
        ("--seed 3", "seed=3"),
        ("--r 32", "lora.r=32"),
        ("-lr 1e-4", "optim.lr=1e-4"),
        ("--load_in_4bit", "model.precision=nf4"),
        ("experiments=quickstart --cfg job lr=3", "optim.lr=3"),
        ("--multirun lr=1e-4,2e-4", "optim.lr=1e-4,2e-4"),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_the_words_to_paste(line: str, ours: str) -> None:
    told = said(line)
    assert told is not None
    assert told.endswith(f"write {ours}") or told.endswith(f"a path is written {ours}")
    assert "\n" not in told


def test_the_answer_is_one_line_with_both_names() -> None:
    assert said("lr=1e-4") == "lr: no such setting; here it is optim.lr: write optim.lr=1e-4"
    assert said("--lora.r 32") == "--lora.r: settings have no dashes here: write lora.r=32"
    assert said("lr") == "lr: no such setting; here it is optim.lr: write optim.lr=VALUE"
    assert foreign(["output_dir=my runs"], OPTIONS, KEYS) == (
        "output_dir: no such setting; here it is hydra.run.dir: write 'hydra.run.dir=my runs'"
    )


@pytest.mark.parametrize("line", ["deepspeed=ds.json", "logging_steps=10", "--deepspeed ds.json", "load_in_4bit=false"])
def test_what_has_no_equal_is_answered_with_a_phrase(line: str) -> None:
    told = said(line)
    assert told is not None and "no such setting" in told and "write" not in told


@pytest.mark.parametrize("line", ["config.yaml", "./my/config.yml", "config=my.yaml", "--config my.yaml"])
def test_a_file_of_settings_is_told_where_to_go(line: str) -> None:
    assert "put it under experiments/" in (said(line) or "")


@pytest.mark.parametrize(
    "line",
    [
        "lora.r=32 optim.lr=1e-4", "seed=3", "experiments=quickstart sweeps=rank_grid", "model=tiny data=local",
        "--multirun lora.r=8,16", "hydra.run.dir=x", "hydra/launcher=joblib", "hydra.sweeper.trials=3", "--cfg job",
        "--multi", "data.path=config.yaml", "lora.rank=3", "optm=adamw", "-m", "~logger.name", "++lora.r=3",
    ],
)  # fmt: skip
def test_ours_and_what_is_explained_elsewhere_is_let_through(line: str) -> None:
    assert said(line) is None


def test_another_command_is_answered_with_its_own_settings() -> None:
    assert (said("batch_size=4", EvaluateConfig) or "").endswith("write batch=4")
    assert (said("tasks=medqa", EvaluateConfig) or "").endswith("write benchmarks=medqa")
    assert (said("model=a/b", EvaluateConfig) or "").endswith("write run=a/b")
    assert (said("output_dir=x", ExportConfig) or "").endswith("write output=x")
    assert (said("runs/RUN", EvaluateConfig) or "").endswith("write run=runs/RUN")
    assert (said("--run=runs/RUN", EvaluateConfig) or "").endswith("write run=runs/RUN")
    assert said("lr=1", EvaluateConfig) is None


def test_every_answer_names_settings_that_there_are() -> None:
    known = {*KEYS, *known_keys(EvaluateConfig), *known_keys(ExportConfig), "weights", "hydra.run.dir"}
    assert {ours for all_ours in NAMES.values() for ours in all_ours} <= known
    for words in [*SWITCHES.values(), *VALUES.values()]:
        composed(words)
    commands = [KEYS, known_keys(EvaluateConfig), known_keys(ExportConfig)]
    for name in {*NAMES, *SWITCHES, *NOTHING} - {*KEYS}:
        assert any(answer(name, "1", keys) for keys in commands), name


@pytest.mark.parametrize(
    "words", [["lr=1e-4"], ["--lr", "1e-4"], ["--r", "32"], ["config.yaml"], ["quickstart"], ["lr=3", "--help"]]
)
def test_a_command_ends_with_the_line_and_exit_code_2(words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "medreason", "train", *words], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith(f"medreason.train: {words[0].split('=')[0]}")
    assert ended.stdout == ""


def test_hydras_own_options_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--multirun", "-cn", "train", "lora.r=8,16"])
    cli.check_words(TrainConfig)
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "3"])
    with pytest.raises(ConfigError, match=r"--lr: no such setting; here it is optim\.lr: write optim\.lr=3"):
        cli.check_words(TrainConfig)
