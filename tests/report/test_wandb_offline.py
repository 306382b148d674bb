"""The reader of offline runs, on runs that wandb alone made."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wandb_offline import BLOCK, OfflineRun, read_offline_run

# In a process of its own: in one with others its last records lacked twice, late in a full run of all tests. Once the
# process is over, so is wandb's service, and the log is whole.
MADE = f"""
import sys, wandb
run = wandb.init(
    project="clinic",
    dir=sys.argv[1],
    mode="offline",
    name="first",
    group="grid",
    job_type="trial",
    tags=["small", "cpu"],
    config={{"lora": {{"r": 8, "target_modules": ["q_proj"]}}, "seed": 1}},
    settings=wandb.Settings(console="off", x_disable_stats=True),
)
run.log({{"val/loss": 2.5}})
run.log({{"train/loss": 2.0, "samples": wandb.Table(["question", "answer"], [["Fever?", "Yes"], ["Rash?", "No"]])}})
run.log({{"val/loss": 1.5, "note": "x" * (2 * {BLOCK})}})
run.config.update({{"seed": 2, "late": True}}, allow_val_change=True)
run.summary["accuracy"] = 0.5
run.finish(exit_code=3)
"""


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished offline run whose log is longer than a block, one record longer than two."""
    folder = tmp_path_factory.mktemp("run")
    subprocess.run([sys.executable, "-c", MADE, str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def read(run_path: Path) -> OfflineRun:
    return read_offline_run(run_path)


def test_history_comes_back_row_by_row(read: OfflineRun) -> None:
    assert read.values("val/loss") == [2.5, 1.5]
    assert [row["_step"] for row in read.history] == [0, 1, 2]
    assert read.history[1]["train/loss"] == 2.0


def test_a_record_cut_across_blocks_is_whole(read: OfflineRun) -> None:
    assert read.values("note") == ["x" * (2 * BLOCK)]


def test_config_keeps_its_nesting_and_its_latest_values(read: OfflineRun) -> None:
    assert read.config["lora"] == {"r": 8, "target_modules": ["q_proj"]}
    assert (read.config["seed"], read.config["late"]) == (2, True)


def test_summary_holds_the_last_values_and_those_set_by_hand(read: OfflineRun) -> None:
    assert (read.summary["val/loss"], read.summary["accuracy"]) == (1.5, 0.5)


def test_what_a_run_is_called_comes_back(read: OfflineRun) -> None:
    assert (read.project, read.name, read.group, read.job_type) == ("clinic", "first", "grid", "trial")
    assert sorted(read.tags) == ["cpu", "small"]
    assert read.exit_code == 3


def test_a_table_comes_back_as_rows(read: OfflineRun) -> None:
    assert read.table("samples") == [
        {"question": "Fever?", "answer": "Yes"},
        {"question": "Rash?", "answer": "No"},
    ]


@pytest.fixture
def damaged(run_path: Path, tmp_path: Path) -> Callable[[Callable[[bytes], bytes]], Any]:
    (log,) = run_path.glob("wandb/offline-run-*/run-*.wandb")

    def read(damage: Callable[[bytes], bytes]) -> OfflineRun:
        copy = tmp_path / "run-copy.wandb"
        copy.write_bytes(damage(log.read_bytes()))
        return read_offline_run(copy)

    return read


def test_a_log_that_ends_in_the_middle_of_a_record_gives_what_stands_before(damaged: Any) -> None:
    run = damaged(lambda log: log[: 2 * BLOCK])
    assert run.values("val/loss") == [2.5]
    assert run.exit_code is None


def test_a_changed_byte_is_found(damaged: Any) -> None:
    with pytest.raises(ValueError, match="damaged"):
        damaged(lambda log: log.replace(b"first", b"feast", 1))


def test_a_file_of_another_kind_is_refused(damaged: Any) -> None:
    with pytest.raises(ValueError, match="not a W&B transaction log"):
        damaged(lambda log: b"{}" + log)
