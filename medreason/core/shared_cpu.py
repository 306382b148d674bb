"""A CPU that other processes use too: threads that wait for each other asleep, for as long as that is so.

OpenMP's threads meet after every operation, and libgomp has those that come first spin for some milliseconds: nothing
is faster where each has a core to itself. Beside a busy process one of them has none, the others spin while they wait
for it, and what took a second takes a minute. libgomp spins 100 times instead of 300,000 while there are more OpenMP
threads than cores (GCC's manual, GOMP_SPINCOUNT): so while others want the cores, a further team of threads is kept,
which does nothing. How many threads work on a tensor stays as it is, and with it every bit of a result.
"""

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

CROWDED = 0.25  # cores: beside a process that takes less, waiting asleep would cost more than it saves
BETWEEN_SECONDS = 1.0
ASKED_FOR = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # the user has chosen
watched = threading.Event()


@dataclass(frozen=True)
class Usage:
    """Seconds since some moment in the past."""

    clock: float
    all: float  # of all processes, on the cores that this one may use
    own: float  # of this process, all its threads


def usage(stat: Path = Path("/proc/stat")) -> Usage:
    """What the cores of this process have done so far. Raises OSError or ValueError where the system does not tell."""
    ticks = 0
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    for line in stat.read_text(encoding="utf-8").splitlines():
        name, *counts = line.split()
        if name in cores:
            user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(
                int, counts[:8]
            )  # idle, waiting for disks
            ticks += user + nice + system + interrupts + soft_interrupts + stolen
    return Usage(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time())


def taken_by_others(before: Usage, now: Usage) -> float:
    """How many cores' time other processes took between two moments."""
    return ((now.all - before.all) - (now.own - before.own)) / max(now.clock - before.clock, 1e-9)


def keep_team(threads: int) -> threading.Event:
    """Keeps a team of so many OpenMP threads asleep until the event that comes back is set."""
    made, over = threading.Event(), threading.Event()

    def hold() -> None:
        torch.zeros(threads * 2**16).add_(1)  # long enough to be shared out: OpenMP makes this thread's team for it
        made.set()
        over.wait()

    threading.Thread(target=hold, name="openmp-team", daemon=True).start()
    made.wait()
    return over


def follow(before: Usage) -> None:
    """Keeps a team while others want the cores; for ever."""
    over: threading.Event | None = None
    while True:
        time.sleep(BETWEEN_SECONDS)
        now = usage()
        crowded = taken_by_others(before, now) > CROWDED
        before = now
        if crowded and over is None:
            over = keep_team(torch.get_num_threads())
        elif not crowded and over is not None:
            over.set()
            over = None


def share_cpu() -> None:
    """From now on, this process's threads wait for each other asleep while other processes want its cores.

    Nothing happens where a GPU computes, a single thread does, or the environment says how to wait.
    """
    if watched.is_set() or torch.cuda.is_available() or torch.get_num_threads() == 1 or sys.platform != "linux":
        return
    if any(name in os.environ for name in ASKED_FOR):
        return
    try:
        began = usage()
    except (OSError, ValueError):  # a container that hides it
        return
    watched.set()
    threading.Thread(target=follow, args=(began,), name="shared-cpu", daemon=True).start()
