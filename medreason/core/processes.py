"""A run in a process of its own, or in several: whatever ends it, its memory is free, and its end is on record."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from medreason.config import ConfigError
from medreason.core.machines import machine, one_of_several, torchrun
from medreason.core.overrides import override
from medreason.core.progress import say
from medreason.core.run_directory import read_json, read_metrics, series, write_json
from medreason.core.run_log import child_output

GRACE_SECONDS = 60  # for an interrupted run to end its step and to save a checkpoint


def run_command(overrides: Sequence[str], run: Path, nodes: int, devices: int) -> list[str]:
    """The command of a run in the directory `run`, whose .hydra/ is there; with torchrun for several processes."""
    return [sys.executable, *torchrun(nodes, devices, run), "-m", "medreason.train", *run_words(overrides, run)]


def run_words(overrides: Sequence[str], run: Path) -> list[str]:
    """What stands behind `python -m medreason.train` for it."""
    return [*overrides, "hydra.mode=RUN", override("hydra.run.dir", run), "hydra.output_subdir=null"]


@contextmanager
def claim(run: Path) -> Iterator[int | None]:
    """A lock on a run directory as a file descriptor, None where another process holds it.

    Children that inherit the descriptor hold the lock too: it is free when the last of them is gone, killed or not.
    """
    descriptor = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Holds a run directory. Raises ConfigError where another process trains there.

    A process that a sweep or another one started for this run leaves that to it, and so do all machines but the first.
    """
    if one_of_several() or machine() or (run / "trial.json").is_file():
        yield
        return
    descriptor = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{run}: another process trains there; end it first, or give another hydra.run.dir"
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def carry_out(
    command: Sequence[str],
    *,
    log: Path | None = None,
    held: int | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> int:
    """The exit code of a command, negative for a signal; its output goes to `log`, or where ours goes.

    Where we keep a log, what it says on standard output is seen, and its errors go into the log.

    `watch` is called every second. Should we be interrupted, the command is too, and has a minute to end well.
    """
    with log.open("ab") if log else nullcontext() as output:
        process = subprocess.Popen(
            command,
            stdout=output or child_output(),
            stderr=output,
            pass_fds=[held] if held is not None else [],
            **child_settings(environment or {}),
        )
    try:
        while True:
            try:
                return process.wait(1)
            except subprocess.TimeoutExpired:
                watch()
    except BaseException:  # Ctrl-C (which the command has seen as well), or a scheduler that wants its machine back
        interrupt(process)
        raise


def interrupt(process: "subprocess.Popen[bytes]") -> None:
    """Asks a process to end; after a minute it is killed."""
    process.send_signal(signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    finally:
        process.kill()
        process.wait()


def child_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """What Popen is told of every process that trains for us."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: were we killed, it would train on with nobody to tell

    return {"env": {**os.environ, "PYTHONUNBUFFERED": "1", **environment}, "preexec_fn": die_with_parent}


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def last_line(log: Path) -> str:
    """What a command said last; nothing if it said nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def note_end(run: Path, code: int, log: Path) -> None:
    """Puts on record what the run itself could not: that it failed before it kept one, or that it was killed."""
    record = read_json(run / "run.json")
    if record.get("status", "starting") == "starting" and code > 0:  # without one the file is damaged
        said = last_line(log).removeprefix("medreason.train: ")
        write_json(run / "run.json", record | {"status": f"failed: {said or describe_exit(code)}"})
    elif code and record.get("status", "running") in ("starting", "running"):
        note_death(run, describe_exit(code))


def note_death(run: Path, how: str) -> None:
    """Counts an attempt of a trial that was killed before it could record why."""
    link = read_json(run / "trial.json")
    died = link.get("died")
    write_json(run / "trial.json", link | {"died": [*(died if isinstance(died, list) else []), how]})


def reporter(run: Path, name: str, monitor: str) -> Callable[[], None]:
    """A function that says what of the monitored metric is new in the run's metrics.csv since its last call."""
    _, known = series(read_metrics(run / "metrics.csv"), monitor)
    told = len(known)

    def report() -> None:
        nonlocal told
        steps, values = series(read_metrics(run / "metrics.csv"), monitor)
        for step, value in list(zip(steps, values, strict=True))[told:]:
            if step:  # the first is from before training
                say(f"{name}: {monitor} {value:.4f} at step {int(step)}")
        told = max(told, len(values))

    return report


@contextmanager
def one_gpu(slots: int, name: str) -> Iterator[dict[str, str]]:
    """The environment that shows a run one GPU, which fewer than `slots` others here use; waits for it."""
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = shown.split(",") if shown else [str(index) for index in range(torch.cuda.device_count())]
    locks = gpu_locks()
    with ExitStack() as queue:
        waited = False
        while devices:
            for slot, device in ((slot, device) for slot in range(slots) for device in devices):
                place = locks / f"{device}.{slot}"
                place.mkdir(parents=True, exist_ok=True)
                with claim(place) as held:
                    if held is not None:
                        queue.close()
                        yield {"CUDA_VISIBLE_DEVICES": device}
                        return
            if not waited:
                queue.callback(os.close, queued(fcntl.LOCK_SH))
                say(f"{name}: every GPU is busy; waiting for one (hydra.sweeper.trials_per_gpu lets more share one)")
            waited = True
            time.sleep(2)
    yield {}


def gpu_waited_for() -> bool:
    """Whether a process of this user waits for a GPU in `one_gpu`."""
    try:
        os.close(queued(fcntl.LOCK_EX | fcntl.LOCK_NB))
    except OSError:
        return True
    return False


def queued(how: int) -> int:
    """The lock that all who wait for a GPU share, as a descriptor. Raises OSError where it cannot be had so."""
    descriptor = os.open(gpu_locks() / "waiting", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def gpu_locks() -> Path:
    locks = Path(tempfile.gettempdir()) / f"medreason-gpus-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    return locks
