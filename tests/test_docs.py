"""The documents say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from curation.build.costs import RATES
from tests import documents

HEAVY = ("torch", "transformers", "datasets", "polars", "numpy", "pyarrow", "faiss")


def test_help_page_is_fresh():
    assert documents.HELP.read_text() == documents.helps(), "run `make docs`"


def test_every_command_stands_in_the_readme():
    shown = re.findall(r"^\| `((?:curate|mine|train)[a-z ]*)` \|", documents.README.read_text(), re.MULTILINE)
    assert "<!-- help" not in documents.README.read_text(), "help has docs/commands.md: run `make docs`"
    assert sorted(shown) == sorted(set(documents.commands()) - {"curate", "mine", "tuplesmith"})


def test_keys_page_is_fresh():
    assert documents.KEYS.read_text() == documents.keys(), "run `make docs`"


def test_schema_is_fresh():
    assert documents.SCHEMA.read_text() == documents.schema(), "run `make docs`"
    assert documents.MODELS.read_text() == documents.model_folders.table(), "run `make docs`"


@pytest.mark.parametrize("words", sorted(documents.commands()))
def test_help_fits_80_columns(words):
    assert max(len(line) for line in documents.help_of(words).splitlines()) <= 80


@pytest.mark.parametrize("module", ["curation.cli", "mining.cli", "training.cli"])
def test_help_loads_nothing_heavy(module):
    name = {"curation.cli": "curate", "mining.cli": "mine", "training.cli": "train_command"}[module]
    code = (
        f"import sys, click\nfrom click.testing import CliRunner\nimport {module} as m\n"
        f"done = CliRunner().invoke(m.{name}, ['-h'])\nassert done.exit_code == 0, done.output\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_costs_of_clusters_are_those_of_curate_check():
    assert documents.costs_table() in documents.CLUSTERS.read_text(), "run `make docs`"
    results = (documents.ROOT / "benchmarks" / "RESULTS.md").read_text()
    measured = [RATES["encode"][0], RATES["search"][0] // 1_000_000, RATES["train, 1 epoch"][0]]
    assert [f"{rate:,}" for rate in measured if f"{rate:,}" not in results] == []


def test_changelog_names_the_version():
    root = documents.ROOT
    version = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"## {version}" in (root / "CHANGELOG.md").read_text()
