"""docs/promises.md: each promise names tests, and these exist; what the README promises is explained there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.documents import README, ROOT

PAGE = (ROOT / "docs" / "promises.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("title", SECTIONS)
def test_each_promise_has_tests_that_exist(title):
    named = re.findall(r"^- `(tests/\S+\.py)::(\w+)`$", SECTIONS[title], re.MULTILINE)
    assert named, "a promise without a test"
    for path, test in named:
        there = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}
        assert test in there, f"{path} has no {test}"


def test_the_readme_promises_nothing_else():
    promised = re.search(r"^## What you can rely on\n(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)[1]
    titles = re.findall(r"^- \*\*(.+?)\.\*\*", promised, re.MULTILINE)
    assert len(titles) == len(re.findall(r"^- ", promised, re.MULTILINE))
    assert set(titles) <= set(SECTIONS)
