"""Every code block of the README and of docs/ runs, in its order and in one folder, or says above it why not; links lead somewhere."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from itertools import product

import pytest
import yaml

from curation.recipe.manifest import load_manifest
from tests import documents
from tests.end_to_end.test_end_to_end import MODULES
from tests.servers.hub_server import hub
from tests.training.tiny_models import MINILM
from training.model.files import find_model

THINGS = ["router", "printer", "kettle", "phone", "lamp", "scanner", "clock", "radio"]
FAILS = ["hums", "leaks", "blinks red", "forgets its password", "is late", "smells"]
PLACES = ["office", "station", "warehouse", "hotel", "school", "farm"]
BLOCK = re.compile(r"(?P<mark><!-- not run: [^\n]+ -->\n)?```(?P<language>sh|yaml|python)\n(?P<code>.*?)```\n", re.DOTALL)
API = [
    documents.ROOT / "docs" / "python-api.md",
    *sorted((documents.ROOT / "docs" / "recipes").glob("*.md")),
]  # test_recipes.py's
PAGES = [documents.README, *sorted({*(documents.ROOT / "docs").glob("*.md")} - {*API}), documents.KEYS]
BLOCKS = [match.groupdict() for page in PAGES for match in BLOCK.finditer(page.read_text())]


def test_no_block_is_overlooked():
    fences = [fence for page in PAGES for fence in re.findall(r"^```(\w*)\n", page.read_text(), re.MULTILINE)]
    assert set(fences) == {"", "text", "sh", "yaml", "python"}
    assert len(BLOCKS) == sum(fence in ("sh", "yaml", "python") for fence in fences)
    assert [block["code"].split()[0] for block in BLOCKS if block["mark"]] == [
        "make",
        "pip",
        "curate",
        "#!/bin/bash",
        "apiVersion:",
        "apiVersion:",
        "mine",
        "torchrun",
        "train",
    ]


def test_blocks_that_are_not_run_are_well_formed_and_name_options_that_exist():
    commands = "|".join(sorted({*documents.commands()} - {"tuplesmith", "curate", "mine"}, key=len, reverse=True))
    for block in [block for block in BLOCKS if block["mark"]]:
        if block["language"] == "yaml":
            assert all(isinstance(part, dict) for part in yaml.safe_load_all(block["code"]))
        else:
            subprocess.run(["bash", "-n"], input=block["code"], text=True, check=True)
        for words, rest in re.findall(rf"\b({commands})(?= )([^\n&#']*)", block["code"]):
            options = {option for parameter in documents.commands()[words].params for option in parameter.opts}
            assert set(re.findall(r"(?<= )--?[a-z][\w-]*", rest)) <= options, (words, rest)


@pytest.mark.parametrize("page", PAGES + API, ids=lambda page: page.relative_to(documents.ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if not link.startswith("https://")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_one_page():
    assert len(documents.README.read_text().splitlines()) <= 150


def tools_in(folder):
    """Return a new folder with the three commands."""
    folder.mkdir()
    for name, module in MODULES.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c "from {module} import main; main()" "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def write_tickets(path):
    """Write 288 questions and answers of a help desk as CSV."""
    rows = [
        (f"My {what} {fails} at the {where}", f"At the {where}, unplug the {what} and wait: one that {fails} needs a rest.")
        for what, fails, where in product(THINGS, FAILS, PLACES)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_block_runs(tmp_path):
    here = tmp_path / "here"
    (here / "tickets").mkdir(parents=True)
    write_tickets(here / "tickets" / "2026.csv")
    with hub(tmp_path / "hub") as server:
        server.put("models", "sentence-transformers/all-MiniLM-L6-v2", find_model(MINILM).transformer)
        env = os.environ | server.environment() | {"PYTHONPATH": os.pathsep.join([str(documents.ROOT), *filter(None, sys.path)])}
        env["PATH"] = f"{tools_in(tmp_path / 'bin')}{os.pathsep}{env['PATH']}"
        for block in BLOCKS:
            if not block["mark"]:
                _run(block, here, env)
        assert "helpdesk" in server.storage.files("my-org/helpdesk", "v1.0")["README.md"].decode()


def _run(block, here, env):
    if block["language"] == "yaml":
        return _written(block["code"], here)
    if block["language"] == "python":  # it reads what the sentence above it writes
        _done(["bash", "-c", "curate signatures -o signatures.parquet"], here, env)
        return _done([sys.executable, "-c", block["code"]], here, env)
    _done(["bash", "-euxc", block["code"]], here, env)


def _written(code, here):
    """A whole manifest becomes a file; a further section only has to fit to one, since what it names is elsewhere."""
    name = re.match("name: (.+)", code)
    if name:
        (here / f"{name[1]}.yaml").write_text(code)
    else:
        (here / "more.yaml").write_text((here / "helpdesk.yaml").read_text() + code)
        assert set(load_manifest(here / "more.yaml").model_fields_set) > {code.split(":")[0], "sources"}


def _done(command, here, env):
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stderr}"
