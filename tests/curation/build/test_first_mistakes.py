"""What somebody meets who builds a first manifest: wrong paths, columns and flags, each with a line that says what to try."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.build.costs import CORE, GPU
from curation.build.preview import preview
from curation.cli import curate
from curation.core.errors import UserError

ROWS = [{"q": f"what is thing number {i}?", "a": f"the answer to it is {i}"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FILES = {
    "a.jsonl": LINES,
    "deep.json": json.dumps({"data": {"items": ROWS}}),
    "semi.csv": "q;a\n" + "".join(f"{row['q']};{row['a']}\n" for row in ROWS),
    "lists.jsonl": "".join(json.dumps(list(row.values())) + "\n" for row in ROWS),
    "rows.xml": "<R><Q><q>what now</q></Q></R>",
    "pointer.jsonl": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "bad.jsonl": LINES + "{oops\n",
}
MANIFEST = (
    "name: first\nsources:\n  - {{name: s, files: {0}, task: retrieval, max_bad: 0.5, fields: {{query: {1}, positive: a}}}}\n"
)
ALL_BAD = "source 's': 4 of 4 rows are bad"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "posts" / "sport").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "query", "message"),
    [
        ("a.jsonl", "qq", "source 's': no column 'qq' (did you mean 'q'?); columns there are: q, a"),
        ("semi.csv", "q", "source 's': no column 'q'; columns there are: q;a; perhaps `delimiter: \";\"`"),
        ("deep.json, records: data/item", "q", "(no_records 1), and 'max_bad' allows 50.0%; first: deep.json: /data: no 'item'"),
        ("rows.xml, reader: xml, records: R/P", "q", "first: rows.xml: no element 'R/P'; elements there are: Q, R, q"),
        (
            "lists.jsonl",
            "q",
            f"{ALL_BAD} (not_an_object 4), and 'max_bad' allows 50.0%; first: lists.jsonl:1: a list, not an object",
        ),
        ("a.jsonl, reader: lines, pattern: '(?P<q>x) (?P<a>y)'", "q", f"{ALL_BAD} (no_match 4)"),
        ("pointer.jsonl", "q", "pointer.jsonl: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
        ("posts, reader: folders", "q", "posts: is a folder; name its files, such as `posts/*/*`"),
        ("a.jsonl, reader: arrow", "q", "fetch the file again, or say the right `reader:`"),
    ],
)
def test_a_wrong_path_or_column_is_reported_alike_by_a_build_and_a_dry_run(folder, files, query, message):
    manifest = folder / "m.yaml"
    manifest.write_text(MANIFEST.format(files, query))
    error = build(manifest, folder / "b").failed["s"]
    assert message in str(error)
    with pytest.raises(UserError) as caught:
        preview(manifest, [], None, print)
    assert str(caught.value) == str(error)


def test_a_dry_run_counts_the_rows_it_lost(folder):
    (folder / "m.yaml").write_text(MANIFEST.format("bad.jsonl", "q"))
    lines: list[str] = []
    preview(folder / "m.yaml", [], None, lines.append)
    assert lines[1] == "  1 of the first 5 rows are left out: bad_json 1"


def test_an_output_folder_that_no_system_makes(folder):
    (folder / "m.yaml").write_text(MANIFEST.format("a.jsonl", "q"))
    with pytest.raises(UserError, match="^/proc/none: cannot be created .*; name another folder"):
        build(folder / "m.yaml", Path("/proc/none"))


@pytest.mark.parametrize("flags", [["build", "m.yaml", "--dry-run", "--json"], ["show", "--reason", "merged"]])
def test_flags_that_mean_nothing_are_refused(flags):
    assert CliRunner().invoke(curate, flags).exit_code == 2


def test_a_build_of_which_nothing_came_says_so(folder):
    (folder / "m.yaml").write_text(MANIFEST.format("semi.csv", "q"))
    done = CliRunner().invoke(curate, ["build", str(folder / "m.yaml"), "-o", str(folder / "b")], standalone_mode=False)
    assert done.return_value == 1
    assert done.stderr.splitlines()[-1] == f"{folder / 'b'}: 0 of 1 sources built"


def test_check_tells_the_size_of_local_files(folder):
    (folder / "m.yaml").write_text(MANIFEST.format("a.jsonl", "q"))
    done = CliRunner().invoke(curate, ["check", str(folder / "m.yaml"), "--json"], standalone_mode=False)
    estimate = json.loads(done.stdout)["estimate"]
    assert (estimate["local_bytes"], estimate["fetched_bytes"]) == (len(LINES), 0)


def test_check_prints_what_each_step_costs(folder):
    fields = "query: a, positive: b"
    searched = f"{{name: pairs, path: o/p, task: retrieval, instruction: i, expected_tuples: 1000000, fields: {{{fields}}}}}"
    labels = "{name: labels, path: o/l, task: classification, instruction: i, limit: 500000, fields: {query: a, label: b}}"
    (folder / "m.yaml").write_text(f"name: m\nsources:\n  - {searched}\n  - {labels}\n")
    shown = CliRunner().invoke(curate, ["check", str(folder / "m.yaml")], standalone_mode=False).stdout
    lines = [re.split(r" {2,}", line) for line in shown.splitlines() if line.endswith((CORE, GPU))]
    assert lines == [
        ["read", "1.5 million rows", "under 1 min", CORE],
        ["build", "1.5 million tuples", "2 min", CORE],
        ["encode", "200.0 million tokens", "10 min", GPU],  # of the source that is searched
        ["search", "1.0 trillion pairs of texts", "under 1 min", GPU],
        ["choose", "1.0 million tuples", "under 1 min", CORE],
        ["train, 1 epoch", "1.9 billion tokens", "4.9 hours", GPU],
    ]
