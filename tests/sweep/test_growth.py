"""A sweep of many trials: what a trial costs the sweep, and its page, do not grow with those before it."""

import statistics
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from medreason.config import ConfigError, Pruner, Sampler, SearchConfig
from medreason.core.run_directory import read_json, write_json
from medreason.report.plots import draw_curves, draw_map, draw_slices
from medreason.report.results import Trial
from medreason.sweep.runner import carry_out_trials
from medreason.sweep.space import read_space
from medreason.sweep.study import begin, count_tokens, make_pruner, open_study, propose_new, spent, storage_url

SPACE, _ = read_space({"lora.r": "choice(4,8,16)", "optim.lr": "tag(log,interval(1e-5,1e-1))"}, [])


class Counted:
    """A launcher that ends every trial at once, and counts the function calls of the sweep between two of them."""

    def __init__(self) -> None:
        self.calls, self.of_each = 0, list[int]()

    def count(self, frame: FrameType, event: str, argument: Any) -> None:
        self.calls += event in ("call", "c_call")

    def launch(self, jobs: list[list[str]], initial_job_idx: int) -> list[Any]:
        sys.setprofile(None)
        self.of_each.append(self.calls)
        (folder,) = (one.split("=")[1] for one in jobs[0] if one.startswith("hydra.sweep.dir"))
        run = Path(folder) / str(initial_job_idx)
        (run / "metrics.csv").write_text("step,train/tokens\n" + "".join(f"{step},{step}.0\n" for step in range(50)))
        end = {"status": "finished", "results": {"monitored": 1 / (1 + initial_job_idx)}}
        write_json(run / "run.json", read_json(run / "run.json") | end)
        self.calls = 0
        sys.setprofile(self.count)
        return []


def test_the_hundredth_trial_costs_the_sweep_what_the_twentieth_did(tmp_path: Path) -> None:
    search = SearchConfig(None, 1, 1, 0, True, Sampler.tpe, Pruner.none, 1, 3, 106, 10**9, None, 7, {})
    study = open_study(storage_url(None, tmp_path), "s", make_pruner(Pruner.none, 1, 3, tmp_path))
    counted, tokens = Counted(), count_tokens(tmp_path)
    try:
        carry_out_trials(
            study,
            search,
            tmp_path,
            counted,  # type: ignore[arg-type]
            space=SPACE,
            pruning={},
            propose=propose_new(SPACE, search.sampler, search.seed),
            describe=lambda params: ([f"{k}={v}" for k, v in params.items()], {k: str(v) for k, v in params.items()}),
            over=lambda: spent(search, study, tokens, 0),
        )
    finally:
        sys.setprofile(None)
    early, late = (statistics.median(counted.of_each[first : first + 10]) for first in (15, 95))
    # what is left is TPE, which looks at each trial; with files read and trials copied anew it was 2.9 times as much
    assert late < 1.5 * early, f"{early:,} function calls grew to {late:,}"


@pytest.mark.parametrize("storage", [None, "journal"])
def test_a_space_with_other_choices_does_not_go_on_with_a_study(storage: str | None, tmp_path: Path) -> None:
    study = open_study(storage_url(storage, tmp_path), "s", make_pruner(Pruner.none, 1, 3, tmp_path))
    begun = begin(study, {"lora.r": 8, "optim.lr": 0.01}, SPACE)
    assert (begun.number, begun.params) == (0, {"lora.r": 8, "optim.lr": 0.01})
    other, _ = read_space({"lora.r": "choice(4,8,64)", "optim.lr": "tag(log,interval(1e-5,1e-1))"}, [])
    with pytest.raises(ConfigError, match=r"hydra.sweeper.params: .* give the new sweep another hydra.sweep.dir"):
        begin(study, {"lora.r": 64, "optim.lr": 0.01}, other)
    assert len(study.trials) == 1


def made_up(number: int) -> Trial:
    rank, rate, end = (8, 16, 32)[number % 3], 1e-4 * (1 + number % 97 / 10), 1 + (number % 89) / 100
    settings = {"lora.r": rank, "optim.lr": rate}
    curve = ([10.0, 20.0], [end + 1, end])
    state = "pruned" if number % 2 else "finished"
    return Trial(Path(str(number)), number, state, "", [], end, settings, settings, [], number, 1.0, 20, 2000, curve)


def test_a_picture_of_many_trials_is_made_of_as_few_parts_as_one_of_some() -> None:
    def parts(count: int) -> list[int]:
        trials = [made_up(number) for number in range(count)]
        drawn = [draw_curves(trials, "m"), draw_map(trials, ["lora.r", "optim.lr"], "m")]
        drawn.append(draw_slices(trials, ["lora.r", "optim.lr"], "m"))
        return [sum(len(axis.lines) + len(axis.collections) for axis in figure.axes) for figure in drawn if figure]

    assert len(parts(150)) == 3
    assert parts(900) == parts(150)
