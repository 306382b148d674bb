"""Which examples share text with the questions of benchmarks.

Four rules, on text in which case, Unicode form and spacing are made alike:

    64 characters   64 shared characters in a row: the rule of the authors of medical-o1 (arXiv 2412.18925)
    13 words        13 shared words in a row, however punctuated: GPT-3's rule (arXiv 2005.14165, appendix C)
    same question   word for word, for questions too short for either
    reworded        the questions' words, rare ones counting most, are alike: cosine of TF-IDF at least 0.6. Data sets
                    made from benchmark questions rephrase them, and no run of characters survives that

A run that stands in four or more benchmark questions ("which of the following is the most appropriate next step in")
is boilerplate of the genre: it is reported by the authors' rule and marked as such.

Looking up every run of 64 characters of millions would be slow. A run of 64 holds, wherever it starts, a whole block
of 32 that begins at a multiple of 32; so only those blocks are looked up, and the runs around the few that are found.

    text    |--- block ---|--- block ---|--- block ---|--- block ---|
    shared           <========== 64 characters ==========>
                            one whole block lies inside
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medreason.config import ConfigError
from medreason.data.folders import files_of, table_name, to_ask
from medreason.data.layouts import QUESTIONS
from medreason.data.normalize import folded, normal, without_preamble, words
from medreason.data.sources import content_digest, is_local, read_file, read_hub
from medreason.models.prompts import Example

CHARACTERS, WORDS, REWORDED = 64, 13, 0.6
BOILERPLATE = 4  # benchmark questions that share a run
QUESTIONS_AT_ONCE = 256  # compared with all examples: 256 x 80,000 similarities are 160 MB


@dataclass(frozen=True)
class Question:
    """A benchmark's question and where it stands."""

    benchmark: str
    id: str
    text: str


@dataclass(frozen=True)
class Match:
    """An example that shares text with a benchmark's question."""

    example: int  # index
    benchmark: str
    id: str
    rule: str
    shared: str  # the first run that is shared; for `reworded` the benchmark's question
    boilerplate: bool


def benchmark_digest(path: str) -> str:
    """What changes when a benchmark's questions do. Raises ConfigError for a path that cannot be read."""
    name, _, configuration = path.partition(":") if not is_local(path) else (path, "", "")
    return content_digest(name, configuration or None, None, "data.benchmarks", to_ask)


def read_questions(path: str, setting: str = "data.benchmarks") -> list[Question]:
    """Questions of a benchmark, with a `question` column (or prompt, query, problem; in any case) and perhaps an `id`.

    `path` is a file, a folder, or a hub data set OWNER/NAME or OWNER/NAME:CONFIGURATION, of which the splits other
    than train are read (train where it has no other). Raises ConfigError for what cannot be read or has no question.
    """
    if is_local(path):
        rows = [(table_name(file), row) for file in files_of(path, setting, to_ask)
                for row in read_file(file, setting)]  # fmt: skip
    else:
        name, _, configuration = path.partition(":")
        hub = read_hub(name, configuration or None, None, None, setting)
        rows = [(path, row) for row in hub]
    questions = []
    for benchmark, (number, cells) in rows:
        if isinstance(cells, str):
            raise ConfigError(f"{setting}={path}: {benchmark}, row {number}: {cells}")
        text = next((cells[name] for called in QUESTIONS for name in cells if folded(name) == called), None)
        if isinstance(text, str) and text.strip():
            questions.append(Question(benchmark, str(cells.get("id", number)), text))
    if not questions:
        raise ConfigError(f"{setting}={path}: no row has a `question`; name a benchmark's questions")
    return questions


def find_matches(examples: Sequence[Example], questions: Sequence[Question]) -> list[Match]:
    """Every pair of an example and a benchmark's question that share text, by the first rule that finds it.

    Runs are looked for in an example's question, reasoning and answer; the other rules compare question with question.
    """
    asked = [normal(question.text) for question in questions]
    asked_words = [words(text) for text in asked]
    own = [words(normal(core)) for core in without_preamble([example.question for example in examples])]
    texts = [normal("\n".join((e.question, e.reasoning, e.answer))) for e in examples]
    rules = {
        "same question": same_questions(own, asked_words),
        f"{WORDS} words": shared_runs((words(text) for text in texts), asked_words, WORDS),
        f"{CHARACTERS} characters": shared_runs(texts, asked, CHARACTERS),
        "reworded": reworded(own, asked_words),
    }
    matches: dict[tuple[int, int], Match] = {}
    for rule, pairs in rules.items():
        holders = Counter(shared for _, shared in {(number, shared) for _, number, shared in pairs})
        for example, number, shared in pairs:
            question = questions[number]
            text = shared if isinstance(shared, str) else " ".join(shared)
            stock = rule.endswith(("words", "characters")) and holders[shared] >= BOILERPLATE
            match = Match(example, question.benchmark, question.id, rule, text, stock)
            matches.setdefault((example, number), match)
    return sorted(matches.values(), key=lambda match: (match.boilerplate, match.example, match.benchmark, match.id))


Pairs = list[tuple[int, int, Any]]  # example, question, what they share


def same_questions(own: Sequence[tuple[str, ...]], asked: Sequence[tuple[str, ...]]) -> Pairs:
    """Pairs whose questions have the same words in the same order."""
    numbers: dict[tuple[str, ...], list[int]] = {}
    for number, parts in enumerate(asked):
        numbers.setdefault(parts, []).append(number)
    return [(example, number, parts) for example, parts in enumerate(own) for number in numbers.get(parts, ())]


def reworded(own: Sequence[tuple[str, ...]], asked: Sequence[tuple[str, ...]]) -> Pairs:
    """Pairs whose questions are alike in their words, each counted once and weighted by its rarity in both sets."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=lambda parts: parts, binary=True, dtype=np.float32)
    vectors = vectorizer.fit_transform([*own, *asked])
    ours, theirs = vectors[: len(own)], vectors[len(own) :]
    pairs: Pairs = []
    for start in range(0, len(asked), QUESTIONS_AT_ONCE):
        alike = (ours @ theirs[start : start + QUESTIONS_AT_ONCE].T).toarray()
        found = np.argwhere(alike >= REWORDED)
        pairs += [(int(example), start + int(number), asked[start + number]) for example, number in found]
    return pairs


def shared_runs(texts: Iterable[Any], questions: Sequence[Any], length: int) -> Pairs:
    """Pairs that have `length` items in a row in common, with the first such run.

    Items are a string's characters or a tuple's words.
    """
    block = (length + 1) // 2
    # hashes, not the slices themselves: a benchmark has millions of them; a chance hit is found out below
    blocks = {hash(q[start : start + block]) for q in questions for start in range(len(q) - block + 1)}
    runs = {hash(q[start : start + length]) for q in questions for start in range(len(q) - length + 1)}
    holders: dict[Any, list[int]] = {}  # run -> texts that hold it
    for number, text in enumerate(texts):
        for at in range(0, len(text) - block + 1, block):
            if hash(text[at : at + block]) in blocks:
                for start in range(max(0, at + block - length), min(at, len(text) - length) + 1):
                    run = text[start : start + length]
                    if hash(run) in runs:
                        holders.setdefault(run, []).append(number)
    first: dict[tuple[int, int], Any] = {}
    for number, question in enumerate(questions if holders else ()):
        for start in range(len(question) - length + 1):
            run = question[start : start + length]
            for text_number in holders.get(run, ()):
                first.setdefault((text_number, number), run)
    return [(text_number, number, run) for (text_number, number), run in first.items()]
