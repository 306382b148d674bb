import json
from pathlib import Path
from typing import Any

import pytest

from medreason.report.comparison import differing, read_compared
from medreason.report.pages import main
from run_files import rows_of, write_run


def evaluated(run: Path, right: int, questions: int = 40) -> None:
    """The files of an evaluation whose first `right` questions were answered correctly."""
    folder = run / "evaluation" / "likelihood"
    folder.mkdir(parents=True)
    records = [{"id": str(i), "gold": "A", "choice": "A" if i < right else "B", "cut": False} for i in range(questions)]
    (folder / "medqa.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    score = {"questions": questions, "accuracy": right / questions, "interval": [0.1, 0.9], "chance": 0.25}
    (folder / "scores.json").write_text(json.dumps({"scores": {"medqa": score, "odd": 3}}))


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    small = write_run(tmp_path / "small", {"lora.r": 8}, [1.9, 1.8])
    large = write_run(tmp_path / "large", {"lora.r": 64, "optim.lr": 3e-4}, [1.7, 1.2])
    evaluated(small, 10)
    evaluated(large, 30)
    return [small, large]


def compared(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The page, and what was said."""
    assert main([str(folder) for folder in folders]) == 0
    return (folders[0] / "comparison.html").read_text(), capsys.readouterr().out


def test_settings_that_differ_stand_beside_each_other_and_no_others(
    pair: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    page, said = compared(pair, capsys)
    assert rows_of(page, "Settings that differ") == [
        ["lora.alpha", "16", "128"], ["lora.r", "8", "64"], ["optim.lr", "1e-4", "3e-4"]]  # fmt: skip
    assert "lora.r: 8 | 64\n" in said and "seed" not in said
    assert ["held-out loss after", "1.8000", "1.2000"] in rows_of(page, "Results")
    assert "cannot be compared" not in page and "data:image/png" in page
    assert (pair[0] / "report" / "beside.png").is_file()


def test_scores_come_with_a_paired_test_against_the_first_run(
    pair: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    page, said = compared(pair, capsys)
    (row,) = rows_of(page, "Scores")
    assert row[:2] == ["likelihood", "medqa"] and row[2].startswith("25.0%") and row[3].startswith("75.0%")
    told = "large beside small: it answers 50.0 points more of the questions correctly"
    assert told in page and told in said and "p &lt; 0.001" in page


def test_losses_on_other_rows_are_not_to_be_compared(pair: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    config = pair[1] / "config.yaml"
    config.write_text(config.read_text().replace("format: think", "format: seed"))
    page, said = compared(pair, capsys)
    assert "losses were measured on other tokens or rows and cannot be compared" in page
    assert said.rstrip().endswith("scores on the same benchmark can.")


def test_two_runs_of_one_name_are_told_apart_and_the_same_settings_said_to_be_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [write_run(tmp_path / name / "<0>", {}, [1.5]) for name in ("a", "b")]
    page, _ = compared(both, capsys)
    assert len({run.name for run in read_compared(both)}) == 2
    assert "None: what differs is chance" in page and "<0>" not in page and "&lt;0&gt;" in page
    assert "No benchmark was answered by two of the runs" in page


def test_a_run_without_a_readable_file_still_stands_beside_another(
    pair: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bare = pair[0].parent / "bare"
    bare.mkdir()
    (bare / "run.json").write_text("{")
    (bare / "samples.json").write_text("[3]")
    page, _ = compared([*pair, bare], capsys)
    assert ["lora.r", "8", "64", "null"] in rows_of(page, "Settings that differ")
    assert differing(read_compared([bare, bare])) == {}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder, run: [run, folder / "none"], "none is no run"),
        (lambda folder, run: [run, run], "the same run twice"),
        (lambda folder, run: [run, (folder / "sweep")], "sweep is a sweep"),
    ],
)
def test_what_cannot_be_compared_ends_with_one_line(
    make: Any, says: str, pair: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (pair[0].parent / "sweep").mkdir()
    (pair[0].parent / "sweep" / "multirun.yaml").touch()
    assert main([str(folder) for folder in make(pair[0].parent, pair[0])]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not (pair[0] / "comparison.html").exists()


def test_the_last_run_is_named_by_that_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["last"]) == 2
    assert "no run with an adapter" in capsys.readouterr().err
    run = write_run(tmp_path / "runs" / "new", {}, [1.5])
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")
    assert main(["last"]) == 0 and (run / "report.html").is_file()
