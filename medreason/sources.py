"""Files, folders and hub data sets -> rows as they stand there, each with its number or what is wrong with it."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medreason.config import ConfigError

# A row's number (from 1; in JSONL its line) and its cells, or what kept it from being read.
Row = tuple[int, dict[str, Any] | str]

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
PATH = "data.path"  # the setting that an error names
PINNED = re.compile(r"[0-9a-f]{40}")


def is_local(path: str) -> bool:
    """Whether a path means a file or folder here rather than a data set of the hub (OWNER/NAME)."""
    return Path(path).exists() or Path(path).suffix.lower() in SUFFIXES or path.count("/") != 1


def files_of(path: str, setting: str = PATH) -> list[Path]:
    """The readable files that a local path names, a folder's in order of name.

    Raises ConfigError, naming `setting`, where there is none or one is empty. Reads no content.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise ConfigError(f"{setting}={path}: no JSON, JSONL, Parquet or CSV file in this folder")
    elif not place.is_file():
        raise ConfigError(f"{setting}={path}: no such file; name a JSON, JSONL, Parquet or CSV file, or a folder")
    elif place.suffix.lower() not in SUFFIXES:
        kind = place.suffix or "a file without suffix"
        raise ConfigError(f"{setting}={path}: cannot read {kind}; known: {', '.join(SUFFIXES)}")
    else:
        files = [place]
    for file in files:
        if file.stat().st_size == 0:
            raise ConfigError(f"{setting}={file}: the file is empty")
    return files


def content_digest(path: str, name: str | None, revision: str | None, setting: str = PATH) -> str:
    """What changes when the rows behind a path change: a hash of the files, or the hub's commit."""
    if not is_local(path):
        return f"hub {path} {name} {pinned_revision(path, revision, setting)}"
    digest = hashlib.sha256()
    for file in files_of(path, setting):
        with file.open("rb") as opened:
            digest.update(file.suffix.lower().encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def pinned_revision(path: str, revision: str | None, setting: str = PATH) -> str:
    """The commit that a revision of a hub data set means now; offline, the one in the hub's cache."""
    if revision and PINNED.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants

    try:
        return str(HfApi().dataset_info(path, revision=revision, timeout=5).sha)
    except Exception as error:  # no network, no such data set, no right to it
        folder = "datasets--" + path.replace("/", "--")
        cached = Path(constants.HF_HUB_CACHE) / folder / "refs" / (revision or "main")
        if cached.is_file():
            return cached.read_text(encoding="utf-8").strip()
        raise unreachable(path, setting, error) from error


def unreachable(path: str, setting: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{setting}={path}: neither a file here nor to be had from the hub ({type(error).__name__}); "
        f"name a file with {setting}=FILE"
    )


def read_file(file: Path, setting: str = PATH) -> list[Row]:
    """Every row of a file. Raises ConfigError for a file that is not of its kind at all."""
    kind = file.suffix.lower()
    readers = {".json": read_json, ".jsonl": read_jsonl, ".parquet": read_parquet, ".csv": read_csv}
    try:
        rows = readers[kind](file)
    except Exception as error:  # each parser raises its own
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{setting}={file}: not a readable {kind[1:]} file ({said})") from error
    if not rows:
        raise ConfigError(f"{setting}={file}: no rows")
    return rows


def read_jsonl(file: Path) -> list[Row]:
    """A row for each line that is not blank; a broken line is a broken row."""
    with file.open("rb") as lines:
        rows: list[Row] = [(number, json_object(line)) for number, line in enumerate(lines, 1) if line.strip()]
    if rows and all(cells == "not JSON" for _, cells in rows):
        raise ValueError("no line is JSON")
    return rows


def json_object(line: bytes) -> dict[str, Any] | str:
    try:
        cells = json.loads(decode(line))
    except ValueError:
        return "not JSON"
    return cells if isinstance(cells, dict) else "not an object"


def read_json(file: Path) -> list[Row]:
    """A list of objects; or, as many tools write under this suffix too, an object a line."""
    text = decode(file.read_bytes())
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return read_jsonl(file)
        raise
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise ValueError("neither a list of objects nor an object a line")
    return [(number, row if isinstance(row, dict) else "not an object") for number, row in enumerate(content, 1)]


def read_csv(file: Path) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # a chain of thought may exceed the default of 128 kB
    reader = csv.DictReader(io.StringIO(decode(file.read_bytes()), newline=""), strict=True)
    return [(number, "more cells than columns" if None in row else row) for number, row in enumerate(reader, 1)]


def read_parquet(file: Path) -> list[Row]:
    import pyarrow.parquet

    return list(enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1))


def decode(content: bytes) -> str:
    """Text in which bytes that are not UTF-8 stand as lone surrogates, so that a row's check finds them."""
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def read_hub(
    path: str, name: str | None, revision: str | None, splits: Sequence[str] | None = ("train",), setting: str = PATH
) -> Iterator[Row]:
    """Rows of a hub data set's splits (None: all but train, where it has others), from the cache if need be."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        loaded = load_dataset(path, name, revision=revision)
    except Exception as error:
        raise unreachable(path, setting, error) from error
    wanted = splits or [split for split in loaded if split != "train"] or list(loaded)
    number = 0
    for split in wanted:
        if split not in loaded:
            raise ConfigError(f"{setting}={path}: no split {split!r}; it has {', '.join(loaded)}")
        for row in loaded[split]:
            yield (number := number + 1), row
