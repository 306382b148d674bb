"""How far something is, by a clock that tests set; on a terminal that they read."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len

from medreason.config import Format
from medreason.core.progress_line import AnswersLine, ProgressLine, fitted, hours
from medreason.inference.batched import generate_answers, write_in_batches
from medreason.models.prompts import prompt_text
from medreason.train.metrics import StepLine
from support import ROOT

WHOLE = ["step 44/44", "loss 0.123", "held-out 0.456", "12,345 tok/s", "0:12 left"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_line_fits_eighty_columns_and_a_narrow_terminal_sees_step_and_time() -> None:
    assert fitted(WHOLE, 79) == "step 44/44  loss 0.123  held-out 0.456  12,345 tok/s  0:12 left"
    assert fitted(WHOLE, 55) == "step 44/44  loss 0.123  held-out 0.456  0:12 left"
    assert fitted(WHOLE, 24) == "step 44/44  0:12 left"
    assert fitted(WHOLE, 10) == "step 44/44" and fitted(WHOLE, 0) == ""
    chinese = fitted(["医学问答测试医学问答测试  1/2 questions", "9 tokens", "0:12 left"], 30)
    assert cell_len(chinese) <= 30


def test_durations_read_as_on_a_clock() -> None:
    assert [hours(seconds) for seconds in (0.2, 7, 59.7, 725, 3723, 90000)] == [
        "0:00", "0:07", "1:00", "12:05", "1:02:03", "25:00:00",
    ]  # fmt: skip


def test_a_file_has_a_line_at_milestones_and_otherwise_every_thirty_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    line = ProgressLine(clock)
    for second in range(100):
        clock.now = 1000.0 + second
        line.tell([f"second {second}", "left"], ["more"], milestone=second == 40)
    said = [text.partition("] ")[2] for text in capsys.readouterr().out.splitlines()]
    assert said == [f"second {second}  more  left" for second in (30, 40, 70)]


def test_of_several_processes_the_first_one_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    ProgressLine().tell(["step 1/2"], milestone=True)
    line = AnswersLine("answers", 2)
    line.tell(answered=2)
    line.end(stands=True)
    assert capsys.readouterr().out == ""


def on_terminal(code: str, columns: int) -> str:
    """What a terminal of so many columns gets from a script."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT
    )
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # Linux's way to say that the other end is closed
        pass
    assert process.wait() == 0, seen
    os.close(ours)
    return seen.decode()


DRAWS = """
import itertools, sys, tempfile
from pathlib import Path
from medreason.core.progress import say
from medreason.core.progress_line import ProgressLine
from medreason.core.run_log import kept_log
log = Path(tempfile.mkdtemp()) / "a.log"
ticks = itertools.count()
with kept_log(log):
    line = ProgressLine(lambda: float(next(ticks)))
    for step in range(1, 41):
        line.tell([f"step {step}/40", "loss 0.123", "held-out 0.456", "12,345 tok/s", "0:12 left"], ["lr 1e-4"])
        if step == 20:
            say("said meanwhile")
    line.end(stands=True)
    say("over")
sys.stdout.write("LOG " + log.read_text().replace("\\n", "\\nLOG "))
"""


@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_has_one_line_that_is_drawn_again_and_the_log_lines_now_and_then(columns: int) -> None:
    screen, _, log = on_terminal(DRAWS, columns).partition("LOG ")
    drawn = re.findall(r"\r\x1b\[K([^\r\n]*)", screen)
    assert len([one for one in drawn if one.startswith("step")]) == 40
    assert all(len(one) < columns for one in drawn)
    lines = [line.rpartition("\x1b[K")[2] for line in screen.replace("\r\n", "\n").split("\n")[:-1]]
    assert ["said meanwhile" in line or "over" in line or line for line in lines] == [True, fitted(
        ["step 40/40", *WHOLE[1:]], columns - 1), True]  # fmt: skip
    told = [line for line in log.splitlines() if "step " in line]
    assert len(told) == 1 and told[0].rstrip().endswith("12,345 tok/s  lr 1e-4  0:12 left")


def test_a_run_tells_its_own_steps_and_the_time_that_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    clock, metrics = Clock(), SimpleNamespace(written=0, latest={})
    trainer: Any = SimpleNamespace(callback_metrics={"val/loss": 2.5}, num_val_batches=[2])
    line = StepLine(metrics, 44, clock)  # type: ignore[arg-type]
    line.on_validation_end(trainer)  # before training
    line.on_train_start(trainer)
    trainer.callback_metrics = {"val/loss": 2.25}
    for step in range(1, 23):
        clock.now += 2
        metrics.written = step
        metrics.latest = {"train/loss": 2.0, "train/lr": 1e-4, "train/tokens_per_second": 12345.0}
        line.on_train_batch_end(trainer)
    line.on_validation_end(trainer)
    said = [text.partition("] ")[2] for text in capsys.readouterr().out.splitlines()]
    assert said == [
        "step 0/44  held-out 2.500",
        "step 15/44  loss 2.000  held-out 2.500  12,345 tok/s  lr 1e-4  0:58 left",
        "step 22/44  loss 2.000  held-out 2.250  12,345 tok/s  lr 1e-4  0:44 left",
    ]


def test_answers_tell_their_tokens_before_the_first_one_is_whole() -> None:
    clock = Clock()
    line = AnswersLine("medqa", 8, most_tokens=800, clock=clock)
    assert line.parts() == ["medqa  0/8 questions"]
    clock.now += 10
    line.wrote(100)
    assert line.parts() == ["medqa  0/8 questions", "100 tokens", "10 tok/s", "at most 1:10 left"]
    line.tell(answered=2)
    assert line.parts()[-1] == "0:30 left"


def test_what_batches_write_is_told_with_every_token(
    make_model: Callable[..., Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt_text(tokenizer, question, Format.think) for question in ("Stage?", "Fever?", "Which stage?")]
    told: list[int] = []
    model = make_model()
    written = dict(write_in_batches(model, tokenizer, prompts, max_new_tokens=5, batch_size=2, progress=told.append))
    assert written == dict(write_in_batches(model, tokenizer, prompts, max_new_tokens=5, batch_size=2))
    assert told == sorted(told) and len(told) == 10 and told[0] == 2 and 10 < told[-1] <= 15
    line = AnswersLine("answers", 3)
    generate_answers(model, tokenizer, ["Stage?", "Fever?", "Why?"], Format.think, max_new_tokens=5, batch_size=2,
                     line=line)  # fmt: skip
    assert line.answered == 3 and line.tokens > 10
