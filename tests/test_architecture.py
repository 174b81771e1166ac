"""Dependencies point one way, and heavy packages live in the rooms that are named for them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOOR = {
    f"curation.{name}"
    for name in (
        "errors",
        "schema",
        "manifest",
        "manifest_beir",
        "portable",
        "manifest_source",
        "manifest_models",
        "manifest_decontaminate",
        "section",
        "complaints",
        "yaml_lines",
        "store",
        "tables",
        "locks",
        "text",
        "characters",
        "buffers",
        "folding",
        "fold_kernels",
        "compiled",
        "tries",
        "visible",
        "progress",
        "refusals",
        "command",
        "exchange.card",
        "exchange.upload",
    )
}
HOMES = {
    "pyarrow": {"curation/buffers.py", "curation/tables.py", "curation/reading/blocks.py", "curation/reading/json_blocks.py"},
    "datasets": {
        "curation/reading/dataset.py",
        "curation/reading/dataset_files.py",
        "curation/reading/hub.py",
        "training/mteb_tasks.py",
    },
    "mteb": {"curation/leaks/mteb_tasks.py", "training/mteb_tasks.py"},
    "faiss": {"mining/search.py", "mining/cards.py"},
    "bm25s": {"mining/lexical.py"},
    "deepspeed": {"training/zero.py"},
}
MODELS = {  # what mining may load models with
    "training.prompts",
    "training.encode",
    "training.cross_encoder",
    "training.causal_reranker",
    "training.model_files",
}
LIGHT = {
    "click",
    "curation.errors",
    "curation.progress",
    "curation.command",
    "curation.visible",
    "curation.cli_exchange",
    "training.cli_models",
}
FILES = sorted(path for room in ("curation", "mining", "training") for path in (ROOT / room).rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_point_one_way(path):
    room = place(path).split("/")[0]
    allowed_elsewhere = FLOOR | (MODELS if room == "mining" else set())
    for name in imports(path):
        if name.split(".")[0] in ("curation", "mining", "training") and name.split(".")[0] != room:
            assert name in allowed_elsewhere, f"{path} imports {name}"
    if place(path).removesuffix(".py").replace("/", ".") in FLOOR:
        ours = {name for name in imports(path) if name.startswith("curation.")}
        assert ours <= FLOOR, f"the floor stands on nothing else: {ours - FLOOR}"


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
    if path.name.startswith("cli") or path.name in ("command.py", "progress.py"):
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert "click" not in imports(path)
