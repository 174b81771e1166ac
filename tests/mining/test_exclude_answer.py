"""Passages that hold an answer of the query are no negatives."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from small_build import make_build, pairs_source
from test_mine import mined, run

from curation.core import store, tables
from curation.core.record import key_of
from mining.duplicates import contains_answer, read_answers
from mining.mine import warnings_of

PASSAGES = ["In 1815 Jane AUSTEN wrote it.", "Jane lived in Austenville", "東京都に住む", "by jane-austen", "no one"]


def test_whole_words_whatever_the_case(tmp_path):
    lists = {"key": [b"a", b"b", b"c"], "answers": [["Jane Austen", "!!"], ["1815"], ["京都"]]}
    tables.write_parquet(tmp_path / "answers.parquet", pl.DataFrame(lists))
    answers = read_answers(tmp_path)
    assert answers["key"].to_list() == [b"a", b"b", b"c"]
    ids = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 3, -1], [0, 1, 2, 3, 4]])
    found = contains_answer(answers, pl.Series([b"a", b"b", b"c", b"d"]), ids, lambda pids: (PASSAGES[pid] for pid in pids))
    assert found.tolist() == [
        [True, False, False, True, False],
        [False, False, False, False, True],
        [False, False, True, False, False],
        [False] * 5,
    ]
    assert read_answers(tmp_path / "nothing").is_empty()


@pytest.mark.parametrize("shortage", ["keep", "random"])
def test_in_a_build(tmp_path, shortage):
    queries = [f"who built house {n}?" for n in range(30)]
    positives = [f"house {n} was built by builder{n % 3} in {1900 + n}" for n in range(30)]
    mine = (
        f"model: fake, negatives: 25, range_min: 0, range_max: 40, max_score: null, relative_margin: null, shortage: {shortage}"
    )
    build = make_build(tmp_path / "b", {"s": pairs_source(queries, positives)}, mine + ", exclude_answer: true")
    folder = build / "curated" / "s"
    lists = {"key": [key_of(query) for query in queries], "answers": [[f"Builder{n % 3}"] for n in range(30)]}
    tables.write_parquet(folder / "answers.parquet", pl.DataFrame(lists))
    receipt = store.read_receipt(folder)
    receipt["files"]["answers.parquet"] = store.file_digest(folder / "answers.parquet")
    store.write_json(folder / "done.json", receipt)
    said = run(build)["s"]
    assert said["answers"] == 30
    assert not list(warnings_of("s", said))
    assert said["filters"]["exclude_answer"] == 30 * 9
    rows = mined(build)[0]
    texts = tables.read_table(folder, "passages")["text"].to_list()
    for number, row in enumerate(rows.iter_rows(named=True)):
        assert not [pid for pid in row["negatives"] if f"builder{number % 3} " in texts[pid]]
        assert len(row["negatives"]) == 20


def test_a_source_without_answers(tmp_path):
    source = pairs_source([f"who built house {n}?" for n in range(9)], [f"house {n} is by builder {n}" for n in range(9)])
    build = make_build(
        tmp_path / "b", {"s": source}, "model: fake, negatives: 2, range_min: 0, exclude_answer: true, shortage: keep"
    )
    assert list(warnings_of("s", run(build)["s"])) == [
        "s: 'exclude_answer' drops nothing, because the source has no answers; name their column: `fields: {answer: ...}`"
    ]
