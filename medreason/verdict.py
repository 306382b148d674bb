"""python -m medreason.verdict run=DIR: did fine-tuning help? The run and its base answer the same questions.

RUN/evaluation/verdict_METHOD/  run/ base/     an evaluation each (medreason/evaluate/run.py); interrupted, they go on
                                verdict.json   a call for each benchmark, with interval and p
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from medreason.config import ConfigError, EvaluateConfig, RunFailed, VerdictConfig
from medreason.core.cli import command
from medreason.core.outside import literal, one_line
from medreason.core.progress import say
from medreason.core.run_directory import provenance, write_json
from medreason.data.benchmarks import Kind
from medreason.data.folders import table_name
from medreason.data.known_benchmarks import HUB, read_task
from medreason.evaluate.builtin import RUN_TASKS
from medreason.evaluate.run import as_evaluation, evaluate, load_base_once, read_records
from medreason.inference.target import find_answerer
from medreason.report.scores import right
from medreason.report.verdicts import Call, Verdict, in_words, judge

FORGETTING = "forgetting"


def give_verdict(config: VerdictConfig) -> None:
    if "held_out" in (*config.benchmarks, *config.forgetting):
        raise ConfigError("benchmarks=held_out: its answers are neither right nor wrong; see medreason.evaluate")
    for name in (*config.benchmarks, *config.forgetting):
        if name not in HUB and name not in RUN_TASKS and read_task(name).kind is Kind.open:
            raise ConfigError(f"benchmarks={name}: no rule knows its right answers; see medreason.evaluate judge=URL")
    if find_answerer(config.run, checkpoint=config.checkpoint).adapter is None:
        raise ConfigError(f"run={config.run}: a model alone, and no run or adapter to compare with its base")
    folder = Path(config.output or Path(config.run) / "evaluation" / f"verdict_{config.method.value}")
    load = load_base_once()
    for base in (True, False):
        say("the model before the run:" if base else "the run:")
        evaluate(evaluation(config, folder, base), load=load)
    names = [task_name(name) for name in (*config.benchmarks, *config.forgetting)]
    answers = {name: both for name in names if (both := paired(folder, name)) is not None}
    if not answers:
        raise RunFailed("no question was answered by both the run and its base")
    verdicts = judge(answers, config.margin / 100)
    forgotten = {task_name(name) for name in config.forgetting}
    told = in_words(verdicts)
    write_json(
        folder / "verdict.json",
        {
            "provenance": provenance(),
            "run": config.run,
            "margin": config.margin / 100,
            "level": 0.95,
            "benchmarks": {name: plain(one) | {FORGETTING: name in forgotten} for name, one in verdicts.items()},
            "in_words": told,
        },
    )
    show(verdicts, forgotten, config.margin)
    print(one_line(f"beside its base, the run is {told}" if told else ""))
    print(one_line(f"verdict.json and every answer: {folder}"))
    if config.fail_if_worse and any(one.call is Call.worse for one in verdicts.values()):
        raise SystemExit(1)


def evaluation(config: VerdictConfig, folder: Path, base: bool) -> EvaluateConfig:
    """One of the two evaluations, with everything else as medreason.evaluate has it."""
    return as_evaluation(
        config,
        base=base,
        checkpoint=None if base else config.checkpoint,
        benchmarks=[*config.benchmarks, *config.forgetting],
        output=str(folder / ("base" if base else "run")),
        against=None if base else str(folder / "base"),
    )


def task_name(benchmark: str) -> str:
    """What an evaluation calls a benchmark: by its name, or that of its file."""
    return benchmark if benchmark in HUB or benchmark in RUN_TASKS else table_name(Path(benchmark))


def paired(folder: Path, name: str) -> tuple[list[bool], list[bool]] | None:
    """Which questions of a benchmark the run and its base answered right, in one order; None without any."""
    run, base = ({one["id"]: one for one in read_records(folder / part / f"{name}.jsonl")} for part in ("run", "base"))
    both = [key for key in run if key in base and run[key].get("gold") is not None]
    return (right([run[key] for key in both]), right([base[key] for key in both])) if both else None


def plain(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"call": verdict.call.value}


def show(verdicts: dict[str, Verdict], forgotten: set[str], margin: float) -> None:
    """A row for each benchmark."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "base", "run", "points (interval)", "call", box=None, pad_edge=False)
    for name, one in verdicts.items():
        low, high = (100 * end for end in one.interval)
        call = one.call.value if one.needed is None else f"{one.call.value}; about {one.needed:,} would do"
        if one.call is Call.same:
            call = f"the same within {margin:g} points"
        table.add_row(
            literal(f"{name} (forgetting)" if name in forgotten else name),
            f"{one.base:.1%}",
            f"{one.tuned:.1%}",
            f"{100 * one.difference:+.1f} ({low:+.1f} to {high:+.1f})",
            literal(call),
        )
    Console(highlight=False).print(table)


def main() -> None:
    command(give_verdict, "verdict", VerdictConfig)


if __name__ == "__main__":
    main()
