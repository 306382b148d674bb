"""All rows of all sources, read and checked, with what was found about them; then split for training and validation.

    files, folders, hub --sources--> rows --records--> examples --duplicates, contamination--> Corpus --> Split

The corpus is an Arrow table in the cache, keyed by the content of its sources, so the second run maps it into memory.
Nothing is dropped from it: policies (skip, drop, weights, shares) act on it afterwards, and changing one is free.

While it is made its texts lie on the disk, too; memory holds some hundred bytes a row: hashes and numbers.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medreason.config import ConfigError, DataConfig, Decontaminate, Deduplicate, Mixed, Source
from medreason.core.cache import cache_key, cached_table, on_disk, report_of, with_report
from medreason.core.progress_line import ProgressLine
from medreason.data import (
    benchmarks,
    clinical_cases,
    decontaminate,
    deduplicate,
    examples,
    folders,
    layouts,
    normalize,
    sources,
    tables,
)
from medreason.data.clinical_cases import KINDS, generate_cases
from medreason.data.decontaminate import benchmark_digest, find_matches, read_questions
from medreason.data.deduplicate import exact_duplicates, near_duplicates
from medreason.data.examples import SHOWN, Rejects, readings, settle_rejects
from medreason.data.folders import files_of, list_tables, to_ask, to_learn, visible
from medreason.data.normalize import normal, preambles
from medreason.data.sources import content_digest, is_local, read_hub, rows_of_file
from medreason.data.tables import Row
from medreason.data.texts import PARTS, Examples, Texts, cells
from medreason.models import prompts
from medreason.models.prompts import Example

Say = Callable[[str], None]
UNIQUE, EXACT, NEAR = 0, 1, 2  # the column `repeats`
AT_ONCE = 1000  # examples that memory holds
# an example as it is read; the last three are for comparisons, and go
READ = pa.schema({
    **dict.fromkeys((*PARTS, "place"), pa.large_string()), "source": pa.uint16(), "digest": pa.binary(32),
    "normal": pa.large_string(), "own": pa.uint64(), "pair": pa.binary(16),
})  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Checked examples, a row each, and what is known about them.

    Columns: question, reasoning, answer; place (FILE:ROW); source (index into `names`); digest (SHA-256 of the texts);
    group (uint64: the same for questions that must stand on one side of a split); repeats (UNIQUE, EXACT or NEAR);
    contaminated (shares text with a benchmark's question).
    """

    table: pa.Table
    key: str
    names: tuple[str, ...]
    not_read: Mapping[str, str]  # files that stand beside those read, each with the reason

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def example(self, index: int) -> Example:
        return Example(*(self.table[name][int(index)].as_py() for name in PARTS))

    def column(self, name: str) -> NDArray[Any]:
        return np.asarray(self.table[name])

    @property
    def report(self) -> dict[str, Any]:
        """rows (of each table), columns that were not read, files not read, rejects, duplicates, contamination."""
        return report_of(self.table) | {"not_read": dict(self.not_read)}

    @property
    def rejects(self) -> Rejects:
        """What was wrong with rows that are in no example."""
        found = self.report["rejects"]
        counts = Counter({reason: each["count"] for reason, each in found.items()})
        return Rejects(counts, {reason: list(each["places"]) for reason, each in found.items()})

    @property
    def rows(self) -> int:
        """Rows that were read, bad ones included."""
        return sum(self.report["rows"].values())

    @property
    def source(self) -> str:
        return " + ".join(self.names)


@dataclass(frozen=True)
class Split:
    """Examples to learn from and examples held out, as indices into a corpus; what a policy left out, by reason."""

    corpus: Corpus
    train: NDArray[np.int64]  # an index may come several times, or a row's not at all: data.weight
    validation: NDArray[np.int64]
    left_out: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of both sides' content, in order."""
        digests = cells(self.corpus.table["digest"])
        whole = hashlib.sha256()
        for side in (self.train, self.validation):
            whole.update(len(side).to_bytes(8, "big"))
            for start in range(0, len(side), AT_ONCE):
                whole.update(digests[side[start : start + AT_ONCE]].tobytes())
        return whole.hexdigest()

    def examples(self, indices: NDArray[np.int64]) -> Examples:
        return Examples(self.corpus.table, indices)


