"""Files are UTF-8 whatever the locale; what a terminal's encoding lacks is said another way; bytes end nothing."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medreason.chat.terminal import typed_lines
from medreason.core.run_directory import read_json, write_json
from support import ROOT, run_command

# their text mode takes the locale's encoding unless told
OPENING = {"open", "read_text", "write_text", "fdopen", "TextIOWrapper", "NamedTemporaryFile"}
RUNNING = {"run", "Popen", "check_output"}


def unnamed_encodings(file: Path) -> list[int]:
    """Lines of a module that open a text, or read what a process says, in whatever encoding the locale has."""
    lines = []
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = {word.arg: word.value for word in call.keywords}
        values = [*call.args, *words.values()]
        binary = any(isinstance(one, ast.Constant) and one.value in ("rb", "wb", "ab", "r+b", "xb") for one in values)
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if name in OPENING and owner not in ("os", "zipfile", "tarfile", "Image") and not binary:
            lines += [call.lineno] if "encoding" not in words else []
        if name in RUNNING and ({"text", "universal_newlines"} & set(words)) and "encoding" not in words:
            lines.append(call.lineno)
    return lines


@pytest.mark.parametrize("folder", ["medreason", "benchmarks"])
def test_every_text_file_names_its_encoding(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(file): lines for file in files if (lines := unnamed_encodings(file))} == {}


def test_the_search_for_unnamed_encodings_finds_them(tmp_path: Path) -> None:
    source = (
        "open('x')\nopen('x', 'rb')\np.read_text()\np.read_text(encoding='utf-8')\np.open('a')\nrun(c, text=True)\n"
    )
    (tmp_path / "x.py").write_text(source, encoding="utf-8")
    assert unnamed_encodings(tmp_path / "x.py") == [1, 3, 5, 6]


def test_a_records_texts_are_utf_8_and_a_byte_that_is_no_text_comes_back(tmp_path: Path) -> None:
    content = {"path": "/d/病例/\udcff.jsonl", "text": "é😀\u2028"}
    write_json(tmp_path / "run.json", content)
    assert read_json(tmp_path / "run.json") == content
    assert "病例".encode() in (tmp_path / "run.json").read_bytes()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_every_character_can_be_said_in_every_encoding(encoding: str) -> None:
    code = "from medreason.core.progress import say, speak_safely; speak_safely(); say('病例 é 😀 \\udcff ✓')"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True
    )
    assert said.returncode == 0, said.stderr
    assert b"\\udcff" in said.stdout
    shown = "病例".encode(encoding) if encoding in ("gbk", "utf-8") else b"\\u75c5\\u4f8b"
    assert shown in said.stdout


def test_the_children_of_a_command_can_say_every_character_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from medreason.core.progress import speak_safely

    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    speak_safely()
    child = [sys.executable, "-X", "utf8=0", "-c", "import sys; print(sys.stdout.errors, chr(0xdcff))"]
    said = subprocess.run(child, capture_output=True, encoding="utf-8", env={**os.environ, "LC_ALL": "C"})
    assert said.stdout.split() == ["backslashreplace", "\\udcff"], said.stderr


def test_bytes_that_are_no_text_do_not_end_a_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = io.BytesIO("头痛?\n".encode() + b"caf\xe9 and \xff\xfe\n" + "again\u2028?\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(talk, encoding="utf-8"))
    assert list(typed_lines()) == ["头痛?", "caf\ufffd and \ufffd\ufffd", "again\u2028?"]


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict"])
def test_a_mistake_is_told_in_a_locale_without_its_characters(encoding: str) -> None:
    said = run_command("train", "data.path=/d/病例.jsonl", env={**os.environ, "PYTHONIOENCODING": encoding})
    assert said.returncode == 2
    assert len(said.stderr.splitlines()) == 1
    assert "only in quotes" in said.stderr
