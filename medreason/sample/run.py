"""python -m medreason.sample run=DIR: a model answers training questions, and right answers become rows to learn from.

Every answer is written down as it comes, so an interrupted command goes on where it stopped:

RUN/sampled/   answers.jsonl   a line a question: its answers, which are right, which show their reasoning and end
               rows.jsonl      right ones as rows: python -m medreason.train data=local data.path=RUN/sampled/rows.jsonl
               sample.json     what was asked of whom, what was refused as a benchmark's, and what came of it
               sample.log      everything that was said
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medreason.config import Batching, Checkpoint, ConfigError, EvaluateConfig, Method, SampleConfig, TrainConfig
from medreason.core.cli import command
from medreason.core.disk import whole_file
from medreason.core.json_lines import json_lines
from medreason.core.outside import one_line
from medreason.core.progress import say
from medreason.core.run_directory import check_can_write, provenance, read_json, run_config, write_json
from medreason.core.run_log import kept_log
from medreason.core.what_next import after_sampling
from medreason.data.benchmarks import Task
from medreason.evaluate.run import (
    answer_all,
    answering,
    as_evaluation,
    check_same,
    choose_batching,
    chosen,
    identity,
    import_engine,
    load_model,
    most_tokens,
    read_records,
    rows_if_there,
)
from medreason.inference.target import Answerer, find_answerer
from medreason.models.checks import check_precision
from medreason.sample.questions import Refusal, benchmark_questions, gated, told, training_questions
from medreason.sample.rows import Counts, counted, judged, kept

ANSWERS = "answers"


def sample(config: SampleConfig) -> None:
    answerer = find_answerer(config.run, base=config.base, checkpoint=config.checkpoint, precision=config.precision)
    check_precision(answerer.config.model, "precision")
    name = "sampled" + ("" if answerer.adapter else "_base")
    name += "_last" if config.checkpoint is Checkpoint.last else ""
    folder = Path(config.output) if config.output else answerer.folder / name
    check_can_write(folder, "output")
    found = training_questions(config.data, answerer, say)
    split = None if answerer.run is None else rows_if_there(answerer.config)
    theirs = benchmark_questions(config.benchmarks, asked_rows(config, answerer), config.data)
    task, refused = gated(found, theirs, split)
    if refused:
        named = ", ".join(sorted({one.benchmark for one in refused}))
        say(f"{len(refused):,} of {len(found.questions):,} questions are not asked, being those of {named}")
    if not task.questions:
        raise ConfigError(f"data={config.data or found.name}: all are questions of {named}; name others")
    task = chosen(task, config.limit, config.seed)
    evaluation = as_evaluation(config, method=Method.generate, benchmarks=[ANSWERS])
    earlier = read_json(folder / "sample.json")
    batching = choose_batching(config.batching, answerer.config.model, earlier.get("sampled") or {})
    what = identity(evaluation, answerer, batching) | {"data": config.data, "seed": config.seed}
    check_same(earlier.get("sampled") or {}, what, folder)
    if earlier.get("fingerprint", found.fingerprint) != found.fingerprint:
        raise ConfigError(f"{folder} holds answers to other questions; remove it, or give output=DIR")
    folder.mkdir(parents=True, exist_ok=True)
    begun = {"provenance": provenance(), "sampled": what, "fingerprint": found.fingerprint, "refused": told(refused)}
    with kept_log(folder / "sample.log"):
        write_json(folder / "sample.json", begun)
        ask(evaluation, answerer, batching, task, folder)
        counts = write_rows(config, answerer.config, task, folder)
        write_json(folder / "sample.json", begun | {"counts": asdict(counts)})
        show(counts, refused, task, folder)
        if counts.rows:
            print("next:", after_sampling(answerer.run, folder / "rows.jsonl", answerer.config.model.path), sep="\n  ")


def asked_rows(config: SampleConfig, answerer: Answerer) -> list[Any]:
    """Settings of the rows whose benchmarks the gate minds: of the run, and of another one whose cases are asked."""
    other = config.data is not None and (Path(config.data) / "config.yaml").is_file()
    return [answerer.config.data, *([run_config(Path(str(config.data))).data] if other else [])]


def ask(evaluation: EvaluateConfig, answerer: Answerer, batching: Batching, task: Task, folder: Path) -> None:
    """Has the model answer what it has not answered yet. Raises ConfigError where it can read none of the questions."""
    answered = {record["id"] for record in read_records(folder / f"{ANSWERS}.jsonl")}
    left = [question for question in task.questions if question.id not in answered]
    say(f"{task.name}: {len(task.questions):,} questions, {len(left):,} to answer {evaluation.samples:,} times")
    if not left:
        return
    trained, style = answerer.config, answerer.config.data.format
    import_engine(evaluation, trained, batching)
    from medreason.evaluate.asking import beyond
    from medreason.models.load import context_tokens, load_tokenizer

    tokenizer = load_tokenizer(trained.model)
    room, written = context_tokens(trained.model), evaluation.max_new_tokens
    long = set(beyond(room, tokenizer, left, task.kind, style, orders=1, max_new_tokens=written))
    fitting = [question for question in left if question.id not in long]
    if long:
        reads = f"longer than the {room:,} tokens that the model reads, with {written:,} for its answer"
        if not (fitting or answered):
            raise ConfigError(f"data: all questions are {reads}; lower max_new_tokens")
        say(f"{len(long):,} questions are not asked, being {reads}")
    if not fitting:
        return
    write = answering(evaluation, answerer, batching, load_model(evaluation, answerer, batching), tokenizer)
    answer_all(
        lambda kind, questions, wrote: (judged(record, style) for record in write(kind, questions, wrote)),
        folder,
        {ANSWERS: (task.kind, fitting)},
        most_tokens(evaluation),
    )


def write_rows(config: SampleConfig, trained: TrainConfig, task: Task, folder: Path) -> Counts:
    """Writes rows.jsonl of the answers to these questions that are kept, all or nothing."""
    questions = {question.id: question for question in task.questions}
    answers = read_records(folder / f"{ANSWERS}.jsonl", task)
    style, most = trained.data.format, trained.data.max_field_chars
    rows = [
        row for one in answers for row in kept(questions[one["id"]], one, style, config.keep, config.right_share, most)
    ]
    with whole_file(folder / "rows.jsonl") as draft:
        draft.write_text(json_lines(map(asdict, rows)), encoding="utf-8")
    return counted(answers, len(rows))


def show(counts: Counts, refused: Sequence[Refusal], task: Task, folder: Path) -> None:
    """What came of it."""
    share = counts.solved / max(counts.questions, 1)
    print(f"questions: {counts.questions:,}, answered right at least once: {counts.solved:,} ({share:.1%})")
    share = counts.right / max(counts.answers, 1)
    print(f"answers: {counts.answers:,}, right: {counts.right:,} ({share:.1%}), whole with their reasoning: "
          f"{counts.whole:,}")  # fmt: skip
    if refused:
        print(f"refused as questions of benchmarks: {len(refused):,}")
    if not counts.whole:
        print("no row: the model never answers right with its reasoning; train it further first, or sample more")
    elif not counts.rows:
        print("no row: of no question enough answers are right (right_share); train it further first, or lower that")
    else:
        print(one_line(f"rows to learn from: {counts.rows:,} in {folder / 'rows.jsonl'}"))


def main() -> None:
    command(sample, "sample", SampleConfig)
