"""Several runs side by side as one page: settings that differ, courses, scores with paired tests, answers."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medreason.config import Format
from medreason.core.json_lines import read_json_lines
from medreason.core.named_runs import measured_on
from medreason.core.recorded import finite, look_up, mapping, read_mapping
from medreason.core.run_directory import nearby, on_cpu, read_metrics
from medreason.report.html import amount, duration, page, paragraph, picture, prose, section, short, table, told
from medreason.report.results import Trial, read_trial
from medreason.report.run_page import is_right, score_cells

REPORT = "report.html"
ABSENT = "\u2013"  # where a run has no such setting or result


@dataclass(frozen=True)
class Compared:
    """A run, as it stands beside others."""

    folder: Path
    name: str  # its column
    trial: Trial
    config: dict[str, Any]
    record: dict[str, Any]

    @property
    def results(self) -> dict[str, Any]:
        return mapping(self.record.get("results"))


def read_compared(folders: Sequence[Path]) -> list[Compared]:
    """The runs as columns: by the name of their folder, or by its path where two are called the same."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(nearby(folder.resolve())) for folder in folders]
    return [
        Compared(folder, name, read_trial(folder), *(read_mapping(folder / f)[0] for f in ("config.yaml", "run.json")))
        for folder, name in zip(folders, names, strict=True)
    ]


