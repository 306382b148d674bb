"""Arrow tables that are made once and mapped into memory ever after, also by several processes at once."""

import gc
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa

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
    build = without_collection(build)
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


def without_collection(build: Callable[[], pa.Table]) -> Callable[[], pa.Table]:
    """`build` with garbage collection paused: it makes millions of objects that all live, scanned over and over."""

    def paused() -> pa.Table:
        collecting = gc.isenabled()
        gc.disable()
        try:
            return build()
        finally:
            if collecting:
                gc.enable()

    return paused


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
