import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from medreason.config import ConfigError
from medreason.data import tables
from medreason.data.sources import read_file
from medreason.data.tables import elements, is_list

ROWS = [
    {
        "Question": f'Which, number {n}; "so"?',
        "Complex_CoT": f"First, {n}\nthen; so on\u2028on",
        "Response": f"维生素 {n}",
    }
    for n in range(12)
]
NUMBERED = list(enumerate(ROWS, 1))
FRAME = pd.DataFrame(ROWS)
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
GERMAN = "Frage;Antwort\nWas hilft bei Übelkeit?;Für größere Mengen genügt Wärme.\n"
CHINESE = "问题,答案\n什么维生素可以预防坏血病,维生素丙\n"
CSV = FRAME.to_csv(index=False, lineterminator="\n")


def csv_with(separator: str) -> str:
    return str(FRAME.to_csv(index=False, sep=separator, lineterminator="\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", csv_with(";")),
        ("tabs.csv", csv_with("\t")),
        ("tabs.tsv", csv_with("\t")),
        ("pipes.csv", csv_with("|")),
        ("excel_mark.csv", ("\ufeff" + csv_with(";")).encode()),
        ("excel_line.csv", "sep=;\r\n" + csv_with(";")),
        ("excel_line_and_mark.csv", ("\ufeffsep=;\n" + csv_with(";")).encode()),
        ("excel_unicode.csv", csv_with("\t").encode("utf-16")),
        ("windows.csv", CSV.encode("utf-16-le")),
        ("network.csv", CSV.encode("utf-16-be")),
        ("blanks.csv", CSV.replace("Question,Complex_CoT", "Question, Complex_CoT ")),
        ("empty_end.csv", CSV.replace("\n维", "\n维").replace("Response\n", "Response,,\n") + ",,,,\n,,\n"),
        ("rows.csv.gz", gzip.compress(CSV.encode())),
        ("rows.csv.bz2", bz2.compress(CSV.encode())),
        ("rows.csv.xz", lzma.compress(CSV.encode())),
        ("rows.jsonl.gz", gzip.compress(LINES.encode())),
        ("rows.jsonl.zst", pa.compress(LINES.encode(), "zstd", asbytes=True)),
        ("unpacked_by_the_browser.jsonl.gz", LINES),
        ("packed_without_saying.jsonl", gzip.compress(LINES.encode())),
        ("windows.jsonl", LINES.encode("utf-16")),
        ("rows.ndjson", LINES),
        ("lines_called.csv", LINES),
        ("lines_called.json", LINES),
        ("list_called.jsonl", json.dumps(ROWS)),
        ("list_called_indented.jsonl", json.dumps(ROWS, indent=2)),
        ("commas.json", ",\n".join(json.dumps(row) for row in ROWS)),
        ("columns.json", FRAME.to_json()),
        ("columns.jsonl", FRAME.to_json()),
        ("columns_of_lists.json", json.dumps(FRAME.to_dict("list"))),
        ("split.json", FRAME.to_json(orient="split")),
        ("index.json", FRAME.to_json(orient="index")),
        ("ids.json", json.dumps({f"pmid-{n}": row for n, row in NUMBERED})),
        ("data.json", json.dumps({"version": "1.0", "data": ROWS})),
        ("train.json", json.dumps({"train": ROWS})),
        ("any_name.json", json.dumps({"cases": ROWS}, indent=1)),
        ("viewer.json", json.dumps({"features": [{"name": "Question"}], "rows": [{"row": row} for row in ROWS]})),
    ],
)  # fmt: skip
def test_tables_as_people_have_them_give_the_same_rows(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_file(path) == NUMBERED


def test_parquet_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "rows.json")
    FRAME.to_parquet(tmp_path / "a=1.parquet")
    assert read_file(tmp_path / "rows.json") == read_file(tmp_path / "a=1.parquet") == NUMBERED


