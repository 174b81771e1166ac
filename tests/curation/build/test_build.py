"""A build adds up, repeats to the byte, does nothing twice, and fails without undoing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.build import build as building
from curation.build import shape_stage
from curation.build.build import build
from curation.clean import overlap_lookup
from curation.cli import curate
from curation.core import tables
from curation.core import texts as texts_module
from curation.core.builds import receipts
from curation.core.errors import BuildError, ManifestError
from curation.core.store import read_json, write_json
from curation.core.tables import read_parquet, read_table
from curation.engine.local import Processes
from curation.engine.parts import _work_on
from curation.engine.pool import Pool
from curation.report import page
from curation.shape import holdout
from curation.share.verify import problems

MANIFEST = """\
name: small
seed: 7
sources:
  - {name: faq, files: faq.jsonl, task: retrieval, instruction: Answer, license: mit, holdout: 2, fields: {query: q, positive: a}}
  - {name: topics, files: topics.jsonl, task: clustering, fields: {query: text, label: topic}}
  - {name: tone, files: topics.jsonl, task: classification, fields: {query: text, label: tone}}
"""


def write_lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(tmp_path):
    write_lines(
        tmp_path / "faq.jsonl",
        [{"q": f"question number {i // 2}", "a": f"the answer {i}"} for i in range(20)],
    )
    topics = [{"text": f"text {i} of {i % 3}", "topic": f"topic {i % 3}", "tone": i % 2} for i in range(30)]
    write_lines(tmp_path / "topics.jsonl", [*topics, {"text": "question number 3", "topic": "topic 1", "tone": 0}])
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "timings.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_counts(receipt):
    assert receipt["rows_in"] == receipt["rows_used"] + sum(receipt["rows_dropped"].values())
    assert receipt["tuples_made"] == receipt["kept"] + receipt["merged"] + receipt["heldout"] + sum(receipt["dropped"].values())


def test_what_a_build_holds(recipe, tmp_path):
    outcome = build(recipe, tmp_path / "b")
    assert not outcome.failed
    for name, receipt in outcome.receipts.items():
        check_counts(receipt)
        dropped = read_parquet(tmp_path / "b" / "curated" / name / "dropped.parquet")
        assert len(dropped) == sum(receipt["rows_dropped"].values()) + sum(receipt["dropped"].values()) + receipt["merged"]
    faq = outcome.receipts["faq"]
    assert (faq["rows_in"], faq["tuples_made"], faq["merged"], faq["heldout"], faq["kept"]) == (20, 20, 10, 2, 8)
    pairs, passages = (read_table(tmp_path / "b" / "curated" / "faq", name) for name in ("pairs", "passages"))
    assert passages["pid"].to_list() == list(range(16))
    first = pairs.row(0, named=True)
    assert [passages["text"][pid] for pid in first["positives"]] == [
        f"the answer {2 * int(first['query'][-1]) + i}" for i in range(2)
    ]
    held = [json.loads(line)["text"] for line in (tmp_path / "b/heldout/faq/queries.jsonl").read_text().splitlines()]
    assert len(held) == 2
    assert not set(held) & set(pairs["query"])
    corpus = (tmp_path / "b/heldout/faq/corpus.jsonl").read_text().splitlines()
    assert len(corpus) == 20


def test_a_held_out_text_is_in_no_other_source(recipe, tmp_path):
    for seed in range(12):
        recipe.write_text(MANIFEST.replace("seed: 7", f"seed: {seed}"))
        outcome = build(recipe, tmp_path / "b")
        held = [json.loads(line)["text"] for line in (tmp_path / "b/heldout/faq/queries.jsonl").read_text().splitlines()]
        texts = read_table(tmp_path / "b/curated/tone", "pairs")["query"].to_list()
        assert not set(held) & set(texts)
        if "question number 3" in held:
            assert outcome.receipts["tone"]["dropped"] == {"heldout_query": 1}
            return
    pytest.fail("no seed of twelve held out question 3")


def test_same_bytes_whatever_the_number_of_workers(recipe, tmp_path):
    build(recipe, tmp_path / "one", workers=1)
    build(recipe, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_same_bytes_whatever_the_number_of_threads(tmp_path, monkeypatch):
    """One source is worked on by threads, or by processes; each looks up, compares and writes its own portions."""
    draw = random.Random(7)
    texts = [" ".join(f"w{draw.randrange(999)}" for _ in range(14)) for _ in range(240)]
    rows = [{"q": text, "a": f"answer {at} {text[:9]} end"} for at, text in enumerate(texts)]
    again = [{"q": f"{texts[at]} w3", "a": rows[at]["a"]} for at in range(0, 60, 7)]
    write_lines(tmp_path / "faq.jsonl", [*rows, *again])
    write_lines(tmp_path / "known.jsonl", [{"query": texts[at]} for at in (5, 50, 190)])
    recipe = tmp_path / "m.yaml"
    recipe.write_text(
        "name: small\nseed: 7\ndedup: {}\n"
        "decontaminate: {against: [{reader: jsonl, files: known.jsonl, name: known, fields: {query: query}}]}\n"
        "sources: [{name: faq, files: faq.jsonl, task: retrieval, license: mit, holdout: 9, fields: {query: q, positive: a}}]\n"
    )
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 25)
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 50)
    build(recipe, tmp_path / "whole", workers=1)
    assert len(tables.table_files(tmp_path / "whole/curated/faq", "pairs")) > 3
    for module, name, size in ((texts_module, "READ_AT_A_TIME", 7), (overlap_lookup, "BLOCK_BYTES", 300), (holdout, "LINES", 11)):
        monkeypatch.setattr(module, name, size)
    for workers in (1, 3):
        outcome = build(recipe, tmp_path / f"{workers}", workers=workers)
        assert outcome.receipts["faq"]["dropped"].keys() >= {"contaminated_query", "near_duplicate_query"}
        assert contents(tmp_path / f"{workers}") == contents(tmp_path / "whole")
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 50)  # in the processes it is more, but a shard has no more rows
    build(recipe, tmp_path / "groups", workers=1)
    monkeypatch.setattr(shape_stage, "PORTION", 700)
    monkeypatch.setattr(building, "MOST_BYTES", 1)
    sent = []
    monkeypatch.setattr(Processes, "run", lambda self, *given: sent.append(given[0].func) or Pool.run(self, *given))
    build(recipe, tmp_path / "processes", workers=2)
    assert contents(tmp_path / "processes") == contents(tmp_path / "groups")
    assert sent == [_work_on] * 10  # shape, hold out, sketch, bands, pairs, index (3), look up, write
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_second_run_does_nothing_and_a_change_only_what_depends_on_it(recipe, tmp_path):
    assert build(recipe, tmp_path / "b").ran == {"faq", "topics", "tone"}
    before = contents(tmp_path / "b")
    assert build(recipe, tmp_path / "b").ran == set()
    assert contents(tmp_path / "b") == before
    recipe.write_text(MANIFEST.replace("label: tone}", "label: tone}, filters: {min_chars: 5}"))
    assert build(recipe, tmp_path / "b").ran == {"tone"}
    recipe.write_text(MANIFEST.replace("holdout: 2", "holdout: 3"))
    assert build(recipe, tmp_path / "b").ran == {"faq", "topics", "tone"}


def test_a_failed_source_does_not_undo_the_others(recipe, tmp_path):
    build(recipe, tmp_path / "b")
    recipe.write_text(MANIFEST.replace("label: tone", "label: mood"))
    outcome = build(recipe, tmp_path / "b")
    assert {name: str(error) for name, error in outcome.failed.items()} == {
        "tone": "source 'tone': no column 'mood'; columns there are: text, topic, tone"
    }
    summary = json.loads((tmp_path / "b/build.json").read_text())
    assert list(summary["sources"]) == ["faq", "topics"]
    assert list(summary["failed"]) == ["tone"]


def test_too_many_bad_rows_fail_a_source(recipe, tmp_path):
    write_lines(recipe.parent / "faq.jsonl", [{"q": f"q{i}", "a": "" if i < 2 else f"text {i}"} for i in range(100)])
    (error,) = build(recipe, tmp_path / "b", only=["faq"]).failed.values()
    assert (
        str(error)
        == "source 'faq': 2 of 100 rows are bad (empty_positive 2), and 'max_bad' allows 1.0%; first: faq/0 empty_positive 'q0'"
    )
    recipe.write_text(MANIFEST.replace("holdout: 2", "holdout: 2, max_bad: 0.02"))
    assert not build(recipe, tmp_path / "b", only=["faq"]).failed


def test_a_source_without_tuples_fails(recipe, tmp_path):
    recipe.write_text(
        MANIFEST.replace("fields: {query: q, positive: a}", "fields: {query: q, positive: a, score: a}, threshold: 1, max_bad: 1")
    )
    (error,) = build(recipe, tmp_path / "b", only=["faq"]).failed.values()
    line = "source 'faq': none of its 20 rows makes a tuple (bad_score 20); check 'fields', 'labels' and 'threshold'"
    assert str(error) == f"{line}; first: faq/0 bad_score 'the answer 0'"


def test_only_and_limit(recipe, tmp_path):
    outcome = build(recipe, tmp_path / "b", only=["topics"], limit=12)
    assert list(outcome.receipts) == ["topics"]
    assert outcome.receipts["topics"]["rows_in"] == 12
    with pytest.raises(ManifestError, match=r"--only: no source 'topic' \(did you mean 'topics'\?\); sources: faq, topics"):
        build(recipe, tmp_path / "b", only=["topic"])


def test_a_build_changed_by_hand_is_found(recipe, tmp_path):
    build(recipe, tmp_path / "b")
    path = tmp_path / "b/curated/faq/pairs-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BuildError, match=r"pairs-00000\.parquet: was changed since it was written"):
        from curation.core.builds import receipts

        receipts(tmp_path / "b")
    outcome = build(recipe, tmp_path / "b")
    assert "was changed since it was written" in str(outcome.failed["faq"])


lines = st.lists(
    st.tuples(st.sampled_from(["", "a b", "A, b!", "cde", "x y z"]), st.sampled_from(["", "p q", "pq", "A b"])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(lines)
def test_counts_add_up_whatever_comes(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("h")
    write_lines(folder / "x.jsonl", [{"q": q, "a": a} for q, a in table])
    (folder / "m.yaml").write_text(
        "name: h\nsources:\n  - {name: x, files: x.jsonl, task: retrieval, max_bad: 1, both_ways: yes, fields: {query: q, positive: a}}\n"
    )
    outcome = build(folder / "m.yaml", folder / "b")
    for receipt in outcome.receipts.values():
        check_counts(receipt)
        assert receipt["rows_in"] == len(table)
    for error in outcome.failed.values():
        assert "makes a tuple" in str(error) or "filters drop all" in str(error)


def run(*words, code=0):
    done = CliRunner().invoke(curate, [str(word) for word in words], standalone_mode=False)
    assert done.exception is None, done.exception
    assert (done.return_value or 0) == code
    return done.stdout


def test_the_command_line(recipe, tmp_path):
    out = tmp_path / "b"
    preview = run("build", recipe, "-o", out, "--dry-run")
    assert "faq: retrieval, shape pairs, columns q, a" in preview
    assert "Instruct: Answer" in preview
    assert not out.exists()
    assert "faq" in run("build", recipe, "-o", out, "-q", "-j", 1)
    shown = json.loads(run("show", out, "--only", "faq", "-n", 1, "--json"))
    assert shown["query"].startswith("Instruct: Answer\nQuery: question")
    assert json.loads(run("stats", out, "--json"))["topics"]["rows_in"] == 31
    dropped = run("show", out, "--dropped", "--reason", "same_query")
    assert "matched_source  " in dropped
    ends = {len(line) - len(line.lstrip()) + len(line.split()[0]) for line in dropped.splitlines() if line}
    assert ends == {len("matched_source")}  # the names of all fields end in one column
    assert max(len(line) for line in run("show", out).splitlines()) <= 80
    assert max(len(line) for line in run("stats", out).splitlines()) <= 80


def test_parquet_carries_the_constants(recipe, tmp_path):
    build(recipe, tmp_path / "b", only=["faq"])
    (path,) = (tmp_path / "b/curated/faq").glob("pairs-*.parquet")
    assert pl.read_parquet_metadata(path)["instruction"] == "Answer"


def test_a_beir_folder_is_a_source_of_qrels(recipe, tmp_path):
    build(recipe, tmp_path / "b")
    folder = tmp_path / "b/heldout/faq"
    (tmp_path / "q.yaml").write_text(
        f"""\
