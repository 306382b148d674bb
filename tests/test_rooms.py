"""The house: which room imports from which, and that every room says what it holds."""

import ast
import graphlib
from pathlib import Path

import pytest

from support import ROOT

# each imports only from those before it; files beside the rooms by their own names
ORDER = (
    {"config", "batch"},
    {"core", "engine"},
    {"models"},
    {"data"},
    {"inference", "report"},
    {"sweep", "chat", "export"},
    {"train", "serve", "dashboard", "runs"},
    {"evaluate"},
    {"verdict", "sample"},
    {"completion", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
PACKAGE = ROOT / "medreason"
FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module(path) for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medreason"):
            parent = (node.module or "").partition(".")[2]
            found |= {parent} | {f"{parent}.{one.name}".lstrip(".") for one in node.names}
    return found & MODULES


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    own = module(path).partition(".")[0]
    others = {name.partition(".")[0] for name in imports(path)} - {own}
    assert not [other for other in others if FLOOR[other] >= FLOOR[own]]


def test_no_file_imports_itself_by_way_of_others() -> None:
    tuple(graphlib.TopologicalSorter({module(path): imports(path) for path in FILES}).static_order())


def test_a_room_is_one_level_deep_and_says_in_a_sentence_what_it_holds() -> None:
    rooms = {path.parent for path in FILES} - {PACKAGE}
    assert {room.parent for room in rooms} == {PACKAGE}
    for room in rooms:
        (only,) = ast.parse((room / "__init__.py").read_text(encoding="utf-8")).body
        assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant), f"{room.name} imports something"
        told = str(only.value.value)
        assert " in" in told and " out" in told and told.endswith(".") and "\n" not in told
