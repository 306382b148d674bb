"""Files of JSON lines, a record a line, to which one is added at a time by a process that may be killed.

A line ends with a line feed and nothing else: a text may hold U+2028, U+0085 and all else at which str.splitlines()
would cut it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as text, a line each; half of a surrogate pair, which no file can hold, as JSON's escape of it."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return text.encode("utf-8", "backslashreplace").decode()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none where there is no file. A line that a kill has cut is left out."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [found for line in lines if (found := record(line)) is not None]


def record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for one that holds none, such as a cut one."""
    try:
        found = json.loads(line)
    except ValueError:  # also of a cut within a character
        return None
    return found if isinstance(found, dict) else None


def append_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("ab") as file:
        file.write(json_lines(records).encode())


def mend_last_line(path: Path) -> None:
    """Takes away a last line that a kill has cut; one that lacks its end alone gets it."""
    if not path.is_file():
        return
    before, end, last = path.read_bytes().rpartition(b"\n")
    if record(last) is None:
        os.truncate(path, len(before) + len(end))
    else:
        with path.open("ab") as file:
            file.write(b"\n")
