"""The command `mine`: what goes to stdout and stderr, exit codes, and what `-h` imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_build import make_build
from test_mine import clustering

from tests.training.tiny_models import MINILM

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def mine(forked):
    return lambda *words, cwd: forked.run("mine", *words, cwd=cwd)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    (place / "builds" / "small").mkdir(parents=True)
    rows = [{"query": f"q{n} " + "word " * 30, "positives": ["good"], "negatives": ["bad"]} for n in range(4)]
    sources = {"tone": {"task": "classification", "tuples": rows}, "topics": clustering(), "few": clustering(10, 2)}
    make_build(place / "builds" / "small", sources, failed={"news": "news.csv: no such file"})
    return place


def test_newest_build(mine, place):
    code, out, err = mine("negatives", "--dry-run", cwd=place)
    assert (code, out.splitlines()) == (
        0,
        [
            "source  strategy             rows        kept   dropped  state",
            "tone    given                   4                        would be mined",
            "topics  other classes          60                        would be mined",
            "few     other classes          10                        would be mined",
        ],
    )
    assert err.splitlines() == [
        "using builds/small, the newest build",
        "warning: news: failed in the build, so there is nothing to mine: news.csv: no such file",
    ]
    code, out, err = mine("negatives", cwd=place)
    assert (code, out.splitlines()[1:]) == (
        0,
        [
            "tone    given                   4           4         0  mined",
            "topics  other classes          60          60         0  mined",
            "few     other classes          10           0        10  mined",
        ],
    )
    assert "warning: few: 10 of 10 rows have too few negatives and were dropped" in err
    next_steps = "look at them with `mine show builds/small`; next: `curate export builds/small --format FORMAT -o DIR`"
    assert err.splitlines()[-1] == f"builds/small: 3 of 3 sources mined; {next_steps}"
    assert mine("negatives", cwd=place)[2].splitlines()[-1] == f"builds/small: nothing to do; {next_steps}"
    code, out, err = mine("negatives", "builds/small", "--json", "-q", cwd=place)
    assert (code, err) == (0, "")
    assert {name: receipt["ran"] for name, receipt in json.loads(out).items()} == {"tone": False, "topics": False, "few": False}
    assert json.loads(out)["topics"]["kept"] == 60


def test_show(mine, place):
    mine("negatives", "-q", cwd=place)
    code, out, _ = mine("show", "builds/small", "--only", "tone", "-n", "1", cwd=place)
    assert code == 0
    assert out.splitlines() == [
        "tone/0",
        "  query              q0 " + "word " * 10 + "w...",
        "  positive           good",
        "  given              bad",
        "",
    ]
    code, out, _ = mine("show", "builds/small", "--only", "tone", "-n", "1", "--whole", cwd=place)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 78
    assert " ".join(" ".join(out.splitlines()[1:3]).split()).startswith("query q0 word")
    assert "..." not in out


def test_user_errors_are_one_line(mine, place, tmp_path):
    assert mine("negatives", cwd=tmp_path) == (
        1, "", "mine: builds: holds no build; run `curate build MANIFEST` first, or name a build folder\n",
    )  # fmt: skip
    code, out, err = mine("show", "builds/small", "--only", "topcs", cwd=place)
    assert (code, out, err) == (
        1,
        "",
        "mine: builds/small: has no source 'topcs' (did you mean 'topics'?); it has tone, topics, few\n",
    )
    assert mine("negatives", "--sideways", cwd=place)[0] == 2
    (tmp_path / "bare").mkdir()
    make_build(tmp_path / "bare", {"topics": clustering()}, mine="candidates: given")
    no_model = "mine: bare: the `mine:` section names no model; give one: `mine embed --model NAME`\n"
    assert mine("embed", "bare", cwd=tmp_path) == (1, "", no_model)
    unmined = "mine: bare/mined/topics: is missing or unfinished; run `mine negatives bare` first\n"
    assert mine("embed", "bare", "--model", MINILM, "--device", "cpu", "-q", cwd=tmp_path) == (1, "", unmined)


@pytest.mark.parametrize("words", [["-h"], ["negatives", "-h"], ["show", "-h"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys; sys.argv = ['mine', *sys.argv[1:]]\n"
        "try:\n    from mining.cli import main; main()\n"
        "finally:\n    heavy = {'torch', 'polars', 'datasets', 'transformers', 'numpy', 'faiss'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_build_without_sources_is_one_error_line(mine, tmp_path):
    build = make_build(tmp_path, {"faq": clustering()})
    whole = json.loads((build / "build.json").read_text()) | {"sources": {}, "failed": {"faq": "source 'faq': no column 'q'"}}
    (build / "build.json").write_text(json.dumps(whole))
    expected = f"mine: {build}: has no source with tuples: source 'faq': no column 'q'; mend it and run `curate build` again\n"
    for words in ([], ["--dry-run"], ["--json"], ["-q"]):
        assert mine("negatives", build, *words, cwd=tmp_path) == (1, "", expected)
    (build / "build.json").write_text(json.dumps(whole | {"failed": {}, "excluded": {"faq": "CC-BY-NC-4.0"}}))
    assert "has no source with tuples: source 'faq' is left out: CC-BY-NC-4.0; " in mine("negatives", build, cwd=tmp_path)[2]
