"""Rows to tuples, shape by shape, on a few rows each."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.core.errors import SourceError
from curation.core.record import key_of
from curation.core.text import forms
from curation.read.mapping import map_columns
from curation.read.rows import ROW
from curation.recipe.source import Source
from curation.shape.labelled import pair_up
from curation.shape.numbered import numbered, spelled
from curation.shape.scores import united_scores
from curation.shape.shapes import to_tuples


def source(task="retrieval", **more):
    fields = more.pop("fields", {"query": "q", "positive": "p"})
    return Source(**{"name": "s", "files": ["x"], "task": task, "fields": fields, **more})


def rows(**columns):
    frame = pl.DataFrame(columns, strict=False)
    return frame.with_columns(pl.Series(ROW, range(len(frame)), dtype=pl.UInt64))


def made(of, *args, **more):
    tables = [map_columns(f"source '{of.name}'", table, of) for table in args]
    tuples = to_tuples(of, *tables, seed=1, **more)
    return [(t["id"], t["query"], t["positives"], t["negatives"]) for t in tuples.tuples.iter_rows(named=True)], reasons(tuples)


def reasons(tuples):
    return list(tuples.dropped.select("id", "reason").iter_rows())


def test_pairs_with_lists_and_given_negatives():
    table = rows(q=["a", " ", "c", "d"], p=[["x", "", "y"], ["x"], [], ["z"]], n=["n1", "n2", "n3", None])
    got = made(source(fields={"query": "q", "positive": "p", "negatives": "n"}), table)
    assert got == (
        [("s/0", "a", ["x", "y"], ["n1"]), ("s/3", "d", ["z"], [])],
        [("s/1", "empty_query"), ("s/2", "empty_positive")],
    )


LISTED = {"query": "q", "documents": "d"}
DOCUMENTS = {"q": ["a", "b", "c"], "d": [["x", "y", " "], ["z", "x"], []], "l": [[0, 2, 1], [1, 0], []]}


def test_documents_are_positives_or_negatives_by_their_labels():
    of = source(fields={**LISTED, "label": "l", "id": "i"})
    got = made(of, rows(**DOCUMENTS, i=["one", "s/two", "three"]))
    expected = [("s/one", "a", ["y"], ["x"]), ("s/two", "b", ["z"], ["x"])]
    assert got == (expected, [("s/three", "empty_positive")])
    assert made(source(fields={**LISTED, "label": "l"}, threshold=2), rows(**DOCUMENTS))[0] == [("s/0", "a", ["y"], ["x"])]


def test_documents_with_scores_are_split_by_a_threshold_or_the_best_is_the_positive():
    table = rows(q=["a"], d=[["x", "y", "z"]], v=[[0.5, 0.75, None]])
    of = source(fields={**LISTED, "score": "v"})
    assert made(of, table) == ([("s/0", "a", ["y"], ["x"])], [])
    assert made(source(fields={**LISTED, "score": "v"}, threshold=0.6), table) == ([("s/0", "a", ["y"], ["x"])], [])
    scores = united_scores([to_tuples(of, table, 1).scores])
    assert dict(zip(scores["text"], scores["score"], strict=True)) == {key_of("x"): 0.5, key_of("y"): 0.75}
    assert set(scores["query"]) == {key_of("a")}


SCORED = {"query": "q", "positive": "p", "negatives": "n*", "positive_score": "s", "negative_scores": "t"}


def test_scores_belong_to_a_query_and_a_text():
    table = rows(
        q=["a", "a", "b", " "], p=["x", "x", "y", "z"], n1=["m", " ", "m", "m"], n2=["k", "l", "k", "k"], s=[0.5, 0.25, None, 1.0],
        t=[["0.125", None], [0.5, 1], [], None],
    )  # fmt: skip
    scores = united_scores([to_tuples(source(fields=SCORED), table, 1).scores])
    expected = [("a", "x", 0.5), ("a", "m", 0.125), ("a", "l", 1.0)]
    assert sorted(scores.rows()) == sorted((key_of(query), key_of(text), score) for query, text, score in expected)


@pytest.mark.parametrize(
    ("fields", "change", "said"),
    [
        (
            SCORED,
            {"t": [[1.0]]},
            "row 0 has 2 texts and 1 numbers in 't'; give each text a number or null, or leave the column out of 'fields'",
        ),
        (SCORED, {"t": [[[1.0]]]}, "column 't' holds lists of lists, not texts; `join: {t: ' '}` makes one text of each inner"),
        ({**LISTED, "label": "l"}, {"l": [[1]]}, "row 0 has 2 texts and 1 numbers in 'l'; give each text a number or null"),
        ({"query": "q", "positive": "p", "id": "i"}, {"i": [" "]}, "row 0 has no 'i'; leave out `id` to use row numbers as ids"),
        ({"query": "q", "positive": "p", "id": "i"}, {}, "row 0 repeats the 'i' of another row, one; leave out `id` to"),
    ],
)
def test_scores_and_ids_that_do_not_fit(fields, change, said):
    columns = {"q": ["a"], "p": ["x"], "n1": ["m"], "n2": ["k"], "s": [0.5], "t": [[1.0, 0.5]], "d": [["x", "y"]], "l": [[1, 0]], "i": ["one"]}  # fmt: skip
    table = rows(**columns | change)
    if "i" in fields.values() and not change:
        table = pl.concat([table, table.with_columns(pl.lit("s/one").alias("i"))])
    with pytest.raises(SourceError, match=f"source 's': {said}"):
        made(source(fields=fields), table)


def test_a_title_stands_before_its_query_and_a_part_of_a_record_is_a_column():
    table = rows(q=["a", None, "c"], t=["T", "U", " "], p=[{"x": {"y": ["1", "2"]}}] * 3)
    got = made(source(fields={"query": "q", "title": "t", "positive": "p.x.y"}), table)
    assert got == ([("s/0", "T\na", ["1", "2"], []), ("s/2", "c", ["1", "2"], [])], [("s/1", "empty_query")])
    with pytest.raises(
        SourceError, match="source 's': no column 'p.x.z' .did you mean 'p.x.y'..; columns there are: q, t, p.x.y"
    ):
        made(source(fields={"query": "q", "positive": "p.x.z"}), table)


def test_numbers_are_texts_and_records_are_not():
    assert made(source(), rows(q=[1], p=[2.5]))[0] == [("s/0", "1", ["2.5"], [])]
    with pytest.raises(
        SourceError, match=r"source 's': column 'q' holds records \(row 0\), not texts; map one of their parts: q.a, q.b.c"
    ):
        made(source(), rows(q=[{"a": 1, "b": {"c": "x"}}], p=["x"]))


def test_a_missing_column_names_those_there_are():
    with pytest.raises(SourceError, match="source 's': no column 'q'; columns there are: query, p"):
        made(source(), rows(query=["a"], p=["x"]))


def test_scored_pairs_both_ways():
    of = source(fields={"query": "q", "positive": "p", "score": "v"}, threshold=4, both_ways=True)
    got = made(of, rows(q=["a", "b", "c", "d"], p=["x", "y", "z", "w"], v=["4.0", "3.9", "good", "nan"]))
    assert got == (
        [("s/0", "a", ["x"], []), ("s/0/r", "x", ["a"], [])],
        [("s/1", "below_threshold"), ("s/2", "bad_score"), ("s/3", "bad_score")],
    )


NLI = {"query": "q", "positive": "p", "label": "l"}


def test_nli_rows_of_a_premise_make_one_tuple():
    table = rows(
        q=["a", "b", "a", "a", "c", "c", "d", "a"],
        p=["x", "y", "z", "w", "u", "u", "t", "v"],
        l=["entailment", "entailment", "neutral", "contradiction", "entailment", "neutral", "neutral", "-"],
    )
    assert made(source(fields=NLI), table) == (
        [("s/0", "a", ["x"], ["z", "w"]), ("s/1", "b", ["y"], [])],
        [("s/4", "conflicting_label"), ("s/5", "conflicting_label"), ("s/6", "no_positive"), ("s/7", "unknown_label")],
    )


def test_nli_labels_of_another_name_are_mapped_or_refused():
    table = rows(q=["a", "a"], p=["x", "y"], l=["e", "c"])
    assert made(source(fields=NLI, labels={"e": "positive", "c": "negative"}), table)[0] == [("s/0", "a", ["x"], ["y"])]
    with pytest.raises(
        SourceError,
        match="no label is one of entailment, neutral, contradiction; labels there are: c, e; map them under 'labels'",
    ):
        made(source(fields=NLI), table)


LABELLED = {"query": "q", "label": "l"}


def test_classification_has_the_other_label_as_its_negative():
    of = source("classification", fields=LABELLED, labels={"0": "dull", "1": "fun"})
    got = made(of, rows(q=["a", "b", "B!", "c", "", "d"], l=[0, 1, 0, 1, 1, 2]))
    assert got == (
        [("s/0", "a", ["dull"], ["fun"]), ("s/3", "c", ["fun"], ["dull"])],
        [("s/1", "conflicting_label"), ("s/2", "conflicting_label"), ("s/4", "empty_text"), ("s/5", "unknown_label")],
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["1", "1"], "classification takes two labels, and column 'l' has 1: 1; one class alone teaches nothing"),
        (
            ["1", "2", "3"],
            "classification takes two labels, and column 'l' has 3: 1, 2, 3; use `task: clustering` for more than two",
        ),
    ],
)
def test_classification_takes_two_labels(labels, said):
    with pytest.raises(SourceError, match=said):
        made(source("classification", fields=LABELLED), rows(q=[f"t{i}" for i in range(len(labels))], l=labels))


def paired_up(tuples, seed):
    """Return (TUPLES with a positive each, those that are alone)."""
    numbers, _, texts = numbered(tuples, pl.Series([], dtype=pl.String))
    paired, alone = pair_up(numbers, texts, seed, "s")
    return spelled(paired, texts), alone


def test_clustering_draws_a_positive_of_the_class_and_of_another_form():
    table = rows(q=["One", "one!", "two", "three", "four", "alone", ""], l=["a", "a", "a", "b", "b", "c", "a"])
    shaped = to_tuples(source("clustering", fields=LABELLED), table, seed=1)
    assert reasons(shaped) == [("s/6", "empty_text")]
    paired, lonely = paired_up(shaped.tuples, 1)
    assert lonely.select("id", "reason", "evidence").rows() == [("s/5", "lonely_class", "c")]
    found = {t["query"]: t["positives"] for t in paired.iter_rows(named=True)}
    assert found["One"] == found["one!"] == ["two"]
    assert found["two"] in (["One"], ["one!"])
    assert (found["three"], found["four"]) == (["four"], ["three"])


def test_labels_that_are_no_class_are_left_out():
    table = rows(q=["one", "two", "three", "four", "whatever"], l=[1, 1, 2, 2, 42])
    shaped = to_tuples(source("clustering", fields=LABELLED, skip_labels=["42"]), table, seed=1)
    assert reasons(shaped) == [("s/4", "skipped_label")]
    assert shaped.tuples["label"].to_list() == ["1", "1", "2", "2"]
    with pytest.raises(
        SourceError, match=r"^source 's': no row has the label '43' of 'skip_labels'; labels there are: 1, 2, 42$"
    ):
        to_tuples(source("clustering", fields=LABELLED, skip_labels=["42", "43"]), table, seed=1)
    assert len(to_tuples(source("clustering", fields=LABELLED, skip_labels=["43"], limit=9), table, seed=1).tuples) == 5
    with pytest.raises(
        ValueError, match="'skip_labels' has no effect: the columns in 'fields' make this a source of shape 'pairs'"
    ):
        source(skip_labels=["42"])


def test_clustering_wants_two_classes():
    shaped = to_tuples(source("clustering", fields=LABELLED), rows(q=["a", "b"], l=["x", "x"]), seed=1)
    with pytest.raises(
        SourceError, match="source 's': fewer than two of its classes have two texts each; check the label column"
    ):
        paired_up(shaped.tuples, 1)


def test_qrels_join_corpus_and_queries():
    of = source(
        fields={"query_id": "q", "positive_id": "p", "score": "v"},
        corpus={"files": "c", "fields": {"id": "_id", "text": "text", "title": "title"}},
        queries={"files": "q"},
    )
    corpus = rows(_id=["d1", "d2", "d3"], title=["T", "", None], text=["one", "two", "three"])
    queries = rows(_id=["q1", "q2"], text=["first", "second"])
    table = rows(q=["q1", "q1", "q2", "q2", "q9", "q1"], p=["d1", "d2", "d3", "d9", "d1", "d3"], v=[1, 2, 0, 1, 1, 1])
    tuples = to_tuples(of, table, 1, corpus, queries)
    assert [(t["query"], t["positives"]) for t in tuples.tuples.iter_rows(named=True)] == [("first", ["two", "T\none", "three"])]
    assert reasons(tuples) == [
        ("s/row 2", "below_threshold"),
        ("s/row 3", "unknown_passage"),
        ("s/row 4", "unknown_query"),
    ]
    assert tuples.tuples["id"].to_list() == ["s/q1"]
    assert tuples.corpus.to_list() == ["T\none", "two", "three"]


def beir(table, **more):
    of = source(fields={"query_id": "q", "positive_id": "p"}, corpus={"files": "c"}, queries={"files": "q"}, **more)
    corpus, queries = (
        rows(_id=["d1", "d2"], text=["one", "two"]),
        rows(_id=[f"q{i}" for i in range(20)], text=[f"ask {i}" for i in range(20)]),
    )
    return to_tuples(of, table, 1, corpus, queries)


def test_a_limit_of_qrels_counts_the_queries_that_make_tuples():
    table = rows(q=[None] + [f"q{i}" for i in range(20)], p=["d1"] + ["d1", "d9"] * 10)
    made_of_all = beir(table)
    assert len(made_of_all.tuples) == 10
    limited = beir(table, limit=4)
    assert len(limited.tuples) == 4
    assert set(limited.tuples["id"]) < set(made_of_all.tuples["id"])
    assert dict(limited.dropped.group_by("reason").len().iter_rows()) == {
        "unknown_query": 1,
        "unknown_passage": 10,
        "over_limit": 6,
    }


def test_a_row_without_a_known_label_spoils_no_other():
    table = rows(q=["a", "a"], p=["x", "x"], l=["entailment", "-"])
    assert made(source(fields=NLI), table) == ([("s/0", "a", ["x"], [])], [("s/1", "unknown_label")])


def test_labels_that_match_nothing_are_named():
    of = source("classification", fields=LABELLED, labels={"0": "no", "1": "yes"})
    with pytest.raises(SourceError, match=r"no value of column 'l' is one of 'labels' \(0, 1\); values there are: x, y"):
        made(of, rows(q=["a", "b"], l=["x", "y"]))


def test_columns_of_strange_types_and_names():
    assert made(source(fields={"query": "^q$", "positive": "p"}), rows(**{"^q$": ["a"], "p": ["x"]}))[0] == [
        ("s/0", "a", ["x"], [])
    ]
    of = source(fields={"query": "q", "positive": "p", "score": "v"}, threshold=1)
    message = "column 'v' holds lists, not text; map a column of texts, or `join` its lists"
    with pytest.raises(SourceError, match=message):
        made(of, rows(q=["a"], p=["x"], v=[[1.0]]))
    assert made(of, rows(q=["a", "b"], p=["x", "y"], v=["inf", "1e400"]))[1] == [("s/0", "bad_score"), ("s/1", "bad_score")]
    with pytest.raises(SourceError, match="source 's': column 'q' holds Binary, not text; map a column of texts"):
        made(source(), rows(q=[b"\xff\xfe"], p=["x"]))


def test_an_error_is_one_line_whatever_a_file_holds():
    with pytest.raises(SourceError) as caught:
        made(source(), rows(**{"q\nx\0": ["a"], "p": ["x"]}))
    assert str(caught.value) == r"source 's': no column 'q'; columns there are: q\nx\u0000, p"


words = st.sampled_from(["", " ", "a", "b", "A!", "c", "word", "x y", "X  y."])


@given(
    st.lists(
        st.tuples(words, words, st.sampled_from(["entailment", "neutral", "contradiction", "-", ""])), min_size=1, max_size=20
    )
)
def test_every_row_is_in_a_tuple_or_dropped(table):
    frame = rows(q=[r[0] for r in table], p=[r[1] for r in table], l=[r[2] for r in table])
    for of in (source(), source(fields=NLI), source("clustering", fields=LABELLED)):
        try:
            tuples = to_tuples(of, frame, seed=1)
        except SourceError:
            continue
        gone = tuples.dropped["id"].to_list()
        assert len(gone) == len(set(gone))
        left = [f"s/{i}" for i in range(len(table)) if f"s/{i}" not in gone]
        if of.fields.label is None or of.task == "clustering":
            assert tuples.tuples["id"].to_list() == left
        else:
            used = [(q, p) for i, (q, p, _) in enumerate(table) if f"s/{i}" in left]
            inside = [(t["query"], x) for t in tuples.tuples.iter_rows(named=True) for x in t["positives"] + t["negatives"]]
            assert sorted(set(used)) == sorted(inside)


@given(st.lists(st.tuples(st.text("ab\u00e9z \U0001f600", max_size=5), st.sampled_from("xy")), min_size=4, max_size=30))
def test_the_positives_of_a_clustering_do_not_depend_on_how_its_forms_are_sorted(table):
    tuples = to_tuples(source("clustering", fields=LABELLED), rows(q=[r[0] for r in table], l=[r[1] for r in table]), 1).tuples
    found = []
    for head in (1, 2, 32):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("curation.shape.labelled.BEGINNING", head)
            try:
                found.append(paired_up(tuples, 1)[0])
            except SourceError:
                return
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


@given(st.lists(st.tuples(st.text("ab!", max_size=3), st.sampled_from("xyz")), min_size=4, max_size=40), st.integers(0, 5))
def test_clustering_positives_share_the_class_and_never_the_form(table, seed):
    frame = rows(q=[r[0] for r in table], l=[r[1] for r in table])
    try:
        tuples, _ = paired_up(to_tuples(source("clustering", fields=LABELLED), frame, seed=seed).tuples, seed)
    except SourceError:
        return
    classes = dict(zip(tuples["query"], tuples["label"], strict=True))
    for t in tuples.iter_rows(named=True):
        (positive,) = t["positives"]
        assert classes[positive] == t["label"]
        pair = forms(pl.Series([t["query"], positive]))
        assert pair[0] != pair[1]
