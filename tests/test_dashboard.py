import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
import yaml
from wandb import wandb_agent
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from medreason import dashboard
from medreason.config import ConfigError, LoggerKind, TrainConfig
from medreason.core.cli import known_keys
from support import ROOT, composed, python

SWEEP = yaml.safe_load((ROOT / "sweeps" / "wandb.yaml").read_text())


def panels(kind: type) -> list[Any]:
    made = dashboard.workspace("me", "medreason")
    return [panel for section in made.sections for panel in section.panels if isinstance(panel, kind)]


def test_every_metric_has_a_curve_over_optimizer_steps() -> None:
    curves = panels(wr.LinePlot)
    assert {panel.y[0] for panel in curves} == {*dashboard.LEARNING, *dashboard.SPEED}
    assert {panel.x for panel in curves} == {"trainer/global_step"}


def test_groups_are_compared_in_one_panel_and_runs_in_the_others() -> None:
    assert [panel.y for panel in panels(wr.LinePlot) if panel.groupby] == [["val/loss"]]
    assert not dashboard.workspace("me", "medreason").runset_settings.groupby


def test_sweeps_are_shown_by_settings_that_exist() -> None:
    (parallel,) = panels(wr.ParallelCoordinatesPlot)
    (scatter,) = panels(wr.ScatterPlot)
    settings = [axis.metric.name for axis in parallel.columns[:-1]]
    assert {*settings, scatter.x.name} <= set(known_keys(TrainConfig))
    assert parallel.columns[-1].metric == scatter.y == wr.SummaryMetric("val/loss")
    assert [panel.with_respect_to for panel in panels(wr.ParameterImportancePlot)] == ["val/loss"]


def test_the_best_run_stands_first() -> None:
    (order,) = dashboard.workspace("me", "medreason").runset_settings.order
    assert (order.item.name, order.ascending) == ("val/loss", True)


def test_samples_are_shown_as_a_table() -> None:
    assert [panel.table_name for panel in panels(wr.WeavePanelSummaryTable)] == ["samples"]


def test_the_workspace_is_saved_to_the_configured_project(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb_workspaces.workspaces import interface

    saved: list[Any] = []

    def upsert(view: Any) -> dict[str, Any]:
        saved.append(view)
        return {"upsertView": {"view": {"name": view.name, "id": "1"}}}

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_ENTITY", "clinic")
    monkeypatch.setattr(interface.internal, "upsert_view2", upsert)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.ai")
    monkeypatch.setattr(wandb, "Api", lambda **_: None)
    dashboard.lay_out(composed("logger.project=triage"))
    (view,) = saved
    assert (view.entity, view.project) == ("clinic", "triage")
    assert '"config:lora.value.r"' in view.spec.model_dump_json(by_alias=True)


@pytest.mark.parametrize("error", [wandb.errors.CommError, WandbApiFailedError])
def test_a_server_that_does_not_take_it_is_one_line(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise error("could not resolve host")

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(ConfigError, match="could not resolve host"):
        dashboard.lay_out(composed())


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'medreason\[dashboard\]'"):
        dashboard.lay_out(composed())


def test_without_an_account_it_says_what_to_do_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    said = subprocess.run(
        [python(), "-m", "medreason.dashboard"],
        cwd=tmp_path,
        env=environment | {"NETRC": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    line = "medreason.dashboard: no W&B account here; run `wandb login`, or set WANDB_API_KEY\n"
    assert (said.returncode, said.stderr) == (2, line)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def agents_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What W&B's own agent would start for a run of sweeps/wandb.yaml."""
    started: list[list[str]] = []

    class Started:
        def __init__(self, command: list[str], env: dict[str, str], forward_signals: bool) -> None:
            started.append(command)

    for name, value in {"DIR": str(tmp_path), "SWEEP_ID": "sweep1", "RUN_ID": "", "SWEEP_PARAM_PATH": ""}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setattr(wandb_agent, "AgentProcess", Started)
    agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sweep1")
    agent._sweep_command = list(SWEEP["command"])
    chosen = {"lora.r": {"value": 64}, "lora.alpha": {"value": 32}, "optim.lr": {"value": 3.21e-05}}
    assert chosen.keys() == SWEEP["parameters"].keys()
    agent._command_run({"run_id": "run1", "program": SWEEP["program"], "args": chosen})
    (command,) = started
    return command


def test_an_agent_of_a_wandb_sweep_starts_training_with_its_choice(agents_command: list[str]) -> None:
    assert agents_command[:4] == ["/usr/bin/env", "python", "-m", "medreason.train"]
    config = composed(*agents_command[4:])
    assert (config.lora.r, config.lora.alpha, config.optim.lr) == (64, 32, 3.21e-05)
    assert config.logger.kind is LoggerKind.wandb


def test_runs_of_one_second_get_directories_of_their_own(agents_command: list[str]) -> None:
    train = [python(), "-m", "medreason.train", "--cfg", "hydra", "--resolve", "--package", "hydra.run"]
    said = subprocess.run([*train, *agents_command[4:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "dir: runs/wandb_sweep1/run1" in said.stdout, said.stderr


def test_a_wandb_sweep_searches_known_settings_within_numbers() -> None:
    assert set(SWEEP["parameters"]) <= set(known_keys(TrainConfig))
    assert set(dashboard.SEARCHED) == set(SWEEP["parameters"])
    rate = SWEEP["parameters"]["optim.lr"]
    assert isinstance(rate["min"], float) and isinstance(rate["max"], float)  # YAML reads 2e-5 as text
    for r in SWEEP["parameters"]["lora.r"]["values"]:
        assert dataclasses.is_dataclass(composed(f"lora.r={r}", f"optim.lr={rate['min']}"))


def test_a_wandb_sweep_minimizes_what_picks_the_best_checkpoint() -> None:
    config = composed()
    assert SWEEP["metric"] == {"name": config.monitor, "goal": "minimize"}
    assert SWEEP["project"] == config.logger.project
