"""The questions of a second stage: where they come from, and which are refused since they test models elsewhere.

data=null            the clinical cases that the run was trained on; those that it held out are never asked
data=RUN             those of another run
data=FILE            multiple choice (medreason/data/benchmarks.py), or question and answer, matched exactly
data=medqa:train     the training split of a benchmark of the hub
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medreason.config import Columns, ConfigError, DataConfig, Decontaminate, Source, TrainConfig
from medreason.core.outside import one_line
from medreason.core.progress import some_of
from medreason.core.run_directory import read_json, run_config
from medreason.data.benchmarks import Kind, Question, Task, from_row, make_task, placed
from medreason.data.clinical_cases import KINDS
from medreason.data.corpus import Say, Split, digest, read_split
from medreason.data.decontaminate import Question as Asked
from medreason.data.decontaminate import find_matches, read_questions
from medreason.data.examples import Rejects, read_examples
from medreason.data.folders import list_tables, split_of, table_kind, table_name, to_learn, visible
from medreason.data.known_benchmarks import HUB, read_task
from medreason.data.normalize import folded, normal
from medreason.data.sources import read_file, read_hub
from medreason.data.tables import Row
from medreason.evaluate.builtin import clinical_cases, learned
from medreason.inference.target import Answerer
from medreason.models.prompts import Example

SETTING = "data"
OPTIONS = {"options", "choices", "opa"}  # columns that multiple choice alone has
TRAINING = ":train"
CASES = "clinical_cases"


@dataclass(frozen=True)
class Refusal:
    """A question that is not asked, and the benchmark's question that it matches."""

    id: str
    benchmark: str
    theirs: str  # the id of its question
    rule: str


def training_questions(given: str | None, answerer: Answerer, say: Say) -> Task:
    """The questions that `data` names. Raises ConfigError for what cannot be read or judged, and for a benchmark."""
    if given is None:
        if answerer.run is None:
            raise ConfigError("data must be given: a model alone was trained on no questions; name a file (data=FILE)")
        return own_cases(answerer.config.data, answerer.run)
    if (Path(given) / "config.yaml").is_file():
        return own_cases(run_config(Path(given)).data, Path(given))
    name = given.removesuffix(TRAINING)
    if name in HUB and not Path(given).exists():
        return hub_training(name, given)
    path = Path(given)
    if not (path.exists() or table_kind(path) is not None):
        near = difflib.get_close_matches(given, [f"{one}{TRAINING}" for one in HUB], n=1)
        hint = f"did you mean {near[0]}?" if near else f"of a benchmark, name the training split: medqa{TRAINING}"
        raise ConfigError(f"{SETTING}={one_line(given)}: no such file or run ({hint})")
    task = file_questions(path, answerer.config, say)
    if scored := scored_by(task, answerer.folder):
        raise ConfigError(f"{SETTING}={visible(given)}: the benchmark that {scored} scores; name training questions")
    return task


def own_cases(data: DataConfig, run: Path) -> Task:
    """The clinical cases that a run was trained on, held-out ones not among them."""
    if data.source is not Source.clinical_cases:
        raise ConfigError(
            f"{SETTING} must be given: answers to the rows of {run} cannot be judged by rule; name a file of multiple "
            "choice, or of questions and exact answers (data=FILE)"
        )
    return exact_task(CASES, learned(read_split(data)))


def exact_task(name: str, examples: Sequence[Example]) -> Task:
    """Questions whose answer is right if it is the expected one, each once, known by their content."""
    by_question = {normal(one.question): one for one in reversed(examples)}
    found = sorted((digest(one).hex()[:16], one) for one in by_question.values())
    questions = (Question(id, one.question, {}, one.answer, "", "", one.reasoning) for id, one in found)
    return make_task(name, ((one.id, one) for one in questions), Kind.exact, SETTING)


def hub_training(name: str, given: str) -> Task:
    """The training split of a benchmark of the hub. Raises ConfigError for one that is scored itself, or is none."""
    path, configurations, scored, layout = HUB[name]
    if given == name:
        raise ConfigError(f"{SETTING}={name}: a benchmark's {scored} split, which medreason.evaluate scores; name "
                          f"training questions, such as {SETTING}=medqa{TRAINING}")  # fmt: skip
    if scored == "train":
        raise ConfigError(f"{SETTING}={given}: the split that medreason.evaluate scores; name other training questions")
    found = (
        each
        for configuration in configurations
        for row in read_hub(path, configuration, None, ("train",), SETTING)
        if (each := placed(path, row, layout, setting=SETTING))
    )
    return make_task(name, found, setting=SETTING)


