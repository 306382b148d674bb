import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from medreason.config import ConfigError
from medreason.data.folders import files_of, list_tables, split_of, table_kind, table_name, to_ask
from medreason.data.sources import content_digest, is_local, read_file

ROWS = [{"Question": f"q{n}?", "Complex_CoT": f"because {n}", "Response": f"a{n}"} for n in range(3)]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"Question": name}) + "\n")
    return folder


def read(folder: Path, *more: object) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in files_of(str(folder), "data.path", *more)]  # type: ignore[arg-type]


def test_a_folder_names_its_readable_files_in_order_and_says_why_the_others_are_none(tmp_path: Path) -> None:
    fill(tmp_path, "b.jsonl", "a.csv", "deep/c.json", "deep/d.jsonl.gz", "deep/e.ndjson", "README.md", "sheet.xlsx")
    assert read(tmp_path) == ["a.csv", "b.jsonl", "deep/c.json", "deep/d.jsonl.gz", "deep/e.ndjson"]
    assert list_tables(str(tmp_path)).skipped == {
        "README.md": "not a table",
        "sheet.xlsx": "not a table; save the sheet as CSV (UTF-8) or Parquet",
    }


def test_hidden_files_and_folders_are_not_read(tmp_path: Path) -> None:
    fill(
        tmp_path, "rows.jsonl", "._rows.jsonl", ".ipynb_checkpoints/rows-checkpoint.jsonl", "deep/.cache/x.jsonl",
        "__MACOSX/._rows.jsonl", "~$rows.csv",
    )  # fmt: skip
    assert read(tmp_path) == ["rows.jsonl"]
    assert list_tables(str(tmp_path)).skipped == dict.fromkeys(
        ("._rows.jsonl", ".ipynb_checkpoints/", "__MACOSX/", "deep/.cache/", "~$rows.csv"), "hidden"
    )
    assert read(fill(tmp_path / ".hidden", "rows.jsonl")) == ["rows.jsonl"], "a folder that is named is read"


@pytest.mark.parametrize(
    ("names", "learned", "asked"),
    [
        (("train.jsonl", "test.jsonl"), ["train.jsonl"], ["test.jsonl"]),
        (("train.jsonl", "dev.csv", "notes.jsonl"), ["train.jsonl"], ["dev.csv", "notes.jsonl"]),
        (("Train/a.json", "Validation/a.json"), ["Train/a.json"], ["Validation/a.json"]),
        (("train/blood_test.jsonl", "test/x.jsonl"), ["train/blood_test.jsonl"], ["test/x.jsonl"]),
        (
            ("data/train-0-of-2.parquet", "data/train-1-of-2.parquet", "data/test-00000-of-00001.parquet"),
            ["data/train-0-of-2.parquet", "data/train-1-of-2.parquet"],
            ["data/test-00000-of-00001.parquet"],
        ),
        (("medqa_train.jsonl.gz", "medqa_eval.jsonl.gz"), ["medqa_train.jsonl.gz"], ["medqa_eval.jsonl.gz"]),
        (("a.jsonl", "b.jsonl", "test.jsonl"), ["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl", "test.jsonl"]),
        (("训练集.jsonl", "测试集.jsonl"), ["训练集.jsonl"], ["测试集.jsonl"]),
        (("train.jsonl", "more.jsonl"), ["more.jsonl", "train.jsonl"], ["more.jsonl"]),
        (("training.jsonl",), ["training.jsonl"], ["training.jsonl"]),
        (("latest.jsonl", "contest.jsonl"), ["contest.jsonl", "latest.jsonl"], ["contest.jsonl", "latest.jsonl"]),
    ],
)  # fmt: skip
def test_train_alone_is_learned_beside_other_splits_and_those_are_asked(
    tmp_path: Path, names: tuple[str, ...], learned: list[str], asked: list[str]
) -> None:
    fill(tmp_path, *names)
    assert read(tmp_path) == learned
    assert set(list_tables(str(tmp_path)).skipped) == set(names) - set(learned)
    assert read(tmp_path, to_ask) == asked


def test_a_folder_of_held_out_files_is_not_learned_unless_they_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "test.jsonl", "dev.jsonl")
    with pytest.raises(
        ConfigError, match=r"only files of other splits .*test.jsonl: the split test.*name a file itself"
    ):
        files_of(str(tmp_path))
    assert [file.name for file in files_of(str(tmp_path / "test.jsonl"))] == ["test.jsonl"]


def test_a_saved_data_set_is_read_as_its_rows(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "splits")
    (one,) = files_of(str(tmp_path / "one"))
    assert read_file(one) == list(enumerate(ROWS, 1))
    assert read(tmp_path / "splits") == ["train"]
    assert read(tmp_path / "splits", to_ask) == ["test"]
    assert list_tables(str(tmp_path / "splits")).skipped == {
        "dataset_dict.json": "describes a data set",
        "test": "the split test",
    }
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    assert read_file(arrow) == list(enumerate(ROWS, 1))
    before = content_digest(str(tmp_path / "one"), None, None)
    arrow.write_bytes(arrow.read_bytes() + b"\0")
    assert content_digest(str(tmp_path / "one"), None, None) != before


def test_links_are_followed_once_and_never_around(tmp_path: Path) -> None:
    rows = fill(tmp_path / "rows", "a.jsonl")
    fill(tmp_path / "elsewhere", "b.jsonl")
    for name, target in (("around", ".."), ("away", "../elsewhere"), ("dead.jsonl", "gone.jsonl")):
        (rows / name).symlink_to(target)
    assert read(rows) == ["a.jsonl", "away/b.jsonl"]
    assert list_tables(str(rows)).skipped == {
        "around/": "a link to a folder that is read or lies around it",
        "dead.jsonl": "a link to nothing",
    }


def test_a_digest_changes_with_the_names_within_a_folder_and_not_with_what_is_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    first = content_digest(str(tmp_path), None, None)
    fill(tmp_path, "README.md", "test.jsonl", "._a.jsonl")
    assert content_digest(str(tmp_path), None, None) == first
    assert content_digest(str(tmp_path), None, None, "data.benchmarks", to_ask) != first
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert content_digest(str(tmp_path), None, None) != first, "its rows are known as b.jsonl:1 now"


def test_names_tell_the_kind_and_the_split_of_a_table() -> None:
    kinds = {
        "a.jsonl": ".jsonl",
        "a.JSONL.GZ": ".jsonl",
        "a.csv.zst": ".csv",
        "a.gz": None,
        "a.tar.gz": None,
        "b": None,
    }
    assert {name: table_kind(Path(name)) for name in kinds} == kinds
    assert [table_name(Path(name)) for name in ("x/quiz.jsonl.gz", "a.b.csv", "saved")] == ["quiz", "a.b", "saved"]
    assert split_of(Path("en/test/part-1.json")) == "test"
    assert split_of(Path("valuable.jsonl")) is None
    assert is_local("owner/rows.jsonl.gz")


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\)"):
        files_of(str(tmp_path))
