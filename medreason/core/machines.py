"""One run on several machines: how each finds its place, where they meet, and how one that is gone is missed.

    started on each machine by      who starts its processes                 the place is in
    torchrun --nnodes               torchrun: they are there when we begin   RANK, LOCAL_RANK, GROUP_RANK, WORLD_SIZE
    srun, submitit, a task each     we do, by torchrun                       SLURM_NODEID
    srun, submitit, a task a GPU    SLURM: they are there when we begin      SLURM_PROCID, SLURM_LOCALID

The run's folder lies on a file system that all of them see: they share its checkpoints, and what tells them apart.
"""

import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medreason.config import ConfigError, TrainerConfig
from medreason.core.overrides import command_line
from medreason.core.run_directory import read_json, write_json

FIRST_PORT, PORTS = 10_240, 20_000  # below those that Linux gives to whoever asks
FOLDER = ".machines"  # in the run's
BEAT_SECONDS = 5.0
MISSED_SECONDS = 120.0  # a file system over a network may show a file's change a minute late


def machine() -> int:
    """Which of the run's machines this is, from 0."""
    return int(os.environ.get("GROUP_RANK", "0"))


def log_name() -> str:
    """The file in a run's folder that this machine keeps its log in."""
    return f"train.{machine()}.log" if machine() else "train.log"


def one_of_several() -> bool:
    """Whether this process is one of several that train together: torchrun started it, or SLURM for a GPU."""
    return "LOCAL_RANK" in os.environ


def take_place(trainer: TrainerConfig, words: Sequence[str], run_given: bool) -> None:
    """Puts this process's place among the machines of its run into the environment, as torchrun would.

    `words` are the command's, `run_given` says whether they name its folder. Raises ConfigError where there is no such
    place, or none that fits the settings.
    """
    environment = os.environ
    if one_of_several():
        check_started(trainer, environment)
    if trainer.nodes == 1:
        return
    if not one_of_several() and "SLURM_STEP_ID" not in environment:
        shared = [] if run_given else ["hydra.run.dir=DIR"]
        raise ConfigError(how_to_start(trainer, [*words, *shared], "SLURM_JOB_ID" in environment))
    if not run_given:
        raise ConfigError(
            f"trainer.nodes={trainer.nodes}: give hydra.run.dir=DIR, a folder that every machine sees, the same on each"
        )
    if not one_of_several():
        environment |= place_of_step(trainer, environment)


def check_started(trainer: TrainerConfig, environment: Mapping[str, str]) -> None:
    """Raises ConfigError where other processes were started than the settings say."""
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != trainer.world_size:
        raise ConfigError(
            f"{started} processes were started, and trainer.nodes={trainer.nodes} x trainer.devices={trainer.devices} "
            f"are {trainer.world_size}; make them the same"
        )


