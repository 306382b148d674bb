import re

import pytest
from test_config import composed

from conftest import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"^python -m medreason\.train (.*?)(?:  +#.*)?$", README, re.M))
def test_every_command_of_the_readme_composes(line: str) -> None:
    overrides = [word.split(",")[0] for word in line.split() if not word.startswith("--") and word != "job"]
    composed(*overrides)


def test_the_readme_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"`(medreason/\w+\.py)`", README))
    assert named == {f"medreason/{path.name}" for path in (ROOT / "medreason").glob("*.py")} - {"medreason/__init__.py"}


def test_the_readme_stays_under_two_hundred_lines() -> None:
    assert len(README.splitlines()) < 200
