"""Which process a trial gets: that of the one before, or a new one; stand-ins for the processes themselves."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medreason.core import processes
from medreason.core.processes import gpu_waited_for, queued
from medreason.sweep import slot
from medreason.sweep.slot import Slot

FULL = "failed: RunFailed: out of memory (tried to allocate 2 GiB); lower data.row_tokens"


class Process:
    """Carries out trials by what their words say; the second and later ones lack some memory."""

    begun = 0

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        Process.begun += 1
        self.number, self.trials, self.environment, self.ended = Process.begun, 0, environment, False

    def carry_out(self, words: list[str], *, log: Path) -> int:
        self.trials += 1
        run = log.parent
        word, status = words[0], "finished"
        if (word == "large" and self.trials > 1) or word == "huge":
            status = FULL
        elif word == "wrong":
            status = "failed: RunFailed: train/loss became nan"
        record = json.loads((run / "run.json").read_text()) | {"status": status}
        record["processes"] = [*record.get("processes", []), self.number]
        (run / "run.json").write_text(json.dumps(record))
        return int(status != "finished")

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(slot, "Worker", Process)
    monkeypatch.setattr(processes, "gpu_locks", lambda: tmp_path)
    Process.begun = 0
    here, gpus = Slot(), [0]

    @contextmanager
    def gpu() -> Iterator[dict[str, str]]:
        gpus[0] += 1
        yield {"CUDA_VISIBLE_DEVICES": "0"}
        gpus[0] -= 1

    def carry_out(word: str, kind: str = "7b") -> tuple[str, list[int], int]:
        run = tmp_path / word
        run.mkdir(exist_ok=True)
        (run / "run.json").write_text(json.dumps({"status": "starting", "swept": {"lora.r": "8"}}))
        code = here.carry_out(run, [word], kind, gpu, log=run / "train.log")
        record = json.loads((run / "run.json").read_text())
        assert record["swept"] == {"lora.r": "8"} and bool(code) is record["status"].startswith("failed")
        return record["status"], record["processes"], gpus[0]

    yield carry_out
    here.end()
    assert gpus == [0]


def test_trials_that_end_well_share_a_process_and_its_gpu(trial: Any) -> None:
    assert [trial("a"), trial("b"), trial("c")] == [("finished", [1], 1)] * 3


def test_another_base_has_another_process(trial: Any) -> None:
    assert [trial("a")[1], trial("b", "8b")[1], trial("c", "8b")[1]] == [[1], [2], [2]]


def test_after_a_failure_a_new_process_begins(trial: Any) -> None:
    assert trial("a")[1] == [1]
    assert trial("wrong") == ("failed: RunFailed: train/loss became nan", [1], 0)
    assert trial("b")[1] == [2]


def test_who_lacks_the_memory_that_others_left_is_tried_again_alone(trial: Any) -> None:
    trial("a")
    assert trial("large") == ("finished", [1, 2], 1)
    assert trial("b") == ("finished", [2], 1)
    assert trial("huge") == (FULL, [2, 3], 0)
    assert trial("huge") == (FULL, [4], 0)  # alone at once


def test_a_gpu_is_given_up_where_somebody_waits_for_one(trial: Any, tmp_path: Path) -> None:
    assert trial("a")[2] == 1 and not gpu_waited_for()
    waiting = queued(fcntl.LOCK_SH)
    another = queued(fcntl.LOCK_SH)
    assert trial("b") == ("finished", [1], 0) and gpu_waited_for()
    os.close(waiting)
    os.close(another)
    assert trial("c") == ("finished", [2], 1)
