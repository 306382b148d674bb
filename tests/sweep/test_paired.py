"""The paired pruner: documents that are hard for one trial are hard for all, and pairs take that away."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from medreason.config import ConfigError
from medreason.sweep.paired import (
    FILE,
    PairedPruner,
    certainly_worse,
    check_earlier,
    check_pairs,
    keep_losses,
    level_of,
    read_losses,
)

DOCUMENTS, LOOKS = 60, 9


class Held:
    """Losses of trials on the same held-out documents: what is hard is hard for all, up to a trial's own taste."""

    def __init__(self, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.targets = self.chance.integers(20, 200, DOCUMENTS)
        self.hard = self.targets * self.chance.lognormal(0.2, 0.5, DOCUMENTS)

    def course(self, worse: float) -> np.ndarray:
        """A trial's losses, (validations, documents), that are on average by the share `worse` above the usual."""
        taste = self.chance.normal(0, 0.05, DOCUMENTS)  # a trial's own, at all of its steps
        drawn = self.chance.normal(0, 0.01, (LOOKS, DOCUMENTS))
        return np.asarray(self.hard * (1 + worse + taste + drawn) * np.linspace(1.5, 1, LOOKS)[:, None])


def sweep(folder: Path, worse: list[float], seed: int) -> list[int]:
    """Carries out trials so much worse than the usual; after how many looks each was stopped, LOOKS for never."""
    held, study = Held(seed), optuna.create_study()
    study.pruner = PairedPruner(folder, 1)
    stopped = []
    for each in worse:
        trial = study.ask()
        (folder / str(trial.number)).mkdir(parents=True)
        for look, losses in enumerate(held.course(each), 1):
            keep_losses(folder / str(trial.number), look, losses, held.targets)
            trial.report(float(losses.sum() / held.targets.sum()), look)
            if look < LOOKS and trial.should_prune():
                break
        stopped.append(look)
        study.tell(trial, state=optuna.trial.TrialState.COMPLETE if look == LOOKS else optuna.trial.TrialState.PRUNED,
                   values=1.0 if look == LOOKS else None)  # fmt: skip
    return stopped


def test_a_trial_as_good_as_any_other_is_seldom_stopped(tmp_path: Path) -> None:
    lost = sum(look < LOOKS for seed in range(40) for look in sweep(tmp_path / str(seed), [0.0] * 8, seed))
    assert lost <= 0.05 * 40 * 8


def test_a_trial_that_is_worse_by_less_than_documents_differ_is_stopped_at_once(tmp_path: Path) -> None:
    held = Held(0)
    usual, worse = held.course(0)[0] / held.targets, held.course(0.06)[0] / held.targets
    assert worse.mean() - usual.mean() < 0.2 * usual.std(), "alone, means of these documents would tell nothing"
    stopped = [sweep(tmp_path / str(seed), [0.0, 0.06], seed)[1] for seed in range(20)]
    assert np.mean(np.array(stopped) == 1) > 0.9


def test_looking_often_and_at_many_trials_does_not_make_a_decision_cheaper() -> None:
    assert sum(level_of(look, 1) for look in range(1, 10_000)) == pytest.approx(0.05, rel=1e-3)
    assert level_of(3, 40) == pytest.approx(level_of(3, 1) / 40)


def test_certainty_needs_documents_that_agree() -> None:
    usual = np.array([1.0, 2.0, 3.0, 4.0])
    assert certainly_worse(usual + 0.1, usual, 0.05)
    assert certainly_worse(usual + np.array([0.1, 0.12, 0.09, 0.11]), usual, 0.001)
    assert not certainly_worse(usual + np.array([0.5, -0.3, 0.4, -0.2]), usual, 0.05)
    assert not certainly_worse(usual - 0.1, usual, 0.05)
    assert not certainly_worse(usual, usual, 0.05)
    assert not certainly_worse(usual[:1] + 9, usual[:1], 0.05)


def test_losses_are_kept_by_step_and_a_resumed_trial_takes_back_what_came_after(tmp_path: Path) -> None:
    targets = np.array([3, 4])
    for step in (10, 20, 30):
        keep_losses(tmp_path, step, np.array([step, 1.5]), targets)
    keep_losses(tmp_path, 20, np.array([7.0, 8.0]), targets)
    kept = read_losses(tmp_path)
    assert kept is not None and kept.steps.tolist() == [10, 20]
    assert kept.at(20).tolist() == [7.0, 8.0] and kept.at(30) is None  # type: ignore[union-attr]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def two_trials(folder: Path) -> tuple[optuna.Study, optuna.Trial]:
    """A study in which trial 1 is much worse than trial 0 at step 10; losses are kept of trial 1 alone."""
    study = optuna.create_study(pruner=PairedPruner(folder, 1))
    better, worse = study.ask(), study.ask()
    better.report(1.0, 10)
    worse.report(2.0, 10)
    for number in range(2):
        (folder / str(number)).mkdir()
    keep_losses(folder / "1", 10, np.array([2.0, 2.1, 1.9, 2.0]), np.ones(4, int))
    return study, worse


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", "other documents"])
def test_a_trial_without_losses_of_the_same_documents_is_told_in_a_line_and_stops_nothing(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, worse = two_trials(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "0" / FILE).write_bytes(content)
    elif content:
        keep_losses(tmp_path / "0", 10, np.ones(4), np.full(4, 2))
    assert not worse.should_prune() and not worse.should_prune()
    (line,) = capsys.readouterr().out.splitlines()
    assert "trial 0 has no losses of these held-out documents" in line
    assert "give the sweep another hydra.sweep.dir" in line and "hydra.sweeper.pruner=asha" in line
    keep_losses(tmp_path / "0", 10, np.ones(4), np.ones(4, int))
    assert worse.should_prune(), "the test can fail: with losses, it is stopped"


def test_the_next_best_stands_in_for_a_best_without_losses(tmp_path: Path) -> None:
    study, worse = two_trials(tmp_path)
    third = study.ask()
    third.report(1.5, 10)
    (tmp_path / "2").mkdir()
    keep_losses(tmp_path / "2", 10, np.full(4, 1.5), np.ones(4, int))
    assert worse.should_prune()
    assert not third.should_prune()


def test_nothing_is_stopped_before_the_first_steps_that_all_may_take(tmp_path: Path) -> None:
    study, worse = two_trials(tmp_path)
    keep_losses(tmp_path / "0", 10, np.ones(4), np.ones(4, int))
    study.pruner = PairedPruner(tmp_path, 11)
    assert not worse.should_prune()


def test_a_study_of_another_pruner_is_told_of_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, _ = two_trials(tmp_path)
    check_earlier(study, tmp_path)
    assert "pruner=paired: trial 0 has no losses" in capsys.readouterr().out
    keep_losses(tmp_path / "0", 10, np.ones(4), np.ones(4, int))
    check_earlier(study, tmp_path)
    assert not capsys.readouterr().out


def test_what_cannot_be_paired_is_refused_before_any_trial(capsys: pytest.CaptureFixture[str]) -> None:
    check_pairs("val/loss", ["lora.r"], 20)
    assert not capsys.readouterr().out
    with pytest.raises(ConfigError, match="compares val/loss, not val/accuracy"):
        check_pairs("val/accuracy", ["lora.r"], 20)
    with pytest.raises(ConfigError, match=r"with data\.format among what is searched"):
        check_pairs("val/loss", ["lora.r", "data.format"], 20)
    check_pairs("val/loss", ["lora.r"], 5)
    assert "only 5 held-out documents" in capsys.readouterr().out
