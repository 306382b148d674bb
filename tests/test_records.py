import json
from pathlib import Path
from typing import Any

import pytest

from medreason import clinical_cases
from medreason.config import ConfigError, DataConfig, Source, TooLong
from medreason.prompts import Example
from medreason.records import read_file, read_split, split

ROWS = [{"Question": f"q{n}?", "Complex_CoT": f"because {n}", "Response": f"a{n}"} for n in range(3)]
EXPECTED = [Example(f"q{n}?", f"because {n}", f"a{n}") for n in range(3)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    from datasets import Dataset

    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    else:
        Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    assert read_file(write(tmp_path / f"rows{suffix}", ROWS)) == EXPECTED


def test_instruction_tables_are_read_and_their_reasoning_found(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Explain.", "input": "pH 7.2", "output": "<think>low</think>Acidosis"},
        {"instruction": "Say hello.", "input": "", "output": "Hello"},
    ]
    assert read_file(write(tmp_path / "rows.json", rows)) == [
        Example("Explain.\n\npH 7.2", "low", "Acidosis"),
        Example("Say hello.", "", "Hello"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.jsonl", None, "no such file"),
        ("empty.jsonl", "", "the file is empty"),
        ("rows.xlsx", "x", "cannot read .xlsx"),
        ("broken.jsonl", '{"Question": "q", "Complex', "not a readable json file"),
        ("columns.jsonl", '{"Question": "q", "Answer": "a"}', "needed: Question, Complex_CoT, Response"),
        ("nothing.json", "[]", "nothing.json"),
        ("blank.jsonl", json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1] | {"Response": "  "}), "row 2 has no answer"),
        ("null.jsonl", json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1] | {"Question": None}), "row 2 has no question"),
    ],
)
def test_what_cannot_be_learned_from_is_named_in_one_line(
    tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        read_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_examples_side_depends_on_its_question_and_the_seed_alone() -> None:
    examples = [Example(f"question {n}", "r", "a") for n in range(2000)]
    train, held_out = split(examples, 0.1, seed=3)
    assert 150 < len(held_out) < 250
    assert len(train) + len(held_out) == 2000
    reversed_train, reversed_held_out = split(examples[::-1], 0.1, seed=3)
    assert reversed_held_out == held_out
    assert sorted(map(str, reversed_train)) == sorted(map(str, train))
    assert set(split(examples[:500], 0.1, seed=3)[1]) <= set(held_out)
    assert split(examples, 0.1, seed=4)[1] != held_out


def test_the_same_question_never_stands_on_both_sides() -> None:
    twins = [Example(f"question {n % 50}", f"r{n}", "a") for n in range(500)]
    train, held_out = split(twins, 0.3, seed=0)
    assert held_out
    assert not {example.question for example in train} & {example.question for example in held_out}


def test_more_cases_than_a_kind_holds_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    always = Example("the only question?", "r", "a")
    monkeypatch.setitem(clinical_cases.KINDS, "kidney_stage", lambda rng: always)
    config = DataConfig(
        Source.clinical_cases, None, None, None, 5, ["kidney_stage"], 64, TooLong.error, 0.5, None, 0
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.cases=5: only 1 distinct cases could be made"):
        read_split(config)
