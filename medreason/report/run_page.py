"""A single run as one page: its results, course, evaluations, sample answers, and what can be done next with it."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medreason.config import Format
from medreason.core.json_lines import read_json_lines
from medreason.core.recorded import finite, look_up, mapping, read_mapping
from medreason.core.run_directory import ADAPTER, on_cpu
from medreason.core.what_next import after_run, after_stop
from medreason.data.clinical_cases import answers_match
from medreason.models.prompts import parse_answer
from medreason.report.html import (
    amount,
    answer,
    command,
    command_block,
    duration,
    facts_table,
    folded,
    mark,
    page,
    paragraph,
    picture,
    prose,
    section,
    table,
    tiles,
)
from medreason.report.results import Trial, read_trial, with_interval

# of a run's configuration, what a reader asks for first
TELLING = (
    "model.path", "model.precision", "lora.r", "lora.alpha", "lora.dropout", "lora.rslora", "lora.dora",
    "optim.algorithm", "optim.lr", "optim.loraplus_ratio", "optim.weight_decay", "optim.warmup_steps", "optim.decay",
    "data.source", "data.path", "data.format", "data.packing", "data.row_tokens", "trainer.precision",
    "trainer.max_epochs", "trainer.max_steps", "trainer.rows_per_batch", "trainer.accumulate", "seed", "monitor",
)  # fmt: skip


def run_page(run: Path) -> str:
    """The page of one run; its picture is written on the way."""
    from medreason.report.run_curves import curves_of  # matplotlib is slow to import, and --help needs none

    trial = read_trial(run)
    (record, _), (config, _) = read_mapping(run / "run.json"), read_mapping(run / "config.yaml")
    results, name = mapping(record.get("results")), run.resolve().name
    rows = []
    for label, key, shape in (("held-out loss", "val_loss", ".4f"), ("held-out exact match", "accuracy", ".1%")):
        pair = [finite(results.get(f"{key}_{when}")) for when in ("before", "after")]
        if any(each is not None for each in pair):
            rows.append([label, *("" if each is None else format(each, shape) for each in pair)])
    telling = {key: look_up(config, key) for key in dict.fromkeys((*trial.settings, *TELLING))}
    whole = (run / "config.yaml").read_text(encoding="utf-8", errors="replace") if config else ""
    origin = {key: record.get(key) for key in ("started", "commit", "device", "python", "resumed_from")}
    return page(
        f"Run {name}",
        [
            f"<h1>Run {escape(name)}</h1>",
            tiles(headline(trial, record, config)),
            paragraph(f"{trial.state}: {trial.reason}") if trial.reason else "",
            paragraph(f"Interruptions survived: {'; '.join(trial.died)}.") if trial.died else "",
            section("Next", *map(command, next_commands(run, trial, config))),
            section("Repeat it", command_block(trial.overrides) if trial.overrides else ""),
            section("Results", table(("", "before", "after"), rows)),
            section(
                "Course",
                picture(
                    curves_of(run, record), run / "report", "curves",
                    "Loss, held-out loss, learning rate and gradient norm by optimizer step; the star is the step "
                    "whose weights adapter/ holds.",
                ),
            ),
            section("Evaluations", *evaluations(run)),
            section("Held-out questions", *samples(run, results, config)),
            section(
                "Configuration",
                facts_table(telling),
                folded("all of it", f"<pre>{escape(whole)}</pre>" if whole else ""),
            ),
            section("Data", facts_table(mapping(record.get("data")))),
            section("Made with", facts_table(origin | mapping(record.get("versions")))),
        ],
    )  # fmt: skip


def headline(trial: Trial, record: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A run in a few numbers; memory only where it was a GPU's."""
    facts = [("status", trial.state), ("optimizer steps", f"{trial.steps:,}"), ("time", duration(trial.seconds))]
    facts += [("tokens", amount(trial.tokens))] if trial.tokens else []
    memory = finite(mapping(record.get("results")).get("peak_memory_gib"))
    trained_on_cpu = on_cpu(record) or look_up(config, "trainer.accelerator") == "cpu"
    return [*facts, ("peak GPU memory", f"{memory:.1f} GiB")] if memory is not None and not trained_on_cpu else facts


def next_commands(run: Path, trial: Trial, config: Mapping[str, Any]) -> list[str]:
    """What can be done with the run as it lies there; without a report of it, which this is."""
    if trial.state == "interrupted" and (run / "checkpoints" / "last.ckpt").is_file():
        return after_stop(run)
    if not (run / ADAPTER).is_dir():
        return []
    source, rows = (look_up(config, key) for key in ("data.source", "data.path"))
    return after_run(run, str(source), rows if isinstance(rows, str) else None)[:-1]