def test_objects_printed_over_several_lines_have_the_number_of_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{\n "a": {"b": 1}\n}\n{\n "a": \n{\n "a": "x\\n{"\n}\n')
    assert read_file(path) == [(2, {"a": {"b": 1}}), (5, "not JSON"), (7, {"a": "x\n{"})]


def test_a_single_object_is_a_row_also_where_it_holds_lists(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    cells: Any
    for cells in ({"messages": turns}, {"question": "q", "options": {"A": "x"}, "notes": [{"by": "me"}]}, {"a": "b"}):
        (tmp_path / "row.json").write_text(json.dumps(cells))
        assert read_file(tmp_path / "row.json") == [(1, cells)]
    (tmp_path / "row.json").write_text(json.dumps({"messages": [turns, turns]}))
    assert read_file(tmp_path / "row.json") == [(1, {"messages": turns}), (2, {"messages": turns})]


def test_a_key_that_stands_twice_makes_a_broken_row_at_any_depth(tmp_path: Path) -> None:
    bad = '{"a": "1", "a": "2"}', '{"messages": [{"content": "1", "content": "2"}]}'
    good = '{"a": "1"}'
    expected = [(1, "two keys named a"), (2, "two keys named content"), (3, {"a": "1"})]
    (tmp_path / "rows.jsonl").write_text("\n".join((*bad, good)))
    (tmp_path / "rows.json").write_text(f"[{','.join((*bad, good))}]")
    assert read_file(tmp_path / "rows.jsonl") == read_file(tmp_path / "rows.json") == expected


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("twice.csv", "Question,Response,Response\nq,a,b\n", "two columns are named Response: rename or remove one"),
        ("twice.json", '{"a": {"0": "x"}, "a": {"0": "y"}}', "two keys named a"),
        ("split.json", '{"columns": ["a", "a"], "data": [["x", "y"]]}', "two columns are named a"),
        ("german.csv", GERMAN.encode("cp1252"), "not UTF-8 but probably Windows-1252: save it"),
        ("chinese.csv", CHINESE.encode("gbk"), "not UTF-8 but probably GBK: save it as UTF-8"),
        ("chinese.jsonl", f'{{"a": "{CHINESE}"}}'.encode("gbk"), "not UTF-8 but probably GBK: save it as UTF-8"),
        ("old.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 9, "an old Excel workbook: save the sheet as CSV"),
        ("page.jsonl", "\n<!DOCTYPE html><html>404</html>", "an HTML page: what was downloaded is an error"),
        ("pointer.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
        ("pointer.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        ("denied.json", "<?xml version='1.0'?><Error/>", "XML: what was downloaded is an error"),
        ("paper.json", b"%PDF-1.7 ...", "a PDF"),
        ("not.parquet", "a,b\n1,2\n", "its bytes are not Parquet's"),
        ("cut.jsonl.gz", gzip.compress(LINES.encode())[:200], "ended before the end-of-stream marker"),
        ("cut.jsonl.zst", pa.compress(LINES.encode(), "zstd", asbytes=True)[:100], "Truncated compressed stream"),
        ("cut.json", json.dumps(ROWS)[:300], "line 1 column"),
        ("cut_indented.jsonl", json.dumps(ROWS, indent=1)[:300], "line 13 column 15"),
        ("quote.csv", CSV + 'q,"open', "line .*: unexpected end of data"),
        ("table.jsonl", CSV, "no line is JSON; if it is a table with a line of names, call it .csv"),
        ("python.jsonl", "{'a': 'b'}\n{'a': 'c'}\n", "Python's own notation: write rows with json.dumps"),
        ("cells.json", '[["q", "a"], ["q", "b"]]', "lists of cells without the columns' names"),
        ("two.json", json.dumps({"train": ROWS, "test": ROWS}), r"2 tables in one file \(train, test\)"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named_for_what_it_is(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=says) as caught:
        read_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_renamed_workbook_and_archive_are_named(tmp_path: Path) -> None:
    for name, member, says in (
        ("a.csv", "xl/workbook.xml", "an Excel workbook: save"),
        ("b.json", "b", "a ZIP archive"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, "x")
        with pytest.raises(ConfigError, match=says):
            read_file(tmp_path / name)


def test_two_columns_of_one_name_are_refused_in_parquet_too(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="two columns are named a"):
        read_file(tmp_path / "rows.parquet")


def test_a_few_stray_bytes_are_a_matter_for_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "1"}\n' * 50 + b'{"a": "caf\xe9"}\n')
    assert read_file(path)[-1] == (51, {"a": "caf\udce9"})


def test_unnamed_columns_may_repeat_and_their_cells_are_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,,\n1,2,,\n1,2,3,\n1,2,,,4\n1\n")
    assert read_file(path) == [
        (1, {"a": "1", "b": "2"}), (2, {"a": "1", "b": "2", "column 3": "3"}), (3, "more cells than columns"),
        (4, {"a": "1", "b": None}),
    ]  # fmt: skip


LISTS = [
    [], [{}], [1, 22, 333, -4.5e10], ["", "a,]", "\u2028\n\\"], [[1], {"a": [{"b": "]"}]}, None, True],
    list(range(50)), ROWS,
]  # fmt: skip


@pytest.mark.parametrize("part", [1, 2, 7, 1 << 20])
def test_a_list_is_parted_into_its_elements_wherever_the_text_is_cut(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "HEAD", part)
    for content in LISTS:
        for indent in (None, 1):
            for text in (json.dumps(content, indent=indent), f" \n{json.dumps(content, ensure_ascii=False)}\n\t"):
                assert list(elements(io.StringIO(text), json.JSONDecoder())) == content
                assert is_list(io.StringIO(text))


@pytest.mark.parametrize("part", [1, 1 << 20])
@pytest.mark.parametrize(
    "text",
    ["", " ", "{}", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1] 2", "[1]]", "[1]\n[2]", "1", '["a]', "[[1], [2]]",
     "[1\u00a0]", "\u00a0[1]", "[" * 100_000],
)  # fmt: skip
def test_what_is_no_list_of_rows_is_not_read_as_one(text: str, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "HEAD", part)
    assert not is_list(io.StringIO(text))
