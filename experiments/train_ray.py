"""One run on several machines of a Ray cluster, any settings after the file's name:

    python experiments/train_ray.py trainer=ddp trainer.nodes=2 trainer.devices=8 hydra.run.dir=/shared/runs/big

Each machine gets a task that starts torchrun there. Where one is lost the others end; the same command goes on.
"""

import socket
import subprocess
import sys
from collections.abc import Sequence

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


def asked(words: Sequence[str], setting: str) -> int:
    """A number that the command gives."""
    given = [word.partition("=")[2] for word in words if word.startswith(f"{setting}=")]
    if not given:
        sys.exit(f"train_ray.py: give {setting}=NUMBER")
    return int(given[-1])


def meeting_place() -> tuple[str, int]:
    """This machine's address, and a port that is free on it."""
    with socket.create_server(("", 0)) as listening:
        return ray.util.get_node_ip_address(), listening.getsockname()[1]


def train(words: Sequence[str], place: int, nodes: int, devices: int, address: str, port: int) -> int:
    meet = [f"--nnodes={nodes}", f"--node-rank={place}", f"--master-addr={address}", f"--master-port={port}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *meet, f"--nproc-per-node={devices}"]
    return subprocess.run([*torchrun, "-m", "medreason.train", *words], check=False).returncode


def main() -> None:
    words = sys.argv[1:]
    nodes, devices = asked(words, "trainer.nodes"), asked(words, "trainer.devices")
    ray.init()
    needs = {"CPU": float(devices)} | ({} if "trainer=cpu" in words else {"GPU": float(devices)})
    spread = placement_group([needs] * nodes, strategy="STRICT_SPREAD")
    if not spread.wait(60):
        print(f"train_ray.py: waiting for {nodes} machines with {needs} free", flush=True)
    ray.get(spread.ready())

    def on(place: int, cpus: float) -> dict[str, object]:
        where = PlacementGroupSchedulingStrategy(spread, placement_group_bundle_index=place)
        gpus = needs.get("GPU", 0.0) if cpus else 0.0
        return {"scheduling_strategy": where, "num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}

    address, port = ray.get(ray.remote(meeting_place).options(**on(0, 0)).remote())
    begun = ray.remote(train)
    tasks = [
        begun.options(**on(place, needs["CPU"])).remote(words, place, nodes, devices, address, port)
        for place in range(nodes)
    ]
    sys.exit(max(ray.get(tasks), key=abs))


if __name__ == "__main__":
    main()
