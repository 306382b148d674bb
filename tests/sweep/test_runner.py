"""The bookkeeping of a sweep, with trials that take no time: what a launcher would run is played here."""

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from medreason.config import ConfigError, Pruner, RunFailed, Sampler, SearchConfig, at_home
from medreason.core.overrides import override
from medreason.core.processes import claim
from medreason.core.run_directory import read_json, tokens_trained, write_json
from medreason.core.storage import hidden, whole
from medreason.sweep.runner import best_trials, carry_out_trials, check_any_finished, next_batch
from medreason.sweep.space import read_space
from medreason.sweep.study import begin, count_tokens, make_pruner, open_study, propose_new, spent, storage_url

SPACE, _ = read_space({"lora.r": "choice(4,8,16,1000)", "optim.lr": "tag(log,interval(1e-5,1e-1))"}, [])
Train = Callable[[Path, dict[str, float]], None]


class Killed(BaseException):
    """The sweep's own process is killed."""


class Player:
    """A launcher that calls `train` with each trial's folder and settings."""

    def __init__(self, train: Train) -> None:
        self.train, self.launched = train, list[int]()

    def launch(self, overrides: list[list[str]], initial_job_idx: int) -> list[Any]:
        for job in overrides:
            given = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(job)}
            self.launched.append(int(given["hydra.sweep.subdir"]))
            self.train(Path(given["hydra.sweep.dir"]) / str(given["hydra.sweep.subdir"]), given)
        return []


