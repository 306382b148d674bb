"""Every setting of every command, with values that nobody should give: one line each, never a traceback."""

import datetime
import math
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import yaml
from omegaconf.errors import OmegaConfBaseException

from medreason.config import (
    ChatConfig,
    ConfigError,
    ConfirmConfig,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    LrThenRankConfig,
    SampleConfig,
    SearchConfig,
    ServeConfig,
    TrainConfig,
    VerdictConfig,
    typed,
)
from medreason.core.cli import explain
from medreason.core.overrides import printable
from medreason.core.run_directory import settings_of
from support import ROOT, composed

NASTY = [
    None, "", " ", ".", "1.2.3r", "..", "nan", "inf", "-1", "1e999", "0x10", math.nan, math.inf, -math.inf, -1, 0, 1,
    0.5, 1e-320, 1e308, 2**31, 2**32, 2**63, 2**64, -(2**63), -(2**64), 10**22, 10**400, -(10**400), "9" * 5000, "\0",
    "x" * 5000, "/".join(["x"] * 3000), "~", "~nobody-here", "病", "\ud800", "\udcff", "???", "${x}", "${", "$", "{}",
    "a\nb", True, [], {}, [None], [{}], [[]], ["\0"], [""], [math.nan, math.inf], {"a": 1}, {1: 2}, b"bytes",
    datetime.date(2026, 1, 1), {"path": "\0"}, [{"path": "x", "weight": math.inf}], [{"path": None}], ["x" * 5000],
    [10**400], object,
]  # fmt: skip


def schemas() -> dict[str, tuple[type, dict[str, Any]]]:
    """Every group of settings, and every command's own, with values that pass."""
    plain = {
        name: yaml.safe_load((ROOT / "conf" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in (
            "evaluate", "verdict", "sample", "export", "chat", "serve", "hydra/sweeper/optuna", "hydra/sweeper/confirm",
            "hydra/sweeper/lr_then_rank",
        )
    }  # fmt: skip
    for settings in plain.values():
        for extra in ("defaults", "hydra", "_target_"):
            settings.pop(extra, None)
    train = settings_of(composed("data=local", "data.path=x.jsonl"))
    cases = settings_of(composed("experiments=quickstart"))
    groups = {field.name: (field.type, train[field.name]) for field in fields(TrainConfig) if is_dataclass(field.type)}
    return groups | {  # type: ignore[return-value]
        "train": (TrainConfig, train),
        "cases": (DataConfig, cases["data"]),
        "evaluate": (EvaluateConfig, plain["evaluate"] | {"run": "x"}),
        "served": (EvaluateConfig, plain["evaluate"] | {"run": "x", "method": "generate", "server": "http://x/v1"}),
        "verdict": (VerdictConfig, plain["verdict"] | {"run": "x"}),
        "sample": (SampleConfig, plain["sample"] | {"run": "x"}),
        "export": (ExportConfig, plain["export"] | {"run": "x", "format": "gguf"}),
        "chat": (ChatConfig, plain["chat"] | {"run": "x"}),
        "serve": (ServeConfig, plain["serve"] | {"run": "x"}),
        "optuna": (SearchConfig, plain["hydra/sweeper/optuna"] | {"min_steps": 10}),
        "lr_then_rank": (
            LrThenRankConfig,
            plain["hydra/sweeper/optuna"] | plain["hydra/sweeper/lr_then_rank"] | {"min_steps": 10, "rank": 16},
        ),
        "confirm": (ConfirmConfig, plain["hydra/sweeper/confirm"] | {"sweep": "x"}),
    }


NAMES = (
    "model", "lora", "optim", "data", "trainer", "logger", "train", "cases", "evaluate", "served", "verdict",
    "sample", "export", "chat", "serve", "optuna", "lr_then_rank", "confirm",
)  # fmt: skip


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[type, dict[str, Any]]]:
    found = schemas()
    assert set(found) == set(NAMES)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_any_setting_raises_anything_but_a_line(name: str, known: Any) -> None:
    schema, settings = known[name]
    typed(schema, settings)
    for field in fields(schema):
        for value in NASTY:
            try:
                typed(schema, settings | {field.name: value})
            except (ConfigError, OmegaConfBaseException) as error:
                said = explain(error, schema)
                assert said and "\n" not in printable(said), (field.name, value)
            except Exception as error:
                pytest.fail(f"{field.name}={value!r}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_largest_value_and_is_a_number(name: str, known: Any) -> None:
    schema, settings = known[name]
    for field in fields(schema):
        if field.type in (int, float, int | None, float | None):
            whole = field.type in (int, int | None)
            for value in (10**30, -(10**30)) if whole else (math.inf, -math.inf, math.nan):
                with pytest.raises((ConfigError, OmegaConfBaseException)):
                    typed(schema, settings | {field.name: value})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.alpha=.", "lora.alpha must be a number, or a multiple of the rank such as 2r, got '.'"),
        ("lora.alpha=1.2.3r", "lora.alpha must be a number, or a multiple of the rank such as 2r, got '1.2.3r'"),
        ("lora.alpha=inf", "lora.alpha must be a number"),
        ("lora.r=99999999999999999999999", "lora.r must be at most 65,536, got 99999999999999999999999"),
        ("seed=-1", "seed must be in 0 to 4294967295, got -1"),
        ("seed=4294967296", "seed must be in 0 to 4294967295"),
        ("data.seed=99999999999999999999", "data.seed must have at most 62 bits"),
        ("data.weight=inf", "data.weight must be at most 10,000, got inf"),
        ("data.weight=nan", "data.weight must be positive, got nan"),
        ("data.mix=[{path:a.jsonl,weight:1e300}]", "data.mix: weight must be at most 10,000"),
        ("optim.lr=inf", "optim.lr must be at most 1e+30, got inf"),
        ("optim.warmup_steps=99999999999", "optim.warmup_steps must be at most 1,000,000,000"),
    ],
)
def test_a_value_beyond_its_range_is_named_with_the_range(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed("data=local", "data.path=x.jsonl", override)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "override",
    ["lora.alpha=.5", "lora.alpha=0.5r", "lora.alpha=16.", "lora.alpha=1e1", "seed=4294967295", "data.seed=-7"],
)
def test_the_ends_of_a_range_belong_to_it(override: str) -> None:
    composed("data=local", "data.path=x.jsonl", override)
