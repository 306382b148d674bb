"""python -m medreason.evaluate: how well a run, an adapter or a model alone answers medical questions.

Every answer is written down as it comes, so an interrupted evaluation goes on where it stopped:

RUN/evaluation/NAME/  BENCHMARK.jsonl   a line a question (medreason/report/scores.py)
                      scores.json       accuracy with intervals, comparisons
                      scores.png        accuracy by benchmark and subject
                      evaluate.log      everything that was said
                      judge.json, BENCHMARK_judge.jsonl   with judge=URL (medreason/evaluate/asking_judge.py)
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medreason.config import (
    Batching,
    Checkpoint,
    ConfigError,
    EvaluateConfig,
    Format,
    Method,
    ModelConfig,
    Precision,
    Stress,
    TrainConfig,
    typed,
)
from medreason.core.json_lines import append_json_lines, mend_last_line, read_json_lines
from medreason.core.outside import one_line
from medreason.core.progress import quieten, say
from medreason.core.progress_line import AnswersLine
from medreason.core.run_directory import provenance, read_json, weights_digest, write_json
from medreason.core.run_log import kept_log
from medreason.core.settings_help import root
from medreason.data.benchmarks import Kind, Question, Task, chance, length
from medreason.data.clinical_cases import KINDS
from medreason.data.corpus import Split, read_split
from medreason.data.known_benchmarks import read_task
from medreason.evaluate.asking_judge import ask_judge, check_judging, find_judge, read_judged, same_judge, to_judge
from medreason.evaluate.builtin import RUN_TASKS, learned, run_task, seen_in_training, taught_kinds
from medreason.evaluate.display import draw, show
from medreason.evaluate.stress import none_of_above, wrong_beginning
from medreason.export.model_card import write_cards
from medreason.inference.target import Answerer, find_answerer
from medreason.models.checks import check_installed, check_precision, check_server
from medreason.report.scores import compare, compare_judged, right, summarize, summarize_judged
from medreason.report.wandb import log_scores

Load = Callable[[EvaluateConfig, Answerer, Batching], Any]  # the model
Wrote = Callable[[int], None]  # told how many tokens were written so far
Answering = Callable[[Kind, Sequence[Question], Wrote], Iterator[dict[str, Any]]]  # questions -> records, as they come

# Of questions. A token costs a pass over all weights, however many questions share it; whole prompts gain little.
BATCH = {Method.likelihood: 8, Method.generate: 32}
ROOM = 1.3  # a card's memory over a model's weights in 16 bits: with less, too few answers are written at once


def evaluate(config: EvaluateConfig, load: Load | None = None) -> None:
    """One evaluation; `load` gives the model in the place of `load_model`, where several share one."""
    answerer = find_answerer(
        config.run, base=config.base, checkpoint=config.checkpoint, precision=config.precision, style=config.format
    )
    trained = answerer.config
    check_against(config.against)
    if config.server is None:
        check_precision(trained.model, "precision")
    else:
        check_installed("serve", "openai")
        check_server(config.server)
    if "clinical_cases" in config.benchmarks and config.method is Method.likelihood:
        raise ConfigError("benchmarks=clinical_cases: its answers have no letters; set method=generate")
    judge = find_judge(config)
    found_tasks = {name: read_task(name, say) for name in config.benchmarks if name not in RUN_TASKS}
    for name, task in found_tasks.items():
        if task.kind is Kind.open and config.method is Method.likelihood:
            raise ConfigError(f"benchmarks={name}: its answers have no letters; set method=generate and judge=URL")
    own = [name for name in config.benchmarks if name in RUN_TASKS]
    split: Split | None
    if answerer.run is None:
        split = None
    elif own:
        split = read_split(trained.data, say)
    else:
        split = rows_if_there(trained)
    taught = taught_kinds(trained.data)
    found_tasks |= {name: run_task(name, split, taught) for name in own}
    if "clinical_cases" in own and len(taught) < len(KINDS):
        say(f"clinical_cases: of the kinds that the run was taught: {', '.join(taught)}")
    tasks = [chosen(found_tasks[name], config.limit, config.seed) for name in config.benchmarks]
    if twice := [task.name for index, task in enumerate(tasks) if task.name in {one.name for one in tasks[:index]}]:
        raise ConfigError(f"benchmarks: two of them are called {twice[0]}; rename one of the files")
    if config.stress:
        if unfit := [task.name for task in tasks if task.kind is not Kind.choice]:
            raise ConfigError(f"stress={config.stress.value}: {unfit[0]} has no options; name other benchmarks")
        tasks = [none_of_above(task) for task in tasks] if config.stress is Stress.none_of_above else tasks
    name = evaluation_name(config, answerer)
    plain = answerer.folder / "evaluation" / name
    name += f"_{config.stress.value}" if config.stress else ""
    folder = Path(config.output) if config.output else answerer.folder / "evaluation" / name
    if config.stress and config.against is None and (plain / "evaluation.json").is_file():
        config = replace(config, against=str(plain))
    batching = Batching.static
    if config.method is Method.generate and config.server is None:
        batching = choose_batching(config.batching, trained.model, read_json(folder / "evaluation.json"))
    what = identity(config, answerer, batching)
    if config.server is not None:  # at whatever address, in whatever precision the server holds it
        served_model = config.served_model or served_name(answerer)
        what |= {"precision": None, "batching": "served", "served_model": served_model}
    if judge is not None:
        check_judging(judge, tasks, folder)
    left = {task.name: unanswered(task, folder, what) for task in tasks}
    for task in tasks:
        say(f"{task.name}: {len(task.questions):,} questions, {len(left[task.name]):,} to answer")
    seen = shared_with_training(tasks, split) if split is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    with kept_log(folder / "evaluate.log"):
        answer(config, answerer, batching, tasks, left, folder, what, load or load_model)
        style = trained.data.format
        if judge is not None:
            records = {task.name: read_records(folder / f"{task.name}.jsonl", task) for task in tasks}
            ask_judge(judge, tasks, records, style, folder, config.batch)
        score(config, answerer, tasks, seen, folder, what)


def answer(
    config: EvaluateConfig,
    answerer: Answerer,
    batching: Batching,
    tasks: Sequence[Task],
    left: dict[str, list[Question]],
    folder: Path,
    what: dict[str, Any],
    load: Load,
) -> None:
    """Answers what is left; the model is gone from memory afterwards, unless `load` holds it."""
    trained = answerer.config
    write_json(folder / "evaluation.json", what | {"tasks": {task.name: task.fingerprint for task in tasks}})
    kinds = {task.name: task.kind for task in tasks}
    work = {name: (kinds[name], some) for name, some in left.items() if some}
    if work and config.server is None:
        import_engine(config, trained, batching)
        from medreason.models.load import load_tokenizer

        tokenizer = load_tokenizer(trained.model)
        work = set_apart(config, trained.model, trained.data.format, tokenizer, folder, work)
        if work:
            model = load(config, answerer, batching)
            answer_all(answering(config, answerer, batching, model, tokenizer), folder, work, most_tokens(config))
    elif work and config.server is not None:
        answer_all(served(config, config.server, what["served_model"], trained.data.format), folder, work)


def score(
    config: EvaluateConfig,
    answerer: Answerer,
    tasks: Sequence[Task],
    seen: dict[str, set[str]] | None,
    folder: Path,
    what: dict[str, Any],
) -> None:
    """Writes down the scores of all answers; `seen` is None where the training rows are not known."""
    trained = answerer.config
    found = {task.name: read_records(folder / f"{task.name}.jsonl", task) for task in tasks}
    judged = {task.name: read_judged(task, found[task.name], trained.data.format, folder) for task in to_judge(tasks)}
    scores: dict[str, Any] = {
        "provenance": provenance(),
        "evaluated": what,
        "scores": {
            task.name: summarize(found[task.name], (seen or {}).get(task.name, set()))
            | {"chance": chance(task.questions)}
            | ({"judged": judged_summary(task, found[task.name], each)} if (each := judged.get(task.name)) else {})
            for task in tasks
        },
        "seen_in_training": {name: sorted(ids) for name, ids in seen.items()} if seen is not None else None,
        "against": config.against,
        "others": others(found, config.against),
        "differences": differences(found, config.against) | judged_differences(tasks, judged, folder, config.against),
    }
    write_json(folder / "scores.json", scores)
    draw(scores, folder / "scores.png")
    if answerer.run is not None:
        write_cards(answerer.run)
        log_scores(trained, answerer.run, folder.name, scores["scores"])
    show(scores)
    if unjudged := [name for name, each in judged.items() if not each and name not in RUN_TASKS]:
        say(f"{', '.join(unjudged)}: whether answers are good is for a judge to say (judge=URL)")
    print(one_line(f"every answer, scores.json and scores.png: {folder}"))


def as_evaluation(config: Any, **others: Any) -> EvaluateConfig:
    """The evaluation with the settings that another command's have in common with it, and `others`.

    All else is as medreason.evaluate has it.
    """
    usual = OmegaConf.to_container(OmegaConf.load(root() / "conf" / "evaluate.yaml"))
    assert isinstance(usual, dict)
    own = {field.name for field in fields(config)}
    values = {
        field.name: getattr(config, field.name) if field.name in own else usual[field.name]
        for field in fields(EvaluateConfig)
    }
    return typed(EvaluateConfig, values | others)


def rows_if_there(trained: TrainConfig) -> Split | None:
    """The rows that a run learned from and held out; None where they are gone."""
    try:
        return read_split(trained.data, say)
    except (ConfigError, OSError) as error:
        say(f"not compared with the training rows: {error}")
        return None


def shared_with_training(tasks: Sequence[Task], split: Split) -> dict[str, set[str]]:
    """Of each benchmark of letters the questions that share text with what the run learned from."""
    compared = [task for task in tasks if task.kind is Kind.choice]
    if not compared:
        return {}
    examples = learned(split)
    say(f"comparing {sum(len(task.questions) for task in compared):,} questions with {len(examples):,} training rows")
    return {task.name: seen_in_training(task, examples) for task in compared}


def evaluation_name(config: EvaluateConfig, answerer: Answerer) -> str:
    """What the folder of an evaluation's answers is called, without what is special about its questions."""
    name = config.method.value + ("" if answerer.adapter else "_base") + ("_served" if config.server else "")
    return name + ("_last" if config.checkpoint is Checkpoint.last else "")


