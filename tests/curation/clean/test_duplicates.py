"""What near-duplicates do to a source: which tuples go, which share a group, and when it is too much."""

from __future__ import annotations

import json
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_near import nearly, true_jaccard

from curation.build.build import build
from curation.clean.within import drop_queries, link
from curation.core.tables import read_parquet, read_table
from curation.recipe.manifest import Dedup
from curation.shape.columns import TUPLES
from curation.shape.numbered import first_occurrences, numbered, role_texts, spelled

ASK = "how do I find all the empty files below a folder on my"
LONG = "The find command walks a folder and everything below it , and prints each file for which all of its tests hold true , such as size and name and age"


def tuples_of(rows) -> pl.DataFrame:
    lines = [(at, f"s/{at}", query, positives, [], None) for at, (query, positives) in enumerate(rows)]
    return pl.DataFrame(lines, schema=TUPLES, orient="row")


def dropped(rows, **wanted):
    tuples, _, texts = numbered(tuples_of(rows), pl.Series([], dtype=pl.String))
    compared = first_occurrences(np.concatenate(role_texts([tuples])))
    threshold = wanted.get("threshold", 0.8)
    links = link(texts, compared, nearly(texts.at(compared), threshold), compared, threshold)
    stays, gone = drop_queries(tuples, tuples["id"].gather, links, Dedup(max_loss_per_source=1, **wanted), "s", by_label=False)
    left = tuples.filter(stays)
    assert sorted([*left["id"], *gone["id"]]) == sorted(tuples["id"])
    return spelled(left, texts), gone, links


def test_only_a_near_duplicate_with_the_same_positive_goes():
    other = LONG.replace("age", "owner")
    rows = [
        (f"{ASK} disk", [LONG]),
        (f"{ASK} disc", [LONG]),  # shorter by none: the smaller key decides
        (f"{ASK} big disk", ["something else"]),  # another positive: stays
        (f"{ASK} old disk", [other]),  # a near-duplicate of the positive: same group, so the same
        ("an unrelated question", [LONG]),
        ("An unrelated question!", [LONG]),  # equal form, short: exact
        ("an unrelated question?", [LONG, "another one"]),  # has the most positives: survives
    ]
    _, gone, links = dropped(rows)
    family = dict(zip(links.texts.at(links.compared), links.family, strict=True))
    assert family[LONG] == family[other]
    assert family[rows[0][0]] == family[rows[2][0]]
    by_id = {row["id"]: (row["matched_id"], row["reason"], row["stage"]) for row in gone.iter_rows(named=True)}
    assert by_id["s/4"] == by_id["s/5"] == ("s/6", "near_duplicate_query", "dedup")
    assert "s/2" not in by_id
    assert len({"s/0", "s/1", "s/3"} & set(by_id)) == 2
    assert len(by_id) == 4
    assert all(score >= 0.8 for score in gone["score"])


def test_a_positive_that_the_match_lacks_is_never_lost():
    rows = [(f"{ASK} disk", ["one", "two"]), (f"{ASK} disc", ["two", "three"]), (f"{ASK} disks", ["two"])]
    left, gone, _ = dropped(rows)
    assert gone["id"].to_list() == ["s/2"]
    assert {text for texts in left["positives"] for text in texts} == {"one", "two", "three"}


def test_a_chain_keeps_both_of_its_ends():
    words = [f"word{at}" for at in range(60)]
    middle = [*words[:30], "new", *words[31:]]
    end = [*middle[:45], "newer", *middle[46:]]
    texts = [" ".join(words), " ".join(middle), " ".join(end)]
    assert true_jaccard(texts[0], texts[1]) >= 0.85 > true_jaccard(texts[0], texts[2])
    left, gone, _ = dropped(
        [(texts[0] + " longest", ["p"]), (texts[1], ["p"]), (texts[2] + " longer than all of them", ["p"])], threshold=0.85
    )
    for id_, match in gone.select("id", "matched_id").iter_rows():
        assert match in left["id"].to_list(), id_


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.6, 0.8, 0.9]))
def test_every_dropped_query_has_a_kept_match(seed, threshold):
    draw = random.Random(seed)
    rows = []
    while len(rows) < 40:
        words = [f"w{draw.randrange(50)}" for _ in range(draw.choice([3, 10, 22, 30]))]
        for _ in range(draw.randint(1, 6)):
            rows.append((" ".join(words), draw.sample(["a", "b", "c"], draw.randint(1, 2))))
            words = list(words)
            words[draw.randrange(len(words))] = "edit" + str(draw.randrange(3))
    rows = list({query: (query, positives) for query, positives in rows}.values())
    left, gone, _ = dropped(rows, threshold=threshold)
    kept = {id_: (query, set(positives)) for id_, query, positives in left.select("id", "query", "positives").iter_rows()}
    by_id = {f"s/{at}": row for at, row in enumerate(rows)}
    for id_, match, score in gone.select("id", "matched_id", "score").iter_rows():
        query, positives = by_id[id_]
        assert true_jaccard(query, kept[match][0]) == pytest.approx(score, abs=1e-12)
        assert score >= threshold
        assert set(positives) <= kept[match][1]


