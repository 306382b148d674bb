"""Files that are whole or not there, and a disk that is full, said in a line."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, its owner's share of it, the file
# as libraries say it that do not raise OSError: safetensors, tokenizers, SQLite, torch, pyarrow
SAID = re.compile(
    r"no space left on device|disk quota exceeded|file too large|os error (28|122|27)\b|disk is full"
    r"|PytorchStreamWriter failed writing|inline_container\.cc.*unexpected pos",
    re.IGNORECASE,
)
SPARE = 2**20  # bytes: with less than that a disk is full


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft beside `path`, of the same suffix, that gets its name if all goes well, and vanishes if not."""
    draft = path.with_name(f".draft-{os.getpid()}-{path.name}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A draft beside `path` that takes its place if all goes well, and vanishes if not."""
    draft, old = (path.with_name(f".{what}-{os.getpid()}-{path.name}") for what in ("draft", "old"))
    for left in (draft, old):  # by a process of this number that was killed
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if path.exists():
            path.rename(old)
        try:
            draft.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def digest_of(path: Path) -> str:
    """What changes when a file is damaged."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that there is no room to write."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if (isinstance(error, OSError) and error.errno in FULL) or SAID.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe_full(error: BaseException, *folders: Path) -> str:
    """A line on which disk is full, the one of these folders or the file that the error names."""
    if isinstance(error, OSError) and isinstance(error.filename, str):
        folders = (Path(error.filename).absolute().parent,)
    full = [folder for folder in folders if folder.is_dir() and shutil.disk_usage(folder).free < SPARE]
    names = ", ".join(map(str, dict.fromkeys(full or folders)))
    begun = [folder for folder in folders if (folder / "checkpoints" / "last.ckpt").is_file()]
    own = [folder for folder in begun if not (folder / "trial.json").is_file()]  # a sweep's command goes on with it
    again = f"go on with resume={own[0]}" if own else "repeat the command"
    return f"no space left to write in {names}; what was written before is whole: free some, and {again}"
