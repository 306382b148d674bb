"""A file -> its rows, whatever wrote it: what its bytes say counts more than its suffix.

    compressed        gzip, bzip2, xz, zstd
    Parquet, Arrow    also the folder of a saved data set
    CSV               commas, semicolons, tabs or pipes; Excel's line `sep=;`; UTF-8 or UTF-16
    JSON              an object a line, one after another however printed, or a list; {"data": [...]}; pandas' orients

Anything else raises ValueError with what it is.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import mmap
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from medreason.core.cache import unnamed_file
from medreason.data.folders import SAVED, table_kind, visible

# A row's number (from 1; in JSONL its line) and its cells, or what kept it from being read.
Row = tuple[int, dict[str, Any] | str]

HEAD = 1 << 20  # bytes that tell what a file is
BATCH = 1000  # rows of an Arrow table that are made Python's at a time
SEPARATORS = ",;\t|"
NOT_BLANK = re.compile(r"[^ \t\n\r]")  # to JSON
# what people name .csv or .json by mistake, or get from a download that failed
OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the rows themselves: run `git lfs pull` where it was cloned"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: save the sheet as CSV (UTF-8) or Parquet"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "an SQLite database: export the table as CSV or Parquet"),
    (b"{\\rtf", "a rich text document: save it as plain text"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
)
# where a JSON document keeps its rows
WRAPPERS = ("data", "rows", "records", "examples", "items", "instances", "samples", "questions", "train", "results")
SINGLE = ("role", "from")  # keys of a turn: a list of turns is a chat, not a table


def read_table(file: Path) -> Iterator[Row]:
    """The rows of a table, one after another; memory holds few, but for JSON documents other than lists.

    Raises ValueError, or what a parser raises, for a file that is not one, at the latest after its last row.
    """
    kind = table_kind(file)
    if kind == SAVED:
        yield from read_saved(file)
        return
    with opened(file) as stream:
        head = stream.read(HEAD)
        stream.seek(0)
        if head.startswith(b"PAR1"):
            yield from read_parquet(stream)
        elif kind == ".arrow":
            yield from read_arrow(stream)
        elif other := what_it_is(file, head):
            raise ValueError(other)
        elif kind == ".parquet":
            raise ValueError("its bytes are not Parquet's")
        elif kind in (".csv", ".tsv") and not re.match(rb"(\xef\xbb\xbf)?\s*\{", head):
            yield from read_csv(as_text(stream, head, newline=""), kind)
        else:
            yield from read_json(as_text(stream, head, newline="\n"))


def opened(file: Path) -> IO[bytes]:
    """A file's content, decompressed; by its first bytes, since suffixes lie (a browser unpacks what it downloads)."""
    with file.open("rb") as raw:
        magic = raw.read(10)
    if magic.startswith(b"\x1f\x8b"):
        return io.BufferedReader(gzip.GzipFile(file))
    if magic.startswith(b"\xfd7zXZ\x00"):
        return lzma.open(file, "rb")
    if magic.startswith(b"BZh") and magic[4:10] == b"1AY&SY":
        return bz2.open(file, "rb")
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        with pyarrow.OSFile(str(file)) as packed, pyarrow.CompressedInputStream(packed, "zstd") as stream:
            return unpacked(stream)
    return file.open("rb")


def unpacked(stream: IO[bytes]) -> IO[bytes]:
    """What a stream holds, on the disk (in memory where no file can be made), so that one can go to any place in it."""
    try:
        file = unnamed_file()
    except OSError:
        return io.BytesIO(stream.read())
    writer = io.BufferedWriter(file)
    shutil.copyfileobj(stream, writer, HEAD)
    writer.detach()
    file.seek(0)
    return io.BufferedReader(file)


def content_of(stream: IO[bytes]) -> Any:
    """A stream's content for Arrow, mapped from the disk."""
    import pyarrow

    if not (isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO)):
        stream = unpacked(stream)
    in_memory = isinstance(stream, io.BytesIO)
    return pyarrow.py_buffer(stream.read() if in_memory else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def what_it_is(file: Path, head: bytes) -> str | None:
    """What a file is that holds no rows in text, and what to do; None for text."""
    if head.startswith(b"PK\x03\x04"):
        excel = b"xl/" in head or b"[Content_Types]" in head
        return f"{'an Excel workbook' if excel else 'a ZIP archive'}: " + (
            "save the sheet as CSV (UTF-8) or Parquet" if excel else "unpack it"
        )
    for magic, said in OTHERS:
        if head.startswith(magic):
            return said
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it"
    text = head[:2000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page: what was downloaded is an error or a login, not the file"
    if text.startswith(b"<?xml"):
        return "XML: what was downloaded is an error, or a sheet to be saved as CSV"
    return None


def read_saved(folder: Path) -> Iterator[Row]:
    """Rows of a folder that datasets.save_to_disk wrote."""
    from datasets import disable_progress_bars, load_from_disk

    disable_progress_bars()
    yield from enumerate(load_from_disk(str(folder)), 1)


def read_parquet(stream: IO[bytes]) -> Iterator[Row]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content_of(stream)))
    refuse_twins(table.schema_arrow.names)
    yield from enumerate(rows_in(table.iter_batches(BATCH)), 1)