MANIFEST = """\
name: near
{dedup}
sources:
  - {{name: faq, files: faq.jsonl, task: retrieval, fields: {{query: q, positive: a}}}}
  - {{name: topics, files: topics.jsonl, task: clustering, fields: {{query: text, label: topic}}}}
"""
ON = "dedup: {threshold: 0.8}"


@pytest.fixture
def recipe(tmp_path):
    answers = [LONG, LONG, "made anew each day", LONG.replace("age", "owner")]
    asked = [f"{ASK} disk", f"{ASK} disc", f"{ASK} big disk", "what prints a file"]
    rows = [{"q": q, "a": a} for q, a in zip(asked, answers, strict=True)] + [
        {"q": f"question {at}", "a": f"reply {at}"} for at in range(6)
    ]
    texts = [{"text": f"{ASK} {word}", "topic": "files"} for word in ("disk", "disc")]
    texts += [{"text": f"text {at} of topic {at % 2}", "topic": f"topic {at % 2}"} for at in range(8)]
    texts.append({"text": f"{ASK} big disk", "topic": "topic 1"})
    texts.append({"text": "what to name a file", "topic": "files"})
    for name, lines in (("faq", rows), ("topics", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write(dedup):
        (tmp_path / "m.yaml").write_text(MANIFEST.format(dedup=dedup))
        return tmp_path / "m.yaml"

    return write


def test_a_build_with_near_duplicates(recipe, tmp_path):
    outcome = build(recipe(ON), tmp_path / "b")
    assert not outcome.failed
    for receipt in outcome.receipts.values():
        assert receipt["dropped"] == {"near_duplicate_query": 1}
        assert receipt["tuples_made"] == receipt["kept"] + 1
        assert receipt["signature"].endswith("|dedup:0.8")
    folder = tmp_path / "b" / "curated" / "faq"
    pairs, passages = read_table(folder, "pairs"), read_table(folder, "passages")
    groups = dict(pairs.select("query", "group").iter_rows())
    kept = next(query for query in groups if query in (f"{ASK} disk", f"{ASK} disc"))
    assert groups[kept] == groups[f"{ASK} big disk"]
    assert groups[kept] is not None
    near = passages.filter(pl.col("text").str.starts_with("The find"))
    assert len(near) == 2
    assert near["group"].n_unique() == 1
    assert near["group"].null_count() == 0
    assert set(near["group"]).isdisjoint({groups[kept]})
    edges = read_parquet(folder / "near.parquet")
    assert edges["score"].min() >= 0.7
    assert len(edges) >= 2
    assert build(recipe(ON), tmp_path / "b").ran == set()


def test_stage_two_alone_runs_when_the_threshold_changes(recipe, tmp_path):
    first = build(recipe(""), tmp_path / "b").receipts
    assert first["faq"]["dropped"] == {}
    shaped = (tmp_path / "b" / "shaped" / "faq" / "done.json").stat().st_mtime_ns
    assert build(recipe(ON), tmp_path / "b").ran == {"faq", "topics"}
    assert build(recipe("dedup: {threshold: 0.9}"), tmp_path / "b").ran == {"faq", "topics"}
    assert (tmp_path / "b" / "shaped" / "faq" / "done.json").stat().st_mtime_ns == shaped
    assert build(recipe(""), tmp_path / "b").receipts["faq"] == first["faq"]


def test_a_source_that_would_lose_too_much_fails_and_says_an_example(recipe, tmp_path):
    outcome = build(recipe("dedup: {threshold: 0.8, max_loss_per_source: 0.05}"), tmp_path / "b")
    ids = {f"faq/{at} '{f'{ASK} {word}'[:60]}'" for at, word in enumerate(("disk", "disc"))}
    first = "source 'faq': 10.0% of its 10 tuples are near-duplicates, and 'max_loss_per_source' allows 5.0%; for example "
    said = str(outcome.failed["faq"])
    assert said.startswith(first)
    lost, kept = said.removeprefix(first).split(" matches ")
    assert lost in ids
    assert {lost.split(" ")[0], kept} == {"faq/0", "faq/1"}


def test_stats_and_show_tell_of_near_duplicates(recipe, tmp_path):
    from click.testing import CliRunner

    from curation.cli import curate

    build(recipe(ON), tmp_path / "b")
    stats = CliRunner().invoke(curate, ["stats", str(tmp_path / "b")])
    assert "near_duplicate_query" in stats.output
    shown = CliRunner().invoke(curate, ["show", str(tmp_path / "b"), "--dropped", "--reason", "near_duplicate_query"])
    assert f"query  {ASK}"[:40] in shown.output or ASK[:40] in shown.output, shown.output


def test_near_duplicates_are_found_again_when_only_a_text_has_changed(recipe, tmp_path):
    build(recipe(ON), tmp_path / "b")
    data = tmp_path / "faq.jsonl"
    data.write_text(data.read_text().replace("question 3", f"{ASK} old disk").replace("reply 3", LONG.replace("size", "weight")))
    for folder in ("b", "fresh"):
        assert not build(recipe(ON), tmp_path / folder).failed
    for table in ("pairs", "passages"):
        again, fresh = (read_table(tmp_path / folder / "curated/faq", table) for folder in ("b", "fresh"))
        assert again.equals(fresh)
    dropped = read_parquet(tmp_path / "b/curated/faq/dropped.parquet")
    assert dropped.equals(read_parquet(tmp_path / "fresh/curated/faq/dropped.parquet"))
