"""`resume=RUN`: which run it means, what of it may be another, what is told of one that has finished."""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from medreason.config import ConfigError, LoggerKind, TrainConfig
from medreason.core.cli import NamedRuns, root
from medreason.core.processes import alone, claim
from medreason.core.resume import find_run, nothing_left, repeated, resumed_settings, settle_folder
from medreason.core.run_directory import run_config, write_json
from medreason.train.run import save_config
from support import composed

OWN = ("model=tiny", "trainer=cpu", "data=clinical_cases", "lora.alpha=2r", "trainer.max_steps=40", "optim.lr=3e-3")


def make_run(folder: Path, *overrides: str, **record: Any) -> Path:
    """A run as far as the files go that it goes on with."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    save_config(composed(*OWN, *overrides), folder)
    write_json(folder / "run.json", {"status": "interrupted", "overrides": [*OWN, *overrides]} | record)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "one")


def gone_on(run: Path, *words: str) -> TrainConfig:
    """The settings of a run that is resumed with these words."""
    ConfigStore.instance().store(name="schema", node=TrainConfig)
    Plugins.instance().register(NamedRuns)
    given = [f"resume={run}", *words]
    with hydra.initialize_config_dir(str(root() / "conf"), version_base="1.3"):
        return resumed_settings(hydra.compose("train", overrides=given), given)


def test_a_run_goes_on_with_its_own_settings_and_with_what_is_given_of_the_rest(run: Path) -> None:
    config = gone_on(run, "trainer.max_steps=90", "trainer.patience=3", "logger=wandb", "logger.project=cases")
    assert (config.lora.alpha, config.optim.lr, config.model.path) == (32.0, 3e-3, "embedded:tiny")
    assert (config.trainer.max_steps, config.trainer.patience, config.trainer.accelerator) == (90, 3, "cpu")
    assert (config.logger.kind, config.logger.project) == (LoggerKind.wandb, "cases")
    assert config.ckpt == str(run / "checkpoints" / "last.ckpt")
    save_config(config, run)
    again = gone_on(run)
    assert (again.trainer.max_steps, again.logger) == (90, config.logger), "what was given once is kept"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lora.r=3", "lora.r was 16, and is 3 here; a run goes on with the settings it has"),
        ("optim.lr=1e-4", "optim.lr was 0.003, and is 0.0001 here"),
        ("optim.decay=cosine", "optim.decay was linear, and is cosine here"),
        ("seed=1", "seed was 3407, and is 1 here"),
        ("data.row_tokens=64", "data.row_tokens was 8192, and is 64 here"),
        ("trainer.accumulate=7", "trainer.accumulate was 1, and is 7 here"),
        ("model=smollm2_135m", "beside resume= name single settings, such as trainer.max_steps=100, or logger=NAME"),
        ("trainer=gpu", "beside resume= name single settings"),
        ("experiments=quickstart", "beside resume= name single settings"),
        ("ckpt=last", "ckpt=last: resume= goes on from the run's own checkpoint; give one of the two"),
        ("trainer.patience=0", "trainer.patience must be positive or null, got 0"),
    ],
)
def test_what_cannot_be_another_in_the_middle_of_a_run_is_refused_by_name_and_both_values(
    word: str, says: str, run: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        gone_on(run, word)
    assert says in str(refused.value)


def test_the_same_value_again_is_no_other(run: Path) -> None:
    assert gone_on(run, "lora.r=16", "lora.alpha=2r", "optim.lr=0.003").lora.alpha == 32.0


def test_a_run_of_an_earlier_release_goes_on_as_it_was(run: Path) -> None:
    settings = run / "config.yaml"
    kept = [line for line in settings.read_text().splitlines() if "patience:" not in line and "resume:" not in line]
    settings.write_text("\n".join(kept))
    assert run_config(run).trainer.patience is None and gone_on(run).resume == str(run)


def test_which_run_is_meant(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = make_run(tmp_path / "runs" / "other")
    os.utime(run / "checkpoints" / "last.ckpt", (1, 1))
    assert find_run("runs/one") == run and find_run("last") == other
    for given, says in (
        ("runs/none", "resume=runs/none: no run there; name the folder that medreason.train wrote, or last"),
        ("runs", "resume=runs: no run there"),
        ("runs/one/config.yaml", "a file; name a run's folder"),
    ):
        with pytest.raises(ConfigError, match=says):
            find_run(given)
    (other / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"ended before its first checkpoint; anew: python -m medreason.train model="):
        find_run("runs/other")
    write_json(run / "trial.json", {})
    with pytest.raises(ConfigError, match="a trial of a sweep, whose own command goes on with it"):
        find_run("runs/one")
    monkeypatch.chdir(run)
    with pytest.raises(ConfigError, match=r"no checkpoints/last.ckpt in the runs under runs"):
        find_run("last")


def test_the_command_is_carried_out_in_the_runs_own_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settled(*words: str, name: str = "train") -> list[str]:
        monkeypatch.setattr(sys, "argv", ["train", *words])
        settle_folder(name)
        return sys.argv[1:]

    own = [f"resume={run}", f"hydra.run.dir={run}", "hydra.output_subdir=null"]
    assert settled("trainer.max_steps=9", f"resume={run}/../one") == ["trainer.max_steps=9", *own]
    # as one of several processes is called
    assert settled(f"resume={run}", "hydra.mode=RUN", f"hydra.run.dir={run}")[:3] == own
    assert settled("resume=null", "seed=1") == ["resume=null", "seed=1"]
    for words, says in (
        ((f"resume={run}", "hydra.run.dir=elsewhere"), f"hydra.run.dir=elsewhere: resume= goes on in {run}"),
        ((f"resume={run}", "--multirun"), "one run goes on, not a sweep"),
        ((f"resume={run}", "sweeps=rank_grid"), "one run goes on, not a sweep"),
    ):
        with pytest.raises(ConfigError, match=says):
            settled(*words)
    with pytest.raises(ConfigError, match=r"it is medreason.train that goes on with a run"):
        settled(f"resume={run}", name="data")


def test_a_finished_run_says_so_unless_it_is_asked_for_more(tmp_path: Path) -> None:
    rows = {"train_rows": 10}
    by_steps = make_run(tmp_path / "s", "trainer.max_epochs=6", status="finished", results={"steps": 40}, data=rows)
    line = nothing_left(gone_on(by_steps), by_steps)
    assert line and "has finished, after 40 optimizer steps, all of them; to train on: " in line
    assert line.endswith("trainer.max_steps=80 trainer.max_epochs=12"), "60 steps are all that 6 epochs have"
    assert nothing_left(gone_on(by_steps, "trainer.max_steps=80"), by_steps) is None
    given = ["trainer.max_epochs=4", "trainer.max_steps=-1"]
    by_epochs = make_run(tmp_path / "e", *given, status="finished", results={"steps": 40}, data=rows)
    line = nothing_left(gone_on(by_epochs), by_epochs)
    assert line and line.endswith(f"resume={by_epochs} trainer.max_epochs=8")
    early = make_run(tmp_path / "p", "trainer.patience=2", status="finished", ended_early="no lower loss", data=rows)
    for words in ([], ["trainer.max_steps=99"], ["trainer.patience=1"]):
        line = nothing_left(gone_on(early, *words), early)
        assert line and "early (no lower loss)" in line and line.endswith("trainer.patience=4")
    assert nothing_left(gone_on(early, "trainer.patience=null"), early) is None
    stopped = make_run(tmp_path / "i")
    assert nothing_left(gone_on(stopped), stopped) is None


def test_what_is_kept_of_the_command_trains_the_run_as_it_is_now(run: Path) -> None:
    words = [f"resume={run}", "trainer.max_steps=90", "logger=wandb"]
    assert repeated(words, run) == [one for one in OWN if "max_steps" not in one] + words[1:]
    (run / "run.json").write_text("{")
    assert repeated(words, run) == words[1:]


def test_two_processes_do_not_train_in_one_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(run):
        with pytest.raises(ConfigError, match="another process trains there; end it first"), alone(run):
            pass
        monkeypatch.setenv("LOCAL_RANK", "0")  # one of the several that the holder has started
        with alone(run):
            pass
    with claim(run) as held:
        assert held is not None