def sweep(folder: Path, train: Train, trials: int = 20, parallel: int = 1, retries: int = 2) -> Player:
    search = SearchConfig(
        None, parallel, 1, retries, True, Sampler.tpe, Pruner.none, 1, 3, trials, None, None, 7, {}
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    study = open_study(storage_url(None, folder), "s", make_pruner(search.pruner, 1, 3, folder))
    player = Player(train)
    carry_out_trials(
        study,
        search,
        folder,
        player,  # type: ignore[arg-type]
        space=SPACE,
        pruning={},
        propose=propose_new(SPACE, search.sampler, search.seed),
        describe=lambda params: ([override(k, v) for k, v in params.items()], {k: str(v) for k, v in params.items()}),
        over=lambda: spent(search, study, count_tokens(folder), 0),
    )
    return player


def end(run: Path, status: str, **results: Any) -> None:
    write_json(run / "run.json", read_json(run / "run.json") | {"status": status, "results": results})


def learn(run: Path, given: dict[str, float]) -> None:
    """A trial of which rank and learning rate decide the loss; too large a rank fails, too large a rate diverges."""
    if given["lora.r"] == 1000:
        return end(run, "failed: RunFailed: out of memory")
    if given["optim.lr"] > 3e-2:
        return end(run, "finished", monitored=math.nan)
    return end(run, "finished", monitored=(math.log10(given["optim.lr"]) + 3) ** 2 + 1 / given["lora.r"])


def story(folder: Path) -> list[tuple[Any, ...]]:
    """Of each trial its settings, state, value, reason."""
    found = [read_json(folder / str(number) / "trial.json") for number in range(len(list(folder.glob("*/trial.json"))))]
    return [(trial["params"], trial["state"], trial["value"], trial["reason"]) for trial in found]


def test_a_sweep_disturbed_at_every_turn_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    sweep(tmp_path / "whole", learn)
    moments, kills = random.Random(3), {"trial": 0, "sweep": 0, "after": 0}

    def disturbed(run: Path, given: dict[str, float]) -> None:
        what = moments.choice(["trial", "sweep", "after", "nothing", "nothing", "nothing"])
        if what == "trial":  # the wrapper notes that the training was killed
            end(run, "running")
            link = read_json(run / "trial.json")
            write_json(run / "trial.json", link | {"died": [*link["died"], "killed by SIGKILL"]})
        elif what == "sweep":  # everything is killed while it trains
            end(run, "running")
        else:
            learn(run, given)
        kills[what] = kills.get(what, 0) + 1
        if what in ("sweep", "after"):
            raise Killed

    for _ in range(100):
        try:
            sweep(tmp_path / "disturbed", disturbed, retries=20)
        except Killed:
            continue
        break
    assert min(kills.values()) >= 2, "this seed disturbs too little"
    assert story(tmp_path / "disturbed") == story(tmp_path / "whole")
    states = [state for _, state, _, _ in story(tmp_path / "whole")]
    assert len(states) == 20
    assert states.count("FAIL") >= 2, "this seed fails too little"


def test_no_settings_are_tried_twice_and_an_exhausted_space_ends_the_sweep(tmp_path: Path) -> None:
    space, _ = read_space({"lora.r": "choice(4,8,16)", "optim.lr": "choice(1e-3,1e-2)"}, [])
    study = optuna.create_study()
    propose = propose_new(space, Sampler.tpe, 1)
    tried = []
    while params := propose(study):
        tried.append(tuple(params.values()))
        study.enqueue_trial(params)
        study.tell(study.ask(space), sum(params.values()))
    assert sorted(tried) == [(r, lr) for r in (4, 8, 16) for lr in (1e-3, 1e-2)]


def test_a_trial_that_is_killed_each_time_fails_with_its_reason_and_the_sweep_goes_on(tmp_path: Path) -> None:
    def train(run: Path, given: dict[str, float]) -> None:
        if run.name != "1":
            return learn(run, given)
        link = read_json(run / "trial.json")
        write_json(run / "trial.json", link | {"died": [*link["died"], "killed by SIGKILL"]})
        return None

    player = sweep(tmp_path / "s", train, trials=4)
    assert player.launched == [0, 1, 1, 1, 2, 3]
    assert story(tmp_path / "s")[1][1:] == ("FAIL", None, "killed by SIGKILL, 3 times")


def test_a_launcher_that_never_works_ends_the_sweep(tmp_path: Path) -> None:
    def broken(run: Path, given: dict[str, float]) -> None:
        raise OSError("no such partition")

    with pytest.raises(ConfigError, match="the first 3 trials all failed: OSError: no such partition, 3 times"):
        sweep(tmp_path / "s", broken)


def test_a_finished_sweep_with_a_larger_budget_goes_on(tmp_path: Path) -> None:
    assert sweep(tmp_path / "s", learn, trials=3).launched == [0, 1, 2]
    before = story(tmp_path / "s")
    assert sweep(tmp_path / "s", learn, trials=3).launched == []
    assert sweep(tmp_path / "s", learn, trials=5, parallel=2).launched == [3, 4]
    assert story(tmp_path / "s")[:3] == before


def test_a_trial_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    def train(run: Path, given: dict[str, float]) -> None:
        raise Killed

    with pytest.raises(Killed):
        sweep(tmp_path / "s", train)
    with claim(tmp_path / "s" / "0") as held:
        assert held is not None
        assert sweep(tmp_path / "s", learn, trials=3).launched == [1, 2]
    assert sweep(tmp_path / "s", learn, trials=3).launched == [0]


def test_a_process_with_nothing_to_do_says_whether_others_still_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = open_study(storage_url(None, tmp_path), "s", make_pruner(Pruner.none, 1, 3, tmp_path))
    search = SearchConfig(None, 1, 1, 0, True, Sampler.tpe, Pruner.none, 1, 3, 9, None, None, 7, {})
    number = begin(study, {"lora.r": 8, "optim.lr": 1e-3}, SPACE).number

    def said() -> str:
        assert not next_batch(study, search, tmp_path, SPACE, lambda study: None, lambda: None)
        return capsys.readouterr().out

    (tmp_path / str(number)).mkdir()
    with claim(tmp_path / str(number)) as held:
        assert held is not None
        assert "what is left waits for trials that other processes carry out" in said()
    study.tell(number, 1.0)
    assert "everything there is to try has been tried" in said()


def test_trials_that_all_fail_for_one_reason_end_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the first 3 trials all failed: the disk is full; mend it"):
        sweep(tmp_path / "s", lambda run, given: end(run, "failed: the disk is full"))


def test_tokens_are_a_budget(tmp_path: Path) -> None:
    def train(run: Path, given: dict[str, float]) -> None:
        (run / "metrics.csv").write_text("epoch,step,train/tokens\n0,1,400.0\n0,2,\n")
        learn(run, given)

    search = SearchConfig(None, 1, 1, 0, True, Sampler.tpe, Pruner.none, 1, 3, None, 1000, None, 7, {})
    sweep(tmp_path / "s", train, trials=2)
    study = open_study(storage_url(None, tmp_path / "s"), "s", make_pruner(Pruner.none, 1, 3, tmp_path))
    assert spent(search, study, count_tokens(tmp_path / "s"), 0) is None
    sweep(tmp_path / "s", train, trials=3)
    assert spent(search, study, count_tokens(tmp_path / "s"), 0) == "1,000 tokens"


def test_the_best_trials_of_a_folder_come_best_first_with_what_repeats_them(tmp_path: Path) -> None:
    sweep(tmp_path / "s", learn, trials=8)
    values = {
        number: record["results"]["monitored"]
        for number in range(8)
        if (record := json.loads((tmp_path / "s" / str(number) / "run.json").read_text()))["status"] == "finished"
    }
    best = best_trials(tmp_path / "s", 3)
    finite = {number: value for number, value in values.items() if math.isfinite(value)}
    assert list(best) == sorted(finite, key=finite.__getitem__)[:3]
    number, (overrides, swept) = next(iter(best.items()))
    assert swept == read_json(tmp_path / "s" / str(number) / "trial.json")["params"]
    assert [one for one in overrides if one.startswith("lora.r=")] == [f"lora.r={swept['lora.r']}"]
    with pytest.raises(ConfigError, match="no such folder"):
        best_trials(tmp_path / "none", 3)


def test_a_number_half_written_by_a_running_trial_does_not_end_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/tokens\n0,1,400.0\n0,2,8e")
    assert tokens_trained(tmp_path) == 400


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0", b"\xff\xfe", b"no,columns\n1\n1,2,3\n", b"epoch,step\n,\nx,y\n", b'"', b"step\n" + b"9" * 200_000],
)
def test_a_damaged_metrics_file_is_read_as_far_as_it_can_be(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    assert tokens_trained(tmp_path) == 0


def test_a_sweep_in_which_every_trial_failed_is_no_success(tmp_path: Path) -> None:
    sweep(tmp_path / "s", lambda run, given: end(run, f"failed: reason {run.name}"), trials=2)
    study = open_study(storage_url(None, tmp_path / "s"), "s", make_pruner(Pruner.none, 1, 3, tmp_path))
    with pytest.raises(RunFailed, match="every trial failed, 2 in all: reason 0 \\(1 of them\\)"):
        check_any_finished(study, tmp_path / "s")
    sweep(tmp_path / "s", learn, trials=6)
    check_any_finished(study, tmp_path / "s")


@pytest.mark.parametrize("name", ["run.json", "trial.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"status": 3, "died": 7, "results": [1], "study": {}}', "\udcff"]
)
def test_a_damaged_record_of_a_trial_ends_no_sweep(name: str, content: str, tmp_path: Path) -> None:
    def damaged(run: Path, given: dict[str, float]) -> None:
        if run.name == "0" and not (run / "hit").exists():
            (run / "hit").touch()
            (run / name).write_text(content, errors="surrogateescape")
        else:
            learn(run, given)

    sweep(tmp_path / "s", damaged, trials=3)
    assert len(best_trials(tmp_path / "s", 3)) >= 1


def test_a_storages_password_is_in_no_file_and_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cr:t/%40p@w"
    monkeypatch.setenv("MEDREASON_STORAGE", "")
    url = storage_url(f"postgresql://user:{secret}@localhost:1/db?sslpassword=hush-hush&a=b", tmp_path)
    assert url == "postgresql://user@localhost:1/db?a=b"
    assert whole(url).startswith(f"postgresql://user:{secret}@")
    assert whole("postgresql://other@localhost/db") == "postgresql://other@localhost/db"
    assert storage_url(None, tmp_path) == url
    with pytest.raises(ConfigError) as refused:
        open_study(url, "s", make_pruner(Pruner.none, 1, 3, tmp_path))
    assert "s3cr" not in str(refused.value) and "hush" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert hidden(f"could not connect to {whole(url)}").count("***") >= 1
    assert secret not in hidden(f"could not connect to {whole(url)} with {secret}")


def test_a_storage_without_password_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDREASON_STORAGE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for one in ("postgresql://host:5432/db", "postgresql://me@host/db", "mysql+pymysql://host/db?charset=utf8"):
        assert storage_url(one, tmp_path) == one
    assert "MEDREASON_STORAGE" not in os.environ
    assert at_home("sqlite:///~/a.db") == f"sqlite:///{tmp_path}/a.db"
