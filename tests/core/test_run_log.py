"""What is seen and what goes into a run's log, in processes that import nothing slow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medreason.core.run_log import kept_log, last_drawn, told_traceback
from support import ROOT

LOUD = """
import logging, os, subprocess, sys, warnings
handler = logging.StreamHandler(sys.stderr)
logging.getLogger("loud").addHandler(handler)
def speak():
    print("PRINTED", flush=True)
    print("PRINTED TO STDERR", file=sys.stderr)
    logging.getLogger("loud").warning("LOGGED")
    warnings.warn("WARNED")
    os.write(1, b"WRITTEN BY C\\n")
    subprocess.run([sys.executable, "-c", "print('A CHILD')"], check=True)
    for share in (0, 50, 100):
        sys.stderr.write(f"\\rLOADING {share}%")
    sys.stderr.write("\\n")
    return sys.stdout.isatty()
def say(what):
    handler.stream.write(what + "\\n")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script's path; `loud` is a package that it can import."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "loud.py").write_text(LOUD)
    return tmp_path / "script.py"


KEPT = "from medreason.core.run_log import kept_log"


def run(script: Path, code: str, **options: object) -> subprocess.CompletedProcess[str]:
    needed = ["import sys", "from pathlib import Path", "from medreason.core.progress import say", KEPT]
    script.write_text("\n".join([*needed, code]))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{script.parent}/site-packages"}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, str(script)], text=True, cwd=script.parent, env=environment, **settings)  # type: ignore[call-overload,no-any-return]


HEARD = ("PRINTED", "PRINTED TO STDERR", "LOGGED", "UserWarning: WARNED", "WRITTEN BY C", "A CHILD", "LOADING 100%")


def test_packages_are_heard_in_the_log_alone_and_everybody_else_on_the_screen_too(script: Path) -> None:
    said = run(script, 'say("before")\nwith kept_log(Path("a.log")):\n'
        '    import loud\n    assert not loud.speak()\n    say("ours [1]")\n    print("theirs")\n'
        '    print("wrong", file=sys.stderr)\n'
        '    from rich.console import Console\n    Console().print("a table")\nprint("after")\n')  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert [line[line.find("]") + 1 :].strip() for line in said.stdout.splitlines() if "ours" not in line] == [
        "before", "theirs", "a table", "after",
    ]  # fmt: skip
    assert "ours [1]" in said.stdout and said.stderr == "wrong\n"
    log = (script.parent / "a.log").read_text()
    for text in (*HEARD, "before", "ours [1]", "theirs", "wrong", "a table"):
        assert sum(line.endswith(text) for line in log.splitlines()) == 1, (text, log)
    assert "after" not in log and "LOADING 50%" not in log
    timed = [line for line in log.splitlines() if line not in ("WRITTEN BY C", "A CHILD")]
    assert all(line[2] == line[5] == ":" and line[8] == " " for line in timed)


def test_a_second_run_adds_to_the_log_below_a_line_of_its_own(script: Path) -> None:
    code = 'with kept_log(Path("a.log")):\n    print("here")\n'
    run(script, code)
    run(script, code)
    lines = (script.parent / "a.log").read_text().splitlines()
    assert ["script.py" in line or line.split()[1] for line in lines] == [True, "here", True, "here"]


def test_a_crash_shows_the_ends_of_the_log_and_the_traceback(script: Path) -> None:
    said = run(script, 'with kept_log(Path("a.log")):\n    import loud\n    loud.speak()\n    raise KeyError("lost")\n')
    assert said.returncode == 1
    assert said.stderr.splitlines()[0] == "the last lines of a.log:" and "LOADING 100%" in said.stderr
    assert said.stderr.splitlines()[-1] == "KeyError: 'lost'" and said.stderr.count("Traceback") == 1
    assert "KeyError: 'lost'" in (script.parent / "a.log").read_text().splitlines()[-1]


def test_a_mistake_of_the_user_is_a_line_of_the_log_and_shows_nothing_else(script: Path) -> None:
    said = run(script, "from medreason.config import ConfigError\ntry:\n"
        '    with kept_log(Path("a.log")):\n        raise ConfigError("lora.r must be positive")\n'
        "except ConfigError:\n    pass\n")  # fmt: skip
    assert (said.stdout, said.stderr) == ("", "")
    assert (script.parent / "a.log").read_text().endswith("ConfigError: lora.r must be positive\n")


def test_where_python_itself_dies_the_screen_says_so(script: Path) -> None:
    said = run(script, 'import os\nwith kept_log(Path("a.log")):\n    os.abort()\n')
    assert said.returncode < 0 and "Fatal Python error: Aborted" in said.stderr and "script.py" in said.stderr


def test_output_that_goes_into_the_log_anyway_stands_there_once(script: Path) -> None:
    with (script.parent / "a.log").open("ab") as log:
        run(
            script,
            'with kept_log(Path("a.log")):\n    say("once")\n    raise KeyError("lost")\n',
            stdout=log,
            stderr=log,
        )
    text = (script.parent / "a.log").read_text()
    assert text.count("once") == 1 and text.count("Traceback") == 1
    assert text.endswith("\nKeyError: 'lost'\n"), "the reason of a trial is the last line of its log"


def test_who_keeps_a_stream_for_longer_than_the_log_writes_where_it_went_before(script: Path) -> None:
    said = run(script, 'with kept_log(Path("a.log")):\n    import loud\nloud.say("later")\n'
        'with kept_log(Path("b.log")):\n    loud.say("LATER STILL")\n')  # fmt: skip
    assert said.stderr == "later\n"
    assert "LATER STILL" in (script.parent / "b.log").read_text()


def test_a_log_that_cannot_be_written_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with kept_log(tmp_path / "none" / "a.log"):
        print("here")
    assert capsys.readouterr().out == "here\n"


def test_the_log_of_a_run_within_a_run_is_the_outer_ones(tmp_path: Path) -> None:
    with kept_log(tmp_path / "a.log"), kept_log(tmp_path / "b.log"):
        print("here")
    assert not (tmp_path / "b.log").exists() and "here" in (tmp_path / "a.log").read_text()


def test_of_a_bar_the_last_state_is_kept() -> None:
    assert last_drawn("\r 0%\r50%\r100%") == "100%" and last_drawn("100%\r") == "100%\r" and last_drawn("a") == "a"


def test_the_first_traceback_of_several_processes_is_found(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("Traceback (most recent call last):\nOldError: before\n")
    start = log.stat().st_size
    why = ["Traceback (most recent call last):", '  File "a.py", line 1, in b', "    c", "KeyError: 'lost'"]
    with log.open("a") as file:
        file.write("\n".join(["12:00:00 x", *why, "W torchrun: closing", "Traceback (most recent call last):", "  d"]))
    assert told_traceback(log, start) == why
    marked = tmp_path / "marked.log"
    chain = [*why, "", "During handling of the above exception, another exception occurred:", "", *why]
    text = [f"[rank1]: {line}" if line else line for line in chain]
    marked.write_text("\n".join(["12:00:00 x", *text, "Error executing job", *why]))
    assert told_traceback(marked, 0) == chain
    assert told_traceback(log, log.stat().st_size) == told_traceback(tmp_path / "none", 0) == []