def choose_batching(wanted: Batching | None, model: ModelConfig, earlier: dict[str, Any]) -> Batching:
    """What is asked for, else how answers were written that are there, else what is fastest here.

    Raises ConfigError for continuous batching of a model that it does not know.
    """
    from medreason.inference.slots import check_known
    from medreason.models.load import settings_of

    recorded = {one.value: one for one in Batching}.get(earlier.get("batching") or "")
    found = wanted or recorded or fastest_batching(model)
    if found is Batching.continuous:
        check_known(settings_of(model).get("model_type"))
    return found


def fastest_batching(model: ModelConfig) -> Batching:
    """Continuous for the models that it knows, where weights are as wide without it, or a GPU has room for 16 bits.

    By the size of the GPU, not by what is free: answers that are gone on with must be written in the same way. Those
    before compute capability 8.0 lack the attention that makes it fast.
    """
    import torch

    from medreason.inference.slots import KNOWN
    from medreason.models.load import bytes_in_16_bits, settings_of

    settings = settings_of(model)
    if settings.get("model_type") not in KNOWN:
        return Batching.static
    if not torch.cuda.is_available():
        return Batching.continuous if model.precision is Precision.half else Batching.static
    if torch.cuda.get_device_capability() < (8, 0):
        return Batching.static
    weights = bytes_in_16_bits(settings)
    if torch.cuda.mem_get_info()[1] > ROOM * weights:
        return Batching.continuous
    say(f"static batches: {weights / 2**30:.1f} GiB of weights in 16 bits leave continuous ones too little room here")
    return Batching.static


