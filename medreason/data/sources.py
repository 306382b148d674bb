"""Files, folders and hub data sets -> rows as they stand there, each with its number or what is wrong with it.

folders.py says which files are read, tables.py how.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from medreason.config import ConfigError, DataConfig
from medreason.core.disk import disk_full
from medreason.data.folders import PATH, Wanted, files_of, table_kind, to_learn, visible
from medreason.data.tables import Row, read_table

PINNED = re.compile(r"[0-9a-f]{40}")


def is_local(path: str) -> bool:
    """Whether a path means a file or folder here rather than a data set of the hub (OWNER/NAME)."""
    return Path(path).exists() or table_kind(Path(path)) is not None or path.count("/") != 1


def needs_hub(config: DataConfig) -> bool:
    """Whether any rows or benchmarks of a configuration are on the hub."""
    return any(not is_local(path) for path in (*(source.path for source in config.sources()), *config.benchmarks))


def content_digest(
    path: str, name: str | None, revision: str | None, setting: str = PATH, wanted: Wanted = to_learn
) -> str:
    """What changes when the rows behind a path change: a hash of the files and their names, or the hub's commit."""
    if not is_local(path):
        return f"hub {path} {name} {pinned_revision(path, revision, setting)}"
    digest = hashlib.sha256()
    whole = Path(path)
    for table in files_of(path, setting, wanted):
        files = sorted(file for file in table.rglob("*") if file.is_file()) if table.is_dir() else [table]
        for file in files:
            # a folder's rows are known by their files' names; a file's suffix says how it is read
            known_as = str(file.relative_to(path)) if whole.is_dir() else str(table_kind(file))
            digest.update(known_as.encode("utf-8", "surrogateescape"))
            try:
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
            except OSError as error:
                raise ConfigError(f"{setting}={visible(str(file))}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def pinned_revision(path: str, revision: str | None, setting: str = PATH) -> str:
    """The commit that a revision of a hub data set means now; offline, the one in the hub's cache."""
    if revision and PINNED.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants

    try:
        return str(HfApi().dataset_info(path, revision=revision, timeout=5).sha)
    except Exception as error:  # no network, no such data set, no right to it
        folder = "datasets--" + path.replace("/", "--")
        cached = Path(constants.HF_HUB_CACHE) / folder / "refs" / (revision or "main")
        if cached.is_file():
            return cached.read_text(encoding="utf-8").strip()
        raise unreachable(path, setting, error) from error


def unreachable(path: str, setting: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{setting}={path}: neither a file here nor to be had from the hub ({type(error).__name__}); "
        f"name a file with {setting}=FILE"
    )


def read_file(file: Path, setting: str = PATH) -> list[Row]:
    """Every row of a table. Raises ConfigError for a file that is not of its kind at all."""
    return list(rows_of_file(file, setting))


def rows_of_file(file: Path, setting: str = PATH) -> Iterator[Row]:
    """Every row of a table, one after another.

    Raises ConfigError, at the latest after the last row, for a file that is not of its kind at all.
    """
    row: Row | None = None
    try:
        for row in read_table(file):
            yield row
    except Exception as error:  # each parser raises its own
        if disk_full(error):
            raise
        said = visible(str(error)).splitlines()[0] if str(error) else type(error).__name__
        kind = str(table_kind(file)).removeprefix(".")
        raise ConfigError(f"{setting}={visible(str(file))}: not a readable {kind} file ({said})") from error
    if row is None:
        raise ConfigError(f"{setting}={visible(str(file))}: no rows")


def read_hub(
    path: str, name: str | None, revision: str | None, splits: Sequence[str] | None = ("train",), setting: str = PATH
) -> Iterator[Row]:
    """Rows of a hub data set's splits (None: all but train, where it has others), from the cache if need be."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        loaded = load_dataset(path, name, revision=revision)
    except Exception as error:
        raise unreachable(path, setting, error) from error
    wanted = splits or [split for split in loaded if split != "train"] or list(loaded)
    number = 0
    for split in wanted:
        if split not in loaded:
            raise ConfigError(f"{setting}={path}: no split {split!r}; it has {', '.join(loaded)}")
        for row in loaded[split]:
            yield (number := number + 1), row
