"""Reads what an offline W&B run wrote, for tests: wandb 0.31 has no reader of its own left.

A transaction log is LevelDB's log format behind a header of seven bytes, with a protobuf Record in each record:

    :W&B be e1 v | crc32 length type data | crc32 length type data | ...     blocks of 32 KiB; they cut records
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER = struct.Struct("<4sHB")  # :W&B, 0xBEE1, version
RECORD_HEADER = struct.Struct("<IHB")  # crc32 of type and data, length, type
BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What W&B would show of a run after `wandb sync`."""

    files: Path
    id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    sweep_id: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # one a call of wandb.log
    exit_code: int | None = None  # None: the run did not end

    def values(self, metric: str) -> list[Any]:
        """Every logged value of a metric, in order."""
        return [row[metric] for row in self.history if metric in row]

    def table(self, key: str) -> list[dict[str, Any]]:
        """The rows of the last wandb.Table logged under `key`."""
        written = json.loads((self.files / self.values(key)[-1]["path"]).read_text())
        return [dict(zip(written["columns"], row, strict=True)) for row in written["data"]]


def read_offline_run(path: Path) -> OfflineRun:
    """The run whose log is `path`, or lies in it: a .wandb file, an offline-run-* folder, or a run directory."""
    if path.is_dir():
        (path,) = [*path.glob("run-*.wandb"), *path.glob("wandb/offline-run-*/run-*.wandb")]
    run = OfflineRun(path.parent / "files")
    for record in records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            told = record.run
            run.id, run.project, run.name = told.run_id, told.project, told.display_name
            run.group, run.job_type, run.sweep_id = told.run_group, told.job_type, told.sweep_id
            run.tags = list(told.tags)
            update(run.config, told.config)
            update(run.summary, told.summary)
        elif kind == "config":
            update(run.config, record.config)
        elif kind == "summary":
            update(run.summary, record.summary)
        elif kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                put(row, item)
            run.history.append(row)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def records(log: bytes) -> Iterator[Any]:
    """Every record of a transaction log; a record that a killed run left half written is left out.

    Raises ValueError where the bytes are not such a log or are damaged.
    """
    if FILE_HEADER.unpack_from(log)[:2] != (b":W&B", 0xBEE1):
        raise ValueError("not a W&B transaction log")
    at, parts = FILE_HEADER.size, b""
    while at + RECORD_HEADER.size <= len(log):
        left = BLOCK - at % BLOCK
        if left < RECORD_HEADER.size:  # no room for a header: the block ends in zeros
            at += left
            continue
        checksum, length, kind = RECORD_HEADER.unpack_from(log, at)
        start, at = at + RECORD_HEADER.size, at + RECORD_HEADER.size + length
        if at > len(log):
            return
        data = log[start:at]
        if zlib.crc32(bytes([kind]) + data) != checksum:
            raise ValueError(f"damaged at byte {start}")
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            yield Record.FromString(parts)


def update(target: dict[str, Any], change: Any) -> None:
    """Applies a ConfigRecord or SummaryRecord."""
    for item in change.update:
        put(target, item)
    for item in change.remove:
        target.pop(item.key or item.nested_key[0], None)


def put(target: dict[str, Any], item: Any) -> None:
    """Puts an item's JSON value where its key, or the path of its nested keys, says."""
    *path, last = list(item.nested_key) or [item.key]
    for key in path:
        target = target.setdefault(key, {})
    target[last] = json.loads(item.value_json)
