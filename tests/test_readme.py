import re
import shlex

import pytest

from conftest import ROOT, composed

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"^python -m medreason\.(?:train|data) (.*)$", README, re.M))
def test_every_command_of_the_readme_composes(line: str) -> None:
    words = shlex.split(line, comments=True)
    overrides = [word for word in words if not word.startswith(("--", "hydra.launcher")) and word != "job"]
    if "--multirun" in words:
        overrides = [word.split(",")[0] for word in overrides]
    composed(*overrides)


def test_the_readme_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"`(medreason/\w+\.py)`", README))
    assert named == {f"medreason/{path.name}" for path in (ROOT / "medreason").glob("*.py")} - {"medreason/__init__.py"}


def test_the_readme_stays_under_two_hundred_lines() -> None:
    assert len(README.splitlines()) < 200
