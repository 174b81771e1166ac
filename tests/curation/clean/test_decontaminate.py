"""Planted overlaps of every kind are found, in their place; nothing else is removed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.build.build import build
from curation.clean import decontaminate, overlap_index, overlap_kernels, overlap_lookup
from curation.clean.decontaminate import CONTAMINATION, contaminated, take_out
from curation.clean.overlap_grams import CHAR_GRAMS, SEED_GRAMS, WHOLE, WORD_GRAMS
from curation.clean.overlap_texts import CORPUS, DOCUMENT, EVAL_TEXTS, QUERY
from curation.cli import curate
from curation.core.errors import BuildError, ManifestError, SourceError
from curation.core.record import key_of
from curation.core.tables import read_parquet, read_table
from curation.core.text import normalised
from curation.engine.local import Here, processes
from curation.recipe.evaluation import Decontaminate
from curation.shape.numbered import numbered, spelled
from curation.share import verify
from tests.curation.build.test_build import check_counts, contents, write_lines
from tests.curation.clean.overlap_oracle import Forms, looked_up
from tests.curation.shape.test_holdout import tuples

QUESTION = "Which river flows through the old town of Ljubljana?"
EDITED = "Which river flows through the old part of Ljubljana?"
ANSWER = (
    "The Ljubljanica rises in the karst south of the city, flows slowly through the old town between stone embankments that "
    "Plečnik designed, passes under the Triple Bridge and the Dragon Bridge, and joins the Sava a few kilometres further east."
)
SHARED = (
    "A covered market stands beside the cathedral, built in the nineteen forties in the style of a Renaissance colonnade, and "
    "farmers from the villages around bring cheese, honey and vegetables there every morning but Sunday throughout the year."
)
CHINESE = "卢布尔雅那老城中的那条河流叫什么名字,它最后流入哪里?"


def index_of(folder: Path, *texts: tuple[str, str, int, str], allow=()) -> Path:
    """Index (task, id, role, text) as a build would."""
    where = folder / "decontaminate"
    where.mkdir(parents=True)
    frame = pl.DataFrame(list(texts), schema=EVAL_TEXTS, orient="row")
    overlap_index.write_index(where, [frame], pl.Series(allow, dtype=pl.String))
    return folder


@pytest.fixture
def indexed(tmp_path):
    return index_of(
        tmp_path,
        ("rivers", "q1", QUERY, QUESTION),
        ("rivers", "d1", DOCUMENT, ANSWER),
        ("rivers", "d9", CORPUS, SHARED),
        ("rivers", "q2", QUERY, CHINESE),
        ("rivers", "q3", QUERY, "Dragon Bridge"),
        ("towns", "t1", QUERY, QUESTION.upper()),
    )


def score_of(rule: str, text: str, source: str) -> float:
    """The share of an evaluation text's grams that a text has, the plain way."""
    here, there = normalised(pl.Series([text, source]))
    if rule == "equal":
        return 1.0
    if rule == "words":
        runs = [{tuple(words[at : at + 13]) for at in range(len(words) - 12)} for words in (here.split(), there.split())]
    else:
        width = 3 if source == CHINESE else 7
        runs = [{f" {form} "[at : at + width] for at in range(len(form) + 3 - width)} for form in (here, there)]
    return len(runs[0] & runs[1]) / len(runs[1])


def taken(build, *items, mode="drop", corpus=(), order=1):
    (build / "out").mkdir(exist_ok=True)
    numbers, others, texts = numbered(tuples(*items), pl.Series("text", corpus, dtype=pl.String))
    matches = contaminated(build / "decontaminate", texts, np.arange(len(texts))[::order])
    made = take_out(Decontaminate(mode=mode), build / "decontaminate", build / "out", numbers, others, texts, matches, "s")
    made = made._replace(tuples=spelled(made.tuples, texts), corpus=texts.at(made.corpus))
    return made, read_parquet(build / "out" / "contamination.parquet")


