"""Files are whole or not there; a full disk, a damaged cache and cut weights are said in a line, or mended."""

import errno
import json
import resource
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from medreason.config import ConfigError, ServeConfig
from medreason.core.cache import cached_table
from medreason.core.cli import command
from medreason.core.disk import describe_full, disk_full, whole_file, whole_folder
from medreason.core.run_directory import metrics_logger, read_cells, read_metrics, series
from medreason.inference.target import find_answerer
from medreason.models import embedded
from medreason.models.checks import check_safetensors
from medreason.models.load import load_tokenizer
from medreason.train.checkpoints import WholeCheckpoints
from support import TINY

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_file_and_a_folder_are_whole_or_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    for whole, name in ((whole_file, "file.json"), (whole_folder, "folder")):
        with suppress(OSError), whole(tmp_path / name) as draft:
            (draft / "new" if draft.is_dir() else draft).write_text("ha")
            raise FULL
    assert (tmp_path / "file.json").read_text() == "old" and (tmp_path / "folder" / "old").exists()
    with whole_file(tmp_path / "file.json") as draft:
        assert draft.suffix == ".json"  # by which matplotlib tells what to write
        draft.write_text("new")
    with whole_folder(tmp_path / "folder") as draft:
        (draft / "new").touch()
    assert (tmp_path / "file.json").read_text() == "new"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.json", "folder"]


def caused(error: Exception) -> Exception:
    try:
        try:
            raise FULL
        except OSError as full:
            raise error from full
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (caused(RuntimeError("something else")), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), True),
        (sqlite3.OperationalError("database or disk is full"), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_every_librarys_word_for_a_full_disk_is_known(error: Exception, full: bool) -> None:
    assert disk_full(error) is full


def test_a_full_disk_is_named_with_how_to_go_on(tmp_path: Path) -> None:
    assert str(tmp_path) in describe_full(FULL, tmp_path) and "repeat the command" in describe_full(FULL, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert describe_full(FULL, tmp_path).endswith(f"go on with resume={tmp_path}")


def test_a_checkpoint_is_written_beside_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary folder may be on another disk, and what is moved from there is copied."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"weight": torch.ones(3)}, path)
    replace = Path.replace

    def watched(draft: Path, target: Path) -> Path:
        assert draft.parent == path.parent and torch.load(draft, weights_only=True)["weight"].sum() == 6
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", watched)
    WholeCheckpoints().save_checkpoint({"weight": 2 * torch.ones(3)}, path)
    monkeypatch.undo()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))  # as a disk that fills in the middle of a file
    try:
        with pytest.raises((OSError, RuntimeError)) as caught:
            WholeCheckpoints().save_checkpoint({"weight": 3 * torch.ones(2**18)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert disk_full(caught.value)
    assert torch.load(path, weights_only=True)["weight"].sum() == 6
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "a bit flipped": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "zeros in the middle": lambda content: content[:400] + b"\0" * 64 + content[464:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_made_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    monkeypatch.setenv("MEDREASON_CACHE", str(tmp_path))
    table = pa.table({"text": [f"row {number}" for number in range(200)]})
    cached_table("kind", "key", lambda: table)
    path = tmp_path / "kind" / "key.arrow"
    path.write_bytes(damage(path.read_bytes()))
    built: list[int] = []
    assert cached_table("kind", "key", lambda: built.append(1) or table).equals(table) and built
    assert cached_table("kind", "key", lambda: pytest.fail("it is whole again")).equals(table)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", [*DAMAGES.values(), None], ids=[*DAMAGES, "removed"])
def test_a_damaged_embedded_model_is_made_anew(
    name: str, damage: Callable[[bytes], bytes] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDREASON_CACHE", str(tmp_path))
    file = embedded.materialize("tiny") / name
    whole = file.read_bytes()
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(whole))
    embedded.sound.cache_clear()  # as another process has it
    load_tokenizer(TINY)
    assert file.read_bytes() == whole
    embedded.sound.cache_clear()


def test_cut_weights_are_refused_by_name_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100), "b": torch.ones(50)}, file)
    check_safetensors(tmp_path, "run=DIR")
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:20], whole[:4], b"", whole + b"more", b"\xff" * 100, b"<html>" * 100):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"^run=DIR: .*model.safetensors is cut or damaged.*copy it"):
            check_safetensors(tmp_path, "run=DIR")
        with pytest.raises(ConfigError, match=r"model.safetensors is cut or damaged"):
            find_answerer(str(tmp_path))
    file.write_bytes(whole)
    index = {"weight_map": {"a": "model.safetensors", "c": "model-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"no model-00002.safetensors"):
        check_safetensors(tmp_path, "run=DIR")


@pytest.mark.parametrize("error", [FULL, SafetensorError("No space left on device (os error 28)")])
def test_a_full_disk_ends_a_command_in_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: Any) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["medreason.serve", f"run={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        command(task, "serve", ServeConfig)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"medreason.serve: no space left to write in {tmp_path}")


def test_a_directory_that_cannot_be_made_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["medreason.serve", "run=x", f"hydra.run.dir={tmp_path}/file/run"])
    with pytest.raises(SystemExit) as ended:
        command(pytest.fail, "serve", ServeConfig)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"medreason.serve: {tmp_path}/file/run: Not a directory; ") and told.count("\n") == 1


def test_a_row_of_metrics_that_a_full_disk_has_cut_is_left_out_of_a_resumed_run(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"global_step": 3}, checkpoint)
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,0,1.5\n0,1,1.25\n0")
    logger = metrics_logger(tmp_path / "resumed", checkpoint)
    logger.save()
    assert [row["step"] for row in read_cells(tmp_path / "resumed" / "metrics.csv")] == ["0", "1"]


def test_a_resumed_run_keeps_the_validation_that_its_checkpoint_was_saved_after(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"global_step": 2}, checkpoint)
    rows = ["0,0,,2.0", "0,0,1.5,", "0,1,1.25,", "0,2,,1.4", "0,2,1.1,", "0,3,,1.2"]  # two steps were lost
    (tmp_path / "metrics.csv").write_text("\n".join(["epoch,step,train/loss,val/loss", *rows]) + "\n")
    metrics_logger(tmp_path / "resumed", checkpoint).save()
    kept = read_metrics(tmp_path / "resumed" / "metrics.csv")
    assert series(kept, "train/loss") == ([0, 1], [1.5, 1.25]) and series(kept, "val/loss") == ([0, 2], [2.0, 1.4])