def leaves(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name, in their order."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def differing(runs: Sequence[Compared]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs, with their value in each."""
    names = dict.fromkeys(name for run in runs for name, _ in leaves(run.config))
    found = {}
    for name in names:
        values = [look_up(run.config, name) for run in runs]
        if any(value != values[0] for value in values):
            found[name] = ["null" if value is None else short(told(value)) for value in values]
    return found


def measured(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """What each run came to, by name; rows that no run has are left out."""

    def numbers(key: str, shape: str) -> list[str]:
        values = [finite(run.results.get(key)) for run in runs]
        return [ABSENT if value is None else format(value, shape) for value in values]

    rows = [
        ("status", [run.trial.state for run in runs]),
        ("held-out loss before", numbers("val_loss_before", ".4f")),
        ("held-out loss after", numbers("val_loss_after", ".4f")),
        ("held-out exact match before", numbers("accuracy_before", ".1%")),
        ("held-out exact match after", numbers("accuracy_after", ".1%")),
        ("optimizer steps", [f"{run.trial.steps:,}" for run in runs]),
        ("step of the weights", numbers("adapter_step", ",.0f")),
        ("tokens", [amount(run.trial.tokens) if run.trial.tokens else ABSENT for run in runs]),
        ("time", [duration(run.trial.seconds) for run in runs]),
    ]
    if not all(on_cpu(run.record) for run in runs):
        rows.append(("peak GPU memory, GiB", numbers("peak_memory_gib", ".1f")))
    rows.append(("device", [str(run.record.get("device") or ABSENT) for run in runs]))
    return [(name, values) for name, values in rows if any(value != ABSENT for value in values)]


def same_yardstick(runs: Sequence[Compared]) -> str:
    """Why the runs' losses must not be compared; nothing where they may be."""
    if all(measured_on(run.folder) == measured_on(runs[0].folder) for run in runs):
        return ""
    return (
        "These runs differ in model or data, so their losses were measured on other tokens or rows and cannot be "
        "compared; scores on the same benchmark can."
    )


@dataclass(frozen=True)
class Tested:
    """A benchmark that at least two of the runs answered by the same method."""

    evaluation: str  # the folder's name, likelihood or generate
    benchmark: str
    scores: list[dict[str, Any]]  # by run, empty where it has none
    in_words: list[str]  # by run after the first: its difference to the first, empty where not both answered


def tested(runs: Sequence[Compared]) -> list[Tested]:
    from medreason.report.scores import compare  # scipy is slow to import, and --help needs none

    found = []
    for evaluation in sorted(
        {path.parent.name for run in runs for path in run.folder.glob("evaluation/*/scores.json")}
    ):
        folders = [run.folder / "evaluation" / evaluation for run in runs]
        scores = [mapping(read_mapping(folder / "scores.json")[0].get("scores")) for folder in folders]
        for benchmark in dict.fromkeys(name for each in scores for name in each):
            by_run = [mapping(each.get(benchmark)) for each in scores]
            if sum(map(bool, by_run)) < 2:
                continue
            first, *others = (answers(folder / f"{benchmark}.jsonl") for folder in folders)
            pairs = [compare(other, first) if first and other else None for other in others]
            found.append(Tested(evaluation, benchmark, by_run, [pair["in_words"] if pair else "" for pair in pairs]))
    return found


def answers(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_json_lines(path) if {"id", "gold"} <= set(record)] if path.is_file() else []


def held_out(runs: Sequence[Compared]) -> list[str]:
    """By run after the first: how its answers to the held-out questions do against the first's, where both had them."""
    from medreason.report.statistics import in_words

    def right(run: Compared) -> dict[str, bool]:
        try:
            rows = json.loads((run.folder / "samples.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        style = Format.__members__.get(str(look_up(run.config, "data.format")), Format.think)
        asked = [row for row in rows if isinstance(row, dict) and "after" in row] if isinstance(rows, list) else []
        return {str(row.get("question")): is_right(row, "after", style) for row in asked}

    if any(finite(run.results.get("accuracy_after")) is None for run in runs):
        return ["" for _ in runs[1:]]  # answers that have no one wording cannot be marked
    first, *others = map(right, runs)
    shared = [[question for question in first if question in other] for other in others]
    return [
        in_words([other[question] for question in both], [first[question] for question in both]) if both else ""
        for other, both in zip(others, shared, strict=True)
    ]


def summary(runs: Sequence[Compared], benchmarks: Sequence[Tested]) -> list[str]:
    """The comparison in a terminal's lines, values in the order of the runs."""
    rows = [*differing(runs).items(), *((name, values) for name, values in measured(runs) if "held-out" in name)]
    lines = [f"{name}: {' | '.join(values)}" for name, values in rows]
    for each in benchmarks:
        scores = " | ".join(score_cells(score)[0] or ABSENT for score in each.scores)
        lines.append(f"{each.benchmark} ({each.evaluation}): {scores}")
        lines += [f"  {run.name} beside {runs[0].name}: {words}" for run, words in told_of(runs, each.in_words)]
    trouble = same_yardstick(runs)
    return [*lines, trouble] if trouble else lines


def link(run: Compared, first: Compared) -> str:
    """A paragraph with a link to a run's own page, from the first run's folder."""
    path = os.path.relpath(run.folder.resolve() / REPORT, first.folder.resolve())
    return f'<p><a href="{escape(quote(path))}">{escape(run.name)}</a></p>'


def told_of(runs: Sequence[Compared], words: Sequence[str]) -> list[tuple[Compared, str]]:
    return [(run, each) for run, each in zip(runs[1:], words, strict=True) if each]


def comparison_page(runs: Sequence[Compared], benchmarks: Sequence[Tested]) -> str:
    """The page; its picture is written on the way, into the first run's folder."""
    from medreason.report.run_curves import beside  # matplotlib is slow to import, and --help needs none

    names, first = [run.name for run in runs], runs[0].name
    settings, trouble = differing(runs), same_yardstick(runs)
    header = ("", *names)
    scores, differences = [], []
    for each in benchmarks:
        cells = [" ".join(filter(None, [mean, f"({interval})" if interval else ""]))
                 for mean, interval in (score_cells(score)[:2] for score in each.scores)]  # fmt: skip
        scores.append([escape(each.evaluation), prose(each.benchmark), *(cell or ABSENT for cell in cells)])
        differences += [f"{each.benchmark}, {each.evaluation}: {run.name} beside {first}: {words}."
                        for run, words in told_of(runs, each.in_words)]  # fmt: skip
    marks = [f"Held-out questions: {run.name} beside {first}: {words}." for run, words in told_of(runs, held_out(runs))]
    curves = beside([(run.name, read_metrics(run.folder / "metrics.csv")) for run in runs])
    title = " beside ".join(names)
    return page(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            paragraph(trouble) if trouble else "",
            section(
                "Settings that differ",
                table(header, [[escape(name), *map(prose, values)] for name, values in settings.items()])
                or paragraph("None: what differs is chance, or the code that made them."),
            ),
            section("Results", table(header, [[escape(name), *map(prose, values)] for name, values in measured(runs)])),
            section(
                "Course",
                picture(
                    curves, runs[0].folder / "report", "beside",
                    "Held-out loss (marked) and training loss (thin) by optimizer step.",
                ),
            ),
            section(
                "Scores",
                table(("evaluation", "benchmark", *names), scores),
                *map(paragraph, [*differences, *marks]),
                "" if scores else paragraph("No benchmark was answered by two of the runs in the same way."),
            ),
            section("Their own pages", *(link(run, runs[0]) for run in runs if (run.folder / REPORT).is_file())),
        ],
    )  # fmt: skip