@pytest.mark.parametrize(
    ("text", "rule", "source", "span"),
    [
        (QUESTION.replace("?", " ??").lower(), "equal", QUESTION, QUESTION.replace("?", " ??").lower()),
        (EDITED, "chars", QUESTION, "which river flows through the old part of ljubljana"),
        (f"Please tell me. {QUESTION} I wonder.", "chars", QUESTION, "which river flows through the old town of ljubljana"),
        (ANSWER.replace("stone", "brick"), "words", ANSWER, "the ljubljanica rises in the karst south of the city flows slowly through the old town between"),
        ("Indeed: " + " ".join(ANSWER.split()[3:20]), "words", ANSWER, "in the karst south of the city flows slowly through the old town between stone embankments that"),
        (CHINESE.replace("河流", "大江"), "chars", CHINESE, ""),
        ("the dragon  bridge", None, "", ""),
        ("Dragon Bridge!", "equal", "Dragon Bridge", "Dragon Bridge!"),
        ("Which river flows through the new capital of Slovakia?", None, "", ""),
        ("All about the Dragon Bridge and other sights of the town", None, "", ""),
        ("!!!", None, "", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["query", "positive", "negative", "corpus"])
def test_a_planted_overlap(indexed, field, text, rule, source, span):
    clean = ("Where is the post office", ["Next to the town hall"], ["Far away"])
    item = {"query": (text, *clean[1:]), "positive": (clean[0], [text], clean[2]), "negative": (*clean[:2], [text, "Far away"])}
    made, found = taken(
        indexed, clean, item.get(field, clean), corpus=[text, "a passage"] if field == "corpus" else ["a passage"]
    )
    if rule is None:
        assert len(found) == 0
        assert (len(made.tuples), made.texts_out, len(made.dropped)) == (2, {}, 0)
        return
    first = found.row(0, named=True)
    assert (first["task"], first["field"], first["rule"]) == ("rivers", field, rule)
    assert first["score"] == pytest.approx(score_of(rule, text, source))
    assert first["id"] == (None if field == "corpus" else "s/1")
    if span:
        assert first["evidence"] == span
    if field in ("query", "positive"):
        assert first["action"] == "dropped"
        assert made.tuples["id"].to_list() == ["s/0"]
        assert made.dropped.select("id", "stage", "reason", "evidence", "matched_source").row(0) == (
            "s/1", "decontaminate", f"contaminated_{field}", first["evidence"], "rivers",
        )  # fmt: skip
    else:
        assert first["action"] == "negative_out"
        assert len(made.tuples) == 2
        assert made.tuples["negatives"].to_list() == [["Far away"], ["Far away"]]
        assert made.corpus.to_list() == ["a passage"]
        assert made.texts_out == {"contaminated_negative" if field == "negative" else "contaminated_passage": 1}


def test_every_task_is_reported(indexed):
    _, found = taken(indexed, (QUESTION, ["a"], []))
    assert found.select("task", "eval_id", "eval_field").rows() == [("rivers", "q1", "query"), ("towns", "t1", "query")]


def test_modes(indexed):
    items = [(EDITED, ["a"], []), ("b", [SHARED], []), ("c", ["d"], [SHARED, ANSWER])]
    made, found = taken(indexed, *items, mode="report")
    assert made.tuples.equals(tuples(*items))
    assert (len(made.dropped), made.texts_out) == (0, {})
    assert found["action"].unique().to_list() == ["reported"]
    made, found = taken(indexed, *items)
    assert made.tuples.select("id", "negatives").rows() == [("s/1", []), ("s/2", [SHARED])]
    listed = found.select("id", "field", "eval_id", "action").rows()
    assert set(listed) == {
        ("s/0", "query", "q1", "dropped"), ("s/0", "query", "t1", "dropped"), ("s/1", "corpus", "d9", "reported"),
        ("s/2", "corpus", "d9", "reported"), ("s/2", "negative", "d1", "negative_out"),
    }  # fmt: skip
    made, found = taken(indexed, *items, mode="strict")
    assert made.tuples.select("id", "negatives").rows() == [("s/2", [])]
    assert made.dropped.select("id", "reason").rows() == [("s/0", "contaminated_query"), ("s/1", "shared_corpus")]


def test_trivial_and_allowed_texts_never_match(tmp_path):
    few = index_of(
        tmp_path,
        ("t", "1", QUERY, "Yes."), ("t", "2", QUERY, QUESTION), ("t", "3", DOCUMENT, "Yes, it is!"), ("t", "4", QUERY, "Who is it?"),
        allow=["which river flows through the old town of ljubljana"],
    )  # fmt: skip
    asked = ("yes", ["b"], []), (EDITED, ["b"], []), (QUESTION, ["b"], []), ("yes it is", ["b"], [])
    assert len(taken(few, *asked)[1]) == 0
    assert taken(few, ("who is it", ["b"], []), ("who is it now", ["b"], []))[1].select("id", "eval_id", "rule").rows() == [
        ("s/0", "4", "equal")
    ]


def test_of_a_text_of_common_words_only_an_exact_copy_matches(tmp_path):
    asked = [("t", str(at), QUERY, f"what is the name of number {at} in it") for at in range(1000)]
    many = index_of(tmp_path, *asked, ("t", "x", QUERY, "what is the name of it in number"))
    texts = (
        "What is the name of it in number?", "Tell me: what is the name of it in number", "What is the name of number 7 in it?",
    )  # fmt: skip
    found = taken(many, *((text, ["b"], []) for text in texts))[1]
    assert found.filter(pl.col("rule") == "equal").select("id", "eval_id").rows() == [("s/0", "x"), ("s/2", "7")]
    assert not found.filter((pl.col("id") != "s/0") & (pl.col("eval_id") == "x")).height


def test_boilerplate_never_matches(tmp_path):
    notice = "permission is hereby granted free of charge to any person obtaining a copy of this software to deal in it "
    texts = [("t", str(at), DOCUMENT, notice + " ".join(f"word{at}x{n}" for n in range(20))) for at in range(12)]
    folder = index_of(tmp_path, *texts)
    own = " ".join(f"word3x{n}" for n in range(15))
    found = taken(folder, ("a", [notice + "my own text"], []), ("b", ["see " + own], []))[1]
    assert found.select("id", "eval_id", "evidence").rows() == [("s/1", "3", own)]


WORDS = st.lists(
    st.sampled_from(["river", "town", "bridge", "old", "stone", "flows", "east", "market", "河", "流", "名", "字", "city"]),
    min_size=1,
    max_size=60,
)
TEXT = st.builds(lambda words, gap: gap.join(words), WORDS, st.sampled_from([" ", "", ", ", " É "]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXT, st.integers(0, 2)), min_size=1, max_size=12), st.lists(TEXT, min_size=1, max_size=12), st.data())
def test_matches_are_those_of_the_oracle_and_a_clean_build_has_none(tmp_path_factory, evals, texts, data):
    folder = index_of(
        tmp_path_factory.mktemp("x"), *((f"t{at % 2}", str(at), role, text) for at, (text, role) in enumerate(evals))
    )
    texts = [*texts, data.draw(st.sampled_from(evals))[0] + " and more", data.draw(st.sampled_from(evals))[0]]
    index, series = overlap_index.read_index(folder / "decontaminate"), pl.Series(texts)
    fast = overlap_lookup.look_up(index, series) if index else None
    assert index is None or looked_up(index, series).equals(fast)
    if index:
        some = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(index.sizes), max_size=len(index.sizes))))
        few = overlap_index.leading_to(index, some.astype(np.uint32))
        assert overlap_lookup.look_up(few, series).equals(fast.filter(pl.col("entry").is_in(some)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap_lookup, "BLOCK_BYTES", 50)
        assert index is None or overlap_lookup.look_up(index, series).equals(fast)
    forms = normalised(series).fill_null("")
    plain = Forms(forms)
    for kind in (WHOLE, CHAR_GRAMS, WORD_GRAMS, SEED_GRAMS):
        text, key = overlap_kernels.grams_of(forms, kind, plain.measures.spaceless == 1)
        assert np.array_equal(text, plain.grams(kind).text)
        assert np.array_equal(key, plain.grams(kind).key)
    items = [(text, [texts[at - 1]], [texts[at - 2]]) for at, text in enumerate(texts)]
    made, found = taken(folder, *items, mode="strict", corpus=texts)
    assert len(made.tuples) + len(made.dropped) == len(items)
    with pytest.MonkeyPatch.context() as patch:  # in small parts, and looked up in another order
        patch.setattr(overlap_index, "KEYS_AT_A_TIME", 4)
        patch.setattr(overlap_index, "RANGES", 8)
        patch.setattr(overlap_index, "INDEXED_AT_A_TIME", 2)
        patch.setattr(decontaminate, "LOOKED_UP_AT_A_TIME", 1)
        patch.setattr(decontaminate, "ROWS_AT_A_TIME", 2)
        named = [(f"t{at % 2}", str(at), role, text) for at, (text, role) in enumerate(evals)]
        parts = index_of(tmp_path_factory.mktemp("y"), *named)
        again, also = taken(parts, *items, mode="strict", corpus=texts, order=-1)
    assert also.equals(found)
    assert again.tuples.equals(made.tuples)
    assert again.dropped.equals(made.dropped)
    rows = list(zip(*(made.tuples[name].to_list() for name in ("query", "positives", "negatives")), strict=True))
    assert len(taken(folder, *rows, mode="strict", corpus=made.corpus.to_list())[1]) == 0
    assert found.schema == CONTAMINATION


def test_the_index_is_the_same_whoever_makes_it(tmp_path, monkeypatch):
    words = [nonsense(seed) for seed in range(9)]
    rows = [("t", str(at), at % 3, " ".join(words[(at * step) % 9] for step in range(1, 2 + at % 40))) for at in range(60)]
    frame = pl.DataFrame(rows, EVAL_TEXTS, orient="row")
    monkeypatch.setattr(overlap_index, "INDEXED_AT_A_TIME", 7)
    allowed = pl.Series([words[1]], dtype=pl.String)
    with processes(2, tmp_path) as several:
        for name, workers in (("one", None), ("threads", Here(threads=3)), ("processes", several)):
            (tmp_path / name).mkdir()
            overlap_index.write_index(tmp_path / name, [frame, frame[:5]], allowed, workers)
    for name in ("threads", "processes"):
        made = {path.name for path in (tmp_path / name).iterdir()}
        assert made == {path.name for path in (tmp_path / "one").iterdir()}
        assert len(made) > 15
        assert all((tmp_path / name / file).read_bytes() == (tmp_path / "one" / file).read_bytes() for file in made)


def nonsense(seed: int) -> str:
    """Words that no other seed gives."""
    return key_of(str(seed)).hex(" ", 2)


MANIFEST = """\
name: guarded
sources:
  - {name: faq, files: faq.jsonl, task: retrieval, holdout: 2, fields: {query: q, positive: a, negatives: n}}
  - {name: other, files: other.jsonl, task: retrieval, fields: {query: q, positive: a}}
decontaminate:
  against:
    - {name: rivers, files: qrels.tsv, fields: {query_id: query-id, positive_id: corpus-id, score: score},
       queries: {files: queries.jsonl}, corpus: {files: corpus.jsonl, fields: {title: title}}}
    - {name: pairs, files: pairs.jsonl, fields: {query: lists, positive: b}}
"""


@pytest.fixture
def recipe(tmp_path):
    write_lines(
        tmp_path / "queries.jsonl", [{"_id": 1, "text": QUESTION}, {"_id": 2, "text": "not asked in any of the qrels here"}]
    )
    write_lines(tmp_path / "corpus.jsonl", [{"_id": "a", "title": "Ljubljanica", "text": ANSWER}, {"_id": "b", "title": "", "text": SHARED}])  # fmt: skip
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb\t0\n")
    write_lines(tmp_path / "pairs.jsonl", [{"lists": ["where can I buy honey in the town", "and some cheese to go with it"], "b": "At the covered market by the cathedral"}])  # fmt: skip
    rows = [{"q": f"question {nonsense(at)}", "a": f"answer {nonsense(-at - 1)}", "n": []} for at in range(30)]
    rows[3]["q"], rows[4]["a"], rows[5]["n"] = EDITED, ANSWER, ["wrong", SHARED, "Where can I buy honey in the town?"]
    rows[6]["q"] = "not asked in any of the qrels here"
    write_lines(tmp_path / "faq.jsonl", rows)
    write_lines(tmp_path / "other.jsonl", [{"q": f"quite another thing {at} to be asked", "a": SHARED} for at in range(9)])
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)
    return path