def read_arrow(stream: IO[bytes]) -> Iterator[Row]:
    """Rows of an Arrow file, in either of its forms."""
    import pyarrow

    content = content_of(stream)
    try:
        table = pyarrow.ipc.open_file(content)
        batches = map(table.get_batch, range(table.num_record_batches))
    except pyarrow.ArrowInvalid:
        batches = table = pyarrow.ipc.open_stream(content)
    refuse_twins(table.schema.names)
    yield from enumerate(rows_in(batches), 1)


def rows_in(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of Arrow's batches, which may be as large as the file."""
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            yield from batch.slice(start, BATCH).to_pylist()


def refuse_twins(names: Sequence[str]) -> None:
    """Raises ValueError for two columns of one name: one would win in silence."""
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"two columns are named {visible(twice[0])}: rename or remove one")


def as_text(stream: IO[bytes], head: bytes, newline: str) -> io.TextIOWrapper:
    """A text file's lines, ended by `newline` alone ("": as csv wants them).

    Bytes that are not UTF-8 stand as lone surrogates, so that a row's check finds them.

    Raises ValueError for a file that is in another encoding altogether.
    """
    codec, errors = "utf-8", "surrogateescape"
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
    ):  # fmt: skip
        if head.startswith(mark):
            codec = name
            break
    else:
        start = head[:2000]
        for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # no mark, yet every other byte of plain words is 0
            if len(start) >= 4 and start[offset::2].count(0) > len(start) // 4:
                codec = name
        if codec == "utf-8":
            refuse_old_encoding(head)
    if codec.startswith(("utf-16", "utf-32")):
        errors = "replace"
    return io.TextIOWrapper(stream, encoding=codec, errors=errors, newline=newline)


def refuse_old_encoding(head: bytes) -> None:
    """Raises ValueError for text in Windows-1252, GBK and the like; a few stray bytes are a matter for their rows."""
    if head.isascii():
        return
    lines = head[: head.rfind(b"\n") + 1 or None].decode("utf-8", "surrogateescape").split("\n")
    broken = [line for line in lines if re.search("[\udc80-\udcff]", line)]
    sound = sum(len(re.findall("[^\x00-\x7f\udc80-\udcff]", line)) for line in lines)
    stray = sum(len(re.findall("[\udc80-\udcff]", line)) for line in broken)
    if stray > sound and (len(broken) > len(lines) / 20 or lines[0] in broken):
        from charset_normalizer import from_bytes

        sample = "\n".join(broken)[:20_000].encode("utf-8", "surrogateescape")
        known = ["gb18030", "big5", "cp932", "euc_kr", "cp1251", "cp1252"]
        found = from_bytes(sample, cp_isolation=known).best()
        names = {"gb18030": "GBK", "cp932": "Shift-JIS", "cp1252": "Windows-1252", "cp1251": "Windows-1251"}
        guess = f" but probably {names.get(found.encoding, found.encoding)}" if found else ""
        raise ValueError(f"its text is not UTF-8{guess}: save it as UTF-8")


