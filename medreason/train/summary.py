"""The end of a run, as its user sees it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from medreason.config import Format
from medreason.core.outside import literal, one_line
from medreason.core.run_directory import nearby

MEASURED = (
    ("held-out loss", "val_loss", "{:.3f}"),
    ("held-out exact match", "accuracy", "{:.1%}"),
    ("reasoning, then answer", "format", "{:.1%}"),
)


def summarize(run: Path, results: dict[str, Any], style: Format) -> None:
    """Two answers before and after, cut to a line; numbers; where everything lies."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    samples = json.loads((run / "samples.json").read_text(encoding="utf-8"))
    exact = "accuracy_after" in results  # the answers can be checked
    for sample in samples[:2]:
        for label, text, reasoning in answered(sample, style, exact):
            shown = literal(f"{label:8}  ", "bold") + literal(" ".join(text.split()))
            shown += literal("  reasoning: " + " ".join(reasoning.split()), "dim") if reasoning else literal("")
            console.print(shown, no_wrap=True, overflow="ellipsis")
    table = Table("", "before", "after", box=None, pad_edge=False)
    for label, name, shape in MEASURED:
        if f"{name}_after" in results:
            values = [results.get(f"{name}_{when}") for when in ("before", "after")]
            table.add_row(label, *("" if value is None else shape.format(value) for value in values))
    if exact:  # what a model scores that has learned nothing but which answer is frequent
        frequent = Counter(sample["answer"] for sample in samples).most_common(1)[0][1] / len(samples)
        table.add_row("always the same answer", *[f"{frequent:.1%}"] * 2)
    console.print(table)
    print(one_line(f"{results['steps']} optimizer steps, curves.png and all: {nearby(run)}"))


def answered(sample: dict[str, Any], style: Format, exact: bool) -> list[tuple[str, str, str]]:
    """Lines on a question as label, text, reasoning; where the answers can be checked, with right or wrong."""
    from medreason.data.clinical_cases import answers_match
    from medreason.models.prompts import parse_answer

    lines = [("Question", sample["question"], ""), ("Expected", sample["answer"], "")]
    for when in ("before", "after"):
        if when in sample:
            parsed = parse_answer(sample[when], style)
            mark = (" (right)" if answers_match(parsed.answer, sample["answer"]) else " (wrong)") if exact else ""
            lines.append((when, (parsed.answer or "(no answer)") + mark, parsed.reasoning or "none"))
    return lines
