"""One name for every entry point: `medreason COMMAND` and `python -m medreason COMMAND`."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medreason.__main__ import main
from medreason.core.commands import COMMANDS
from support import ROOT


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, encoding="utf-8")


def test_the_console_script_is_the_packages_main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"medreason": "medreason.__main__:main"}


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_the_overview_names_every_command_within_80_columns(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"  {name} " in "\n".join(lines) for name in COMMANDS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_that_runs(name: str) -> None:
    places = (ROOT / "medreason" / f"{name}.py", ROOT / "medreason" / name / "__main__.py")
    (text,) = [place.read_text(encoding="utf-8") for place in places if place.is_file()]
    assert '__name__ == "__main__"' in text


def test_nothing_heavy_is_imported_for_the_overview_and_the_versions() -> None:
    code = (
        "import sys; from medreason.__main__ import main; main([]); main(['--version']);"
        "print([name for name in ('torch', 'unsloth', 'hydra', 'omegaconf') if name in sys.modules])"
    )
    assert run("-c", code).stdout.splitlines()[-1] == "[]"


def test_versions_are_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["medreason", "torch", "unsloth"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trian", "trian: no such command (did you mean train?)"),
        ("medreason.train", "medreason.train: no such command (did you mean train?)"),
        ("Train", "Train: no such command (did you mean train?)"),
        ("xyzzy", "xyzzy: no such command (see medreason --help)"),
        ("lora.r=32", "lora.r=32: a setting stands after a command: medreason train lora.r=32"),
        ("--multirun", "--multirun: no such option; an option of a command stands after it, see medreason --help"),
        ("a\x1b[2Jb\n病", "a\\x1b[2Jb\\n病: no such command (see medreason --help)"),
        ("", ": no such command (see medreason --help)"),
    ],
)
def test_a_wrong_word_gets_one_line_with_a_guess(word: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"medreason: {says}\n")


def test_a_command_is_the_same_by_either_name() -> None:
    for words in (["train", "--cfg", "job", "lora.r=7"], ["report", "nowhere"], ["train", "lora.rank=7"]):
        short, long = run("-m", "medreason", *words), run("-m", f"medreason.{words[0]}", *words[1:])
        assert (short.stdout, short.stderr, short.returncode) == (long.stdout, long.stderr, long.returncode)
        assert short.stdout or short.stderr


def test_a_run_started_by_the_short_name_is_on_record_as_any_other(tmp_path: Path) -> None:
    quick = ["experiments=quickstart", "model=tiny", "data.cases=40", "trainer.max_steps=1",
             "trainer.answer_questions=0", "data.row_tokens=512", "optim.warmup_steps=0"]  # fmt: skip
    done = run("-m", "medreason", "train", *quick, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["command"] == ["medreason.train", *quick, f"hydra.run.dir={tmp_path / 'run'}"]
