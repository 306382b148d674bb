"""experiments/train_ray.py on a Ray cluster of two machines, both of them this one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medreason.core.run_directory import read_json, read_metrics, series
from support import ROOT, tiny_run

# in a process of its own, as long as somebody holds its input: Ray's threads would outlive the tests here
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

machine = {"num_cpus": 1, "object_store_memory": 100 * 2**20}  # else Ray takes a third of memory for it
cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
cluster.add_node(**machine)
print(json.dumps(cluster.address), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    with (tmp_path / "cluster.log").open("w") as log, subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=os.environ | quiet, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith('"'):
                    yield json.loads(line)
                    break
            else:
                pytest.fail((tmp_path / "cluster.log").read_text()[-3000:])
        finally:
            process.stdin.close()
            process.wait(60)


def command(address: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "experiments/train_ray.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env=os.environ | {"RAY_ADDRESS": address},
    )  # fmt: skip


def test_two_machines_of_a_cluster_train_one_run(cluster: str, rows_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    several = ["trainer.nodes=2", "trainer.devices=1", "trainer.answer_questions=0"]
    said = command(cluster, *tiny_run(run, rows_file, *several, "trainer.max_steps=4", "trainer.max_epochs=9"))
    assert said.returncode == 0, said.stdout[-1500:] + said.stderr[-3000:]
    assert read_json(run / "run.json")["status"] == "finished"
    assert len(series(read_metrics(run / "metrics.csv"), "train/loss")[1]) == 4
    assert (run / "train.1.log").is_file()
    # a task that ends badly is the command's end, too
    said = command(cluster, *tiny_run(tmp_path / "wrong", rows_file, *several, "lora.target_modules=[query]"))
    assert said.returncode != 0 and "the model has no 'query'" in said.stdout + said.stderr


def test_how_many_machines_must_be_said() -> None:
    said = command("nowhere", "trainer.devices=1")
    assert said.returncode == 1 and said.stderr.strip() == "train_ray.py: give trainer.nodes=NUMBER"
