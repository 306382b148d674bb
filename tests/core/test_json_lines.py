import json
from pathlib import Path

import pytest

from medreason.core.json_lines import append_json_lines, json_lines, mend_last_line, read_json_lines

CUTTERS = "\u2028 \u2029 \x85 \x1c \x1d \x1e \x0b \x0c \r\n"  # where str.splitlines() ends a line


def test_a_record_comes_back_whole_whatever_its_text_holds(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records = [{"id": str(number), "text": f"a{cutter}b"} for number, cutter in enumerate(CUTTERS.split(" "))]
    append_json_lines(path, records[:3])
    append_json_lines(path, records[3:])
    assert read_json_lines(path) == records
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as an editor may leave it
    assert read_json_lines(path) == records


def test_half_of_a_surrogate_pair_is_kept_as_its_escape(tmp_path: Path) -> None:
    append_json_lines(tmp_path / "a.jsonl", [{"text": "a\ud83db"}])
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"text": "a\\ud83db"}\n'
    assert read_json_lines(tmp_path / "a.jsonl") == [{"text": "a\ud83db"}]


@pytest.mark.parametrize("cut", [2, 4, 9])  # the second one within the character
def test_a_line_that_a_kill_has_cut_is_left_out_and_taken_away(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "records.jsonl"
    whole = json_lines([{"id": "0"}, {"id": "1", "text": "\u2028é"}]).encode()
    path.write_bytes(whole[:-cut])
    assert read_json_lines(path) == [{"id": "0"}]
    mend_last_line(path)
    append_json_lines(path, [{"id": "2"}])
    assert [json.loads(line)["id"] for line in path.read_bytes().split(b"\n")[:-1]] == ["0", "2"]


def test_no_file_holds_no_records_and_a_line_that_is_no_record_is_none(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "odd.jsonl").write_text('7\n[1]\n\n{"id": "0"}\nnull')
    assert read_json_lines(tmp_path / "odd.jsonl") == [{"id": "0"}]


def test_a_whole_record_whose_line_lacks_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "0"}\n{"id": "1"}')
    mend_last_line(path)
    append_json_lines(path, [{"id": "2"}])
    assert [each["id"] for each in read_json_lines(path)] == ["0", "1", "2"]