def chosen(task: Task, limit: int | None, seed: int) -> Task:
    """The task, or `limit` of its questions drawn by `seed`, in their own order."""
    if limit is None or limit >= len(task.questions):
        return task
    drawn = sorted(random.Random(seed).sample(range(len(task.questions)), limit))
    return replace(task, questions=tuple(task.questions[index] for index in drawn))


def identity(config: EvaluateConfig, answerer: Answerer, batching: Batching) -> dict[str, Any]:
    """What answers depend on: answers of anything else must not be mixed with them."""
    trained = answerer.config
    written = config.method is Method.generate
    return {
        "run": str(answerer.folder.resolve()),
        "base": answerer.adapter is None,
        "adapter": weights_digest(answerer.adapter) if answerer.adapter else None,
        "model": trained.model.path,
        "precision": trained.model.precision.value,
        "method": config.method.value,
        "format": trained.data.format.value,
        "orders": config.orders,
        "max_new_tokens": config.max_new_tokens if written else None,
        "batching": batching.value if written else None,
        "samples": config.samples if written else None,
        "thinking_tokens": config.thinking_tokens,
        "temperature": temperature(config) or None,
        "stress": config.stress.value if config.stress else None,
    }


def unanswered(task: Task, folder: Path, what: dict[str, Any]) -> list[Question]:
    """Questions without an answer in `folder`. Raises ConfigError where answers of something else lie there."""
    earlier = read_json(folder / "evaluation.json")
    tasks = earlier.pop("tasks", {})
    unsaid = {"adapter": what["adapter"], "stress": None, "thinking_tokens": None}  # by earlier releases
    check_same(unsaid | earlier if earlier else {}, what, folder)
    if tasks.get(task.name, task.fingerprint) != task.fingerprint:
        raise ConfigError(f"{folder} holds answers to another {task.name}; give another output=DIR")
    answered = {record["id"] for record in read_records(folder / f"{task.name}.jsonl")}
    return [question for question in task.questions if question.id not in answered]


