"""Near-duplicates of two sources: what goes, what it leaves alone, and what is written down of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_near import form_of, true_jaccard

from curation.build import stages
from curation.build.build import build
from curation.clean import pairs as pairs_module
from curation.clean import signatures
from curation.cli import curate
from curation.core.tables import read_parquet, read_table
from curation.core.texts import open_texts
from curation.shape.numbered import spelled
from curation.share.verify import problems

HEAD = "name: many\ndedup: {{threshold: {threshold}, across: {across}, max_loss_per_source: 1}}\nsources:\n"
SOURCE = "  - {{name: {0}, files: {0}.jsonl, task: {1}, fields: {{query: q, positive: a}}{2}}}\n"


def rows_of(seed: int, count: int = 60) -> list[dict[str, str]]:
    """Questions and answers of which many are edits of a few that all sources share."""
    base, draw = random.Random(1), random.Random(seed)
    texts = [[f"w{base.randrange(60)}" for _ in range(base.choice([3, 9, 15, 23, 24, 25, 27, 40]))] for _ in range(12)]
    answers = [" ".join(f"a{base.randrange(90)}" for _ in range(30)) for _ in range(3)]
    rows = []
    for _ in range(count):
        words, answer = list(draw.choice(texts)), draw.choice(answers)
        for _ in range(draw.choice([0, 1, 1, 2])):
            words[draw.randrange(len(words))] = f"e{draw.randrange(4)}"
        if draw.random() < 0.3:
            words.append(f"more{draw.randrange(3)}")
        rows.append({"q": " ".join(words), "a": answer if draw.random() < 0.8 else answer.replace("a1", "b1")})
    letters = str.maketrans("0123456789", "ghijklmnop")  # numbers that differ make other texts
    return [{name: text.translate(letters) for name, text in row.items()} for row in rows]


def write(folder: Path, sources: list[str], threshold: float = 0.8, across: str = "yes", extra: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for name in sources:
        if not (folder / f"{name}.jsonl").exists():
            lines = rows_of(ord(name))
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [SOURCE.format(name, "retrieval", extra if name == sources[-1] else "") for name in sources]
    (folder / "m.yaml").write_text(HEAD.format(threshold=threshold, across=across) + "".join(lines))
    return folder / "m.yaml"


def tables(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "curated").rglob("*.parquet"))}


def inputs_of(folder: Path, name: str) -> dict[str, tuple[str, set[str]]]:
    """Query and positives of every tuple as it was before anything was dropped."""
    shaped = spelled(read_table(folder / "shaped" / name, "tuples"), open_texts(folder / "shaped" / name))
    return {id_: (query, set(positives)) for id_, query, positives in shaped.select("id", "query", "positives").iter_rows()}


def alike(a: str, b: str, threshold: float) -> bool:
    return form_of(a) == form_of(b) or true_jaccard(a, b) >= threshold


@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_every_dropped_tuple_has_a_kept_one_that_asks_the_same_for_the_same(tmp_path, threshold):
    names = ["c", "a", "b"]
    outcome = build(write(tmp_path, names, threshold), tmp_path / "o")
    assert not outcome.failed
    known = {id_: row for name in names for id_, row in inputs_of(tmp_path / "o", name).items()}
    kept = {id_ for name in names for id_ in read_table(tmp_path / "o" / "curated" / name, "pairs", ["id"])["id"]}
    across = 0
    for name, receipt in outcome.receipts.items():
        dropped = read_parquet(tmp_path / "o" / "curated" / name / "dropped.parquet")
        assert receipt["rows_in"] == receipt["rows_used"] + sum(receipt["rows_dropped"].values())
        assert receipt["tuples_made"] == receipt["kept"] + receipt["merged"] + sum(receipt["dropped"].values())
        for row in dropped.filter(pl.col("reason") == "near_duplicate_query").iter_rows(named=True):
            (query, positives), (match, its_positives) = known[row["id"]], known[row["matched_id"]]
            assert row["matched_id"] in kept
            assert row["matched_id"].split("/")[0] == row["matched_source"]
            assert names.index(row["matched_source"]) <= names.index(name)
            assert form_of(query) == form_of(match) or true_jaccard(query, match) == pytest.approx(row["score"], abs=1e-12)
            assert row["score"] >= threshold
            if row["matched_source"] != name:
                across += 1
                assert all(any(alike(one, other, threshold) for other in its_positives) for one in positives)
    assert across > 10
    for late in ("a", "b"):  # nothing that should go is left: an earlier kept tuple, a match, the same positives
        for id_ in kept & set(inputs_of(tmp_path / "o", late)):
            query, positives = known[id_]
            for other in kept & {one for name in names[: names.index(late)] for one in inputs_of(tmp_path / "o", name)}:
                if alike(query, known[other][0], threshold + 0.1):
                    assert not positives <= known[other][1], (id_, other)


def test_a_query_with_another_positive_and_the_earlier_source_stay(tmp_path):
    ask = "how do I find all of the empty files below a folder on my disk"
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in [(ask, "use find"), ("what is a disk", "a thing")])
    )
    late = [(ask + " now", "use find"), (ask + " today", "use locate"), ("What is a DISK?", "A thing!"), ("other", "words")]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in late))
    build(write(tmp_path, ["a", "b"], extra=", license: mit, verified: no, notes: a doubt"), tmp_path / "o")
    assert read_table(tmp_path / "o" / "curated" / "b", "pairs")["query"].to_list() == [ask + " today", "other"]
    dropped = read_parquet(tmp_path / "o" / "curated" / "b" / "dropped.parquet")
    assert dropped.select("id", "matched_id", "matched_source").rows() == [("b/0", "a/0", "a"), ("b/2", "a/1", "a")]
    assert len(read_table(tmp_path / "o" / "curated" / "a", "pairs")) == 2
    assert read_parquet(tmp_path / "o" / "overlaps.parquet").rows() == [("a", "b", 1, 2, 2)]
    stats = CliRunner().invoke(curate, ["stats", str(tmp_path / "o")])
    assert stats.output.splitlines()[-1].split() == ["a", "b", "1", "2", "2"]
    as_json = json.loads(CliRunner().invoke(curate, ["stats", str(tmp_path / "o"), "--json"]).output)
    assert as_json["b"]["overlaps"] == {"a": {"equal": 1, "near": 2, "dropped": 2}}
    assert problems(tmp_path / "o") == []


def test_without_across_equal_texts_are_counted_all_the_same(tmp_path):
    build(write(tmp_path, ["a", "b"], across="no"), tmp_path / "o")
    row = read_parquet(tmp_path / "o" / "overlaps.parquet").row(0, named=True)
    forms = [
        {form_of(t) for q, ps in inputs_of(tmp_path / "o", name).values() for t in (q, *ps) if len(t) >= 12} for name in "ab"
    ]
    assert row == {"source_a": "a", "source_b": "b", "equal": len(forms[0] & forms[1]), "near": None, "dropped": 0}
    assert row["equal"] > 0


def test_neither_workers_nor_batches_matter(tmp_path, monkeypatch):
    recipe = write(tmp_path, ["c", "a", "b"])
    build(recipe, tmp_path / "one")
    build(recipe, tmp_path / "two", workers=2)
    assert tables(tmp_path / "one") == tables(tmp_path / "two")
    monkeypatch.setattr(pairs_module, "TEXTS_AT_A_TIME", 7)
    for name in ("COMPARED", "PART", "SHARE", "WAITING", "CROWDED"):
        monkeypatch.setattr(pairs_module, name, 11)
    build(recipe, tmp_path / "plain")
    assert tables(tmp_path / "one") == tables(tmp_path / "plain")
    files = list((tmp_path / "one" / "across").rglob("*.parquet"))
    assert len(files) == 6
    for path in files:
        assert path.read_bytes() == (tmp_path / "plain" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_new_source_changes_only_what_it_makes_drop(tmp_path):
    build(write(tmp_path, ["c", "a"]), tmp_path / "o")
    before = tables(tmp_path / "o")
    outcome = build(write(tmp_path, ["c", "a", "b"]), tmp_path / "o")
    assert outcome.ran == {"b"}
    after = tables(tmp_path / "o")
    assert {name: data for name, data in after.items() if not name.startswith("curated/b/")} == before
    assert build(tmp_path / "m.yaml", tmp_path / "o").ran == set()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").glob("*/*/done.json")}
    outcome = build(write(tmp_path, ["c", "a", "b"], extra=", filters: {min_chars: 20}"), tmp_path / "o")
    assert outcome.ran == {"b"}
    again = {str(path.relative_to(tmp_path / "o").parent) for path in stamps if path.stat().st_mtime_ns != stamps[path]}
    assert again == {"shaped/b", "near/b", "cleaned/b", "curated/b", "across/pairs", "across/drops", "across/overlaps"}
    fresh = build(tmp_path / "m.yaml", tmp_path / "fresh")
    assert not fresh.failed
    assert tables(tmp_path / "fresh") == tables(tmp_path / "o")


def test_another_threshold_sketches_and_compares_nothing(tmp_path, monkeypatch):
    build(write(tmp_path, ["c", "a", "b"], 0.8), tmp_path / "o")

    def never(*_: object) -> None:
        raise AssertionError("compared again")

    with monkeypatch.context() as patch:
        for name in ("sketch_texts", "shingle_sets", "band_keys", "jaccard_of_sets"):
            patch.setattr(signatures.kernels, name, never)
        for threshold in (0.7, 0.75, 0.9):
            outcome = build(write(tmp_path, ["c", "a", "b"], threshold), tmp_path / "o")
            assert outcome.ran == {"a", "b", "c"}
            assert not outcome.failed
    build(write(tmp_path, ["c", "a", "b"], 0.7), tmp_path / "o")
    build(write(tmp_path, ["c", "a", "b"], 0.7), tmp_path / "fresh")
    assert tables(tmp_path / "fresh") == tables(tmp_path / "o")


def test_a_source_that_others_hold_already_is_refused_with_an_example(tmp_path):
    recipe = write(tmp_path, ["a", "b"])
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text())
    recipe.write_text(recipe.read_text().replace("max_loss_per_source: 1", "max_loss_per_source: 0.9"))
    outcome = build(recipe, tmp_path / "o")
    assert set(outcome.receipts) == {"a"}
    said = str(outcome.failed["b"])
    assert said.startswith("source 'b': 100.0% of its ")
    assert "tuples are near-duplicates, and 'max_loss_per_source' allows 90.0%; for example b/0 'w" in said
    assert said.endswith("of source 'a'")


@settings(max_examples=30, deadline=None)
@given(sources=st.lists(st.sets(st.integers(0, 40)), min_size=2, max_size=4), size=st.sampled_from([1, 7, 1 << 22]))
def test_sources_share_what_both_have_however_many_forms_are_compared_at_a_time(sources, size):
    spread = 2**64 // 41
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "FORMS_AT_A_TIME", size)
        found = stages._equal_forms([np.array(sorted(one), np.uint64) * np.uint64(spread) for one in sources])
    both = {(a, b): len(sources[a] & sources[b]) for a in range(len(sources)) for b in range(a + 1, len(sources))}
    assert {(a, b): equal for a, b, equal in found.rows()} == {pair: count for pair, count in both.items() if count}