name: again
sources:
  - name: beir
    files: {folder}/qrels/test.tsv
    task: retrieval
    fields: {{query_id: query-id, positive_id: corpus-id, score: score}}
    corpus: {{files: {folder}/corpus.jsonl, fields: {{title: title}}}}
    queries: {{files: {folder}/queries.jsonl}}
"""
    )
    outcome = build(tmp_path / "q.yaml", tmp_path / "q")
    assert not outcome.failed
    receipt = outcome.receipts["beir"]
    assert (receipt["rows_in"], receipt["rows_used"], receipt["kept"], receipt["passages"]) == (4, 4, 2, 20)
    (tmp_path / "q.yaml").write_text((tmp_path / "q.yaml").read_text() + "    limit: 1\n")
    assert build(tmp_path / "q.yaml", tmp_path / "q").receipts["beir"]["kept"] == 1


HELD = "  - {name: %s, files: x.jsonl, task: retrieval, holdout: 8, fields: {query: q, positive: a}}\n"


def test_only_never_leaves_a_source_that_trains_on_what_is_held_out_now(tmp_path):
    write_lines(tmp_path / "x.jsonl", [{"q": f"question {i}", "a": f"answer {i}"} for i in range(60)])
    recipe = tmp_path / "m.yaml"
    recipe.write_text("name: h\nseed: 1\nsources:\n" + HELD % "a" + HELD % "a.b")
    build(recipe, tmp_path / "b")
    recipe.write_text(recipe.read_text().replace("seed: 1", "seed: 2"))
    build(recipe, tmp_path / "b", only=["a"])
    listed = json.loads((tmp_path / "b/build.json").read_text())["sources"]
    assert list(listed) == ["a"], "a.b trains on queries that the new seed holds out"
    build(recipe, tmp_path / "b", only=["a.b"])
    assert list(json.loads((tmp_path / "b/build.json").read_text())["sources"]) == ["a", "a.b"]
    build(recipe, tmp_path / "whole")
    assert contents(tmp_path / "b") == contents(tmp_path / "whole")


def test_a_damaged_file_of_a_source_that_was_not_asked_for_is_named(recipe, tmp_path):
    recipe.write_text(MANIFEST.replace("seed: 7", "seed: 7\ndedup: {}"))
    assert build(recipe, tmp_path / "b").receipts.keys() == {"faq", "topics", "tone"}
    whole = contents(tmp_path / "b")
    for name in ("shaped/topics/texts.utf8", "cleaned/topics/forms.parquet", "curated/topics/passages-00000.parquet"):
        path = tmp_path / "b" / name
        data = path.read_bytes()
        path.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
        outcome = build(recipe, tmp_path / "b", only=["faq"])
        assert str(outcome.failed.pop("topics")).startswith(f"{path}: was changed since it was written")
        assert (outcome.failed, outcome.receipts.keys()) == ({}, {"faq"})
        assert json.loads((tmp_path / "b/build.json").read_text())["sources"].keys() == {"faq", "tone"}
        path.write_bytes(data)
    assert not build(recipe, tmp_path / "b").failed
    assert contents(tmp_path / "b") == whole


def test_a_source_that_begins_to_fail_holds_nothing_out_any_more(tmp_path):
    write_lines(tmp_path / "x.jsonl", [{"q": f"question {i}", "a": f"answer {i}"} for i in range(60)])
    recipe = tmp_path / "m.yaml"
    recipe.write_text("name: h\nsources:\n" + HELD % "a" + HELD.replace("holdout: 8, ", "") % "c")
    assert build(recipe, tmp_path / "b").receipts["c"]["kept"] == 52
    recipe.write_text(recipe.read_text().replace("positive: a}", "positive: nothing}", 1))
    outcome = build(recipe, tmp_path / "b")
    assert list(outcome.failed) == ["a"]
    assert outcome.receipts["c"]["kept"] == 60


def test_filters_that_leave_nothing_are_named(recipe, tmp_path):
    recipe.write_text(MANIFEST.replace("seed: 7", "seed: 7\nfilters: {min_chars: 500}"))
    outcome = build(recipe, tmp_path / "b", only=["topics"])
    assert str(outcome.failed["topics"]) == (
        "source 'topics': filters drop all of its 31 tuples (short_query 31); loosen 'filters'"
    )


def test_a_folder_named_as_a_stage_that_no_build_wrote_is_left_alone(recipe, tmp_path):
    mine = tmp_path / "heldout/faq/corpus.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(BuildError, match="holds 'heldout', which no build wrote; name a folder that does not exist yet"):
        build(recipe, tmp_path)
    assert mine.read_text() == "precious"


def test_a_build_in_the_folder_of_its_manifest_never_rewrites_it(recipe, tmp_path):
    own = recipe.rename(tmp_path / "manifest.yaml")
    assert not build(own, tmp_path, only=["faq"]).failed
    assert own.read_text() == MANIFEST
    own.rename(tmp_path / "base.yaml")
    own.write_text("# mine\nextends: base.yaml\nseed: 8\n")
    with pytest.raises(BuildError, match="holds the manifest itself, which the build's copy of it would replace; name another"):
        build(own, tmp_path)
    assert own.read_text().startswith("# mine")


def test_a_dry_run_of_sorted_labels_is_no_error(tmp_path):
    write_lines(tmp_path / "x.jsonl", [{"t": f"text {i}", "l": int(i >= 1500)} for i in range(3000)])
    (tmp_path / "m.yaml").write_text(
        "name: h\nsources:\n  - {name: x, files: x.jsonl, task: classification, fields: {query: t, label: l}}\n"
    )
    said = run("build", tmp_path / "m.yaml", "--dry-run")
    assert said.splitlines()[1] == "  of its first 1,000 rows alone: classification takes two labels, and column 'l' has 1: 0"
    assert not build(tmp_path / "m.yaml", tmp_path / "b").failed


def test_a_broken_summary_and_a_file_for_a_folder_are_reported(recipe, tmp_path):
    build(recipe, tmp_path / "b")
    (tmp_path / "b/build.json").write_text("[]")
    with pytest.raises(
        BuildError, match=r"build\.json: was not written by `curate build`; delete it and run `curate build` again"
    ):
        build(recipe, tmp_path / "b")
    (tmp_path / "f").write_text("")
    with pytest.raises(BuildError, match="f: is a file, not a folder; name another folder"):
        build(recipe, tmp_path / "f")


def test_a_build_of_another_format_is_refused_and_built_again(recipe, tmp_path):
    build(recipe, tmp_path / "b")
    before = (tmp_path / "b/build.json").read_bytes()
    summary = read_json(tmp_path / "b/build.json")
    for written, error in (
        ({}, r"was written by an older version of tuplesmith; run `curate build MANIFEST` to rebuild it"),
        ({"format": 4}, r"was written by an older version of tuplesmith; run `curate build MANIFEST` to rebuild it"),
        ({"format": 10**6}, r"was written by a newer version of tuplesmith; update tuplesmith"),
    ):
        write_json(tmp_path / "b/build.json", {key: value for key, value in summary.items() if key != "format"} | written)
        for reader in (receipts, problems, page.write):
            with pytest.raises(BuildError, match=rf"build\.json: {error}$"):
                reader(tmp_path / "b")
    write_json(tmp_path / "b/build.json", {key: value for key, value in summary.items() if key != "format"})
    (tmp_path / "b/leaks.parquet").write_bytes(b"of format 4")
    build(recipe, tmp_path / "b")
    assert (tmp_path / "b/build.json").read_bytes() == before
    assert problems(tmp_path / "b") == []