def check_same(earlier: dict[str, Any], what: dict[str, Any], folder: Path) -> None:
    """Raises ConfigError where the answers in `folder`, if there are any, depend on something else."""
    if earlier and earlier != what:
        key = next(key for key in what if earlier.get(key) != what[key])
        if key == "adapter":
            raise ConfigError(f"{folder} holds answers of other weights of this run; remove it, or give output=DIR")
        raise ConfigError(
            f"{folder} holds answers with {key}={earlier.get(key)}, not {what[key]}; give another output=DIR"
        )


def read_records(path: Path, task: Task | None = None) -> list[dict[str, Any]]:
    """The answers in a file, those to `task` in its order."""
    records = [record for record in read_json_lines(path) if "id" in record]
    if task is None:
        return records
    by_id = {record["id"]: record for record in records}
    return [by_id[question.id] for question in task.questions if question.id in by_id]


def answer_tokens(config: EvaluateConfig) -> int:
    """That can be written at most in one answer, reasoning included."""
    return config.max_new_tokens + max(config.thinking_tokens or [0])


def most_tokens(config: EvaluateConfig) -> int | None:
    """That can be written to a question, in all its orders and samples; None where letters are weighed."""
    return answer_tokens(config) * config.orders * config.samples if config.method is Method.generate else None


def answer_all(
    answered: Answering, folder: Path, left: dict[str, tuple[Kind, list[Question]]], most: int | None = None
) -> None:
    """Answers what is left; each record is in its file before the next one. `most` tokens are written to a question."""
    for name, (kind, questions) in left.items():
        # of like length together, so that little is padded
        questions.sort(key=length)
        mend_last_line(folder / f"{name}.jsonl")
        line = AnswersLine(name, len(questions), most and most * len(questions))
        for done, record in enumerate(answered(kind, questions, line.wrote), 1):
            append_json_lines(folder / f"{name}.jsonl", [record])
            line.tell(answered=done)
        line.end(stands=True)


def import_engine(config: EvaluateConfig, trained: TrainConfig, batching: Batching) -> None:
    """Imports what the model will need, Unsloth before transformers."""
    if continuously(config, batching) or trained.model.fast:
        say("importing transformers")
    else:
        from medreason.models.load import import_unsloth

        say("importing Unsloth (10 to 30 seconds)")
        import_unsloth()
    quieten()


def continuously(config: EvaluateConfig, batching: Batching) -> bool:
    return config.method is Method.generate and batching is Batching.continuous


