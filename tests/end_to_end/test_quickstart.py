"""The data of the quickstart: functions of Python's standard library, without their docstrings."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quickstart import functions_of, write_functions

from curation.read.rows import Rows
from curation.read.sources import table_rows
from curation.recipe.source import Table
from tests import documents
from tests.end_to_end.test_readme import tools_in


def functions(code: str) -> dict[str, dict]:
    return {row["name"]: row for row in functions_of(textwrap.dedent(code), "p.m") if row}


def test_functions_of_every_kind():
    found = functions('''
        import os
        @os.decorate(
            "x")
        async def first(a, b=1):
            """Summary over
            two lines.

            More, é.
            """  # noqa
            # a comment
            def inner():
                "Inner."
                raise ValueError
            return inner

        class Class:
            def method(self):
                r"""Méthod."""; return """
        a text
            that keeps its margin"""
            def bare(self):
                """Only words."""
                ...

        def line(): "One line."; return 1
        def none(): return 1
        def raiser():
            ("Brackets.")
            if 1:
                raise
    ''')
    assert list(found) == ["first", "first.<locals>.inner", "Class.method", "line", "raiser"]
    first = found["first"]
    assert (first["module"], first["summary"]) == ("p.m", "Summary over two lines.")
    assert first["docstring"] == "Summary over\ntwo lines.\n\nMore, é."
    assert first["code"] == (
        '@os.decorate(\n    "x")\nasync def first(a, b=1):\n    # a comment\n    def inner():\n'
        '        "Inner."\n        raise ValueError\n    return inner'
    )
    assert found["first.<locals>.inner"]["code"] == "def inner():\n    raise ValueError"
    assert found["Class.method"]["code"] == 'def method(self):\n    return """\na text\n    that keeps its margin"""'
    assert found["line"]["code"] == "def line(): return 1"
    assert found["raiser"]["code"] == "def raiser():\n    if 1:\n        raise"
    assert [one["raises"] for one in found.values()] == ["no", "yes", "no", "no", "yes"]


def test_a_function_without_a_body_is_null():
    rows = list(functions_of('def f():\n    """Only words."""\n\ndef g():\n    "D."\n    return "\\d"\n', "a"))
    assert rows[0] is None
    assert rows[1]["name"] == "g"


def assert_one_function(row: dict) -> None:
    """Assert that the code is one function of this name, alone."""
    (function,) = ast.parse(row["code"]).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    assert function.name == row["name"].rpartition(".")[2]


statements = st.sampled_from(
    [
        "return 1",
        "x = '''a\n  b'''",
        "x = 'é'; y = 2",
        "if x:\n    raise E",
        "def g():\n    'Doc.'\n    pass",
        "x = (1,\n2)",
        "'text'",
        "# word\nx",
    ]
)
docstrings = st.sampled_from(['"D."', "'''D.\n\n    é more\n    '''", '("D." "E")', 'r"""D\\d"""  # why', "'D.' ;", "'D.' \\\n"])


@settings(max_examples=150)
@given(docstrings, st.lists(statements, min_size=1, max_size=4), st.integers(0, 2), st.booleans())
def test_cutting_the_docstring_never_loses_the_body(docstring, body, depth, tabs):
    margin = "\t" if tabs else "    "
    code = "def f(a='é',\n  b=2):\n" + textwrap.indent(docstring + "\n" + "\n".join(body), margin)
    whole = textwrap.indent(code, margin * depth)
    whole = "".join(f"{margin * level}class C{level}:\n" for level in range(depth)) + whole + "\n"
    tree = next(node for node in ast.walk(ast.parse(whole)) if isinstance(node, ast.FunctionDef))
    row = next(row for row in functions_of(whole, "m") if row)
    cut = ast.parse(row["code"]).body[0]
    assert isinstance(cut, ast.FunctionDef)
    assert [ast.dump(part) for part in cut.body] == [ast.dump(part) for part in tree.body[1:]]
    assert ast.dump(cut.args) == ast.dump(tree.args)
    assert row["docstring"] == inspect.cleandoc(ast.get_docstring(tree, clean=False) or "")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Rows:
    """The rows of the quickstart's data, as `curate` reads them."""
    folder = tmp_path_factory.mktemp("data")
    write_functions(folder / "stdlib.jsonl")
    batches = list(table_rows(Table(files=["stdlib.jsonl"]), folder))
    return Rows(pl.concat([batch.frame for batch in batches]), [lost for batch in batches for lost in batch.lost])


@pytest.mark.long
def test_all_code_of_the_standard_library_still_parses(library):
    for row in library.frame.iter_rows(named=True):
        assert_one_function(row)


def test_the_standard_library(library):
    rows, lost = library
    assert len(rows) > 4000
    assert len(lost) < 0.05 * len(rows)
    assert all(one.reason == "not_an_object" and "null" in one.evidence for one in lost)
    dumps = rows.row(by_predicate=(pl.col("name") == "dumps") & (pl.col("module") == "json"), named=True)
    assert dumps["summary"] == "Serialize ``obj`` to a JSON formatted ``str``."
    assert dumps["docstring"] == inspect.getdoc(json.dumps)
    assert "Serialize" not in dumps["code"]
    assert dumps["code"].startswith("def dumps(obj, *, skipkeys=False")
    assert not rows["module"].str.contains(r"(^|\.)(test|tests|idle_test)\.").any()
    for row in rows.sample(1000, seed=0).iter_rows(named=True):
        assert_one_function(row)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demo_ends_with_a_better_model(tmp_path):
    """`make demo` with fewer rows and steps. A model that was not trained scores the same before and after."""
    (tmp_path / "manifests").mkdir()
    shutil.copy(documents.ROOT / "manifests/quickstart.py", tmp_path / "manifests")
    manifest = (documents.ROOT / "manifests/quickstart.yaml").read_text()
    for before, after in (
        ("    holdout: 500\n", "    limit: 900\n    holdout: 250\n"),
        ("    limit: 1000\n", "    limit: 150\n"),
        ("    limit: 500\n", "    limit: 150\n"),
        ("  steps: 140\n", "  steps: 30\n"),
    ):
        assert manifest.count(before) == 1
        manifest = manifest.replace(before, after)
    (tmp_path / "manifests/quickstart.yaml").write_text(manifest)
    paths = [str(documents.ROOT), *filter(None, sys.path)]
    env = os.environ | {
        "PATH": f"{tools_in(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
        [sys.executable, "manifests/quickstart.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"^nDCG@10 on 250 held-out functions: (0\.\d+) before, (0\.\d+) after training", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert float(found[1]) + 0.02 <= float(found[2])  # 0.654 and 0.687
    assert re.search(r"^stdlib-code +9\d\d +\d{3} +\d+ +250 +\d{3}$", done.stdout, re.MULTILINE)
