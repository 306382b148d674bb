import re
import shlex

import hydra
import pytest
from hydra.core.config_store import ConfigStore

from medreason.config import ChatConfig, ExportConfig, ServeConfig
from medreason.core.cli import load
from support import ROOT, composed

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"^python -m medreason\.(?:train|data) (.*)$", README, re.M))
def test_every_command_of_the_readme_composes(line: str) -> None:
    words = shlex.split(line, comments=True)
    overrides = [word for word in words if not word.startswith(("--", "hydra.launcher")) and word != "job"]
    if "--multirun" in words:
        overrides = [word.split(",")[0] for word in overrides]
    composed(*overrides)


@pytest.mark.parametrize(("name", "line"), re.findall(r"^python -m medreason\.(export|chat|serve) (.*)$", README, re.M))
def test_every_command_on_a_run_composes(name: str, line: str) -> None:
    schema = {"export": ExportConfig, "chat": ChatConfig, "serve": ServeConfig}[name]
    ConfigStore.instance().store(name="schema", node=schema)
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        load(hydra.compose(name, overrides=shlex.split(line, comments=True)), schema)


def test_the_readme_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"`(medreason/[\w.]+/?)`", README))
    rooms = {f"medreason/{path.parent.name}/" for path in (ROOT / "medreason").glob("*/__init__.py")}
    assert named == rooms | {f"medreason/{path.name}" for path in (ROOT / "medreason").glob("*.py")} - {
        "medreason/__init__.py"
    }


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 204