def place_of_step(trainer: TrainerConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which torchrun would tell this task of a SLURM step its place. Raises ConfigError without one.

    A task for each machine starts processes of its own; a task for each GPU is one of them.
    """
    machines, tasks = (int(environment.get(name, "1")) for name in ("SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS"))
    here, devices = int(environment.get("SLURM_NODEID", "0")), trainer.devices
    if machines != trainer.nodes or tasks not in (machines, machines * devices):
        raise ConfigError(
            f"trainer.nodes={trainer.nodes}: this step of SLURM's has {tasks} tasks on {machines} machines; start it "
            f"with srun --nodes={trainer.nodes} --ntasks-per-node=1 (or {devices}, a task for each device)"
        )
    if tasks == machines:
        return {"GROUP_RANK": str(here), "RANK": str(here * devices)}
    return {
        "GROUP_RANK": str(here),
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(port(environment, "")),
    }


def first_host(hosts: str) -> str:
    """The first of SLURM's list of hosts: `gpu[07-09,12],cpu1` gives gpu07."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", hosts)
    assert found is not None  # it matches anything
    return "".join(part or "" for part in found.groups())


def port(environment: Mapping[str, str], run: str) -> int:
    """Where the machines of a run meet: the same on each of them, and another for another run of the same job."""
    name = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')} {run}"
    return FIRST_PORT + zlib.crc32(name.encode()) % PORTS


def torchrun(nodes: int, devices: int, run: Path) -> list[str]:
    """What comes between `python` and `-m medreason.train`, so that a run has the processes of this machine."""
    if nodes * devices == 1:
        return []
    if nodes == 1:
        meet = ["--standalone"]
    else:
        address = first_host(os.environ["SLURM_STEP_NODELIST"])
        meet = [
            f"--nnodes={nodes}", f"--node-rank={machine()}", f"--master-addr={address}",
            f"--master-port={port(os.environ, str(run))}",
        ]  # fmt: skip
    return ["-m", "torch.distributed.run", *meet, f"--nproc-per-node={devices}"]


def how_to_start(trainer: TrainerConfig, words: Sequence[str], in_job: bool) -> str:
    """A line on what starts a run on several machines, for somebody who started it on one."""
    nodes, devices, train = trainer.nodes, trainer.devices, command_line("train", list(words))
    slurm = f"srun --nodes={nodes} --ntasks-per-node=1 --gpus-per-node={devices} {train}"
    if in_job:
        return f"trainer.nodes={nodes}: a SLURM job's script runs on one machine; it starts all of them with: {slurm}"
    by_hand = (
        f"torchrun --nnodes={nodes} --nproc-per-node={devices} --rdzv-backend=c10d --rdzv-endpoint=FIRST_HOST:29400 "
        f"{train.removeprefix('python ')}"
    )
    return f"trainer.nodes={nodes}: this is one machine; with SLURM: {slurm}; without, on each machine: {by_hand}"


@dataclass
class Watch:
    """When each other machine was last heard of, by this one's clock: theirs may be wrong.

    None until it says something new: what is found first may be an earlier attempt's, and it may begin later.
    """

    own: int
    heard: dict[int, tuple[Any, float | None]] = field(default_factory=dict)

    def missed(self, told: Mapping[int, Mapping[str, Any]], now: float) -> int | None:
        """A machine that has said nothing new for too long, and did not say that it ends; None without one."""
        for other, word in told.items():
            if other == self.own or "ended" in word:
                continue
            beat = word.get("beat")
            last, since = self.heard.setdefault(other, (beat, None))
            if last != beat:
                self.heard[other] = beat, now
            elif since is not None and now - since > MISSED_SECONDS:
                return other
        return None


class Presence:
    """Tells the run's other machines, by a file in its folder, that this one is there, and calls `missed` with a line
    where one of them is not there any more.

    A process whose partner is gone may wait for it for ever: only a closed connection is told to it.
    """

    def __init__(self, run: Path, nodes: int, missed: Callable[[str], None]) -> None:
        self.folder, self.nodes, self.missed = run / FOLDER, nodes, missed
        self.own, self.over = machine(), threading.Event()
        self.attempt = f"{socket.gethostname()} {os.getpid()} {time.time()}"
        self.thread = threading.Thread(target=self.keep, name="presence", daemon=True)

    def __enter__(self) -> "Presence":
        self.folder.mkdir(exist_ok=True)
        self.say(0)
        self.thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.over.set()
        self.thread.join(2 * BEAT_SECONDS)
        end_here(self.folder.parent, FINISHED if error is None else f"{type(error).__name__}: {error}".splitlines()[0])

    def say(self, beat: int) -> None:
        write_json(self.folder / f"{self.own}.json", {"host": socket.gethostname(), "beat": f"{self.attempt} {beat}"})

    def keep(self) -> None:
        watch, beat = Watch(self.own), 0
        while not self.over.wait(BEAT_SECONDS):
            beat += 1
            with suppress(OSError):  # a full disk, or one that is away for a moment
                self.say(beat)
            told = {other: read_json(self.folder / f"{other}.json") for other in range(self.nodes)}
            other = watch.missed(told, time.monotonic())
            if other is not None and not self.over.is_set():
                host = told[other]["host"]
                self.missed(f"machine {other} of {self.nodes} ({host}) has not been heard of for {MISSED_SECONDS:g} s")


def own_file(run: Path) -> Path:
    return run / FOLDER / f"{machine()}.json"


def end_here(run: Path, how: str) -> None:
    """Tells the run's other machines how this one ends."""
    with suppress(OSError):
        write_json(own_file(run), read_json(own_file(run)) | {"ended": how})


def ended_here(run: Path) -> str:
    """How the processes of this machine ended, as a run's status has it; `running` where they could not say it."""
    said = read_json(own_file(run)).get("ended")
    if said in (None, FINISHED):
        return "running"
    return "interrupted" if str(said).startswith("SystemExit") else f"failed: {said}"


def forget(run: Path) -> None:
    """Removes what an earlier attempt of this machine has said."""
    own_file(run).unlink(missing_ok=True)


def ended_elsewhere(run: Path, nodes: int) -> str | None:
    """Which other machine ended for a reason of its own, and why; None where none did, or could say so."""
    for other in range(nodes):
        word = read_json(run / FOLDER / f"{other}.json")
        said = str(word.get("ended", FINISHED))
        if other != machine() and said != FINISHED and GONE not in said:
            return f"machine {other} ({word.get('host')}): {said}"
    return None


def gone(why: str | None) -> str:
    """A line on a run that lost one of its processes."""
    return f"{GONE} ({why or 'killed, or its machine is lost'}); the same command goes on from the last checkpoint"


FINISHED, GONE = "finished", "another process of this run is gone"
CONNECTION = re.compile(r"onnection (closed|reset|refused)|roken pipe|NCCL|ncclRemoteError|gloo", re.IGNORECASE)


def lost_connection(error: BaseException) -> bool:
    """Whether an error is what a process sees of another that is gone."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return False
    return isinstance(error, RuntimeError) and bool(CONNECTION.search(str(error)))
