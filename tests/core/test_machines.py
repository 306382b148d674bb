import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medreason.config import ConfigError
from medreason.core import machines
from medreason.core.cli import composed
from medreason.core.run_directory import read_json, write_json

STEP = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "12", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07,09]"}
NAMES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def nowhere() -> Iterator[None]:
    """A machine on which nobody has started anything; what a test puts into the environment is gone afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("SLURM_") or name in NAMES:
            del os.environ[name]
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[7,9]", "gpu7"),
        ("a,b", "a"),
        ("node-a-1", "node-a-1"),
        ("node-a-[1-2].example", "node-a-1.example"),
        ("127.0.0.[1,2]", "127.0.0.1"),
    ],
)
def test_the_first_of_slurms_hosts_is_found(hosts: str, first: str) -> None:
    assert machines.first_host(hosts) == first


def test_a_task_for_each_machine_starts_the_processes_there() -> None:
    os.environ |= STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    machines.take_place(composed("trainer.nodes=2", "trainer.devices=8", "data=clinical_cases").trainer, [], True)
    assert not machines.one_of_several()
    assert (machines.machine(), os.environ["RANK"], machines.log_name()) == (1, "8", "train.1.log")
    words = machines.torchrun(2, 8, Path("runs/a"))
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=gpu07"} <= set(words)


def test_a_task_for_each_gpu_is_one_of_the_processes() -> None:
    os.environ |= STEP | {"SLURM_STEP_NUM_TASKS": "16", "SLURM_NODEID": "1", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
    machines.take_place(composed("trainer.nodes=2", "trainer.devices=8", "data=clinical_cases").trainer, [], True)
    assert machines.one_of_several()
    found = {name: os.environ[name] for name in (*NAMES, "MASTER_ADDR")}
    assert found == {"RANK": "9", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "gpu07"}


@pytest.mark.parametrize(
    ("environment", "nodes", "line"),
    [
        ({}, 2, r"this is one machine; with SLURM: srun --nodes=2 .*; without, on each machine: torchrun --nnodes=2"),
        ({"SLURM_JOB_ID": "12"}, 2, r"a SLURM job's script runs on one machine; .* srun --nodes=2"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "3"}, 2, r"this step of SLURM's has 3 tasks on 2 machines"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "2"}, 3, r"has 2 tasks on 2 machines; start it with srun --nodes=3"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 2, r"4 processes were started, .* are 2; make them the same"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 1, r"4 processes were started, .* are 1; make them the same"),
    ],
)
def test_a_place_that_does_not_fit_is_told_with_what_starts_it(
    environment: dict[str, str], nodes: int, line: str
) -> None:
    os.environ |= environment
    trainer = composed(f"trainer.nodes={nodes}", "trainer.devices=1", "data=clinical_cases").trainer
    with pytest.raises(ConfigError, match=line):
        machines.take_place(trainer, ["lora.r=8"], True)


def test_several_machines_are_told_to_share_a_folder() -> None:
    os.environ |= STEP | {"SLURM_STEP_NUM_TASKS": "2"}
    with pytest.raises(ConfigError, match=r"trainer.nodes=2: give hydra.run.dir=DIR"):
        machines.take_place(composed("trainer.nodes=2", "data=clinical_cases").trainer, [], False)


def test_what_starts_all_machines_names_the_folder_too() -> None:
    trainer = composed("trainer.nodes=2", "data=clinical_cases").trainer
    with pytest.raises(ConfigError, match=r"medreason.train lora.r=8 hydra.run.dir=DIR; without"):
        machines.take_place(trainer, ["lora.r=8"], False)


def test_runs_of_one_job_meet_at_ports_of_their_own() -> None:
    ports = {machines.port(STEP, f"sweep/{number}") for number in range(50)}
    assert len(ports) > 45 and all(1024 < port < 32_768 for port in ports)


def test_a_machine_is_missed_once_it_says_nothing_new_and_not_where_it_has_ended() -> None:
    watch, late = machines.Watch(own=0), machines.MISSED_SECONDS + 1
    told = {0: {"beat": "a"}, 1: {"beat": "a"}, 2: {"beat": "a", "ended": "finished"}}
    assert watch.missed(told, 0.0) is None
    assert watch.missed(told, late) is None, "it may not have begun yet: what it said is an earlier attempt's"
    assert watch.missed(told | {1: {"beat": "b"}}, late) is None
    assert watch.missed(told | {1: {"beat": "b"}}, 2 * late - 2) is None
    assert watch.missed(told | {1: {"beat": "b"}}, 2 * late + 1) == 1


def test_a_machine_that_falls_silent_is_named_with_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(machines, "MISSED_SECONDS", 0.1)
    said: list[str] = []
    (tmp_path / machines.FOLDER).mkdir()
    other = tmp_path / machines.FOLDER / "1.json"
    write_json(other, {"host": "gpu09", "beat": "an earlier attempt's"})
    with machines.Presence(tmp_path, 2, said.append):
        time.sleep(0.3)
        assert not said, "it has not begun yet"
        write_json(other, {"host": "gpu09", "beat": "its last"})
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said and said[0].startswith("machine 1 of 2 (gpu09) has not been heard of")


def test_a_machine_says_why_it_ends_and_the_others_tell_it(tmp_path: Path) -> None:
    os.environ["GROUP_RANK"] = "1"
    with pytest.raises(MemoryError), machines.Presence(tmp_path, 2, print):
        raise MemoryError("no more")
    assert machines.ended_here(tmp_path) == "failed: MemoryError: no more"
    os.environ["GROUP_RANK"] = "0"
    assert "MemoryError: no more" in str(machines.ended_elsewhere(tmp_path, 2))
    with pytest.raises(RuntimeError), machines.Presence(tmp_path, 2, print):
        raise RuntimeError(machines.gone(None))
    os.environ["GROUP_RANK"] = "1"
    assert machines.ended_elsewhere(tmp_path, 2) is None, "that the other one is gone is no reason of its own"
    machines.forget(tmp_path)
    assert read_json(tmp_path / machines.FOLDER / "1.json") == {}
    assert machines.ended_here(tmp_path) == "running"
