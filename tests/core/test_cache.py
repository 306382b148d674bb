import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medreason.core import cache
from medreason.core.cache import array_on_disk, cache_key, cached_table, on_disk, report_of, with_report

TABLE = with_report(pa.table({"a": [1, 2, 3]}), {"made": "here"})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDREASON_CACHE", str(tmp_path))
    return tmp_path


def never() -> pa.Table:
    raise AssertionError("it was built again")


def build_and_note(notes: str) -> pa.Table:
    with Path(notes).open("a") as file:
        file.write("built\n")
    time.sleep(0.5)
    return TABLE


def build_and_hang(notes: str) -> pa.Table:
    Path(notes).write_text("began")
    time.sleep(600)
    return TABLE


def ask(cache: str, build: str, notes: str) -> None:
    os.environ["MEDREASON_CACHE"] = cache
    table = cached_table("kind", "key", lambda: globals()[build](notes))
    assert table["a"].to_pylist() == [1, 2, 3]


def start(*arguments: str) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=ask, args=arguments)
    process.start()
    return process  # type: ignore[return-value]


def test_a_table_is_built_once_and_carries_its_report() -> None:
    assert cached_table("kind", "key", lambda: TABLE).equals(TABLE)
    again = cached_table("kind", "key", never)
    assert again.equals(TABLE)
    assert report_of(again) == {"made": "here"}


def test_processes_that_ask_at_once_build_it_once(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    processes = [start(str(tmp_path), "build_and_note", str(notes)) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert notes.read_text() == "built\n"


def test_a_builder_that_is_killed_leaves_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    process = start(str(tmp_path), "build_and_hang", str(notes))
    while not notes.exists():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert cached_table("kind", "key", lambda: TABLE).equals(TABLE)


@pytest.mark.parametrize("keep", [0, 100, -9])
def test_a_cut_file_is_built_anew(tmp_path: Path, keep: int) -> None:
    cached_table("kind", "key", lambda: TABLE)
    path = tmp_path / "kind" / "key.arrow"
    path.write_bytes(path.read_bytes()[:keep])
    assert cached_table("kind", "key", lambda: TABLE).equals(TABLE)
    assert cached_table("kind", "key", never).equals(TABLE)


def test_a_draft_is_never_read_and_a_failed_build_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / ".key.arrow.draft").write_bytes(b"half")
    with pytest.raises(ZeroDivisionError):
        cached_table("kind", "key", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert not (tmp_path / "kind" / "key.arrow").exists()
    assert cached_table("kind", "key", lambda: TABLE).equals(TABLE)


def test_a_cache_that_cannot_be_written_only_costs_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MEDREASON_CACHE", str(tmp_path / "file"))
    assert cached_table("kind", "key", lambda: TABLE).equals(TABLE)


def test_a_key_names_content_and_code(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("one")
    key = cache_key({"a": 1, "b": 2}, str(code))
    assert cache_key({"b": 2, "a": 1}, str(code)) == key
    assert cache_key({"a": 1, "b": 3}, str(code)) != key
    code.write_text("two")
    assert cache_key({"a": 1, "b": 2}, str(code)) != key


BATCHES = [pa.record_batch({"text": [f"{number} {row}" * row for row in range(5)]}) for number in range(6)]
NUMBERS = np.arange(36, dtype=np.uint32).reshape(12, 3)


def test_what_lies_on_the_disk_is_as_it_was_given_and_has_no_name(own_cache: Path) -> None:
    table = on_disk(BATCHES[0].schema, iter(BATCHES))
    array = array_on_disk(np.uint32, (12, 3), (NUMBERS[start : start + 5] for start in range(0, 12, 5)))
    assert table.equals(pa.Table.from_batches(BATCHES)) and np.array_equal(array, NUMBERS)
    assert not array.flags.writeable and not list(own_cache.iterdir())
    assert on_disk(BATCHES[0].schema, []).num_rows == 0
    assert array_on_disk(np.uint32, (0, 3), []).shape == (0, 3)


@pytest.mark.parametrize("room", [0, 1, 3])
def test_what_the_disk_has_no_room_for_stays_in_memory(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[int] = []
    written = cache.written
    monkeypatch.setattr(cache, "written", lambda file, part: len(took) < room and written(file, part) and
                        not took.append(part.size))  # fmt: skip
    assert on_disk(BATCHES[0].schema, iter(BATCHES)).equals(pa.Table.from_batches(BATCHES))
    assert len(took) == room
    took.clear()
    assert np.array_equal(array_on_disk(np.uint32, (12, 3), (NUMBERS[n : n + 3] for n in range(0, 12, 3))), NUMBERS)


def test_without_a_folder_to_write_to_all_stays_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MEDREASON_CACHE", str(tmp_path / "file"))
    assert on_disk(BATCHES[0].schema, iter(BATCHES)).equals(pa.Table.from_batches(BATCHES))
    assert np.array_equal(array_on_disk(np.uint32, (12, 3), [NUMBERS]), NUMBERS)
