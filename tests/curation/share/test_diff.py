"""What changed between builds, and between a build and a published version, against plain sets of rows."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from curation.build.build import build
from curation.cli import curate as command
from curation.core import tables
from curation.core.errors import BuildError
from curation.share.diff import diff, differs
from tests.curation.share.small_published import curate, expected, lock, make, published
from tests.servers.hub_server import hub

MANIFEST = """\
name: two
seed: {seed}
filters: {{min_chars: {chars}}}
sources:
  - {{name: faq, files: faq.jsonl, task: retrieval, license: {license}, fields: {{query: q, positive: a}}}}
  - {{name: {other}, files: other.jsonl, task: retrieval, fields: {{query: q, positive: a}}}}
"""


def two(folder, rows, chars=3, license="mit", other="more", seed=1):
    """Build two sources: the faq of `rows`, (query, answer), and another."""
    folder.mkdir()
    for name, pairs in (("faq", rows), ("other", [("why is it so?", "because it is")])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs))
    (folder / "m.yaml").write_text(MANIFEST.format(chars=chars, license=license, other=other, seed=seed))
    assert not build(folder / "m.yaml", folder / "b").failed
    return folder / "b"


ROWS = [(f"question number {i}?", f"answer {'long ' * (i % 4)}{i}") for i in range(20)]


def test_equal_builds_do_not_differ(tmp_path):
    a, b = two(tmp_path / "a", ROWS), two(tmp_path / "b", ROWS)
    done = CliRunner().invoke(command, ["diff", str(a), str(b), "-q"], standalone_mode=False)
    assert (done.return_value, done.stdout) == (0, "no difference\n")


def test_a_filter_says_which_rows_it_took(tmp_path):
    a, b = two(tmp_path / "a", ROWS), two(tmp_path / "b", ROWS, chars=10)
    short = [query for query, answer in ROWS if len(answer) < 10]
    found = diff(str(a), str(b), ["faq"])
    assert found["recipe"] == [{"key": "filters.min_chars", "a": "3", "b": "10"}]
    faq = found["sources"]["faq"]
    assert faq["removed"]["count"] == len(short)
    assert faq["removed"]["reasons"] == {"short_positive": len(short)}
    assert [row["query"] for row in faq["removed"]["first"]] == short[:5]
    assert faq["counts"]["kept"] == [20, 20 - len(short)]
    assert "added" not in faq
    assert "changed" not in faq
    back = diff(str(b), str(a), ["faq"])["sources"]["faq"]
    assert (back["added"], "removed" in back) == (faq["removed"], False)


def test_another_input_another_answer_another_source(tmp_path):
    rows = [*ROWS[1:], ("a new one?", "a new answer")]
    rows[4] = (rows[4][0], "another answer to it")
    a, b = two(tmp_path / "a", ROWS), two(tmp_path / "b", rows, license="cc-by-4.0", other="others")
    done = CliRunner().invoke(command, ["diff", str(a), str(b), "-q"], standalone_mode=False)
    assert done.return_value == 1
    assert done.stdout.splitlines() == [
        f"changes from {a} to {b}",
        "recipe: sources.faq.license: 'mit' -> 'cc-by-4.0'",
        *(f"recipe: sources.more.{key}: {value!r} -> None" for key, value in _other("more")),
        *(f"recipe: sources.others.{key}: None -> {value!r}" for key, value in _other("others")),
        f"source only in {a}: more",
        f"source only in {b}: others",
        "faq: license: 'mit' -> 'cc-by-4.0'",
        "source  added  removed  changed  why",
        "------  -----  -------  -------  " + "-" * 61,
        "faq         1        1        1  added other input 1, removed other input 1, other positives 1",
    ]
    with pytest.raises(BuildError, match=r"no source 'mores' \(did you mean 'more'\?\); sources: faq, more, others"):
        diff(str(a), str(b), ["mores"])


def _other(name):
    return [("name", name), ("files", "other.jsonl"), ("task", "retrieval"), ("fields.query", "q"), ("fields.positive", "a")]


def test_other_negatives_of_the_same_rows(tmp_path):
    a = make(tmp_path / "a", rows=40)
    b = make(tmp_path / "b", rows=40, negatives=2)
    found = diff(str(a), str(b))
    assert found["recipe"] == [{"key": "mine.negatives", "a": "3", "b": "2"}]
    known = {side: tables.read_table(side / "mined/faq", "pairs") for side in (a, b)}
    more = sum(len(one) != len(two) for one, two in zip(known[a]["negatives"], known[b]["negatives"], strict=True))
    assert found["sources"]["faq"]["changed"]["what"] == {"negatives": more}
    assert "removed" not in found["sources"]["faq"]


@pytest.mark.long
def test_a_published_version(tmp_path):
    first, second = lock(make(tmp_path / "a")), lock(make(tmp_path / "b", changed=10))
    with hub(tmp_path / "hub") as server:
        published(server, first, "org/small", "--tag", "v1")
        published(server, second, "org/small", "--tag", "v2")
        status, out, _ = curate(server, "diff", first, "org/small@v1", "-q")
        assert (status, out) == (
            0,
            "not published: nobody: it names no licence\nnot published: doubt: it is not verified: who wrote it is open\n",
        )
        before, after = ({row["query"]: row for row in expected(side, "faq", 3)} for side in (first, second))
        for a, b in ((first, "org/small@v2"), ("org/small@v1", "org/small@v2"), ("org/small@v1", second)):
            status, out, _ = curate(server, "diff", a, b, "--json", "-q")
            found = json.loads(out)
            assert (status, list(found["sources"]), found["recipe"]) == (1, ["faq"], [])
            faq = found["sources"]["faq"]
            old, new = (after, before) if a == first else (before, after)  # a published version is the older side
            assert [found["a"], found["b"]] == ([b, str(a)] if a == first else [a, str(b)])
            assert faq["removed"]["count"] == len(old.keys() - new.keys())
            assert faq["added"]["count"] == len(new.keys() - old.keys())
            assert faq["changed"]["count"] == sum(before[query] != after[query] for query in before.keys() & after.keys())
        line = "curate: org/small: no such repository or revision; check the name; a private one needs a token\n"
        assert curate(server, "diff", first, "org/small@v9") == (1, "", line)
        line = "curate: builds/more: is not a folder here, and on the Hub: no such repository or revision; check the name; a private one needs a token\n"
        assert curate(server, "diff", first, "builds/more") == (1, "", line)
        server.put("datasets", "org/plain", {"a.csv": "a"})
        line = "curate: org/plain: has no provenance.json; was it published by `curate publish`?\n"
        assert curate(server, "diff", first, "org/plain") == (1, "", line)


def test_the_hub_switched_off(tmp_path):
    made = two(tmp_path / "a", ROWS)
    assert not differs(diff(str(made), str(made)))
    done = CliRunner().invoke(command, ["diff", str(made), "org/small", "-q"], standalone_mode=False)
    assert str(done.exception) == "org/small: the Hub is switched off; unset HF_HUB_OFFLINE"