def test_a_build_is_clean_and_says_so(recipe, tmp_path):
    outcome = build(recipe, tmp_path / "b")
    assert not outcome.failed
    for receipt in outcome.receipts.values():
        check_counts(receipt)
    said = json.loads((tmp_path / "b" / "build.json").read_text())["decontaminate"]
    assert said["mode"] == "drop"
    nothing = {"query": 0, "positive": 0, "negative": 0, "corpus": 0}
    assert said["tasks"]["rivers"] == {
        "faq": {"query": 1, "positive": 1, "negative": 0, "corpus": 1},
        "other": {**nothing, "corpus": 9},
    }
    assert said["tasks"]["pairs"] == {"faq": {**nothing, "negative": 1}}
    whole = read_parquet(tmp_path / "b" / "contamination.parquet")
    assert whole.schema == CONTAMINATION
    assert whole.filter(pl.col("eval_id") == "a").select("source", "id", "eval_field", "rule").rows() == [
        ("faq", "faq/4", "document", "words")
    ]
    assert outcome.receipts["faq"]["dropped"].items() >= {"contaminated_query": 1, "contaminated_positive": 1}.items()
    assert outcome.receipts["faq"]["texts_out"] == {"contaminated_negative": 1}
    texts = set(read_table(tmp_path / "b" / "curated" / "faq", "passages")["text"]) | set(
        read_table(tmp_path / "b" / "curated" / "faq", "pairs")["query"]
    )
    assert not texts & {EDITED, ANSWER, "Where can I buy honey in the town?"}
    assert {SHARED, "not asked in any of the qrels here"} <= texts
    shown = CliRunner().invoke(curate, ["stats", str(tmp_path / "b"), "--only", "faq"])
    assert shown.output.endswith(
        "overlap with  in   query  positive  negative  corpus\n"
        "------------  ---  -----  --------  --------  ------\n"
        "pairs         faq      0         0         1       0\n"
        "rivers        faq      1         1         0       1\n"
    )
    assert build(recipe, tmp_path / "b").ran == set()
    many = build(recipe, tmp_path / "c", workers=2)
    assert not many.failed
    assert contents(tmp_path / "c") == contents(tmp_path / "b")


