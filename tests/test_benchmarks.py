"""The scripts of benchmarks/ fit the code of today: what they import exists, and takes the arguments that they give it."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

OURS = ("curation", "mining", "training", "tuplesmith")
SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_a_script_uses_exists_and_takes_its_arguments(script):
    tree, used = ast.parse(script.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if one.name.split(".")[0] in OURS:
                    import_module(one.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            module = import_module(node.module)
            for one in node.names:
                name = f"{node.module}.{one.name}"
                used[one.asname or one.name] = getattr(module, one.name) if hasattr(module, one.name) else import_module(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = used.get(node.value.id)
            assert not isinstance(owner, ModuleType) or hasattr(owner, node.attr), f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and not any(isinstance(one, ast.Starred) for one in node.args):
            name, _, method = ast.unparse(node.func).rpartition(".")
            called = getattr(used.get(name), method, None) if isinstance(used.get(name), ModuleType) else used.get(method)
            if callable(called) and not (name and called is used.get(method)) and all(one.arg for one in node.keywords):
                wrong = f"line {node.lineno}: {ast.unparse(node.func)}"
                try:
                    inspect.signature(called).bind(*node.args, **{one.arg: one.value for one in node.keywords})
                except TypeError as error:
                    raise AssertionError(f"{wrong}: {error}") from None
