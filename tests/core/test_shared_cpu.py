import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from medreason.core import shared_cpu
from medreason.core.shared_cpu import Usage, keep_team, share_cpu, taken_by_others, usage


def test_what_others_took_is_what_this_process_did_not() -> None:
    assert taken_by_others(Usage(10, 100, 50), Usage(14, 106, 52)) == 1.0
    assert taken_by_others(Usage(10, 100, 50), Usage(12, 104, 54)) == 0.0


def test_only_the_cores_that_a_process_may_use_count_and_a_core_taken_away_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3})
    tick = os.sysconf("SC_CLK_TCK")
    rows = ["cpu  9 9 9 9 9 9 9 9 9 9", "cpu0 9 9 9 9 9 9 9 9 0 0", f"cpu1 {tick} 0 0 77 88 0 0 0 0 0",
            f"cpu3 0 {tick} {tick} 77 88 {tick} {tick} {tick} 5 5", "intr 1 2 3"]  # fmt: skip
    (tmp_path / "stat").write_text("\n".join(rows))
    assert usage(tmp_path / "stat").all == 6.0


def test_a_busy_process_is_seen_and_work_of_our_own_is_not() -> None:
    before = usage()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        while usage().clock < before.clock + 1:
            pass
    finally:
        busy.kill()
        busy.wait()
    now = usage()
    # alone on the machine both have a core each; on a loaded one others take the rest
    assert taken_by_others(before, now) > 0.1
    assert now.own - before.own > 0


def work() -> float:
    """Seconds that threads take for many short operations, after each of which they wait for each other."""
    began = time.perf_counter()
    x, weight = torch.ones(256, 256), torch.full((256, 256), 1 / 256)
    for _ in range(100):
        x = torch.nn.functional.gelu(x @ weight)
    return time.perf_counter() - began


@pytest.mark.skipif(torch.get_num_threads() == 1 or sys.platform != "linux", reason="one thread waits for none")
def test_beside_busy_processes_threads_that_wait_asleep_are_faster_with_equal_results() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(700, 700), torch.randn(700, 700)
    alone = x @ y, (x @ y).sum()
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        work()
        spinning, asleep = [], []
        for _ in range(3):  # in pairs, for a machine with other work to do
            spinning.append(work())
            over = keep_team(torch.get_num_threads())
            asleep.append(work())
            beside = x @ y, (x @ y).sum()
            over.set()
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert all(map(torch.equal, alone, beside))
    assert sum(asleep) < sum(spinning), (asleep, spinning)


def test_a_process_that_was_told_how_to_wait_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_cpu, "watched", threading.Event())
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cpu()
    assert not shared_cpu.watched.is_set()