def read_csv(text: Iterable[str], kind: str) -> Iterator[Row]:
    """Rows of a table with one line of names. A row with more cells than names is a broken row."""
    csv.field_size_limit(2**31 - 1)  # a chain of thought may exceed the default of 128 kB
    lines = iter(text)
    first = next((line for line in lines if line.strip()), "")
    if excel := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):
        separator, sample = excel[1], []
    else:
        sample = [first, *itertools.islice(lines, 50)]
        separator = separator_of(sample, "\t" + SEPARATORS if kind == ".tsv" else SEPARATORS)
    reader = csv.reader(
        itertools.chain(sample, lines), delimiter=separator, strict=True, skipinitialspace=separator != "\t"
    )
    try:
        named = [name.strip() for name in next(reader, [])]
        names = [name or f"column {place}" for place, name in enumerate(named, 1)]
        refuse_twins(names)
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if not any(map(str.strip, cells)):
                continue  # Excel's empty rows after the last one
            if any(map(str.strip, cells[len(names) :])):
                yield number, "more cells than columns"
            else:
                row = itertools.zip_longest(names, cells[: len(names)])
                # a column without a name counts where something stands in it
                yield number, {name: cell for (name, cell), known in zip(row, named, strict=True) if known or cell}
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def separator_of(sample: Sequence[str], candidates: str) -> str:
    """What parts the cells of these lines: with it most rows have as many as the first; of two, what makes more."""

    def score(one: str) -> tuple[bool, float, int]:
        first, *others = [len(row) for row in csv.reader(sample, delimiter=one, skipinitialspace=True) if row] or [0]
        return first > 1, round(sum(cells == first for cells in others) / max(1, len(others)), 1), first

    return max(candidates, key=score)


class Twice(dict[str, Any]):
    """A JSON object in which the key `name` stands twice."""

    name = ""


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) == len(pairs):
        return cells
    names = [name for name, _ in pairs]
    twice = Twice(cells)
    twice.name = next(name for place, name in enumerate(names) if name in names[:place])
    return twice


DECODER = json.JSONDecoder(object_pairs_hook=json_object)


def read_json(text: io.TextIOWrapper) -> Iterator[Row]:
    """Rows of JSON lines, of objects printed over several lines, or of one document."""
    if is_list(text):
        text.seek(0)
        yield from numbered(elements(text, DECODER))
        return
    text.seek(0)
    lines = iter(text)
    before = 0
    for first in lines:
        before += 1
        if first.strip():
            break
    else:
        return
    content = parsed(first)
    rows: Iterable[Row]
    if content is None and first.lstrip().startswith(("{", "[")):
        whole = first + "".join(lines)
        try:
            document = DECODER.decode(whole)
        except json.JSONDecodeError:
            if first.lstrip().startswith("["):
                raise
            rows = objects(whole, before) if spread(whole) else from_lines(whole.split("\n"), before)
        else:
            yield from numbered(rows_of(document))
            return
    else:
        if content is not None and not any(line.strip() for line in lines):
            yield from numbered(rows_of(content))
            return
        text.seek(0)
        rows = from_lines(text, 1)
    cells: Any = None
    sound = False
    for number, cells in rows:
        sound = sound or cells != "not JSON"
        yield number, cells
    if cells is not None and not sound:
        raise ValueError(f"no line is JSON{not_json(first)}")


def is_list(text: IO[str]) -> bool:
    """Whether a text is a JSON list of anything but lists, which would be cells without names, and nothing else."""
    try:
        kinds = {type(element) for element in elements(text, json.JSONDecoder())}
    except (ValueError, RecursionError):
        return False
    return kinds != {list}


def elements(text: IO[str], decoder: json.JSONDecoder) -> Iterator[Any]:
    """The elements of a JSON list, one after another. Raises ValueError for any other text."""
    held, at = "", 0  # a part of the text, and how far in it we are

    def mark() -> str:
        """The next character that is not blank, "" at the end."""
        nonlocal held, at
        while (found := NOT_BLANK.search(held, at)) is None:
            held, at = text.read(HEAD), 0
            if not held:
                return ""
        at = found.start()
        return found[0]

    if mark() != "[":
        raise ValueError("no list")
    at += 1
    more = mark() != "]"
    at += not more
    while more:
        while True:
            with contextlib.suppress(ValueError):
                element, end = decoder.raw_decode(held, at)
                if end < len(held) and held[end] in ",] \t\n\r":  # else 12 may be the beginning of 123 or 12e3
                    break
            following = text.read(max(HEAD, len(held)))
            if not following:
                raise ValueError("cut")
            held, at = held[at:] + following, 0
        at = end
        yield element
        if mark() not in (",", "]"):
            raise ValueError("neither , nor ]")
        more = held[at] == ","
        at += 1
        if more:
            mark()
    if mark():
        raise ValueError("more after the list")


def not_json(first: str) -> str:
    """What the first line of a file that is named as JSON looks like."""
    if first.lstrip().startswith(("{'", "[{'")):
        return ", but Python's own notation: write rows with json.dumps"
    if not first.lstrip().startswith(("{", "[")) and len(first.split(separator_of([first], SEPARATORS))) > 1:
        return "; if it is a table with a line of names, call it .csv"
    return ""


