"""Imports point down, without circles; heavy packages are imported in the files that are named for them."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # a room imports from rooms on lower floors only
    {"curation.core"},
    {"curation.recipe", "curation.engine"},
    {"curation.read", "training.model"},
    {"curation.shape", "mining", "training"},
    {"curation.clean"},
    {"curation.report"},
    {"curation.share"},
    {"curation.build"},
    {"curation"},  # the command line
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SHARED = {"curation.core", "curation.recipe", "curation.engine", "training.model"}  # what another package may import
HOMES = {
    "pyarrow": {
        "curation/core/jit.py",
        "curation/core/tables.py",
        "curation/read/blocks.py",
        "curation/read/delimited.py",
        "curation/read/json_values.py",
    },
    "datasets": {
        "curation/core/python_data.py",
        "curation/read/dataset.py",
        "curation/read/hub.py",
        "training/mteb.py",
    },
    "mteb": {"curation/recipe/mteb_tasks.py", "training/mteb.py"},
    "faiss": {"mining/search.py", "mining/gpu.py", "training/clusters.py"},
    "bm25s": {"mining/bm25.py"},
    "deepspeed": {"training/zero.py"},
    "peft": {"training/lora.py"},
}
LIGHT = {
    "click",
    "curation.core.errors",
    "curation.core.progress",
    "curation.core.console",
    "curation.core.escape",
    "curation.cli_share",
}
PACKAGES = ("curation", "mining", "training")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return place(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room_of(module: str) -> str:
    """The folder of a module."""
    return module.rpartition(".")[0] or module


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Modules that a file imports; `from a import b` counts as a.b where that is one of our modules."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {name for name in inner if (ROOT / (name.replace(".", "/") + ".py")).exists()}
            found |= ours or {node.module}
    return found


MODULES = {module_of(path): path for path in FILES if path.name != "__init__.py"}
GRAPH = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}


def test_every_room_is_on_a_floor():
    assert {room_of(name) for name in MODULES} == FLOOR.keys()
    assert len(FLOOR) <= 16
    assert len(FLOORS) <= 9


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    room = room_of(name)
    for other in GRAPH[name]:
        there = room_of(other)
        assert there == room or FLOOR[there] < FLOOR[room], f"{name} imports {other}"
        assert there in SHARED or there.split(".")[0] == room.split(".")[0], f"{name} imports {other}"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Files that import each other, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_files_import_each_other_in_no_circle():
    assert circle(GRAPH | {"a": {"b"}, "b": {"a"}}) != []
    assert circle(GRAPH) == []


def test_only_the_command_lines_are_loose_files_of_curation():
    assert {path.name for path in (ROOT / "curation").glob("*.py")} == {"__init__.py", "cli.py", "cli_share.py"}


@pytest.mark.parametrize("path", FILES, ids=place)
def test_heavy_packages_have_one_home(path):
    here = place(path)
    for package, homes in HOMES.items():
        if any(name.split(".")[0] == package for name in imports(path)):
            assert here in homes, f"{here} imports {package}"


@pytest.mark.parametrize("path", [path for path in FILES if path.name.startswith("cli")], ids=lambda path: path.stem)
def test_command_lines_import_little(path):
    standard = {"__future__", "pathlib", "typing", "collections.abc"}
    assert imports(path, top_only=True) <= LIGHT | standard


@pytest.mark.parametrize("path", FILES, ids=place)
def test_libraries_do_not_print(path):
    if path.name.startswith("cli") or path.name in ("console.py", "progress.py"):
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert "click" not in imports(path)
