"""What a command says while it works."""

import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

BEGAN = time.monotonic()


def say(line: str) -> None:
    """Progress, a line each, with the time since the process began."""
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {line}", flush=True)


def quieten() -> None:
    """Keeps Lightning from saying what `say` says better, or what is not so (our metrics file is written anew)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # int8: a line for every layer of every step
    warnings.filterwarnings("ignore", message=".*(exists and is not empty|LeafSpec|does not have many workers).*")


def describe_corpus(report: Mapping[str, Any], left_out: Mapping[str, int]) -> list[str]:
    """What was found about the rows that a reader of the log should know; data.json of the run holds the rest."""
    lines = [f"skipped {found['count']:,} rows: {reason}" for reason, found in report["rejects"].items()]
    repeats = report.get("duplicates", {"exact": 0, "near": 0})
    if repeats["exact"] or repeats["near"]:
        lines.append(f"{repeats['exact']:,} exact and {repeats['near']:,} near duplicates")
    if found := report.get("contamination"):
        lines.append(
            f"{found['examples']:,} examples share text with {sum(found['benchmarks'].values()):,} test questions"
        )
    return lines + [f"left out {count:,}: {reason}" for reason, count in left_out.items()]


def describe_data(source: str, counts: dict[str, int | float]) -> str:
    """One line of what training will see."""
    lost = [
        f"{counts[f'{what}_documents']} {what.replace('_', ' ')}"
        for what in ("left_out", "dropped", "truncated")
        if counts[f"{what}_documents"]
    ]
    return (
        f"{source}: {counts['train_documents']:,} to learn, {counts['validation_documents']:,} held out"
        f"{', ' + ', '.join(lost) if lost else ''}; {describe_rows(counts)}"
    )


def describe_rows(counts: Mapping[str, int | float]) -> str:
    """How many rows of what length, and how full."""
    length = f"of {counts['row_tokens']:,} tokens" if counts["row_tokens"] else "of a document each, padded by batch"
    return f"{counts['train_rows']:,} rows {length}, {counts['fill']:.1%} full"
