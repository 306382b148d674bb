import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from scipy import stats

from medreason.report.pages import main, ranking
from medreason.report.plots import binned, draw_map, spaced
from medreason.report.results import finished, read_sweep, read_trial
from medreason.report.sweep_statistics import compare, importance, interval, repeats, saved_by_pruning
from run_files import rows_of, write_run
from support import ROOT


def write_trial(folder: Path, swept: dict[str, Any], losses: list[float], state: str = "COMPLETE", **more: Any) -> None:
    """A run directory of an Optuna sweep."""
    status = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed: RuntimeError", "RUNNING": "running"}[state]
    write_run(folder, swept, losses, status)
    value = losses[-1] if state == "COMPLETE" else None
    verdict = {"number": int(folder.name), "params": swept, "state": state, "value": value, "reason": None, "died": []}
    (folder / "trial.json").write_text(json.dumps(verdict | more))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Six trials: the last one finished is the best."""
    folder = tmp_path / "sweep"
    write_trial(folder / "0", {"lora.r": 8, "optim.lr": 1e-5, "lora.alpha": "1r"}, [1.9, 1.8, 1.7])
    write_trial(folder / "1", {"lora.r": 16, "optim.lr": 1e-4, "lora.alpha": "2r"}, [1.5, 1.3, 1.2])
    write_trial(folder / "2", {"lora.r": 8, "optim.lr": 9e-4, "lora.alpha": "2r"}, [1.1], "PRUNED", reason="too slow")
    write_trial(
        folder / "3", {"lora.r": 64, "optim.lr": 2e-4, "lora.alpha": "4r"}, [1.0], "FAIL",
        reason="OutOfMemoryError: CUDA <out of> memory",
    )  # fmt: skip
    write_trial(
        folder / "4", {"lora.r": 32, "optim.lr": 0.00012, "lora.alpha": "2r"}, [1.4, 1.2, 1.1234],
        died=["killed by SIGKILL"],
    )  # fmt: skip
    write_trial(folder / "5", {"lora.r": 8, "optim.lr": 5e-5, "lora.alpha": "4r"}, [0.9], "RUNNING")
    return folder


def written(folder: Path, *options: str) -> str:
    assert main([str(folder), *options]) == 0
    return (folder / "report.html").read_text()


def test_the_best_trial_is_the_lowest_that_finished_and_its_command_repeats_it(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = written(sweep)
    assert [row[:5] for row in rows_of(page, "Best trials")] == [
        ["4", "1.1234", "32", "1.2e-4", "64"],  # alpha as the run took it
        ["1", "1.2000", "16", "1e-4", "32"],
        ["0", "1.7000", "8", "1e-5", "8"],
    ]
    command = "experiments=quickstart lora.r=32 optim.lr=0.00012 lora.alpha=2r</pre>"
    assert f"python -m medreason.train {command}" in page
    said = capsys.readouterr().out
    assert str(sweep / "report.html") in said and "best: trial 4, 1.1234, lora.r=32" in said
    assert len(rows_of(written(sweep, "--top", "2"), "Best trials")) == 2


def test_every_ending_is_counted_and_explained(sweep: Path) -> None:
    page = written(sweep)
    assert "3 finished, 1 pruned, 1 failed, 1 running" in page
    assert rows_of(page, "Failures and interruptions") == [
        ["3", "failed", "OutOfMemoryError: CUDA &lt;out of&gt; memory", ""],
        ["4", "finished", "", "killed by SIGKILL"],
        ["5", "running", "", ""],
    ]
    assert "too slow" in page


def test_many_failures_are_counted_by_reason_and_folded(sweep: Path) -> None:
    for number in range(6, 30):
        why = "OutOfMemoryError" if number % 3 else "train/loss became nan"
        write_trial(sweep / str(number), {"lora.r": 64}, [1.0], "FAIL", reason=why)
    page = written(sweep)
    rows = rows_of(page, "Failures and interruptions")
    assert rows[:2] == [["failed", "OutOfMemoryError", "16"], ["failed", "train/loss became nan", "8"]]
    assert "<summary>all 27 of them</summary>" in page


def test_a_search_of_rates_and_then_ranks_is_told_in_its_two_stages(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    write_trial(folder / "0", {"lora.r": 16, "optim.lr": 1e-4}, [1.5, 1.4, 1.3])
    (folder / "sweep.json").write_text('{"rank": 16}')
    assert "is trial 0, optim.lr=1e-4; other ranks have not been tried with it yet." in written(folder)
    write_trial(folder / "1", {"lora.r": 16, "optim.lr": 1e-3}, [1.2, 1.2, 1.2])
    write_trial(folder / "2", {"lora.r": 32, "optim.lr": 1e-3}, [1.1, 1.1, 1.1])
    write_trial(folder / "3", {"lora.r": 8, "optim.lr": 1e-3}, [1.9], "PRUNED")
    page = written(folder)
    assert "The best of 2 trials at lora.r=16 is trial 1, optim.lr=0.001; the other ranks were then tried" in page
    assert rows_of(page, "Learning rate, then rank") == [
        ["3", "8", "1.9000 (pruned)", ""], ["1", "16", "1.2000", ""], ["2", "32", "1.1000", "-0.1000"],
    ]  # fmt: skip


def test_pruning_saves_what_the_pruned_would_have_trained_on(sweep: Path) -> None:
    trials = read_sweep(sweep)
    assert [trial.tokens for trial in trials] == [30_000, 30_000, 10_000, 10_000, 30_000, 10_000]
    assert saved_by_pruning(trials) == 20_000
    assert ["pruned", "1", "10k (8%)", "1 min (17%)"] in [
        [cell.replace("60 s", "1 min") for cell in row] for row in rows_of(written(sweep), "Cost")
    ]
    assert "Pruning stopped 1 of 6 trials early and saved about 20k tokens, 14% of what" in written(sweep)
    assert saved_by_pruning([trial for trial in trials if trial.state != "pruned"]) is None


def test_the_page_holds_everything_in_itself(sweep: Path) -> None:
    page = written(sweep)
    sources = re.findall(r'(?:src|srcset)="([^"]*)"', page)
    assert len(sources) == 4  # curves, progress, map, slices; too few trials for importance
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r'(href|src)="(https?:)?//|@import|url\(|<script', page)
    links = re.findall(r'href="([^"]*)"', page)
    assert links and all((sweep / link).is_dir() for link in links)
    assert {path.name for path in (sweep / "report").iterdir()} == {
        "curves.png", "progress.png", "map.png", "slices.png",
    }  # fmt: skip


def test_trials_that_died_in_odd_ways_are_shown_as_what_they_are(sweep: Path) -> None:
    (sweep / "6").mkdir()
    (sweep / "7").mkdir()
    (sweep / "7" / "run.json").write_text('{"status": "runn')
    diverged = write_run(sweep / "8", {"lora.r": 8, "optim.lr": 0.5}, [1.0, float("nan")])
    assert "NaN" in (diverged / "run.json").read_text()
    write_run(sweep / "9", {"lora.r": 8}, [1.3], "interrupted", results=[], swept=None, seconds="long", overrides=3)
    (sweep / "9" / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,1,2.0,\n0,what,,7\n0,10,,1.3,5,6\n0")
    (sweep / "9" / "config.yaml").write_text("lora: {r: 8")
    (sweep / "9" / "trial.json").write_text("[]")
    (sweep / "10").mkdir()
    (sweep / "10" / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    page = written(sweep)
    assert "4 finished, 1 pruned, 1 failed, 1 interrupted, 1 running, 3 unknown" in page
    ended = {row[0]: row[1:3] for row in rows_of(page, "Failures and interruptions")}
    assert ended["6"] == ["unknown", "no run.json"]
    assert ended["7"] == ["unknown", "run.json cannot be read (JSONDecodeError)"]
    assert ended["8"] == ["finished", "its monitored metric is not a number"]
    assert ended["9"][0] == "interrupted" and ended["10"][0] == "unknown"
    assert read_trial(sweep / "9").curve == ([10.0], [1.3])
    assert rows_of(page, "Best trials")[0][0] == "4" and len(rows_of(page, "Best trials")) == 3


def test_what_was_searched_and_shared_is_shown_folded_and_escaped(sweep: Path) -> None:
    assert "what was searched" not in written(sweep)
    space = {"lora.r": "CategoricalDistribution(choices=(8, 16))", "optim.<lr>": "FloatDistribution(high=0.001)"}
    shared = {"data.path": "<b>rows</b>.jsonl", "data.row_tokens": 16_384, "ckpt": None, "lora.dropout": 0.0}
    (sweep / "sweep.json").write_text(json.dumps({"space": space, "shared": shared}))
    part = written(sweep).partition("<summary>what was searched, and what all trials share</summary>")[2]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", part.partition("</details>")[0])
    assert [(name, re.sub(r"<[^>]+>", "", cell)) for name, cell in rows] == [
        ("lora.r", "CategoricalDistribution(choices=(8, 16))"),
        ("optim.&lt;lr&gt;", "FloatDistribution(high=0.001)"),
        ("data.path", "&lt;b&gt;rows&lt;/b&gt;.jsonl"),
        ("data.row_tokens", "16,384"),
        ("lora.dropout", "0"),
    ]


@pytest.mark.parametrize(
    "content",
    [b'{"shared": {"lora.r": 8, "opt', b"", b"\xff\xfe", b"[" * 100_000, b'{"shared": 3, "space": ["lora.r"]}'],
    ids=["cut", "empty", "no text", "nested", "of other types"],
)
def test_an_odd_record_of_the_search_does_not_stop_the_report(sweep: Path, content: bytes) -> None:
    (sweep / "sweep.json").write_bytes(content)
    page = written(sweep)
    assert "what was searched" not in page and len(rows_of(page, "Best trials")) == 3


def test_odd_texts_and_numbers_do_not_stop_the_report(sweep: Path) -> None:
    write_trial(sweep / "06", {"lora.r": 8, "model.path": "$\\odd$ \ud800"}, [1.1234], reason="\ud800")
    write_trial(sweep / "6", {"lora.r": 8, "model.path": "two"}, [1.1234], "PRUNED")
    (sweep / "sweep.json").write_text(json.dumps({"shared": {"seed": 10**400, "name": "\ud800"}}))
    record = json.loads((sweep / "6" / "run.json").read_text())
    (sweep / "6" / "run.json").write_text(json.dumps(record | {"seconds": 10**400, "started": "0001-01-01"}))
    assert "2 pruned" in written(sweep)


def test_a_plain_grid_is_a_sweep_too(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"lora.r": 8}, [1.4])
    write_run(tmp_path / "1", {"lora.r": 16}, [1.3])
    write_run(tmp_path / "2", {"lora.r": 32}, [1.2], "failed: ValueError: no")
    page = written(tmp_path)
    assert "2 finished, 1 failed" in page and rows_of(page, "Best trials")[0][:3] == ["1", "1.3000", "16"]
    assert ["2", "failed", "ValueError: no", ""] in rows_of(page, "Failures and interruptions")


def test_a_ranking_tells_the_best_first_and_how_many_did_not_finish(tmp_path: Path) -> None:
    for number, loss in enumerate([1.4, 1.2, 1.3]):
        write_run(tmp_path / str(number), {"lora.r": 8 * 2**number, "optim.lr": 1e-4}, [loss])
    write_run(tmp_path / "3", {"lora.r": 64}, [1.0], "failed: ValueError: no")
    said = ranking(tmp_path, top=2)
    assert said[:4] == [
        "3 finished, 1 failed; the lowest val/loss first, its trial's folder last:",
        "  1. 1.2000  lora.r=16 optim.lr=1e-4  (1)",
        "  2. 1.3000  lora.r=32 optim.lr=1e-4  (2)",
        "     and 1 more",
    ]
    assert said[4].endswith(f"report {tmp_path}") and len(said) == 5
    assert ranking(tmp_path / "3") == []


def test_without_a_finished_trial_the_page_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"lora.r": 8}, [], "running")
    (tmp_path / "0" / "config.yaml").unlink()
    assert "No trial has finished yet." in written(tmp_path)


def test_intervals_are_students() -> None:
    values = [1.10, 1.14, 1.09, 1.12]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert interval([1.0]) == (1.0, float("inf"))


def confirm(sweep: Path, losses: dict[int, list[float]]) -> None:
    """Trials again, each with seeds 1, 2, ..."""
    number = 0
    for trial, values in losses.items():
        swept = json.loads((sweep / str(trial) / "trial.json").read_text())["params"]
        for seed, value in enumerate(values, 1):
            write_run(sweep / "confirmed" / str(number), swept | {"seed": seed}, [value])
            number += 1


def test_confirmed_configurations_stand_beside_what_the_search_measured(sweep: Path) -> None:
    confirm(sweep, {1: [1.21, 1.23, 1.22], 4: [1.12, 1.16, 1.14]})
    write_run(sweep / "confirmed" / "9", {"lora.r": 16, "optim.lr": 1e-4, "seed": 4}, [2.0], "failed: no")
    low, high = stats.t.interval(0.95, 2, loc=1.14, scale=stats.sem([1.12, 1.16, 1.14]))
    page = written(sweep)
    rows = rows_of(page, "Noise")
    assert rows[0] == ["32", "1.2e-4", "64", "1.1400", f"{low:.4f} to {high:.4f}", "3", "1.1234"]
    assert rows[1][:4] + rows[1][5:] == ["16", "1e-4", "32", "1.2200", "3", "1.2000"]
    assert "confirm_best" not in page
    assert len(rows_of(page, "Best trials")) == 3  # confirmations are no trials of the search


def test_a_difference_is_judged_by_pairs_of_seeds(sweep: Path) -> None:
    # seeds move both configurations together: their intervals overlap, their difference is steady
    confirm(sweep, {1: [1.11, 1.21, 1.312], 4: [1.10, 1.20, 1.30]})
    groups = repeats(read_sweep(sweep / "confirmed"), read_sweep(sweep))
    better = compare(groups[0], groups[1])
    gains = stats.t.interval(0.95, 2, loc=0.032 / 3, scale=stats.sem([0.01, 0.01, 0.012]))
    assert "is better than the second" in better and f"{gains[0]:.4f} to {gains[1]:.4f}, 3 seeds" in better


def test_a_difference_within_noise_is_called_so(sweep: Path) -> None:
    confirm(sweep, {1: [1.15, 1.11, 1.16], 4: [1.12, 1.16, 1.13]})
    assert "within noise" in written(sweep)


def test_an_unconfirmed_sweep_says_how_to_confirm_it(sweep: Path) -> None:
    assert f"python -m medreason.train sweeps=confirm_best hydra.sweeper.sweep={sweep}" in written(sweep)


def test_importance_finds_the_setting_that_matters(tmp_path: Path) -> None:
    for number in range(24):
        rank, lr = (8, 16, 32, 64)[number * 7 % 4], 1e-5 * 1.2**number
        loss = 1 + abs(number - 12) * 0.05
        state = "PRUNED" if loss > 1.4 else "COMPLETE"
        write_trial(tmp_path / str(number), {"lora.r": rank, "optim.lr": lr}, [loss], state)
    trials = read_sweep(tmp_path)
    shares = importance(trials)
    assert shares["optim.lr"] > 0.8 and sum(shares.values()) == pytest.approx(1)
    assert importance(finished(trials)[:7]) == {}
    assert "importance.png" in {path.name for path in [written(tmp_path), *(tmp_path / "report").iterdir()][1:]}


def test_a_wide_setting_is_binned_by_ratio_and_a_few_values_stand_alone() -> None:
    assert binned([64, 8, 8]).labels == ["8", "64"] and binned([64, 8, 8]).cells == [1, 0, 0]
    rates = [10 ** -(3 + number / 10) for number in range(21)]
    cells = binned(rates).cells
    assert binned(rates).labels[0].startswith("1e-5 to 2.2e-5") and max(cells.count(c) for c in set(cells)) <= 5


def searched_map(tmp_path: Path, settings: list[tuple[int, float]], losses: list[float]) -> Figure:
    for number, ((rank, lr), loss) in enumerate(zip(settings, losses, strict=True)):
        write_trial(tmp_path / str(number), {"lora.r": rank, "optim.lr": lr}, [loss])
    figure = draw_map(read_sweep(tmp_path), ["lora.r", "optim.lr"], "val/loss")
    assert figure is not None
    return figure


def test_a_sampled_learning_rate_is_an_axis_of_its_own_and_not_a_column_a_trial(tmp_path: Path) -> None:
    rates = [1.3e-5, 3.7e-5, 9.1e-5, 2.2e-4, 6.8e-4, 8.9e-4]
    figure = searched_map(tmp_path, [(8 * 2 ** (n % 3), rate) for n, rate in enumerate(rates)], [1, 2, 3, 4, 5, 1.5])
    axis = figure.axes[0]
    assert not axis.images and (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert sorted(x for x, _ in axis.collections[0].get_offsets()) == pytest.approx(rates)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["8", "16", "32"]
    assert "trial 0: 1.0000" in [text.get_text() for text in axis.texts] and len(figure.axes) == 2, "with a scale"


def test_a_grid_stays_a_map_of_cells(tmp_path: Path) -> None:
    grid = [(rank, rate) for rank in (8, 16, 32) for rate in (1e-4, 2e-4)]
    assert searched_map(tmp_path, grid, [1, 2, 3, 4, 5, 6]).axes[0].images


@pytest.mark.parametrize("rates", [(1e-4, 1e-4, 2e-4, 2e-4), (1.1e-4, 2.3e-4, 3.1e-4, 5.7e-4)])
def test_a_single_value_has_no_colour_bar(tmp_path: Path, rates: tuple[float, ...]) -> None:
    assert len(searched_map(tmp_path, list(zip((8, 16, 8, 16), rates, strict=True)), [1.5] * 4).axes) == 1


def test_the_value_of_a_cell_is_read_on_its_dark_ground_also_where_it_is_the_only_one(tmp_path: Path) -> None:
    grid = [(rank, rate) for rank in (8, 16) for rate in (1e-4, 2e-4)]
    texts = searched_map(tmp_path, grid, [1.5] * 4).axes[0].texts
    assert {text.get_color() for text in texts} == {"white"}


def test_labels_that_would_run_into_each_other_are_left_out() -> None:
    assert spaced(["8", "16", "32", "64"], [3, 4, 5, 6]) == ["8", "16", "32", "64"]
    assert spaced(["2.59e-5", "3.49e-5", "8.54e-4"], [0, 0.1, 1]) == ["2.59e-5", "", "8.54e-4"]
    assert spaced(["1"], [1]) == ["1"]


def test_a_run_has_a_page_with_its_text_escaped(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", {"lora.r": 8}, [1.4, 1.2],
        data={"source": "<i>rows</i>", "train_documents": 19_000}, versions={"torch": "2.11", "trl": None},
        results={"steps": 20, "val_loss_before": 2.0, "val_loss_after": 1.2, "tokens": 20_000, "monitored": 1.2},
    )  # fmt: skip
    sample = {
        "question": "Why <script>alert(1)</script>?", "reasoning": "so", "answer": "Anaemia & more",
        "before": "unsure", "after": "<think>\nlow iron\n</think>\n\nAnaemia",
    }  # fmt: skip
    (run / "samples.json").write_text(json.dumps([sample]))
    page = written(run)
    assert "<script" not in page and "Why &lt;script&gt;" in page and "&lt;i&gt;rows&lt;/i&gt;" in page
    assert '<summary>reasoning</summary><p class="text">low iron</p>' in page and "Anaemia &amp; more" in page
    assert rows_of(page, "Results") == [["held-out loss", "2.0000", "1.2000"]]
    assert "python -m medreason.train experiments=quickstart lora.r=8" in page
    assert ["train_documents", "19,000"] in rows_of(page, "Data") and ["torch", "2.11"] in rows_of(page, "Made with")
    assert (run / "report" / "curves.png").is_file() and page.count("data:image/png") == 1


def answered_run(folder: Path, **results: float) -> Path:
    """A run with two sample answers: one right after training, one wrong and cut."""
    results = {"steps": 20, "monitored": 1.2, **results}
    run = write_run(folder, {"lora.r": 8}, [1.4, 1.2], results=results, device="NVIDIA H100")
    right = {"question": "Q1?", "answer": "Stage 3a", "before": "No idea", "after": "<think>\nx\n</think>\n\nstage 3a"}
    wrong = {"question": "Q2?", "answer": "Stage 1", "after": "<think>\nx\n</think>\n\nStage", "cut": {"after": True}}
    (run / "samples.json").write_text(json.dumps([right, wrong]))
    return run


def test_answers_are_marked_right_or_wrong_in_words_where_they_can_be_checked_and_cut_ones_as_cut(
    tmp_path: Path,
) -> None:
    page = written(answered_run(tmp_path / "exact", accuracy_after=0.5))
    part = page.partition("<h2>Held-out questions</h2>")[2]
    marks = re.findall(r'class="mark (\w+)">(.*?)</span>', part)
    assert marks == [("wrong", "✗ wrong"), ("right", "✓ right"), ("wrong", "✗ wrong"), ("cut", "✂ cut off")]
    assert "Before training: 0 of 1 right. After training: 1 of 2 right, 1 of 2 cut off" in part
    free = written(answered_run(tmp_path / "free")).partition("<h2>Held-out questions</h2>")[2]
    assert re.findall(r'class="mark (\w+)"', free) == ["cut"] and "Not marked as right or wrong" in free


def test_a_run_shows_its_evaluations_with_intervals_and_what_guessing_scores(tmp_path: Path) -> None:
    run = answered_run(tmp_path / "run")
    score = {"questions": 200, "accuracy": 0.49, "interval": [0.4216, 0.5588], "chance": 0.25, "cut": 3}
    loss = {"questions": 20, "cut": 0, "loss": {"mean": 1.2, "interval": [1.1, 1.3]}}
    found = {
        "scores": {"med<qa": score, "held_out": loss, "odd": "x", "odder": {"accuracy": "y", "interval": 3}},
        "against": "BASE", "differences": {"med<qa": {"in_words": "7.0 points better"}},
    }  # fmt: skip
    for name, content in (("likelihood", json.dumps(found)), ("generate", None), ("broken", '{"scor')):
        folder = run / "evaluation" / name
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text("{}")
        (folder / "medqa.jsonl").write_text('{"id": "1"}\n{"id": "2"}\n{"id')
        if content is not None:
            (folder / "scores.json").write_text(content)
    page = written(run)
    assert rows_of(page, "Evaluations") == [
        ["likelihood", "med&lt;qa", "49.0%", "42.2% to 55.9%", "200", "25.0%", "3"],
        ["likelihood", "held_out", "1.200 nats a token", "1.100 to 1.300", "20", "", ""],
        ["likelihood", "odd", "", "", "", "", ""],
        ["likelihood", "odder", "", "", "", "", ""],
    ]
    assert "likelihood, med&lt;qa, against BASE: 7.0 points better." in page
    assert "generate: not finished, 2 answers so far" in page


def test_the_next_commands_are_those_that_the_run_can_carry_out(tmp_path: Path) -> None:
    run = answered_run(tmp_path / "run")
    assert "<h2>Next</h2>" not in written(run), "it has no adapter"
    (run / "adapter").mkdir()
    page = written(run)
    commands = re.findall(r"python -m (medreason\.\w+)", page.partition("<h2>Next</h2>")[2].partition("<h2>")[0])
    assert commands == ["medreason.evaluate", "medreason.chat", "medreason.export"]
    stopped = write_run(tmp_path / "stopped", {"lora.r": 8}, [1.4], "interrupted")
    (stopped / "checkpoints").mkdir()
    (stopped / "checkpoints" / "last.ckpt").touch()
    assert f"medreason.train resume={stopped}" in written(stopped)


@pytest.mark.parametrize(("device", "shown"), [("NVIDIA H100 80GB HBM3", True), ("CPU, 8 threads", False)])
def test_peak_gpu_memory_is_told_of_a_run_on_a_gpu_alone(tmp_path: Path, device: str, shown: bool) -> None:
    results = {"steps": 20, "monitored": 1.2, "peak_memory_gib": 3.21}
    run = write_run(tmp_path / "run", {"lora.r": 8}, [1.4, 1.2], results=results, device=device)
    assert ("peak GPU memory" in written(run)) is shown


def test_a_run_that_died_at_once_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- lora.r=4\n- sweeps=rank_grid\n")
    page = written(tmp_path)
    assert (
        "unknown: no run.json" in page
        and "python -m medreason.train lora.r=4 sweeps=rank_grid hydra.mode=RUN</pre>" in page
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: (folder / "1").mkdir(parents=True), "neither a run nor a sweep"),
        (lambda folder: folder.mkdir() or (folder / "multirun.yaml").touch(), "a sweep without any trial yet"),
    ],
)
def test_nothing_to_report_on_ends_with_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, says: str
) -> None:
    folder = tmp_path / "here"
    make(folder)
    assert main([str(folder)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"medreason.report: {folder}: {says}") and said.err.count("\n") == 1 and not said.out


def test_the_command_needs_none_of_the_heavy_libraries(sweep: Path) -> None:
    probe = (
        "import sys; from medreason.report.pages import main; code = main(sys.argv[1:]); "
        "print([m for m in ('torch', 'unsloth', 'lightning', 'transformers', 'wandb') if m in sys.modules], code)"
    )
    said = subprocess.run(
        [sys.executable, "-c", probe, str(sweep)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert said.stdout.endswith("[] 0\n"), said.stdout + said.stderr
