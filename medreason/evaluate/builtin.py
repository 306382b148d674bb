"""Benchmarks that need no file: rule-made cases, and what a run has held out.

clinical_cases   20 cases of each kind that the run was taught (of every kind, where it was taught other rows), the
                 same for every such run, less those that it was trained on; exact match
held_out         the run's own held-out rows: loss and perplexity, or with method=generate the shape of its answers
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from medreason.config import ConfigError, DataConfig, Source
from medreason.data.benchmarks import Kind, Question, Task, make_task
from medreason.data.clinical_cases import KINDS, generate_cases
from medreason.data.corpus import Split, digest
from medreason.data.decontaminate import Question as Asked
from medreason.data.decontaminate import find_matches
from medreason.data.normalize import normal
from medreason.models.prompts import Example

RUN_TASKS = ("clinical_cases", "held_out")
CASES_OF_A_KIND, CASES_SEED = 20, 2026  # a seed that no run's own cases are made with by default


def run_task(name: str, split: Split | None, kinds: Sequence[str] = tuple(KINDS)) -> Task:
    """A task of RUN_TASKS for the run whose rows these are, which was taught these kinds of cases.

    Raises ConfigError where it has no question (left).
    """
    if name == "held_out":
        if split is None:
            raise ConfigError("benchmarks=held_out: only a run has rows that it held out; name one (run=DIR)")
        return make_task(name, held_out(split), Kind.open)
    known = {normal(one.question) for one in (learned(split) if split else [])}
    return make_task(name, clinical_cases(known, kinds), Kind.exact)


def taught_kinds(data: DataConfig) -> tuple[str, ...]:
    """The kinds of clinical cases that a run of this data learns; every kind, where it learns other rows."""
    taught = data.case_kinds if data.source is Source.clinical_cases else None
    return tuple(taught or KINDS)


def learned(split: Split) -> Sequence[Example]:
    """The examples that a run was trained on, each once."""
    return split.examples(np.unique(split.train))


def held_out(split: Split) -> Iterable[tuple[str, Question]]:
    """A run's held-out rows, known by their content, so that another run's answers to them can be found."""
    for index in split.validation.tolist():
        row = split.corpus.example(index)
        place = split.corpus.table["place"][index].as_py()
        yield place, Question(digest(row).hex()[:16], row.question, {}, row.answer, "", "", row.reasoning)


def clinical_cases(known: set[str], kinds: Sequence[str]) -> Iterable[tuple[str, Question]]:
    """Cases of these kinds whose question is not among the `known`; their kind is their subject."""
    for kind in kinds:
        for number, case in enumerate(generate_cases(CASES_OF_A_KIND, CASES_SEED, [kind]), 1):
            identity = f"{kind}-{number}"
            if normal(case.question) not in known:
                yield identity, Question(identity, case.question, {}, case.answer, kind, "", case.reasoning)


def seen_in_training(task: Task, examples: Collection[Example]) -> set[str]:
    """Ids of a benchmark's questions that share text with what was learned; stock phrases do not count."""
    asked = [Asked(task.name, question.id, question.question) for question in task.questions]
    return {match.id for match in find_matches(examples, asked) if not match.boilerplate}