def read_split(config: DataConfig, say: Say = lambda line: None) -> Split:
    """The examples that `config` names, split. Raises ConfigError for what cannot be read or learned from."""
    return split_corpus(read_corpus(config, say), config)


def read_corpus(config: DataConfig, say: Say = lambda line: None) -> Corpus:
    """The corpus that `config` names, from the cache or built. Raises ConfigError for what cannot be read.

    Also for rows that fail their check, as far as data.on_bad_row and data.max_bad_share do not let them be skipped.
    """
    compared = config.benchmarks if config.decontaminate is not Decontaminate.off else []
    if config.source is Source.clinical_cases:
        names: tuple[str, ...] = (f"clinical_cases({config.cases}, seed {config.seed})",)
        behind: list[Any] = [config.cases, config.case_kinds, config.seed]
    else:
        names = tuple(source.path for source in config.sources())
        behind = [
            [content_digest(one.path, one.name, one.revision, setting), asdict(one.columns)]
            for one, setting in zip(config.sources(), settings(config), strict=True)
        ]
    content = {
        "names": names,
        "behind": behind,
        "format": config.format.value,
        "max_field_chars": config.max_field_chars,
        "near": None if config.deduplicate is Deduplicate.off else config.near_duplicate,
        "benchmarks": [benchmark_digest(path) for path in compared],
    }
    reading = (sources, folders, tables, layouts, benchmarks, examples, prompts, clinical_cases)
    code = (*reading, deduplicate, decontaminate, normalize)
    key = cache_key(content, __file__, *(module.__file__ for module in code))
    table = cached_table("corpus", key, lambda: build_table(config, compared, say))
    corpus = Corpus(table, key, names, files_not_read(config, compared))
    settle_rejects(corpus.rejects, corpus.rows, corpus.source, config.on_bad_row, config.max_bad_share)
    if not len(corpus):
        raise ConfigError(f"data.path={corpus.source}: no row that can be learned from")
    return corpus


@dataclass
class Found:
    """What is found out about the rows while they are read."""

    rows: dict[str, int] = field(default_factory=dict)  # of each table
    columns_not_read: dict[str, list[str]] = field(default_factory=dict)
    rejects: Rejects = field(default_factory=Rejects)
    void: list[tuple[int, int]] = field(default_factory=list)  # spans of examples that were read in vain


def build_table(config: DataConfig, benchmarks: Sequence[str], say: Say) -> pa.Table:
    """Reads, checks and compares everything. Raises ConfigError as `read_corpus` does."""
    found, line = Found(), ProgressLine()
    read = cases(config, found) if config.source is Source.clinical_cases else read_sources(config, found, say)
    batches = batches_of(read, lambda done: line.tell([f"reading  {done:,} rows"]))
    table = without(on_disk(READ, batches), found.void)
    compared = lambda done: line.tell([f"comparing questions  {done:,}/{len(table):,}"])  # noqa: E731
    report: dict[str, Any] = {
        "rows": found.rows,
        "columns_not_read": found.columns_not_read,
        "rejects": found.rejects.report(),
    }
    group, repeats, contaminated = np.asarray(table["own"]), np.zeros(len(table), np.uint8), np.zeros(len(table), bool)
    places = Texts(table["place"])
    if config.deduplicate is not Deduplicate.off:
        near, first = near_duplicates(comparable_questions(table), config.near_duplicate, compared)
        exact, same = exact_duplicates(cells(table["pair"]).view(np.uint64))
        repeats[near] = NEAR
        repeats[exact] = EXACT
        group = group.copy()
        group[near] = group[first]  # none of which is near another
        nearly = repeats[near] == NEAR
        report["duplicates"] = {
            "exact": len(exact),
            "near": int(np.sum(repeats == NEAR)),
            "exact_places": pairs(places, exact, same),
            "near_places": pairs(places, near[nearly], first[nearly]),
        }
    if benchmarks:
        asked = [question for path in benchmarks for question in read_questions(path)]
        say(f"comparing {len(table):,} examples with {len(asked):,} benchmark questions")
        matches = find_matches(Examples(table), asked, compared)
        contaminated[[match.example for match in matches]] = True
        report["contamination"] = {
            "benchmarks": Counter(question.benchmark for question in asked),
            "examples": int(contaminated.sum()),
            "matches": [asdict(match) | {"example": places[match.example]} for match in matches],
        }
    line.end(stands=False)
    table = table.select([*PARTS, "place", "source", "digest"])
    for name, column in (("group", group), ("repeats", repeats), ("contaminated", contaminated)):
        table = table.append_column(name, pa.array(column))
    return with_report(table, report)