def file_questions(path: Path, trained: TrainConfig, say: Say) -> Task:
    """Questions of a file or folder. Raises ConfigError for a file that is named as a benchmark or a test split is."""
    name = table_name(path)
    if (split := split_of(Path(path.name))) in ("test", "validation"):
        raise ConfigError(f"{SETTING}={visible(str(path))}: a {split} split by its name; name training questions")
    if name.lower() in HUB:
        raise ConfigError(f"{SETTING}={visible(str(path))}: called as the benchmark {name.lower()} is; name its "
                          f"training questions, and their file so ({name}_train)")  # fmt: skip
    listing = list_tables(str(path), SETTING, to_learn)
    if listing.skipped:
        say(f"{SETTING}={path}: not read: {some_of([f'{one} ({why})' for one, why in listing.skipped.items()])}")
    tables = [(str(file), read_file(file, SETTING)) for file in listing.read]
    columns = {folded(name) for _, rows in tables for _, cells in rows if isinstance(cells, dict) for name in cells}
    if columns & OPTIONS:
        found = (
            each for place, rows in tables for row in rows if (each := placed(place, row, from_row, setting=SETTING))
        )
        return make_task(name, found, setting=SETTING)
    return exact_task(name, [one for place, rows in tables for one in examples_of(rows, place, trained.data)])


def examples_of(rows: Sequence[Row], place: str, data: DataConfig) -> list[Example]:
    """Questions with their answers. Raises ConfigError for rows that are none."""
    rejects = Rejects()
    found, _ = read_examples(rows, Columns(), data.format, data.max_field_chars, visible(place), rejects)
    if rejects.counts:
        raise ConfigError(f"{SETTING}={visible(place)}: rows that are no question and answer: {rejects.summary()}")
    return [example for _, example in found]


def scored_by(task: Task, folder: Path) -> Path | None:
    """An evaluation of this run by just these questions; None where there is none."""
    for file in sorted((folder / "evaluation").rglob("evaluation.json")):
        tasks = read_json(file).get("tasks")
        if isinstance(tasks, dict) and task.fingerprint in tasks.values():
            return file.parent
    return None


def benchmark_questions(named: Iterable[str], rows: Sequence[DataConfig], given: str | None) -> list[Asked]:
    """Questions that nothing may be learned from: of `named` benchmarks, of those that `rows` were compared with, and
    of the benchmark whose training split is `given`. Raises ConfigError for what cannot be read."""
    known = [given.removesuffix(TRAINING)] if given and given.endswith(TRAINING) and given not in HUB else []
    compared = [path for data in rows if data.decontaminate is not Decontaminate.off for path in data.benchmarks]
    settings = dict.fromkeys(compared, "data.benchmarks") | dict.fromkeys((*known, *named), "benchmarks")
    return [question for path, setting in settings.items() for question in questions_of(path, setting)]


def questions_of(path: str, setting: str) -> list[Asked]:
    """Questions of a benchmark known by name, or of a file or a data set of the hub."""
    if path in HUB:
        return [Asked(path, one.id, one.question) for one in read_task(path).questions]
    return read_questions(path, setting)


def gated(task: Task, asked: Sequence[Asked], split: Split | None) -> tuple[Task, list[Refusal]]:
    """The task without questions that match a benchmark's, and those, each by the first rule that finds it.

    The rules are those by which rows are dropped (data/decontaminate.py). What the run of this `split` holds out, and
    what the benchmark clinical_cases asks, is refused by its words alone: cases of a kind differ in a few numbers.
    """
    refused: dict[str, Refusal] = {}
    words = {normal(case.question): (CASES, case.id) for _, case in clinical_cases(set(), tuple(KINDS))}
    for one in split.examples(split.validation) if split is not None else []:
        words[normal(one.question)] = ("held_out", digest(one).hex()[:16])
    for question in task.questions:
        if theirs := words.get(normal(question.question)):
            refused[question.id] = Refusal(question.id, *theirs, "same question")
    examples = [Example(one.question, one.context, "\n".join(one.options.values())) for one in task.questions]
    for match in find_matches(examples, asked) if asked else []:
        own = task.questions[match.example].id
        refused.setdefault(own, Refusal(own, match.benchmark, match.id, match.rule))
    left = tuple(question for question in task.questions if question.id not in refused)
    return replace(task, questions=left), list(refused.values())


def told(refused: Sequence[Refusal]) -> dict[str, Any]:
    """What sample.json says of the questions that were refused."""
    return {"count": len(refused), "matches": [asdict(one) for one in refused]}
