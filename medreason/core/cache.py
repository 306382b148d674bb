"""Arrow tables that are made once and mapped into memory ever after, also by several processes at once.

What is being made lies on the disk as well, in files without a name: `on_disk` and `array_on_disk`. Pages of a mapped
file are the system's to drop, so memory does not grow with the rows.
"""

import hashlib
import io
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from medreason.core.disk import digest_of, whole_file


def cache_folder() -> Path:
    """Where prepared models and data are kept: MEDREASON_CACHE, or medreason/ in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MEDREASON_CACHE") or Path(home) / "medreason")


def cached_table(kind: str, key: str, build: Callable[[], pa.Table]) -> pa.Table:
    """The table of this key, memory-mapped; built under a lock if there is none yet.

    A process that dies while building leaves a draft that is never read and a lock that the system releases; a file
    that is damaged is built anew. Files that cannot be written (a full disk, no right to) only cost the cache.
    """
    path = cache_folder() / kind / f"{key}.arrow"
    table = open_table(path)
    if table is not None:
        return table
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError:
        return build()
    try:
        table = open_table(path)  # another process may have built it while we waited
        if table is None:
            built = build()
            try:
                write_table(path, built)
            except OSError:
                return built
            del built
            pa.default_memory_pool().release_unused()
            table = open_table(path)
        assert table is not None
        return table
    finally:
        lock.release()


def unnamed_file() -> io.FileIO:
    """A file in the cache's folder that no name leads to: it is gone once nobody has it open, also after a kill.

    Not in the system's temporary folder, which may be memory. Raises OSError where none can be made.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=cache_folder(), buffering=0)


def on_disk(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """The batches as a table that is mapped from an unnamed file; what the disk has no room for stays in memory."""
    whole, sizes, held = mapped(batch.serialize() for batch in batches)
    starts = np.cumsum([0, *sizes], dtype=np.int64).tolist()
    parts = [whole.slice(start, size) for start, size in zip(starts, sizes, strict=False)] + held
    return pa.Table.from_batches([pa.ipc.read_record_batch(part, schema) for part in parts], schema)


def array_on_disk(dtype: DTypeLike, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """An array of this shape, mapped from an unnamed file; its parts come one after another, and are let go.

    It is in memory where the disk has no room.
    """
    whole, _, held = mapped(pa.py_buffer(np.ascontiguousarray(part, dtype)) for part in parts)
    flat = [np.frombuffer(part, dtype) for part in (whole, *held)]
    return (np.concatenate(flat) if held else flat[0]).reshape(shape)


def mapped(parts: Iterable[pa.Buffer]) -> tuple[pa.Buffer, list[int], list[pa.Buffer]]:
    """Parts one after another in an unnamed file, as one mapped buffer; their sizes; and those that it did not take.

    These are all parts from the first on for which there was no room.
    """
    sizes: list[int] = []
    held: list[pa.Buffer] = []
    try:
        file = unnamed_file()
    except OSError:
        return pa.py_buffer(b""), sizes, list(parts)
    with file:  # the map keeps what is in it
        for part in parts:
            if held or not written(file, part):
                held.append(part)
            else:
                sizes.append(part.size)
        total = sum(sizes)
        return pa.py_buffer(mmap.mmap(file.fileno(), total, access=mmap.ACCESS_READ) if total else b""), sizes, held


def written(file: io.FileIO, part: pa.Buffer) -> bool:
    """Whether an unbuffered file, which may take less than it is given at a time, took the whole."""
    left = memoryview(part)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        return False
    return True


def open_table(path: Path) -> pa.Table | None:
    """The table of a file, its columns left on disk until they are read; None where there is none, or a damaged one."""
    try:
        if digest_of(path) != digest_path(path).read_text(encoding="utf-8"):
            return None
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, ValueError, pa.ArrowInvalid):
        return None


def digest_path(path: Path) -> Path:
    return path.with_suffix(".digest")


def write_table(path: Path, table: pa.Table) -> None:
    """Writes the whole file or nothing. The draft of a process that died here is written over: we hold the lock."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        with whole_file(digest_path(path)) as digest:
            digest.write_text(digest_of(draft), encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def cache_key(content: Mapping[str, Any], *code: str | None) -> str:
    """A name for what is made of `content` by the code in these files: another version of it makes its own."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for file in code:
        assert file is not None
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:32]


def with_report(table: pa.Table, report: Mapping[str, Any]) -> pa.Table:
    """The table, carrying `report` as JSON."""
    return table.replace_schema_metadata({"report": json.dumps(report)})


def report_of(table: pa.Table) -> dict[str, Any]:
    """What `with_report` put there."""
    report: dict[str, Any] = json.loads(table.schema.metadata[b"report"])
    return report