Read = tuple[Example, str, int]  # an example, its place, and the index of its source


def read_sources(config: DataConfig, found: Found, say: Say) -> Iterator[Read]:
    """The examples of all tables, also those that turn out to be `found.void`. Raises ConfigError as `read_corpus`."""
    count = 0
    for origin, (source, setting) in enumerate(zip(config.sources(), settings(config), strict=True)):
        say(f"reading {source.path}")
        for label, table in labelled_tables(source, setting, found.rows):
            ways = readings(table, source.columns, config.format, config.max_field_chars, label)
            for reading, checked in ways:
                start = count
                for number, example in checked:
                    count += 1
                    yield example, f"{label}:{number}", origin
                if not reading.holds:
                    found.void.append((start, count))
            found.rows[label] = reading.rows
            found.rejects.update(reading.rejects)
            if reading.unread:
                found.columns_not_read[label] = sorted(reading.unread)


def batches_of(read: Iterator[Read], progress: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
    """Examples as record batches of the schema READ; `progress` is told how many there are."""
    done = 0
    while members := list(itertools.islice(read, AT_ONCE)):
        examples, places, origins = zip(*members, strict=True)
        questions = [normal(example.question) for example in examples]
        hashes = [hashlib.sha256(question.encode()) for question in questions]
        own = [int.from_bytes(one.digest()[:8], "big") for one in hashes]
        for one, example in zip(hashes, examples, strict=True):
            one.update(b"\0" + normal(example.answer).encode())  # a text holds none
        columns = {
            **{name: [getattr(example, name) for example in examples] for name in PARTS},
            "place": places,
            "source": origins,
            "digest": [digest(example) for example in examples],
            "normal": questions,
            "own": own,
            "pair": [one.digest()[:16] for one in hashes],
        }
        yield pa.RecordBatch.from_pydict(columns, READ)
        done += len(members)
        progress(done)


def without(table: pa.Table, spans: Sequence[tuple[int, int]]) -> pa.Table:
    """The table but for some spans of rows, which come in order."""
    starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(table)]
    return pa.concat_tables([table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)])


def comparable_questions(table: pa.Table) -> Texts:
    """Questions, made alike in writing and without what many begin with."""
    questions = Texts(table["question"])
    cuts = preambles(len(questions), lambda: iter(questions))
    if not cuts.any():
        return Texts(table["normal"])
    cores = (normal(text[cut:]) if cut else known
             for text, cut, known in zip(questions, cuts, Texts(table["normal"]), strict=True))  # fmt: skip
    schema = pa.schema({"core": pa.large_string()})
    parts = iter(lambda: list(itertools.islice(cores, AT_ONCE)), [])
    return Texts(on_disk(schema, (pa.RecordBatch.from_pydict({"core": part}, schema) for part in parts))["core"])


def pairs(places: Texts, repeats: NDArray[np.int64], firsts: NDArray[np.int64]) -> list[list[str]]:
    """Where the first few repeats stand, and what they repeat."""
    return [[places[one], places[other]] for one, other in zip(repeats[:SHOWN].tolist(), firsts.tolist(), strict=False)]


def settings(config: DataConfig) -> list[str]:
    """The setting that names each source, for errors."""
    return ["data.path", *["data.mix"] * len(config.mix)]


def files_not_read(config: DataConfig, benchmarks: Sequence[str]) -> dict[str, str]:
    """What stands in the folders of sources and benchmarks and is not read, with the reason."""
    asked = [
        (source.path, setting, to_learn) for source, setting in zip(config.sources(), settings(config), strict=False)
    ]
    asked += [(path, "data.benchmarks", to_ask) for path in benchmarks]
    skipped: dict[str, str] = {}
    for path, setting, wanted in asked:
        if is_local(path):
            for name, reason in list_tables(path, setting, wanted).skipped.items():
                skipped[name if path == config.path else visible(f"{path}/{name}")] = reason
    return skipped


