import json
from pathlib import Path

from medreason.core.run_directory import read_metrics, series
from support import run_train, tiny_run

LENGTH = ["trainer.max_steps=6", "trainer.validate_every_steps=3"]


def test_held_out_questions_are_answered_at_validations_within_their_share_of_the_time(
    rows_file: Path, tmp_path: Path
) -> None:
    often, never = tmp_path / "often", tmp_path / "never"
    for run, share in ((often, "0.99"), (never, "0")):
        said = run_train(*tiny_run(run, rows_file, *LENGTH, f"trainer.answer_share={share}"))
        assert said.returncode == 0, said.stderr[-3000:]
    samples = json.loads((often / "samples.json").read_text())
    assert len(samples) == 2 and all(set(sample["during"]) == {"3", "6"} for sample in samples)
    whens = {"before", "3", "6", "after"}
    assert all(set(sample["cut"]) == whens and all(isinstance(one, bool) for one in sample["cut"].values())
               for sample in samples)  # fmt: skip
    rows = read_metrics(often / "metrics.csv")
    assert len(series(rows, "val/format")[1]) == len(series(rows, "val/tokens")[1]) == 2
    results = json.loads((often / "run.json").read_text())["results"]
    assert 0 < results["answer_time_share"] < 0.99
    assert not any("during" in sample for sample in json.loads((never / "samples.json").read_text()))
    assert series(read_metrics(never / "metrics.csv"), "train/loss") == series(rows, "train/loss")  # it changes nothing