def test_verify_looks_at_the_stages_of_contamination_and_overlaps(recipe, tmp_path):
    made = tmp_path / "b"
    build(recipe, made)
    assert verify.problems(made) == []
    for where in (
        "decontaminate/keys.u8",
        "cleaned/faq/contamination.parquet",
        "across/overlaps/overlaps.parquet",
    ):
        whole = (made / where).read_bytes()
        (made / where).write_bytes(whole[:-1] + b"x")
        problems = [one for one in verify.problems(made) if one.where == str(made / where)]
        assert [one.what for one in problems] == ["has another digest than the receipt says"], where
        (made / where).write_bytes(whole)
    read_parquet(made / "contamination.parquet").head(2).write_parquet(made / "contamination.parquet")
    (made / "overlaps.parquet").unlink()
    assert [(one.where, one.what) for one in verify.problems(made)] == [
        (str(made / "overlaps.parquet"), "is missing, and build.json names it"),
        (str(made / "contamination.parquet"), "has another digest than build.json says"),
        (str(made / "contamination.parquet"), "rows 2 is not build.json's 13"),
    ]
    (made / "contamination.parquet").unlink()
    assert [one.what for one in verify.problems(made) if "contamination" in one.where] == ["is missing, and build.json names it"]


def test_a_damaged_index_is_named(indexed):
    whole, forms = indexed / "decontaminate", pl.Series([QUESTION])
    for path in sorted(path for path in whole.iterdir() if path.suffix != ".parquet" and path.stem != "shard_starts"):
        before = path.read_bytes()
        for cut in (True, False):
            if cut:
                path.write_bytes(before[: -int(path.suffix[2:])])
            else:
                path.unlink()
            with pytest.raises(BuildError, match="was changed since it was written") as error:
                overlap_index.read_index(whole)
            assert "delete" in str(error.value)
            path.write_bytes(before)
    assert len(overlap_lookup.look_up(overlap_index.read_index(whole), forms))