def labelled_tables(
    source: Mixed, setting: str, taken: Container[str]
) -> Iterable[tuple[str, Callable[[], Iterator[Row]]]]:
    """The tables of a source, each giving its rows anew when it is called.

    They come with the names that row numbers are given under: the shortest that is not `taken`.
    """
    if not is_local(source.path):
        yield source.path, partial(read_hub, source.path, source.name, source.revision, setting=setting)
        return
    for file in files_of(source.path, setting):
        within = file.relative_to(source.path) if Path(source.path).is_dir() else Path()
        label = visible(file.name if within == Path() else str(within))
        yield visible(str(file)) if label in taken else label, partial(rows_of_file, file, setting)


def cases(config: DataConfig, found: Found) -> Iterator[Read]:
    """Rule-made cases. Raises ConfigError for an unknown kind and for more cases than there are."""
    unknown = sorted(set(config.case_kinds or []) - set(KINDS))
    if unknown:
        raise ConfigError(f"data.case_kinds: no kind {unknown[0]!r}; known: {', '.join(KINDS)}")
    try:
        made = generate_cases(config.cases, config.seed, config.case_kinds)
    except ValueError as error:  # more than there are, or no kind named
        raise ConfigError(f"data.cases={config.cases}: {error}") from error
    found.rows["clinical_cases"] = len(made)
    for number, example in enumerate(made, 1):
        yield example, f"case:{number}", 0


def digest(example: Example) -> bytes:
    """SHA-256 over the texts, each with its length before it."""
    parts = [part.encode() for part in (example.question, example.reasoning, example.answer)]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()


def number_of(text: str) -> int:
    """64 bits of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_corpus(corpus: Corpus, config: DataConfig) -> Split:
    """Applies the policies of `config`, then splits by content. Raises ConfigError where a side is left empty.

    An example's side depends on the seed and its question alone (a near duplicate's on the first one's), so neither
    order nor added rows move an example across, and the same question never stands on both sides. The held-out side
    comes in the order of its hashes: any prefix of it is a fair sample.
    """
    kept = np.ones(len(corpus), bool)
    left_out: dict[str, int] = {}

    def leave_out(reason: str, rows: NDArray[np.bool_]) -> None:
        left_out[reason] = int(np.sum(rows & kept))
        kept[rows] = False

    if config.deduplicate in (Deduplicate.exact, Deduplicate.near):
        leave_out("exact duplicate", corpus.column("repeats") == EXACT)
    if config.deduplicate is Deduplicate.near:
        leave_out("near duplicate", corpus.column("repeats") == NEAR)
    if config.decontaminate is Decontaminate.drop:
        leave_out("shares text with a benchmark", corpus.column("contaminated"))

    groups = map(int, corpus.column("group"))
    place = np.fromiter((position(config.seed, group) for group in groups), float, len(corpus))
    held_out = np.flatnonzero(kept & (place < config.validation_share))
    validation = held_out[np.argsort(place[held_out], kind="stable")][: config.max_validation_rows]
    train = weigh(np.flatnonzero(kept & (place >= config.validation_share)), corpus, config)
    for name, side in (("train", train), ("validation", validation)):
        if not len(side):
            raise ConfigError(
                f"data.path={corpus.source}: no row of {int(kept.sum())} falls into the {name} split; "
                f"add rows or change data.validation_share ({config.validation_share})"
            )
    return Split(corpus, train, validation, {reason: count for reason, count in left_out.items() if count})


def weigh(indices: NDArray[np.int64], corpus: Corpus, config: DataConfig) -> NDArray[np.int64]:
    """Each index as often as its source's weight says; of a weight's fraction, rows chosen by content."""
    weights = np.array([source.weight for source in config.sources()] or [config.weight])
    weight = weights[corpus.column("source")[indices]]
    if np.all(weight == 1):
        return indices
    chance = cells(corpus.table["digest"])[indices, :8].copy().view(">u8")[:, 0] / 2**64
    return np.repeat(indices, np.floor(weight).astype(int) + (chance < weight % 1))


def position(seed: int, group: int) -> float:
    """Where a group of questions stands in [0, 1), the same in every run of this seed."""
    return number_of(f"{seed}\n{group}") / 2**64
