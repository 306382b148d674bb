"""What a command says while it works."""

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from medreason.core.outside import one_line
from medreason.core.run_log import speak

NAMED = 8  # files, columns


class Clock:
    """When this process began, or the command that it is at."""

    began = time.monotonic()


def say(line: str) -> None:
    """Progress, a line each, with the time since the command began; of several processes, the first one speaks."""
    if not first_process():
        return
    speak(f"[{time.monotonic() - Clock.began:6.1f} s] {one_line(line)}")


def speak_safely() -> None:
    """Lets every character be said wherever the output goes: one that its encoding lacks is written as its escape.

    Child processes in Python do so too. To be called before anything is said.
    """
    os.environ.setdefault("PYTHONIOENCODING", ":backslashreplace")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # closed
                stream.reconfigure(errors="backslashreplace")


def first_process() -> bool:
    """Whether this process keeps the record: the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def quieten() -> None:
    """Keeps Lightning from saying what `say` says better, or what is not so (our metrics file is written anew)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of torchao's, which nobody here uses
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # int8: a line for every layer of every step
    for client in ("httpx", "httpx2"):  # OpenAI's takes either: a line for every request
        logging.getLogger(client).setLevel(logging.WARNING)
    unwanted = (
        "exists and is not empty|LeafSpec|does not have many workers|`broadcast_buffers` is deprecated|sync_dist=True"
    )
    warnings.filterwarnings("ignore", message=f".*({unwanted}).*")


def describe_corpus(report: Mapping[str, Any], left_out: Mapping[str, int]) -> list[str]:
    """What was found about the rows that a reader of the log should know; data.json of the run holds the rest."""
    tables = [f"{name} ({rows:,} rows)" for name, rows in report["rows"].items()]
    lines = [f"read {some_of(tables)}", *(f"not read: {line}" for line in describe_not_read(report))]
    lines += [
        f"skipped {found['count']:,} rows: {reason} ({named(found['places'], found['count'])})"
        for reason, found in report["rejects"].items()
    ]
    repeats = report.get("duplicates", {"exact": 0, "near": 0})
    if repeats["exact"] or repeats["near"]:
        lines.append(f"{repeats['exact']:,} exact and {repeats['near']:,} near duplicates")
    if found := report.get("contamination"):
        lines.append(
            f"{found['examples']:,} examples share text with {sum(found['benchmarks'].values()):,} test questions"
        )
    return lines + [f"left out {count:,}: {reason}" for reason, count in left_out.items()]


def describe_not_read(report: Mapping[str, Any]) -> list[str]:
    """Lines that name the files and the columns that nothing was learned from."""
    files = [f"{name} ({reason})" for name, reason in report["not_read"].items()]
    alike: dict[tuple[str, ...], list[str]] = {}  # columns -> the tables in which they were left out
    for table, columns in report["columns_not_read"].items():
        alike.setdefault(tuple(columns), []).append(table)
    lines = [f"columns {some_of(columns)} of {some_of(tables)}" for columns, tables in alike.items()]
    return ([some_of(files)] if files else []) + lines[:NAMED]


def named(places: Sequence[str], count: int) -> str:
    """The first places of so many."""
    return ", ".join(places) + (", ..." if count > len(places) else "")


def some_of(names: Sequence[str]) -> str:
    """Names on one line, the first ones of many."""
    more = f" and {len(names) - NAMED:,} more (data.json)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def describe_data(counts: dict[str, int | float]) -> str:
    """One line of what training will see."""
    lost = [
        f"{counts[f'{what}_documents']} {what.replace('_', ' ')}"
        for what in ("left_out", "dropped", "truncated")
        if counts[f"{what}_documents"]
    ]
    return (
        f"{counts['train_documents']:,} to learn, {counts['validation_documents']:,} held out"
        f"{', ' + ', '.join(lost) if lost else ''}; {describe_rows(counts)}"
    )


def describe_rows(counts: Mapping[str, int | float]) -> str:
    """How many rows of what length, and how full."""
    length = f"of {counts['row_tokens']:,} tokens" if counts["row_tokens"] else "of a document each, padded by batch"
    return f"{counts['train_rows']:,} rows {length}, {counts['fill']:.1%} full"


def describe_swept(swept: Mapping[str, str]) -> str:
    """What tells a sweep's jobs apart, short: `r=32 lr=1e-4`."""
    return " ".join(f"{key.rpartition('.')[2]}={short_number(value)}" for key, value in swept.items())


def spoken(monitor: str) -> str:
    """A monitored metric in words."""
    return {"val/loss": "held-out loss", "train/loss": "training loss"}.get(monitor, monitor)


def short_number(text: str) -> str:
    """A small number as people write it: 0.0001 as 1e-4. Any other text as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    if not 0 < abs(number) < 0.01:
        return text
    mantissa, exponent = f"{number:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
