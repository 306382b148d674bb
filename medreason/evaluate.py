"""python -m medreason.evaluate: how well a run's model, or the base it came from, answers medical questions.

Every answer is written down as it comes, so an interrupted evaluation goes on where it stopped:

RUN/evaluation/NAME/  BENCHMARK.jsonl   a line a question (medreason/scores.py)
                      scores.json       accuracy with intervals, comparisons
                      scores.png        accuracy by benchmark and subject
"""

import json
import math
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medreason.command import command
from medreason.config import ConfigError, EvaluateConfig, Method, TrainConfig
from medreason.preflight import check_hardware, check_model_path, settle_hub
from medreason.progress import quieten, say
from medreason.run_directory import provenance, read_json, run_config, write_json
from medreason.scores import compare, summarize
from medreason.tasks import Question, Task, read_task


def evaluate(config: EvaluateConfig) -> None:
    run = Path(config.run)
    trained = run_config(run)
    if config.precision is not None:
        trained.model = replace(trained.model, precision=config.precision)
    if not config.base and not (run / "adapter" / "adapter_config.json").is_file():
        raise ConfigError(f"run={run}: no adapter/ in it: it has not finished; base=true evaluates the model before it")
    check_model_path(trained.model)
    settle_hub(trained.model, trained.data)
    check_hardware(trained.model, trained.trainer)
    tasks = [chosen(read_task(name), config.limit, config.seed) for name in config.benchmarks]
    if twice := [task.name for index, task in enumerate(tasks) if task.name in {one.name for one in tasks[:index]}]:
        raise ConfigError(f"benchmarks: two of them are called {twice[0]}; rename one of the files")
    name = config.method.value + ("_base" if config.base else "")
    folder = Path(config.output) if config.output else run / "evaluation" / name
    check_against(config.against)
    what = identity(config, trained)
    left = {task.name: unanswered(task, folder, what) for task in tasks}
    for task in tasks:
        say(f"{task.name}: {len(task.questions):,} questions, {len(left[task.name]):,} to answer")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", what | {"tasks": {task.name: task.fingerprint for task in tasks}})
    if any(left.values()):
        answer_all(config, trained, run, folder, left)
    found = {task.name: read_records(folder / f"{task.name}.jsonl", task) for task in tasks}
    scores: dict[str, Any] = {
        "provenance": provenance(),
        "evaluated": what,
        "scores": {name: summarize(records) for name, records in found.items()},
        "against": config.against,
        "differences": differences(found, config.against),
    }
    write_json(folder / "scores.json", scores)
    draw(scores["scores"], folder / "scores.png")
    show(scores)
    print(f"every answer: {folder}/*.jsonl; scores: {folder}/scores.json, {folder}/scores.png")


def chosen(task: Task, limit: int | None, seed: int) -> Task:
    """The task, or `limit` of its questions drawn by `seed`, in their own order."""
    if limit is None or limit >= len(task.questions):
        return task
    drawn = sorted(random.Random(seed).sample(range(len(task.questions)), limit))
    return replace(task, questions=tuple(task.questions[index] for index in drawn))


def identity(config: EvaluateConfig, trained: TrainConfig) -> dict[str, Any]:
    """What answers depend on: answers of anything else must not be mixed with them."""
    return {
        "run": str(Path(config.run).resolve()),
        "base": config.base,
        "model": trained.model.path,
        "precision": trained.model.precision.value,
        "method": config.method.value,
        "format": trained.data.format.value,
        "max_new_tokens": config.max_new_tokens if config.method is Method.generate else None,
    }


def unanswered(task: Task, folder: Path, what: dict[str, Any]) -> list[Question]:
    """Questions without an answer in `folder`. Raises ConfigError where answers of something else lie there."""
    earlier = read_json(folder / "evaluation.json")
    tasks = earlier.pop("tasks", {})
    if earlier and earlier != what:
        key = next(key for key in what if earlier.get(key) != what[key])
        raise ConfigError(
            f"{folder} holds answers with {key}={earlier.get(key)}, not {what[key]}; give another output=DIR"
        )
    if tasks.get(task.name, task.fingerprint) != task.fingerprint:
        raise ConfigError(f"{folder} holds answers to another {task.name}; give another output=DIR")
    answered = {record["id"] for record in read_records(folder / f"{task.name}.jsonl")}
    return [question for question in task.questions if question.id not in answered]