def set_apart(
    config: EvaluateConfig,
    model: ModelConfig,
    style: Format,
    tokenizer: Any,
    folder: Path,
    left: dict[str, tuple[Kind, list[Question]]],
) -> dict[str, tuple[Kind, list[Question]]]:
    """What is left, without questions that are longer than the model reads: they get a record, as not answered.

    Raises ConfigError for a benchmark none of whose questions the model can read, and for letters that have no token of
    their own after the prompt.
    """
    from medreason.evaluate.asking import beyond, too_long
    from medreason.models.load import context_tokens

    room = context_tokens(model)
    written = answer_tokens(config) if config.method is Method.generate else None
    kept: dict[str, tuple[Kind, list[Question]]] = {}
    for name, (kind, questions) in left.items():
        long = beyond(room, tokenizer, questions, kind, style, orders=config.orders, max_new_tokens=written)
        if fitting := [question for question in questions if question.id not in long]:
            kept[name] = kind, fitting
        if not long:
            continue
        path = folder / f"{name}.jsonl"
        reads = f"the {room:,} tokens that the model reads" + (f", with {written:,} for its answer" if written else "")
        if not fitting and not read_records(path):
            less = "; lower max_new_tokens" if written else ""
            raise ConfigError(f"benchmarks={name}: all its questions are longer than {reads}{less}")
        first = ", ".join(map(repr, list(long)[:3])) + (", ..." if len(long) > 3 else "")
        say(f"{name}: {len(long):,} of {len(questions):,} questions longer than {reads} count as not answered: {first}")
        mend_last_line(path)
        append_json_lines(path, [too_long(question, kind) for question in questions if question.id in long])
    return kept


def load_model(config: EvaluateConfig, answerer: Answerer, batching: Batching) -> Any:
    """The model, in the form in which it answers fastest by the method asked for."""
    trained, adapter = answerer.config, answerer.adapter
    if continuously(config, batching):
        from medreason.inference.continuous import load_merged

        return load_merged(trained, adapter)
    from medreason.inference.batched import widen
    from medreason.models.load import load_trained

    model = load_trained(trained, adapter)
    if config.method is Method.generate:
        widen(model, trained.model.precision)
    return model


def load_base_once() -> Load:
    """`load_model` for a base and then its run: the run's adapter is given to the base that is in memory."""
    held: dict[bool, Any] = {}  # whether it writes continuously -> base

    def load(config: EvaluateConfig, answerer: Answerer, batching: Batching) -> Any:
        way = continuously(config, batching)
        if answerer.adapter is None:
            held[way] = load_model(config, answerer, batching)
            return held[way]
        base = held.pop(way, None)
        held.clear()
        if base is None:  # it has answered before, in an earlier command
            return load_model(config, answerer, batching)
        if way:
            from medreason.inference.continuous import merged

            return merged(base, answerer.adapter)
        from medreason.models.load import give_adapter

        give_adapter(base, answerer.adapter)
        return base

    return load


def answering(config: EvaluateConfig, answerer: Answerer, batching: Batching, model: Any, tokenizer: Any) -> Answering:
    """Records of questions by the method asked for, from a model that `load_model` gave."""
    trained, continuous = answerer.config, continuously(config, batching)
    import torch

    from medreason.evaluate.asking import by_likelihood, by_loss, by_writing, question_text
    from medreason.inference.batched import write_in_batches
    from medreason.inference.continuous import write_continuously
    from medreason.inference.thinking import write_within

    torch.manual_seed(config.seed)
    style, size, limit = trained.data.format, config.batch or BATCH[config.method], config.max_new_tokens

    def answered(kind: Kind, questions: Sequence[Question], wrote: Wrote) -> Iterator[dict[str, Any]]:
        def write(prompts: Sequence[str]) -> Iterator[tuple[int, Any]]:
            if config.thinking_tokens is None:
                return write_most(prompts, limit)
            [budget] = config.thinking_tokens
            return write_within(write_most, prompts, style, budget=budget, answer_tokens=limit)

        def write_most(prompts: Sequence[str], most: int) -> Iterator[tuple[int, Any]]:
            given: dict[str, Any] = {"max_new_tokens": most, "temperature": temperature(config), "progress": wrote}
            if continuous:
                return write_continuously(model, tokenizer, prompts, seed=config.seed, at_once=config.batch, **given)
            return write_in_batches(model, tokenizer, prompts, batch_size=size, **given)

        if config.method is Method.generate:

            def begun(question: Question) -> str:
                return wrong_beginning(question, style) if config.stress is Stress.prefill else ""

            return by_writing(write, lambda question: question_text(tokenizer, question, style) + begun(question),
                              questions, kind, style, orders=config.orders, samples=config.samples,
                              begun=begun)  # fmt: skip
        if kind is Kind.open:
            return by_loss(model, tokenizer, questions, style, batch_size=size)
        return by_likelihood(model, tokenizer, questions, style, orders=config.orders, batch_size=size)

    return answered


