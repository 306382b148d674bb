"""The help of a command says every setting and every choice, as config.py and conf/ have them."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from medreason import config
from medreason.completion import SCHEMAS
from medreason.config import (
    ConfigError,
    ConfirmConfig,
    ExportConfig,
    LrThenRankConfig,
    TrainConfig,
)
from medreason.core.cli import help_page
from medreason.core.settings_help import EXAMPLES, Setting, choices, describe, describe_type, first_sentence
from support import ROOT


def told(schema: type, name: str) -> Setting:
    return next(setting for setting in describe(schema) if setting.name == name)


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), LrThenRankConfig, ConfirmConfig])
def test_every_setting_has_a_meaning_and_says_what_it_takes(schema: type) -> None:
    for setting in describe(schema):
        assert setting.meaning, setting.name
        assert setting.type or setting.range or "names" in setting.meaning, setting.name
        assert "medreason/" not in setting.meaning + "".join(setting.choices.values()), setting.name


def test_a_setting_is_told_with_type_unit_range_and_default() -> None:
    rank = next(one for one in describe(TrainConfig, {"lora": {"r": 16}}) if one.name == "lora.r")
    assert rank == Setting("lora.r", "whole number", "", {}, "positive, at most 65,536", 16, "rank of the update")
    memory = told(TrainConfig, "trainer.memory_gib")
    assert (memory.type, memory.unit) == ("number or null", "GiB")
    assert told(TrainConfig, "trainer.devices").range == "positive, at most 1,024"  # checked in a loop
    assert told(TrainConfig, "optim.warmup_steps").range.startswith("a share below 1, or a whole number from 0")
    assert told(TrainConfig, "seed").range == f"in 0 to {config.SEEDS - 1}"
    assert told(TrainConfig, "optim.decay").type == "one of linear, cosine, constant"
    assert (
        told(LrThenRankConfig, "parallel").range == "positive, at most 10,000"
    )  # checked in the class that it extends


def test_what_hangs_on_another_setting_is_no_range() -> None:
    assert told(ExportConfig, "quantization").range == ""
    assert "fp8" not in told(TrainConfig, "lora.dropout").range


def test_types_are_words() -> None:
    kinds = [int, float | None, list[str], dict[str, int], list[str] | None, config.Packing]
    said = [describe_type(kind) for kind in kinds]
    assert said == [
        "whole number", "number or null", "list of texts", "mapping", "list of texts or null", "one of best_fit, off"
    ]  # fmt: skip


def test_a_schema_of_ones_own_is_told_too() -> None:
    @dataclass
    class Own:
        """Of one's own."""

        a: int

    assert describe(Own) == [Setting("a", "whole number", "", {}, "", None, "of one's own")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# LoRA+: B learns faster (Hayou et al. 2024)\na: 1\n", "LoRA+: B learns faster (Hayou et al. 2024)"),
        ("# @package _global_\n# One GPU. Expected: 3 GiB.\na: 1\n", "One GPU"),
        ("# In two\n# lines. Then more.\n", "In two lines"),
        ("# How sure is it? Seeds:\n", "How sure is it?"),
        ("# A grid: python -m medreason.train sweeps=x\n", "A grid"),
        ("# For others. Not for `sweeps=`.\n", None),
        ("a: 1\n", ""),
    ],
)
def test_a_choice_is_told_by_the_first_sentence_of_its_file(text: str, says: str | None, tmp_path: Path) -> None:
    file = tmp_path / "choice.yaml"
    file.write_text(text, encoding="utf-8")
    assert first_sentence(file) == says


def test_every_choice_of_every_group_has_a_phrase() -> None:
    for folder in [*(ROOT / "conf").iterdir(), ROOT / "experiments", ROOT / "sweeps"]:
        if folder.is_dir() and folder.name != "hydra":
            assert all(choices(folder).values()), folder
    assert "wandb" not in choices(ROOT / "sweeps")


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_help_of_a_command_says_what_it_takes_and_no_more_within_80_columns(name: str) -> None:
    page = help_page(name, SCHEMAS[name], [], 80)
    settings = [line.strip().partition("=")[0] for line in page.splitlines() if line[:3].strip() and "=" in line]
    for setting in describe(SCHEMAS[name]):
        assert setting.name in settings, setting.name
    assert ("lora.r" in settings) == (SCHEMAS[name] is TrainConfig)
    assert max(map(len, page.splitlines())) <= 80


def test_the_help_of_training_names_every_choice() -> None:
    page = help_page("train", TrainConfig, [], 80)
    for group in ("model", "lora", "optim", "data", "trainer", "logger"):
        assert f"\n{group}: {group}=CHOICE" in page
        for choice in choices(ROOT / "conf" / group):
            assert f"\n  {choice} " in page
    for group in ("experiments", "sweeps"):
        for choice in choices(ROOT / group):
            assert f"\n  {choice} " in page


def test_help_shows_values_as_the_words_beside_it_compose_them() -> None:
    assert help_page("train", TrainConfig, ["lora.r", "lora.r=7"], 80).splitlines()[1] == "  lora.r=7"
    assert "optim: optim=CHOICE, here loraplus" in help_page("train", TrainConfig, ["optim", "optim=loraplus"], 80)
    with pytest.raises(ConfigError, match="nope: no such group or setting"):
        help_page("train", TrainConfig, ["nope"], 80)


def test_help_is_printed_without_torch_and_hydras_own_stays(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.argv[1:] = ['--help'];"
        "runpy.run_module('medreason.train', run_name='__main__', alter_sys=True);"
        "print('torch' in sys.modules, 'unsloth' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert said.stdout.splitlines()[0] == "usage: medreason train [GROUP=CHOICE ...] [SETTING=VALUE ...]"
    assert said.stdout.splitlines()[-1] == "False False"
    hydra = [sys.executable, "-m", "medreason.train", "--hydra-help"]
    assert "--shell-completion" in subprocess.run(hydra, capture_output=True, encoding="utf-8", cwd=ROOT).stdout


def test_a_mistake_beside_help_is_one_line() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "medreason.train", "--help", "lora.rank=3"],
        capture_output=True, encoding="utf-8", cwd=ROOT,
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (2, "medreason.train: lora.rank: no such setting (did you mean lora.r?)\n")


def test_examples_name_settings_that_there_are() -> None:
    for name, lines in EXAMPLES.items():
        known = {setting.name for setting in describe(SCHEMAS[name])} | {"experiments", "sweeps", "data"}
        words = [word for line in lines for word in line.split() if not word.startswith("--")]
        assert {word.partition("=")[0] for word in words} <= known
