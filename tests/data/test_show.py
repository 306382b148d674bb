import json
import os
from pathlib import Path

import pytest
from PIL import Image

from medreason.models.prompts import Example
from support import run_command, write_rows


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, cases: list[Example]) -> tuple[Path, str]:
    """A run of the command over rows with something of everything."""
    folder = tmp_path_factory.mktemp("data")
    stem = "A patient on the ward has sudden painless loss of vision after cataract surgery; what is the diagnosis?"
    rows = [
        *cases,
        cases[0],
        Example("q", "", "a"),
        Example(f"Tell me: {stem}", "[bold]r", "a"),
        Example("</s>", "r", "a"),
    ]
    (folder / "rows").mkdir()
    write_rows(folder / "rows" / "rows.jsonl", rows)
    write_rows(folder / "rows" / "dev.jsonl", cases[:3])
    (folder / "test.jsonl").write_text(json.dumps({"id": "t-1", "question": stem}))
    said = run_command(
        "data", "model=tiny", "data=local", f"data.path={folder / 'rows'}", "data.row_tokens=1024",
        "data.on_bad_row=skip", "data.max_bad_share=0.1", f"data.benchmarks=[{folder / 'test.jsonl'}]",
        "data.near_duplicate=1", "data.validation_share=0.2", f"hydra.run.dir={folder / 'run'}",
        "trainer.rows_per_batch=2", "trainer.accumulate=1", env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    return folder / "run", said.stdout


@pytest.mark.parametrize(
    "line",
    [
        "rows.jsonl │ 64",
        "not read  dev.jsonl (the split validation)",
        "rejected  1 hold a control token of the tokenizer  rows.jsonl:64",
        "rejected  1 empty Complex_CoT  rows.jsonl:62",
        "duplicates  1 with the same question and answer as an earlier one  rows.jsonl:61 = rows.jsonl:1",
        "contamination  1 examples share text with a question of test (1)",
        "rows.jsonl:63 and t-1 by 13 words:",
        "steps per epoch",
        "Tokens of a document",
        "row 1: ",
        "<s>[INST] ",
        "</s>",
    ],
)
def test_the_command_shows_what_training_will_see(shown: tuple[Path, str], line: str) -> None:
    assert line in shown[1]


def test_what_is_shown_is_kept(shown: tuple[Path, str]) -> None:
    run, _ = shown
    report = json.loads((run / "data.json").read_text())
    assert report["rows"] == {"rows.jsonl": 64}
    assert report["not_read"] == {"dev.jsonl": "the split validation"}
    assert report["rejects"]["empty Complex_CoT"] == {"count": 1, "places": ["rows.jsonl:62"]}
    assert report["rejects"]["hold a control token of the tokenizer"] == {"count": 1, "places": ["rows.jsonl:64"]}
    assert report["contamination"]["matches"][0]["id"] == "t-1"
    assert report["packing"]["steps_per_epoch"] == -(-report["packing"]["train_rows"] // 2)
    page = (run / "rows.html").read_text()
    assert "row 5" in page
    assert "characters ...]" not in page
    with Image.open(run / "data.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


def test_a_mistake_answers_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = run_command("data", "model=tiny", "data=local", "data.path=gone.jsonl", f"hydra.run.dir={run}")
    assert said.returncode == 2
    assert said.stderr.strip() == (
        "medreason.data: data.path=gone.jsonl: no such file; name a JSON, JSONL, Parquet or CSV file, or a folder"
    )
    assert not run.exists()
