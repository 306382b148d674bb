"""Trials that begin in the process of the one before: same results as alone, and a failed one ends its process."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from medreason.core.overrides import override
from medreason.core.run_directory import read_metrics, series
from support import run_train, tiny_run

MEASURED = ("train/loss", "train/grad_norm", "val/loss")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    """Every rank with and without dropout, and with layers that the model has not."""
    folder = tmp_path_factory.mktemp("kept") / "sweep"
    given = [one for one in tiny_run(folder, rows_file) if not one.startswith("hydra.run.dir")]
    said = run_train(
        "sweeps=rank_alpha_lr", *given, override("hydra.sweep.dir", folder), "lora.r=choice(4,8)", "lora.alpha=8",
        "lora.dropout=choice(0.0,0.1)", "lora.target_modules=choice([q_proj,down_proj],[query])", "optim.lr=1e-2",
        "trainer.answer_questions=1", "hydra.sweeper.pruner=none",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    return folder


def trials(folder: Path) -> dict[Path, dict[str, Any]]:
    return {
        path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[0-9]*/trial.json"))
    }


def process(run: Path) -> str:
    (found,) = re.findall(r"\(process (\d+)\)", (run / "train.log").read_text(encoding="utf-8"))
    return str(found)


def test_every_number_of_a_trial_is_that_of_its_run_alone(sweep: Path, tmp_path: Path) -> None:
    good = [run for run, trial in trials(sweep).items() if trial["state"] == "COMPLETE"]
    assert len(good) == 4 and len({process(run) for run in good}) < 4
    shared = [run for run in good if process(run) in {process(other) for other in good if other != run}]
    for run in shared[-2:]:
        alone = tmp_path / run.name
        overrides = json.loads((run / "run.json").read_text(encoding="utf-8"))["overrides"]
        said = run_train(*overrides, override("hydra.run.dir", alone))
        assert said.returncode == 0, said.stderr[-3000:]
        for name in MEASURED:
            found, wanted = (series(read_metrics(one / "metrics.csv"), name) for one in (run, alone))
            assert found == wanted and len(found[0]) > 1
        weights = [(one / "adapter" / "adapter_model.safetensors").read_bytes() for one in (run, alone)]
        assert weights[0] == weights[1]
        questions = [json.loads((one / "samples.json").read_text(encoding="utf-8")) for one in (run, alone)]
        for one, other in zip(*questions, strict=True):  # in mid-training they are asked as time allows
            assert [one["before"], one["after"]] == [other["before"], other["after"]]


def test_a_trial_that_fails_says_why_and_leaves_its_process(sweep: Path) -> None:
    order = list(trials(sweep).items())
    failed = [place for place, (_, trial) in enumerate(order) if trial["state"] == "FAIL"]
    assert len(failed) == 4
    for place in failed:
        assert "the model has no 'query'" in order[place][1]["reason"]
    after = [(order[place][0], order[place + 1][0]) for place in failed if place + 1 < len(order)]
    assert after and all(process(one) != process(following) for one, following in after)
