"""Rows of a file or of a hub data set, or rule-made cases -> checked examples, split for training and validation."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medreason.clinical_cases import KINDS, generate_cases
from medreason.config import ConfigError, DataConfig, Source
from medreason.prompts import Example, parse_answer

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
REASONING_COLUMNS = ("Question", "Complex_CoT", "Response")
INSTRUCTION_COLUMNS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Split:
    """Examples to learn from and examples held out, with what names them."""

    train: list[Example]
    validation: list[Example]
    source: str
    fingerprint: str  # SHA-256 of both lists' content


def read_split(config: DataConfig) -> Split:
    """The examples that `config` names, split. Raises ConfigError for what cannot be read or learned from."""
    if config.source is Source.clinical_cases:
        unknown = sorted(set(config.case_kinds or []) - set(KINDS))
        if unknown:
            raise ConfigError(f"data.case_kinds: no kind {unknown[0]!r}; known: {', '.join(KINDS)}")
        try:
            examples = generate_cases(config.cases, config.seed, config.case_kinds)
        except ValueError as error:  # more than there are, or no kind named
            raise ConfigError(f"data.cases={config.cases}: {error}") from error
        source = f"clinical_cases({config.cases}, seed {config.seed})"
    else:
        assert config.path is not None  # DataConfig checks it
        examples = read_file(Path(config.path)) if is_local(config.path) else read_hub(config)
        source = config.path
    train, held_out = split(examples, config.validation_share, config.seed)
    validation = held_out[: config.max_validation_rows]
    for name, part in (("train", train), ("validation", validation)):
        if not part:
            raise ConfigError(
                f"data.path={source}: no row of {len(examples)} falls into the {name} split; "
                f"add rows or change data.validation_share ({config.validation_share})"
            )
    return Split(train, validation, source, fingerprint([*train, *validation]))


def is_local(path: str) -> bool:
    """Whether a data path means a file here rather than a data set of the hub (OWNER/NAME)."""
    return Path(path).exists() or Path(path).suffix.lower() in READERS or path.count("/") != 1


def read_file(path: Path) -> list[Example]:
    """Examples of a JSON, JSONL, Parquet or CSV file. Raises ConfigError naming the file and the row."""
    if not path.is_file():
        raise ConfigError(f"data.path={path}: no such file; name a JSON, JSONL, Parquet or CSV file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"data.path={path}: cannot read {path.suffix or 'a file without suffix'}; known: {', '.join(READERS)}"
        )
    if path.stat().st_size == 0:
        raise ConfigError(f"data.path={path}: the file is empty")
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    read = {"json": Dataset.from_json, "parquet": Dataset.from_parquet, "csv": Dataset.from_csv}[reader]
    try:
        table = read(str(path))
    except Exception as error:  # the readers raise what their parsers raise
        cause = error.__cause__ or error
        raise ConfigError(f"data.path={path}: not a readable {reader} file ({str(cause).splitlines()[0]})") from error
    return to_examples(table, table.column_names, str(path))


def read_hub(config: DataConfig) -> list[Example]:
    """Examples of a hub data set's train split, from the local cache if the hub is out of reach."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        table = load_dataset(config.path, config.name, revision=config.revision, split="train")
    except Exception as error:
        raise ConfigError(
            f"data.path={config.path}: neither a file here nor to be had from the hub "
            f"({type(error).__name__}); name a file with data.path=FILE"
        ) from error
    return to_examples(table, table.column_names, str(config.path))


def to_examples(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], source: str) -> list[Example]:
    """Checked examples of a table, its columns recognised by name.

    Question/Complex_CoT/Response, or instruction/input/output (the output may carry its reasoning in think tags).
    Raises ConfigError for unknown columns, and for a row without question or answer, naming it (from 1).
    """
    if set(REASONING_COLUMNS) <= set(columns):
        examples = [Example(*(text(row, column) for column in REASONING_COLUMNS)) for row in rows]
    elif {"instruction", "output"} <= set(columns):
        examples = [from_instruction(row) for row in rows]
    else:
        raise ConfigError(
            f"data.path={source}: columns {', '.join(columns)}; needed: {', '.join(REASONING_COLUMNS)} "
            f"or {', '.join(INSTRUCTION_COLUMNS)}"
        )
    if not examples:
        raise ConfigError(f"data.path={source}: no rows")
    for number, example in enumerate(examples, 1):
        for name, value in (("question", example.question), ("answer", example.answer)):
            if not value:
                raise ConfigError(f"data.path={source}: row {number} has no {name}; mend or remove the row")
    return examples


def from_instruction(row: Mapping[str, Any]) -> Example:
    """An instruction/input/output row: what is asked is instruction and input, what is written is the output."""
    question = "\n\n".join(filter(None, (text(row, "instruction"), text(row, "input"))))
    written = parse_answer(text(row, "output"))
    return Example(question, written.reasoning, written.answer)


def text(row: Mapping[str, Any], column: str) -> str:
    """A cell as text without surrounding space; nothing for a missing one."""
    value = row.get(column)
    return "" if value is None else str(value).strip()


def split(examples: Sequence[Example], validation_share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; an example's side depends on its question and the seed alone.

    So neither order nor added rows move an example across, and the same question never stands on both sides.
    The held-out side comes in the order of its hashes: any prefix of it is a fair sample.
    """

    def position(example: Example) -> float:
        digest = hashlib.sha256(f"{seed}\n{example.question}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    places = [position(example) for example in examples]
    train = [example for example, place in zip(examples, places, strict=True) if place >= validation_share]
    held_out = sorted(
        ((place, number) for number, place in enumerate(places) if place < validation_share),
    )
    return train, [examples[number] for _, number in held_out]


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 over the texts, in order."""
    digest = hashlib.sha256()
    for example in examples:
        for part in (example.question, example.reasoning, example.answer):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
