"""The learning rate at one rank, then the ranks: what is tried in which order, whatever interrupts it."""

import math
import re
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from medreason.config import ConfigError, Sampler
from medreason.sweep.lr_then_rank import check_scaling, propose_lr_then_rank, ranks_of
from medreason.sweep.space import read_space
from medreason.sweep.study import Propose, begin

RANKS = {"lora.r": "choice(4,8,16,32)"}
SPACE, _ = read_space({**RANKS, "optim.lr": "choice(1e-5,1e-4,1e-3,1e-2)"}, [])


def loss(params: dict[str, Any]) -> float:
    """Lowest at 1e-3, and the lower the higher the rank."""
    return (math.log10(params["optim.lr"]) + 3) ** 2 + 1 / params["lora.r"]


def proposal(lr_trials: int = 10) -> Propose:
    return propose_lr_then_rank(SPACE, 8, Sampler.tpe, 1, lr_trials)


def carry_out(study: optuna.Study, propose: Propose, most: int = 100) -> list[tuple[int, float]]:
    """Rank and rate of each trial, in order."""
    for _ in range(most):
        if (params := propose(study)) is None:
            break
        study.tell(begin(study, params, SPACE).number, loss(params))
    return [(trial.params["lora.r"], trial.params["optim.lr"]) for trial in study.trials]


def test_every_rate_is_tried_at_one_rank_and_the_best_at_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    tried = carry_out(optuna.create_study(), proposal())
    assert sorted(tried[:4]) == [(8, 1e-5), (8, 1e-4), (8, 1e-3), (8, 1e-2)]
    assert tried[4:] == [(4, 1e-3), (16, 1e-3), (32, 1e-3)]
    best = tried.index((8, 1e-3))
    said = f"the best of 4 trials at lora.r=8 is trial {best}, optim.lr=0.001; now with lora.r=4, 16, 32"
    assert capsys.readouterr().out.count(said) == 1


def test_the_rates_have_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    tried = carry_out(optuna.create_study(), proposal(lr_trials=2))
    assert [rank for rank, _ in tried] == [8, 8, 4, 16, 32]
    assert len({rate for _, rate in tried[2:]}) == 1


def test_an_interrupted_search_goes_on_as_it_would_have() -> None:
    whole = carry_out(optuna.create_study(), proposal())
    for interruption in range(1, 7):
        study = optuna.create_study()
        carry_out(study, proposal(), interruption)
        assert carry_out(study, proposal()) == whole


def test_ranks_wait_for_the_rates_that_are_still_trained_and_leave_out_failures() -> None:
    study = optuna.create_study()
    propose = proposal()
    begun = [begin(study, params, SPACE) for _ in range(4) if (params := propose(study))]
    assert len(begun) == 4
    for trial in begun[:3]:
        state = TrialState.FAIL if trial.params["optim.lr"] == 1e-3 else TrialState.COMPLETE
        study.tell(trial.number, None if state is TrialState.FAIL else loss(trial.params), state)
    assert propose(study) is None
    study.tell(begun[3].number, None, TrialState.PRUNED)
    finished = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    best = min(finished, key=lambda trial: trial.value or 0.0)
    assert propose(study) == {"lora.r": 4, "optim.lr": best.params["optim.lr"]}


def test_nothing_follows_where_every_rate_failed() -> None:
    study = optuna.create_study()
    propose = proposal()
    while params := propose(study):
        study.tell(begin(study, params, SPACE).number, None, TrialState.FAIL)
    assert len(study.trials) == 4


def test_other_settings_are_searched_with_the_rate() -> None:
    space, _ = read_space({**RANKS, "optim.lr": "choice(1e-4,1e-3)", "lora.dropout": "interval(0,0.1)"}, [])
    propose = propose_lr_then_rank(space, 16, Sampler.tpe, 1, 3)
    study = optuna.create_study()
    while params := propose(study):
        study.tell(begin(study, params, space).number, loss(params) + params["lora.dropout"])
    assert [trial.params["lora.r"] for trial in study.trials] == [16, 16, 16, 4, 8, 32]
    best = min(study.trials[:3], key=lambda trial: trial.value or 0.0)
    assert all(trial.params["lora.dropout"] == best.params["lora.dropout"] for trial in study.trials[3:])


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"optim.lr": "choice(1e-4,1e-3)"}, "lora.r: sweeps=lr_then_rank needs ranks to choose from"),
        (RANKS, "optim.lr: sweeps=lr_then_rank searches it; for example"),
        ({**RANKS, "optim.lr": "choice(1,2)", "lora.alpha": "choice(8,16)"}, "lora.alpha: sweeps=lr_then_rank takes"),
        ({"lora.r": "choice(4,8)", "optim.lr": "choice(1,2)"}, "hydra.sweeper.rank=16: not one of the ranks to search"),
        ({"lora.r": "interval(4,8)", "optim.lr": "choice(1,2)"}, "lora.r: sweeps=lr_then_rank needs ranks"),
    ],
)
def test_a_space_without_two_stages_is_refused_in_a_line(params: dict[str, str], said: str) -> None:
    space, _ = read_space(params, [])
    with pytest.raises(ConfigError, match=re.escape(said)):
        ranks_of(space, 16)


def test_a_range_of_ranks_is_one_of_ranks() -> None:
    space, _ = read_space({"lora.r": "range(8,33,step=8)", "optim.lr": "choice(1,2)"}, [])
    assert ranks_of(space, 16) == [8, 16, 24, 32]


def test_an_update_whose_scale_would_grow_with_the_rank_is_refused() -> None:
    plain, stable = {"alpha": 16, "rslora": False}, {"alpha": 16, "rslora": True}
    check_scaling(["lora.alpha=2r"], plain)
    check_scaling(["lora.alpha=2r", "lora.alpha=32"], stable)
    with pytest.raises(ConfigError, match=r"lora.alpha=2r: with lora.rslora=true the update is scaled by"):
        check_scaling(["lora.alpha=2r"], stable)
