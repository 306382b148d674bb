"""thinking_tokens=[128,256]: the same questions answered within several budgets of reasoning.

RUN/evaluation/generate_thinking/  thinking_128/ thinking_256/   an evaluation each (medreason/evaluate/run.py)
                                   thinking.json, thinking.png   accuracy and tokens a question over the budget
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medreason.config import ConfigError, EvaluateConfig
from medreason.core.cli import command
from medreason.core.disk import whole_file
from medreason.core.outside import drawn, literal, one_line, prepare_pictures
from medreason.core.progress import say
from medreason.core.run_directory import provenance, read_json, write_json
from medreason.evaluate.display import share
from medreason.evaluate.run import choose_batching, evaluate, evaluation_name, load_model, read_records
from medreason.inference.target import find_answerer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Budgets = dict[str, list[dict[str, Any]]]  # benchmark -> a score for each budget, the smallest first


def run_evaluation(config: EvaluateConfig) -> None:
    """One evaluation, or one for each budget of reasoning."""
    if config.thinking_tokens is None:
        evaluate(config)
    else:
        evaluate_budgets(config, config.thinking_tokens)


def evaluate_budgets(config: EvaluateConfig, budgets: Sequence[int]) -> None:
    answerer = find_answerer(
        config.run, base=config.base, checkpoint=config.checkpoint, precision=config.precision, style=config.format
    )
    if config.against is not None:
        raise ConfigError("against: each budget is compared with the one below it; leave it out with thinking_tokens")
    own = answerer.folder / "evaluation" / f"{evaluation_name(config, answerer)}_thinking"
    folder = Path(config.output) if config.output else own
    held: list[Any] = []

    def load_once(*what: Any) -> Any:
        if not held:
            held.append(load_model(*what))
        return held[0]

    earlier = [read_json(folder / f"thinking_{budget}" / "evaluation.json") for budget in budgets]
    batching = choose_batching(config.batching, answerer.config.model, next(filter(None, earlier), {}))
    below: str | None = None
    parts: dict[int, Path] = {}
    for budget in budgets:
        say(f"reasoning ended after {budget:,} tokens:")
        parts[budget] = folder / f"thinking_{budget}"
        part = replace(config, thinking_tokens=[budget], output=str(parts[budget]), against=below)
        evaluate(replace(part, batching=batching), load=load_once)
        below = str(parts[budget])
    found = gathered(parts)
    write_json(folder / "thinking.json", {"provenance": provenance(), "run": config.run, "benchmarks": found})
    with whole_file(folder / "thinking.png") as draft:
        picture(found).savefig(draft, dpi=120)
    show(found)
    print(one_line(f"thinking.json, thinking.png and every answer: {folder}"))


def gathered(parts: Mapping[int, Path]) -> Budgets:
    """Scores by benchmark from the evaluations of each budget, with the mean of tokens written to a question."""
    found: Budgets = {}
    for budget, folder in parts.items():
        for name, score in read_json(folder / "scores.json")["scores"].items():
            written = [
                one["written_tokens"] for one in read_records(folder / f"{name}.jsonl") if "written_tokens" in one
            ]
            kept = {key: score[key] for key in ("questions", "accuracy", "interval", "chance") if key in score}
            tokens = sum(written) / len(written) if written else None
            found.setdefault(name, []).append({"budget": budget, **kept, "tokens": tokens})
    return found


def show(found: Budgets) -> None:
    """A row for each benchmark and budget."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "reasoning at most", "accuracy (95% interval)", "tokens a question", box=None, pad_edge=False)
    for name, scores in found.items():
        for number, one in enumerate(scores):
            tokens = "" if one["tokens"] is None else f"{one['tokens']:,.0f}"
            table.add_row(literal("" if number else name), f"{one['budget']:,}", share(one), tokens)
    Console(highlight=False).print(table)


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
MARKERS = "osD^vP"


def picture(found: Budgets) -> "Figure":
    """Accuracy with its interval, and below it the tokens written to a question, over the budget."""
    from matplotlib.figure import Figure

    prepare_pictures()
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 2])
    for number, (name, scores) in enumerate(found.items()):
        look: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "lw": 2,
        }
        graded = [one for one in scores if one.get("accuracy") is not None]
        if graded:
            budgets = [one["budget"] for one in graded]
            shares = [100 * one["accuracy"] for one in graded]
            low, high = ([100 * one["interval"][end] for one in graded] for end in (0, 1))
            reach = [[mean - end for mean, end in zip(shares, low, strict=True)],
                     [end - mean for mean, end in zip(shares, high, strict=True)]]  # fmt: skip
            above.errorbar(
                budgets, shares, reach, capsize=4, label=f"{drawn(name)} ({graded[0]['questions']:,})", **look
            )
            if graded[0].get("chance") is not None:
                above.axhline(100 * graded[0]["chance"], color=look["color"], ls="--", lw=1)
        counted = [one for one in scores if one["tokens"] is not None]
        below.plot([one["budget"] for one in counted], [one["tokens"] for one in counted], **look)
    budgets = sorted({one["budget"] for scores in found.values() for one in scores})
    below.set_xscale("log", base=2)
    below.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    below.minorticks_off()
    above.set_ylabel("answered correctly, %\n(95% interval; dashed: guessing)", fontsize=12)
    below.set_ylabel("tokens written\nto a question", fontsize=12)
    below.set_xlabel("tokens after which reasoning is ended", fontsize=12)
    above.set_ylim(bottom=0)
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    if above.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", frameon=False, fontsize=11, ncols=3)
    return figure


def main() -> None:
    command(run_evaluation, "evaluate", EvaluateConfig)
