"""A process that carries out one command after another: what each is told, what comes back, what ends it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medreason.core.worker import Worker
from support import ROOT

TOY = """
import os, signal, sys, time
from medreason.core.progress import Clock
from medreason.core.worker import serve

calls = []

def command():
    word, *more = sys.argv[1:]
    calls.append(word)
    print(f"{word}: call {len(calls)} of {os.getpid()}", *more)
    if word == "clock":
        print(time.monotonic() - Clock.began)
        time.sleep(0.5)
    if word == "wrong":
        raise ValueError("something unheard-of")
    if word == "refuse":
        sys.exit(2)
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "handler":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if word == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
        time.sleep(60)

serve(command)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., int]]:
    (tmp_path / "toy_worker.py").write_text(TOY, encoding="utf-8")
    worker = Worker("toy_worker", {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})

    def carry_out(*words: str, watch: Callable[[], None] = lambda: None) -> int:
        lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
        try:
            return worker.carry_out(words, log=tmp_path / f"{words[0]}.log", held=lock, watch=watch)
        finally:
            os.close(lock)

    carry_out.worker = worker  # type: ignore[attr-defined]
    yield carry_out
    worker.end()


def said(folder: Path, word: str) -> list[str]:
    return (folder / f"{word}.log").read_text(encoding="utf-8").splitlines()


def test_one_process_carries_out_commands_each_into_its_own_log(run: Callable[..., int], tmp_path: Path) -> None:
    assert [run("first", "病例, a=b $x"), run("second")] == [0, 0]
    (first,), (second,) = said(tmp_path, "first"), said(tmp_path, "second")
    process = first.split(" of ")[1].split()[0]
    assert first == f"first: call 1 of {process} 病例, a=b $x"
    assert second == f"second: call 2 of {process}"


@pytest.mark.parametrize(("word", "code", "told"), [("wrong", 1, "ValueError: some"), ("refuse", 2, "refuse: call")])
def test_after_a_bad_end_another_process_goes_on(
    run: Callable[..., int], tmp_path: Path, word: str, code: int, told: str
) -> None:
    assert [run("first"), run(word), run("next")] == [0, code, 0]
    assert told in said(tmp_path, word)[-1]
    assert "call 1 of" in said(tmp_path, "next")[0]


def test_one_that_is_killed_says_by_what_and_is_replaced(run: Callable[..., int], tmp_path: Path) -> None:
    assert [run("die"), run("next")] == [-signal.SIGKILL, 0]
    run.worker.process.kill()  # type: ignore[attr-defined]  # while it has nothing to do
    run.worker.process.wait()  # type: ignore[attr-defined]
    assert run("after") == 0
    assert "call 1 of" in said(tmp_path, "after")[0]


def test_a_command_that_cannot_begin_is_no_endless_loop(tmp_path: Path) -> None:
    worker = Worker("no_such_module", {})
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    assert worker.carry_out(["x"], log=tmp_path / "x.log", held=lock, watch=lambda: None) == 1
    assert "No module named" in said(tmp_path, "x")[-1]
    os.close(lock)


def test_handlers_of_one_command_are_not_those_of_the_next(run: Callable[..., int]) -> None:
    assert run("handler") == 0
    process = run.worker.process  # type: ignore[attr-defined]
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM


def test_an_interrupted_wait_interrupts_the_command(run: Callable[..., int], tmp_path: Path) -> None:
    def interrupt() -> None:
        if (tmp_path / "wait.log").is_file() and said(tmp_path, "wait"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("wait", watch=interrupt)
    assert run.worker.process is None  # type: ignore[attr-defined]


def test_a_clock_begins_with_each_command(run: Callable[..., int], tmp_path: Path) -> None:
    assert [run("clock"), run("clock")] == [0, 0]
    assert all(float(line) < 0.4 for line in said(tmp_path, "clock")[1::2])
