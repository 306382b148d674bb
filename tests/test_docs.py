"""The README and the pages: every command composes, every link leads somewhere, and the pages build."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import hydra
import pytest

from medreason.completion import SCHEMAS
from medreason.config import TrainConfig
from medreason.core.cli import apart, load
from medreason.core.commands import COMMANDS
from support import ROOT, composed

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")] + sorted(
    ROOT.glob("docs/pages/**/*.md")
)
TEXT = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
LINES = [
    pytest.param(name, words, id=f"{page}: {name} {words}"[:90])
    for page, text in TEXT.items()
    for name, words in re.findall(r"^(?:python -m medreason\.|medreason )(\w+) ?(.*)$", text, re.M)
]


@pytest.mark.parametrize(("name", "line"), LINES)
def test_every_command_composes(name: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if SCHEMAS.get(name) is TrainConfig:
        overrides = [word for word in words if not word.startswith(("--", "hydra.launcher")) and word != "job"]
        if "--multirun" in words:
            overrides = [word.split(",")[0] for word in overrides]
        composed(*overrides)
    elif name in SCHEMAS:
        with apart(SCHEMAS[name]):
            load(hydra.compose(name, overrides=words), SCHEMAS[name])
    else:
        assert name in COMMANDS and not any("=" in word for word in words)


def test_there_is_a_command_of_each_kind_to_test() -> None:
    assert {"report", *SCHEMAS} - {"dashboard"} <= {str(line.values[0]) for line in LINES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_path_leads_to_a_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        made = link.endswith(("reference/settings.md", "settings.md")) or "pictures/" in link  # docs/generated.py
        assert made or (page.parent / link).is_file(), link
    for path in re.findall(r"`((?:medreason|benchmarks|tests|experiments|docs|conf|sweeps)/[\w./-]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_the_readme_stays_short() -> None:
    assert len(TEXT["README.md"].splitlines()) < 120


def test_every_setting_that_a_page_names_is_one() -> None:
    with apart(TrainConfig):
        config = hydra.compose("train", return_hydra_config=True)
    groups = "model|lora|optim|data|trainer|logger"
    for page, text in TEXT.items():
        for group, name in re.findall(rf"`({groups})\.([a-z_]+)(?:\.\w+)?(?:=[^`]*)?`", text):
            # one that a page has people mistype, and a file
            known = name in config[group] or f"{group}.{name}" in ("lora.rank", "data.json")
            assert known, f"{page}: {group}.{name}"


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--config-file", "docs/mkdocs.yml"]
    done = subprocess.run(
        [*words, "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, encoding="utf-8", env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "lora.alpha" in settings and "hydra.sweeper.trials" in settings and "conf/" in settings
    rooms = (tmp_path / "architecture.html").read_text(encoding="utf-8")
    assert all(room.parent.name in rooms for room in (ROOT / "medreason").glob("*/__init__.py"))
    assert "ROOMS" not in rooms
