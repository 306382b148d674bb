"""Which files a path means, which of them are read, and why the others are not: the same for rows and benchmarks.

rows/
  data/train-00000-of-00002.parquet    read to learn from
  data/test-00000-of-00001.parquet     the split test: read where questions are asked, not where rows are learned
  notes.jsonl                          of no split, beside train: not read, as on the hub
  saved/dataset_info.json, ...         datasets.save_to_disk wrote this folder: one table
  .ipynb_checkpoints/  ._rows.jsonl    hidden
  README.md                            not a table
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medreason.config import ConfigError

PATH = "data.path"  # the setting that an error names
SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines", ".parquet", ".csv", ".tsv", ".arrow")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # after one of those
SAVED = "saved data set"  # the kind of a folder that datasets.save_to_disk wrote
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
# the hub's words for its splits, and the Chinese ones
SPLITS = {
    "train": ("train", "training", "训练"),
    "validation": ("validation", "valid", "val", "dev", "验证", "开发"),
    "test": ("test", "testing", "eval", "evaluation", "测试"),
}

# whether a split is read, given all that are there (None: files whose names say nothing of a split)
Wanted = Callable[[str | None, set[str | None]], bool]


@dataclass(frozen=True)
class Listing:
    """Tables of a path (files, and folders of a saved data set) in order of name; what else is there -> why not."""

    read: list[Path]
    skipped: dict[str, str]


def to_learn(split: str | None, there: set[str | None]) -> bool:
    """Train alone where it stands beside other splits; without it, all that is not held out by its name."""
    beside = "train" in there and bool(there - {"train", None})
    return split == "train" if beside else split in ("train", None)


def to_ask(split: str | None, there: set[str | None]) -> bool:
    """All but train, where there is anything else."""
    return split != "train" or there == {"train"}


def files_of(path: str, setting: str = PATH, wanted: Wanted = to_learn) -> list[Path]:
    """The tables that a local path names; see `list_tables`."""
    return list_tables(path, setting, wanted).read


def list_tables(path: str, setting: str = PATH, wanted: Wanted = to_learn) -> Listing:
    """The tables that a local path names, and what else stands in a folder. Reads no rows.

    Raises ConfigError, naming `setting`, where there is no table or one is empty.
    """
    place = Path(path)
    try:
        listing = list_folder(place, setting, wanted) if place.is_dir() else Listing([one_file(place, setting)], {})
        for file in listing.read:
            if file.is_file() and file.stat().st_size == 0:
                raise ConfigError(f"{setting}={visible(str(file))}: the file is empty")
    except OSError as error:
        raise ConfigError(f"{setting}={visible(path)}: cannot be read ({error.strerror or error})") from error
    return listing


def one_file(place: Path, setting: str) -> Path:
    name = visible(str(place))
    if not place.is_file():
        raise ConfigError(f"{setting}={name}: no such file; name a JSON, JSONL, Parquet or CSV file, or a folder")
    if table_kind(place) is None:
        kind = place.suffix or "a file without suffix"
        raise ConfigError(f"{setting}={name}: cannot read {kind}; known: {', '.join(SUFFIXES)}{also(place)}")
    return place


def list_folder(folder: Path, setting: str, wanted: Wanted) -> Listing:
    """The tables of a folder. Raises ConfigError where none is left to be read."""
    found: dict[Path, str | None] = {}
    skipped: dict[str, str] = {}
    for place, reason in [(folder, None)] if is_saved(folder) else walk(folder, set()):
        relative = place.relative_to(folder)
        if reason is None:
            found[place] = split_of(relative)
        else:
            skipped[visible(str(relative)) + ("/" if place.is_dir() else "")] = reason
    there = set(found.values())
    for place, split in list(found.items()):
        if not wanted(split, there):
            reason = f"the split {split}" if split else "of no split, beside train"
            skipped[visible(str(place.relative_to(folder)))] = reason
            del found[place]
    if not found:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5])
        lacks = "only files of other splits" if there else "no JSON, JSONL, Parquet or CSV file"
        raise ConfigError(
            f"{setting}={visible(str(folder))}: {lacks} in this folder{f' ({named})' if named else ''}"
            + ("; name a file itself to read it" if there else "")
        )
    return Listing(list(found), dict(sorted(skipped.items())))


def walk(folder: Path, entered: set[Path]) -> Iterator[tuple[Path, str | None]]:
    """What stands in a folder and below, in order of name, each with the reason why it is no table (None: it is one).

    Links to other folders are followed, each folder once.
    """
    entered.add(folder.resolve())
    for place in sorted(folder.iterdir()):
        if place.name.startswith((".", "~$")) or (place.name.startswith("__") and place.is_dir()):
            yield place, "hidden"
        elif place.is_dir():
            if is_saved(place):
                yield place, None
            elif place.resolve() in entered or folder.resolve().is_relative_to(place.resolve()):
                yield place, "a link to a folder that is read or lies around it"
            else:
                yield from walk(place, entered)
        elif not place.is_file():
            yield place, "a link to nothing" if place.is_symlink() else "not a file"
        elif place.name in METADATA:
            yield place, "describes a data set"
        elif table_kind(place) is None:
            yield place, f"not a table{also(place)}"
        else:
            yield place, None


def also(place: Path) -> str:
    """What to do with a table of a kind that is not read."""
    spreadsheet = place.suffix.lower() in (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
    return "; save the sheet as CSV (UTF-8) or Parquet" if spreadsheet else ""


def is_saved(folder: Path) -> bool:
    """Whether datasets.save_to_disk wrote a table into this folder (a DatasetDict is a folder of such folders)."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def table_kind(place: Path) -> str | None:
    """One of SUFFIXES, SAVED for a folder of a saved data set, None for no table; what compressed it left out."""
    if place.is_dir():
        return SAVED if is_saved(place) else None
    suffixes = [suffix.lower() for suffix in place.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def table_name(place: Path) -> str:
    """A table's name without its suffixes: `test` for test.jsonl.gz."""
    name = Path(place.name)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.stem if name.suffix.lower() in SUFFIXES else name.name


def split_of(relative: Path) -> str | None:
    """The split that a path within a folder names, as on the hub: a folder's name before those within it."""
    for part in (*relative.parent.parts, table_name(relative)):
        words = re.split(r"[-._ 0-9]+", part.lower())
        for word in words:
            for split, names in SPLITS.items():
                if word in names or any(name in word for name in names if not name.isascii()):
                    return split
    return None


def visible(text: str) -> str:
    """Text whose bytes that are no UTF-8 are written out, so that it can be printed."""
    return text.encode("utf-8", "backslashreplace").decode()