def read_records(path: Path, task: Task | None = None) -> list[dict[str, Any]]:
    """The answers in a file, those to `task` in its order; a line that a kill has cut is left out."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    if task is None:
        return records
    by_id = {record["id"]: record for record in records}
    return [by_id[question.id] for question in task.questions if question.id in by_id]


def drop_cut_line(path: Path) -> None:
    """Takes away a last line that a kill has cut."""
    if path.is_file():
        kept = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(kept[0]) + len(kept[1]))


def append_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def answer_all(
    config: EvaluateConfig, trained: TrainConfig, run: Path, folder: Path, left: dict[str, list[Question]]
) -> None:
    """Loads the model and answers what is left, a few batches at a time."""
    say("importing Unsloth (10 to 30 seconds)")
    from medreason.model import import_unsloth, load_tokenizer, load_trained

    import_unsloth()
    quieten()
    tokenizer = load_tokenizer(trained.model)
    model = load_trained(trained, None if config.base else run / "adapter")
    answer = {Method.likelihood: by_likelihood, Method.generate: by_generation}[config.method]
    for name, questions in left.items():
        # of like length together; written down often enough that little is lost
        questions.sort(key=lambda question: len(question.question) + len(question.context))
        drop_cut_line(folder / f"{name}.jsonl")
        portion = config.batch * (8 if config.method is Method.likelihood else 1)
        for start in range(0, len(questions), portion):
            records = answer(model, tokenizer, questions[start : start + portion], config, trained)
            append_records(folder / f"{name}.jsonl", records)
            say(f"{name}: {min(start + portion, len(questions)):,} of {len(questions):,}")


def by_likelihood(
    model: Any, tokenizer: Any, questions: Sequence[Question], config: EvaluateConfig, trained: TrainConfig
) -> list[dict[str, Any]]:
    """Records with the probability of each letter, right after the prompt."""
    from medreason.likelihood import option_logprobs
    from medreason.prompts import prompt_text
    from medreason.tasks import likelihood_prompt

    prompts = [prompt_text(tokenizer, likelihood_prompt(question), trained.data.format) for question in questions]
    letters = [list(question.options) for question in questions]
    found = option_logprobs(model, tokenizer, prompts, letters, batch_size=config.batch)
    records = []
    for question, prompt, options, logprobs in zip(questions, prompts, letters, found, strict=True):
        top = max(logprobs)
        shares = [math.exp(value - top) for value in logprobs]
        probabilities = {letter: share / sum(shares) for letter, share in zip(options, shares, strict=True)}
        choice = max(probabilities, key=probabilities.__getitem__)
        records.append(record(question, prompt, "", choice) | {"probabilities": probabilities})
    return records


def by_generation(
    model: Any, tokenizer: Any, questions: Sequence[Question], config: EvaluateConfig, trained: TrainConfig
) -> list[dict[str, Any]]:
    """Records with what the model wrote, and the letters read from it by either rule."""
    from medreason.answers import huatuo_choice, strict_choice
    from medreason.generate import generate_answers
    from medreason.prompts import parse_answer, prompt_text
    from medreason.tasks import reasoning_prompt

    style = trained.data.format
    asked = [reasoning_prompt(question) for question in questions]
    written = generate_answers(
        model, tokenizer, asked, style, max_new_tokens=config.max_new_tokens, batch_size=config.batch
    )
    records = []
    for question, text, prompt in zip(questions, written, asked, strict=True):
        choice = strict_choice(parse_answer(text, style).answer, question.options)
        cut = len(tokenizer(text, add_special_tokens=False).input_ids) >= config.max_new_tokens - 1
        records.append(
            record(question, prompt_text(tokenizer, prompt, style), text, choice)
            | {"huatuo": huatuo_choice(text, question.options), "cut": cut}
        )
    return records


def record(question: Question, prompt: str, text: str, choice: str | None) -> dict[str, Any]:
    return {
        "id": question.id,
        "subject": question.subject,
        "gold": question.answer,
        "prompt": prompt,
        "text": text,
        "choice": choice,
        "cut": False,
    }


def check_against(against: str | None) -> None:
    """Raises ConfigError for a folder that holds no evaluation."""
    if against is not None and not (Path(against) / "evaluation.json").is_file():
        raise ConfigError(f"against={against}: no evaluation there; name a folder such as RUN/evaluation/likelihood")


def differences(found: dict[str, list[dict[str, Any]]], against: str | None) -> dict[str, Any]:
    """By benchmark, the paired difference to the evaluation in `against`."""
    if against is None:
        return {}
    pairs = {name: compare(records, read_records(Path(against) / f"{name}.jsonl")) for name, records in found.items()}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def show(scores: dict[str, Any]) -> None:
    """Prints the table, and what the comparison says."""
    from rich.console import Console
    from rich.table import Table

    huatuo = any("huatuo" in score for score in scores["scores"].values())
    table = Table("benchmark", "questions", "accuracy", "95% interval", "no answer", "cut")
    if huatuo:
        table.add_column("HuatuoGPT rule")
    for name, score in scores["scores"].items():
        low, high = score["interval"]
        cells = [name, f"{score['questions']:,}", f"{score['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
        cells += [str(score["no_answer"]), str(score["cut"])]
        table.add_row(*cells, *([f"{score['huatuo']['accuracy']:.1%}"] if huatuo else []))
    console = Console(highlight=False)
    console.print(table)
    for name, pair in scores["differences"].items():
        console.print(f"{name}, against {scores['against']}: {pair['in_words']}", soft_wrap=True)


def draw(scores: dict[str, Any], path: Path) -> None:
    """A point with its interval for each benchmark, and for each of its subjects where there are several."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = []
    for name, score in scores.items():
        rows.append((name, score, True))
        if len(score["subjects"]) > 1:
            rows += [(f"{subject or 'other'}", part, False) for subject, part in score["subjects"].items()]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.32 * len(rows)), layout="constrained")
    for place, (_, score, whole) in enumerate(rows):
        low, high = score["interval"]
        colour = "#2c5a8c" if whole else "#8fa8c0"
        axes.plot([100 * low, 100 * high], [place, place], color=colour, lw=2.5 if whole else 1.5)
        axes.plot([100 * score["accuracy"]], [place], "o", color=colour, ms=7 if whole else 4)
    axes.set_yticks(range(len(rows)), [f"{name} ({score['questions']:,})" for name, score, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel="questions answered correctly, % (95% interval)", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    command(evaluate, "evaluate", EvaluateConfig)


if __name__ == "__main__":
    main()