def served_name(answerer: Answerer) -> str:
    """What medreason.serve has clients call a run's model; a model alone by its own name."""
    from medreason.serve.start import merged, model_name

    if answerer.run is not None:
        return model_name(merged(answerer.run).resolve())
    if answerer.adapter is not None:
        raise ConfigError("served_model must be given: what the server calls the model with this adapter")
    return answerer.config.model.path


def served(config: EvaluateConfig, server: str, model: str, style: Format) -> Answering:
    """Records of questions that a server's model answers in writing."""
    from medreason.evaluate.asking import by_writing, question_turns
    from medreason.inference.server import write_remotely

    quieten()

    def write(turns: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        return write_remotely(
            server, model, turns, style, max_new_tokens=config.max_new_tokens,
            at_once=config.batch or BATCH[config.method], temperature=temperature(config), seed=config.seed,
        )  # fmt: skip

    return lambda kind, questions, wrote: by_writing(
        write, question_turns, questions, kind, style, orders=config.orders, samples=config.samples
    )


def temperature(config: EvaluateConfig) -> float:
    """A single answer is greedy."""
    return config.temperature if config.samples > 1 else 0.0


def check_against(against: str | None) -> None:
    """Raises ConfigError for a folder that holds no evaluation."""
    if against is not None and not (Path(against) / "evaluation.json").is_file():
        raise ConfigError(f"against={against}: no evaluation there; name a folder such as RUN/evaluation/likelihood")


def others(found: dict[str, list[dict[str, Any]]], against: str | None) -> dict[str, Any]:
    """By benchmark, what the answers in `against` score on the questions that were answered here, too."""
    if against is None:
        return {}
    scores = {}
    for name, records in found.items():
        asked = {record["id"] for record in records}
        theirs = [one for one in read_records(Path(against) / f"{name}.jsonl") if one["id"] in asked]
        if theirs:
            scores[name] = summarize(theirs)
    return {"evaluated": read_json(Path(against) / "evaluation.json"), "scores": scores}


def differences(found: dict[str, list[dict[str, Any]]], against: str | None) -> dict[str, Any]:
    """By benchmark, the paired difference to the evaluation in `against`."""
    if against is None:
        return {}
    pairs = {name: compare(records, read_records(Path(against) / f"{name}.jsonl")) for name, records in found.items()}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def judged_summary(task: Task, records: Sequence[dict[str, Any]], each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the judge says of a benchmark's answers, beside what a rule says where there is one."""
    if task.kind is not Kind.exact:
        return summarize_judged(each)
    ruled = {record["id"]: is_right for record, is_right in zip(records, right(records), strict=True)}
    return summarize_judged(each, ruled)


def judged_differences(
    tasks: Sequence[Task], judged: dict[str, list[dict[str, Any]]], folder: Path, against: str | None
) -> dict[str, Any]:
    """By open benchmark, the paired difference to the evaluation in `against`, where the same judge read both."""
    if against is None or not same_judge(folder, Path(against)):
        return {}
    style = Format(read_json(Path(against) / "evaluation.json")["format"])
    found = {}
    for task in tasks:
        if task.kind is Kind.open and judged[task.name]:
            records = read_records(Path(against) / f"{task.name}.jsonl", task)
            found[task.name] = compare_judged(judged[task.name], read_judged(task, records, style, Path(against)))
    return {name: pair for name, pair in found.items() if pair is not None}