def parsed(text: str) -> Any:
    """What a text says as JSON; None where it is not JSON."""
    try:
        return DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None


def from_lines(lines: Iterable[str], start: int) -> Iterator[Row]:
    """A row for each line that is not blank; a broken line is a broken row."""
    return ((number, cells_of(parsed(line))) for number, line in enumerate(lines, start) if line.strip())


def spread(whole: str) -> bool:
    """Whether objects begin at the start of a line and end lines later, as json.dump(..., indent=2) writes them."""
    try:
        DECODER.raw_decode(whole.lstrip())
    except ValueError:
        return False
    return True


def objects(whole: str, start: int) -> Iterator[Row]:
    """A row for each object, however printed; its number is the line on which it begins.

    After a broken one the next that begins a line is looked for.
    """
    at, number = 0, start
    while (begin := re.compile(r"[^\s,]").search(whole, at)) is not None:
        number += whole.count("\n", at, begin.start())
        try:
            content, end = DECODER.raw_decode(whole, begin.start())
        except ValueError:
            content, end = None, whole.find("\n{", begin.start())
        yield number, cells_of(content)
        if end == -1:
            break
        number += whole.count("\n", begin.start(), end)
        at = end


def numbered(rows: Iterable[Any]) -> Iterator[Row]:
    return ((number, cells_of(row)) for number, row in enumerate(rows, 1))


def cells_of(content: Any) -> dict[str, Any] | str:
    """A row's cells, or why there are none."""
    if content is None:
        return "not JSON"
    if not isinstance(content, dict):
        return "not an object"
    twice = twice_in(content)
    return content if twice is None else f"two keys named {visible(twice)}"


def twice_in(content: Any) -> str | None:
    """A key that stands twice in an object, at any depth."""
    if isinstance(content, Twice):
        return content.name
    within = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return next((name for part in within if (name := twice_in(part)) is not None), None)


def rows_of(content: Any) -> list[Any]:
    """The rows of a JSON document.

    A list of objects; one object; {"data": [...]} and the like; pandas' orients columns, split, table, index.
    Raises ValueError for several tables in one document.
    """
    if isinstance(content, list):
        if content and all(isinstance(row, list) for row in content):
            raise ValueError("lists of cells without the columns' names: write objects")
        return content
    if not isinstance(content, dict):
        raise ValueError("neither a list of objects nor an object a line")
    if isinstance(content, Twice):
        raise ValueError(f"two keys named {visible(content.name)}")
    names, cells = content.get("columns"), content.get("data")
    if isinstance(names, list) and isinstance(cells, list) and all(isinstance(row, list) for row in cells):
        refuse_twins([str(name) for name in names])
        return [dict(zip(map(str, names), row, strict=False)) for row in cells]
    if is_table(content.get("rows")) and all(isinstance(row.get("row"), dict) for row in content["rows"]):
        return [row["row"] for row in content["rows"]]  # as the hub's viewer gives them
    tables = [name for name, part in content.items() if is_table(part)]
    if len(tables) > 1 and (len(tables) == len(content) or set(tables) & set(WRAPPERS)):
        raise ValueError(f"{len(tables)} tables in one file ({', '.join(map(visible, tables))}): write a file for each")
    if tables and (len(content) == 1 or tables[0] in WRAPPERS):
        rows: list[Any] = content[tables[0]]
        return rows
    return by_columns(content) or [content]


def is_table(part: Any) -> bool:
    """Whether this is a list of objects that are no turns of a chat."""
    return (
        isinstance(part, list)
        and bool(part)
        and all(isinstance(row, dict) for row in part)
        and not any(key in part[0] for key in SINGLE)
    )


def by_columns(content: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a table written column by column, as lists or by index, or by index of row; None for one row."""
    parts = list(content.values())
    if not parts:
        return None
    if all(isinstance(part, list) for part in parts) and len(set(map(len, parts))) == 1 and parts[0]:
        if any(isinstance(part[0], dict) and any(key in part[0] for key in SINGLE) for part in parts):
            return None  # one row: its turns
        return [dict(zip(content, cells, strict=True)) for cells in zip(*parts, strict=True)]
    if all(isinstance(part, dict) and part for part in parts):
        if all(str(key).isdecimal() for part in parts for key in part):
            index = dict.fromkeys(key for part in parts for key in part)
            return [{name: part.get(key) for name, part in content.items()} for key in index]
        return parts
    return None
