import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from medreason.config import ConfigError
from medreason.data.folders import files_of
from medreason.data.sources import content_digest, is_local, pinned_revision, read_file, read_hub

ROWS = [{"Question": f"q{n}?", "Complex_CoT": f"because {n}", "Response": f"a{n}"} for n in range(3)]
NUMBERED = list(enumerate(ROWS, 1))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
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
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert read_file(write(tmp_path / f"rows{suffix}", ROWS)) == NUMBERED


def test_json_lines_under_the_suffix_of_json_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert read_file(path) == NUMBERED


def test_a_broken_line_is_a_broken_row_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "1"}\n\n{"a": \n[1]\n"text"\n{"a": "2"}')
    assert read_file(path) == [
        (1, {"a": "1"}), (3, "not JSON"), (4, "not an object"), (5, "not an object"), (6, {"a": "2"}),
    ]  # fmt: skip


def test_bytes_that_are_not_utf8_and_a_byte_order_mark_do_not_stop_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "1"}\n{"a": "caf\xe9"}')
    assert read_file(path) == [(1, {"a": "1"}), (2, {"a": "caf\udce9"})]


def test_csv_cells_may_hold_line_ends_and_a_row_too_long_is_a_broken_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n"one\n\ntwo\x0cthree",2\n1,2,3\n4,5\n')
    assert read_file(path) == [(1, {"a": "one\n\ntwo\x0cthree", "b": "2"}), (2, "more cells than columns"),
                               (3, {"a": "4", "b": "5"})]  # fmt: skip


def test_a_folder_names_its_readable_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.csv", "deep/c.json"):
        write(tmp_path / name, ROWS)
    (tmp_path / "README.md").write_text("not rows")
    assert [file.relative_to(tmp_path).as_posix() for file in files_of(str(tmp_path))] == [
        "a.csv", "b.jsonl", "deep/c.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.jsonl", None, "no such file"),
        ("empty.jsonl", "", "the file is empty"),
        ("rows.xlsx", "x", "cannot read .xlsx"),
        ("broken.jsonl", '{"Question": "q", "Complex', "not a readable jsonl file .no line is JSON"),
        ("broken.json", '[{"Question": "q"}', "not a readable json file"),
        ("number.json", "3", "neither a list of objects nor an object a line"),
        ("broken.parquet", "PAR1", "not a readable parquet file"),
        ("nothing.json", "[]", "no rows"),
        ("blank.jsonl", "\n\n", "no rows"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        [read_file(file) for file in files_of(str(path))]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_digest_changes_with_the_content_and_not_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    one, other = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "deep" / "b.jsonl", ROWS)
    assert content_digest(str(one), None, None) == content_digest(str(other), None, None)
    write(other, ROWS[:2])
    assert content_digest(str(one), None, None) != content_digest(str(other), None, None)


def test_a_hub_data_set_is_read_by_configuration_and_split(tmp_path: Path) -> None:
    """A folder of a hub data set's form stands in for the hub: the same call reads both."""
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - {split: train, path: en.jsonl}\n"
        "  - {split: test, path: test.jsonl}\n- config_name: zh\n  data_files: zh.jsonl\n---\n"
    )
    for name, rows in (("en", ROWS), ("zh", ROWS[:1]), ("test", ROWS[1:])):
        write(tmp_path / f"{name}.jsonl", rows)
    path = str(tmp_path)
    assert list(read_hub(path, "en", None)) == NUMBERED
    assert list(read_hub(path, "zh", None)) == NUMBERED[:1]
    assert list(read_hub(path, "en", None, None)) == list(enumerate(ROWS[1:], 1)), "all but train, where there is more"
    assert list(read_hub(path, "zh", None, None)) == NUMBERED[:1]
    with pytest.raises(ConfigError, match="no split 'dev'; it has train, test"):
        list(read_hub(path, "en", None, ["dev"]))
    with pytest.raises(ConfigError, match="neither a file here nor to be had from the hub"):
        list(read_hub("nobody/nothing", None, None))


def test_a_pinned_revision_needs_no_hub_and_another_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert pinned_revision("a/b", commit) == commit
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.benchmarks=a/b: neither a file here nor to be had from the hub"):
        pinned_revision("a/b", None, "data.benchmarks")
    refs = tmp_path / "datasets--a--b" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit)
    assert pinned_revision("a/b", None) == commit


def test_a_path_is_local_unless_it_looks_like_a_name_on_the_hub(tmp_path: Path) -> None:
    assert is_local(str(tmp_path))
    assert is_local("data/gone.jsonl")
    assert is_local("/gone/folder/deep")
    assert not is_local("FreedomIntelligence/medical-o1-reasoning-SFT")
    assert not is_local("cais/mmlu:anatomy")