def test_what_runs_again(recipe, tmp_path):
    build(recipe, tmp_path / "b")
    recipe.write_text(MANIFEST + "  mode: strict\n")
    outcome = build(recipe, tmp_path / "b")
    assert (
        str(outcome.failed["other"]) == "source 'other': decontamination removed all 9 tuples (matched: rivers 9); "
        "leave the source out, or see what matches with `mode: report`"
    )
    recipe.write_text(MANIFEST + "  mode: report\n")
    assert build(recipe, tmp_path / "b").ran == {"faq", "other"}
    assert set(read_parquet(tmp_path / "b" / "contamination.parquet")["action"]) == {"reported"}
    recipe.write_text(MANIFEST.partition("decontaminate")[0])
    build(recipe, tmp_path / "b")
    assert not (tmp_path / "b" / "contamination.parquet").exists()
    assert not (tmp_path / "b" / "decontaminate").exists()
    assert "decontaminate" not in json.loads((tmp_path / "b" / "build.json").read_text())


def test_near_copies_of_held_out_queries_go(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"q": f"What does the word {nonsense(at)} mean", "a": f"answer {at}"} for at in range(3)])
    write_lines(tmp_path / "b.jsonl", [{"q": f"What does the name {nonsense(at)} mean", "a": f"reply {at}"} for at in range(3)])
    path = tmp_path / "m.yaml"
    source = "files: {0}.jsonl, task: retrieval, fields: {{query: q, positive: a}}"
    lines = [
        f"  - {{name: a, holdout: 1, {source.format('a')}}}",
        f"  - {{name: b, {source.format('b')}}}",
        "decontaminate: {}",
        "",
    ]
    path.write_text("\n".join(["name: held", "sources:", *lines]))
    outcome = build(path, tmp_path / "out")
    assert not outcome.failed
    (held,) = read_parquet(tmp_path / "out" / "shaped" / "a" / "heldout.parquet")["id"]
    gone = read_parquet(tmp_path / "out" / "contamination.parquet")
    assert gone.select("id", "task", "eval_id", "rule").rows() == [(held.replace("a/", "b/"), "heldout/a", held, "chars")]
    assert outcome.receipts["b"]["dropped"] == {"contaminated_query": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("decontaminate: {}\n", "m.yaml:1: 'decontaminate' names no evaluation set; add 'against' or 'mteb', or hold out queries of a source"),
        ("decontaminate: {against: [{files: q.tsv, fields: {label: l}}]}\n", "m.yaml:4: 'fields' maps no text; map query, positive or both, or query_id and positive_id"),
        ("decontaminate: {against: [{files: q.tsv, fields: {query_id: l, positive_id: m}}]}\n", "m.yaml:4: qrels need 'query_id' and 'positive_id' in 'fields', and 'corpus' and 'queries'"),
        ("decontaminate: {against: [{files: q.tsv, fields: {query: l}}, {files: q.tsv, fields: {query: m}}]}\n", "m.yaml:4: two evaluation sets are named 'q.tsv'; give one of them another 'name'"),
        ("decontaminate: {mode: silent, against: [{files: q.tsv, fields: {query: l}}]}\n", "m.yaml:4: decontaminate.mode: 'silent' is not one of drop, report or strict"),
        ("decontaminate: {against: [{files: q.tsv, fields: {query: l}}]}\n", "q.tsv: no such file; paths are relative to the manifest's folder"),
        ("decontaminate: {against: [{files: a.jsonl, fields: {query: l}}]}\n", "evaluation set 'a.jsonl': no column 'l'; columns there are: q, a"),
        ("decontaminate: {against: [{files: bad.jsonl, fields: {query: q}}]}\n", "evaluation set 'bad.jsonl': row 1 is unreadable (bad_json); "),
        ("decontaminate: {allow: no.txt, against: [{files: a.jsonl, fields: {query: q}}]}\n", "decontaminate: allow: 'no.txt' cannot be read (No such file or directory); name a file with one text per line"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_evaluation_set(tmp_path, text, line):
    write_lines(tmp_path / "a.jsonl", [{"q": "who", "a": "me"}])
    (tmp_path / "bad.jsonl").write_text('{"q": "who"}\n{"q"\n')
    path = tmp_path / "m.yaml"
    path.write_text("name: x\nsources:\n  - {name: a, files: a.jsonl, task: retrieval, fields: {query: q, positive: a}}\n" + text)
    with pytest.raises((ManifestError, SourceError)) as caught:
        build(path, tmp_path / "out")
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(line)
