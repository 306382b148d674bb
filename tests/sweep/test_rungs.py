"""Steps of a sweep's trials before which none is stopped."""

from pathlib import Path
from typing import Any

import pytest

from medreason.config import Pruner, Sampler, SearchConfig, TrainConfig
from medreason.data.corpus import read_split
from medreason.sweep.sweepers import first_rung
from support import composed


def search(min_steps: float, pruner: Pruner = Pruner.asha) -> SearchConfig:
    given: dict[str, Any] = {"parallel": 1, "trials_per_gpu": 1, "retries": 0, "reduction_factor": 3, "trials": 9}
    given["keep_model"] = True
    return SearchConfig(storage=None, sampler=Sampler.tpe, pruner=pruner, min_steps=min_steps, tokens=None, hours=None,
                        seed=1, params={}, **given)  # fmt: skip


@pytest.fixture(scope="module")
def trial(rows_file: Path) -> TrainConfig:
    return composed("model=tiny", "trainer=cpu", "data=local", f"data.path={rows_file}", "data.row_tokens=1024",
                    "trainer.max_epochs=4", "trainer.max_steps=40")  # fmt: skip


def test_a_share_is_that_of_a_trials_steps_and_a_number_is_itself(
    trial: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    split = read_split(trial.data)
    assert first_rung(search(7), trial, split) == 7 and not capsys.readouterr().out
    assert first_rung(search(0.1), trial, split) == 4
    assert "trials of 40 optimizer steps; none is stopped before step 4" in capsys.readouterr().out
    assert first_rung(search(0.1, Pruner.none), trial, split) == 1, "nothing is counted for nothing"
