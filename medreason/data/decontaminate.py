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

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medreason.config import ConfigError
from medreason.data.folders import files_of, table_name, to_ask
from medreason.data.layouts import QUESTIONS
from medreason.data.normalize import folded, normal, preambles, words
from medreason.data.sources import content_digest, is_local, read_file, read_hub
from medreason.models.prompts import Example

CHARACTERS, WORDS, REWORDED = 64, 13, 0.6
BOILERPLATE = 4  # benchmark questions that share a run
AT_ONCE = 512  # examples compared with all questions
BUCKETS = 1 << 22  # of words


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


def find_matches(
    examples: Collection[Example], questions: Sequence[Question], progress: Callable[[int], None] = lambda done: None
) -> list[Match]:
    """Every pair of an example and a benchmark's question that share text, by the first rule that finds it.

    Runs are looked for in an example's question, reasoning and answer; the other rules compare question with question.
    Examples are gone through several times, and none is kept. `progress` is told how many runs were looked for in,
    which takes the most time.
    """
    asked = [normal(question.text) for question in questions]
    asked_words = [words(text) for text in asked]
    cuts = preambles(len(examples), lambda: (example.question for example in examples))
    runs_of_words, runs_of_characters = SharedRuns(asked_words, WORDS), SharedRuns(asked, CHARACTERS)

    def own() -> Iterator[Words]:
        return (words(normal(example.question[cut:])) for example, cut in zip(examples, cuts, strict=True))

    for number, example in enumerate(examples):
        text = normal("\n".join((example.question, example.reasoning, example.answer)))
        runs_of_words.look(number, words(text))
        runs_of_characters.look(number, text)
        progress(number + 1)
    rules = {
        "same question": same_words(own(), asked_words),
        f"{WORDS} words": runs_of_words.pairs(),
        f"{CHARACTERS} characters": runs_of_characters.pairs(),
        "reworded": reworded(own, asked_words),
    }
    matches: dict[tuple[int, int], Match] = {}
    for rule, pairs in rules.items():
        holders = Counter(shared for _, shared in {(number, shared) for _, number, shared in pairs})
        for place, number, shared in pairs:
            question = questions[number]
            text = shared if isinstance(shared, str) else " ".join(shared)
            stock = rule.endswith(("words", "characters")) and holders[shared] >= BOILERPLATE
            match = Match(place, question.benchmark, question.id, rule, text, stock)
            matches.setdefault((place, number), match)
    return sorted(matches.values(), key=lambda match: (match.boilerplate, match.example, match.benchmark, match.id))


Pairs = list[tuple[int, int, Any]]  # example, question, what they share
Words = tuple[str, ...]


def same_words(own: Iterable[Words], asked: Sequence[Words]) -> Pairs:
    """Pairs whose questions have the same words in the same order."""
    numbers: dict[Words, list[int]] = {}
    for number, parts in enumerate(asked):
        numbers.setdefault(parts, []).append(number)
    return [(example, number, parts) for example, parts in enumerate(own) for number in numbers.get(parts, ())]


def reworded(own: Callable[[], Iterable[Words]], asked: Sequence[Words]) -> Pairs:
    """Pairs whose questions are alike in their words, each counted once and weighted by its rarity in both sets.

    `own` gives ours anew: they are counted, then compared, so many at a time. A word is known by its bucket; of 100,000
    words one in a hundred shares its own.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    plain: dict[str, Any] = {"binary": True, "alternate_sign": False, "norm": None, "dtype": np.float32}
    in_buckets = HashingVectorizer(analyzer=lambda parts: parts, n_features=BUCKETS, **plain)
    questions, holders = 0, np.zeros(BUCKETS, np.int32)
    for members in itertools.chain(parts_of(own()), [asked]):
        questions += len(members)
        holders += np.bincount(in_buckets.transform(members).indices, minlength=BUCKETS).astype(np.int32)
    weighted = TfidfTransformer()
    weighted.idf_ = np.log(np.float32(questions + 1) / (holders + np.float32(1))) + np.float32(1)  # as its `fit` has it
    theirs = weighted.transform(in_buckets.transform(asked)).T.tocsr()
    pairs: Pairs = []
    first = 0
    for members in parts_of(own()):
        alike = (weighted.transform(in_buckets.transform(members)) @ theirs).tocoo()
        near = np.flatnonzero(alike.data >= REWORDED)
        found = zip(alike.row[near].tolist(), alike.col[near].tolist(), strict=True)
        pairs += [(first + place, number, asked[number]) for place, number in found]
        first += len(members)
    return pairs


def parts_of(questions: Iterable[Words]) -> Iterator[list[Words]]:
    left = iter(questions)
    return iter(lambda: list(itertools.islice(left, AT_ONCE)), [])


class SharedRuns:
    """Pairs that have `length` items in a row in common, with the first such run.

    Items are a string's characters or a tuple's words.
    """

    def __init__(self, questions: Sequence[Any], length: int) -> None:
        self.questions, self.length, self.block = questions, length, (length + 1) // 2
        # hashes, not the slices themselves: a benchmark has millions of them; a chance hit is found out below
        self.blocks = self.hashes(self.block)
        self.runs = self.hashes(length)
        self.holders: dict[Any, list[int]] = {}  # run -> examples that hold it

    def hashes(self, length: int) -> set[int]:
        return {hash(q[start : start + length]) for q in self.questions for start in range(len(q) - length + 1)}

    def look(self, example: int, text: Any) -> None:
        length, block = self.length, self.block
        for at in range(0, len(text) - block + 1, block):
            if hash(text[at : at + block]) in self.blocks:
                for start in range(max(0, at + block - length), min(at, len(text) - length) + 1):
                    run = text[start : start + length]
                    if hash(run) in self.runs:
                        self.holders.setdefault(run, []).append(example)

    def pairs(self) -> Pairs:
        first: dict[tuple[int, int], Any] = {}
        for number, question in enumerate(self.questions if self.holders else ()):
            for start in range(len(question) - self.length + 1):
                run = question[start : start + self.length]
                for example in self.holders.get(run, ()):
                    first.setdefault((example, number), run)
        return [(example, number, run) for (example, number), run in first.items()]