def evaluations(run: Path) -> list[str]:
    """A row for each benchmark of each evaluation, differences to other models in words below, what is not finished."""
    rows, told = [], []
    for folder in sorted(path.parent for path in (run / "evaluation").glob("*/evaluation.json")):
        found, trouble = read_mapping(folder / "scores.json")
        if trouble:
            given = sum(1 for path in folder.glob("*.jsonl") for one in read_json_lines(path) if "id" in one)
            told.append(f"{folder.name}: not finished, {given:,} answers so far; the same command goes on with it.")
        for benchmark, each in mapping(found.get("scores")).items():
            rows.append([escape(folder.name), prose(benchmark), *score_cells(mapping(each))])
        for benchmark, pair in mapping(found.get("differences")).items():
            if words := mapping(pair).get("in_words"):
                told.append(f"{folder.name}, {benchmark}, against {found.get('against')}: {words}.")
    header = ("evaluation", "benchmark", "score", "95% interval", "n", "guessing", "cut")
    return [table(header, rows), *map(paragraph, told)]


def score_cells(score: Mapping[str, Any]) -> list[str]:
    """Score, its interval, questions, what guessing scores, answers cut by their length; empty where not on record."""
    loss = mapping(score.get("loss"))
    judged = mapping(score.get("judged")) if score.get("accuracy") is None else {}
    whole = with_interval(score.get("accuracy"), score)
    for other in filter(None, (loss, judged)):
        whole = with_interval(other.get("mean"), other)
    cells = ["", ""]
    if whole is not None:
        value, low, high = whole
        cells = [f"{value:.3f} nats a token", f"{low:.3f} to {high:.3f}"] if loss else [
            f"{value:.1%}" + (" by a judge" if judged else ""), f"{low:.1%} to {high:.1%}"]  # fmt: skip
    questions, guessing, cut = (finite(score.get(key)) for key in ("questions", "chance", "cut"))
    cells.append("" if questions is None else f"{questions:,.0f}")
    cells.append("" if guessing is None else f"{guessing:.1%}")
    return [*cells, f"{cut:,.0f}" if cut else ""]


def samples(run: Path, results: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Held-out questions with the answers before and after training, reasoning folded; how many were right and cut.

    Right and wrong are told where the run measured exact match: any other text has no one answer to compare with.
    """
    try:
        rows = json.loads((run / "samples.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    kept = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    style = Format.__members__.get(str(look_up(config, "data.format")), Format.think)
    exact = any(finite(results.get(f"accuracy_{when}")) is not None for when in ("before", "after"))
    return [counted(kept, style, exact), *(sample(row, style, exact) for row in kept)]


def counted(rows: Sequence[Mapping[str, Any]], style: Format, exact: bool) -> str:
    """A sentence on how many answers were right, and how many cut; nothing without answers."""
    told = []
    for when in ("before", "after"):
        asked = [row for row in rows if when in row]
        cut, right = sum(was_cut(row, when) for row in asked), sum(is_right(row, when, style) for row in asked)
        parts = [f"{right} of {len(asked)} right"] if exact else []
        parts += [f"{cut} of {len(asked)} cut off at the length limit"] if cut else []
        told += [f"{when.capitalize()} training: {', '.join(parts)}."] if asked and parts else []
    told += (
        [] if exact or not rows else ["Not marked as right or wrong: such questions have no one wording of an answer."]
    )
    return paragraph(" ".join(told)) if told else ""


def was_cut(row: Mapping[str, Any], when: str) -> bool:
    """Whether the length limit ended an answer; no for a run that did not record it."""
    return mapping(row.get("cut")).get(when) is True


def is_right(row: Mapping[str, Any], when: str, style: Format) -> bool:
    return answers_match(parse_answer(str(row[when]), style).answer, str(row.get("answer") or ""))


def sample(row: Mapping[str, Any], style: Format, exact: bool) -> str:
    lines = [f'<p class="text"><b>{escape(str(row.get("question", "")))}</b></p>']
    lines += [answer("expected", str(row.get("reasoning") or ""), str(row.get("answer") or ""))]
    for when in ("before", "after"):
        if when in row:
            parsed = parse_answer(str(row[when]), style)
            marks = []
            if exact:
                marks += [
                    mark("right", "\u2713 right") if is_right(row, when, style) else mark("wrong", "\u2717 wrong")
                ]
            marks += [mark("cut", "\u2702 cut off")] if was_cut(row, when) else []
            lines.append(answer(when, parsed.reasoning, parsed.answer, *marks))
    return '<div class="sample">' + "\n".join(lines) + "</div>"
