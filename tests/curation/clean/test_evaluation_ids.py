"""Evaluation sets of qrels: ids that their tables lack are counted in a warning."""

import logging

import pytest

from curation.clean.overlap_texts import evaluation_texts
from curation.core import store
from curation.core.errors import SetupError, SourceError
from curation.recipe.evaluation import EvalSet


def beir(folder, corpus):
    (folder / "qrels").mkdir()
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t1\nq2\td3\t1\n")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n')
    (folder / "corpus.jsonl").write_text("".join(f'{{"_id": "{one}", "text": "text of {one}"}}\n' for one in corpus))
    return EvalSet.model_validate({"reader": "beir", "files": str(folder), "name": "mine"})


def test_ids_that_the_corpus_lacks_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "tuplesmith"):
        frames = list(evaluation_texts(beir(tmp_path, ["d1", "d9"]), tmp_path))
    assert sum(map(len, frames)) == 4
    (line,) = [one.getMessage() for one in caplog.records]
    assert line.startswith("evaluation set 'mine' (corpus): lacks 2 of the 3 ids that its qrels name, such as 'd")
    assert line.endswith("'; these are not looked for")


def test_whole_tables_warn_of_nothing_and_foreign_ones_are_errors(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    list(evaluation_texts(beir(tmp_path / "a", ["d1", "d2", "d3"]), tmp_path))
    assert not caplog.records
    (tmp_path / "b").mkdir()
    with pytest.raises(SourceError, match=r"\(corpus\): has none of the ids that its qrels name, such as 'd"):
        list(evaluation_texts(beir(tmp_path / "b", ["x"]), tmp_path))


def test_a_user_without_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 3_999_999)  # a user that the system does not know
    with pytest.raises(SetupError, match="the cache: this user has no home folder to keep it in; set HOME or XDG_CACHE_HOME"):
        store.user_cache()
    monkeypatch.setattr(store, "LARGE", 0)
    (tmp_path / "a").write_bytes(b"x")
    assert store.digest_now(tmp_path / "a") == store.file_digest(tmp_path / "a")
