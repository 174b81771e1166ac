"""`curate verify`: each thing that can be wrong with a build is reported."""

from __future__ import annotations

import shutil

import polars as pl
import pytest

from curation.cli import curate
from curation.core import store, tables
from curation.share.verify import problems
from tests.curation.share import test_exchange

made = test_exchange.made  # the fixture


def rewrite(folder, name, change):
    """Change a table of a stage and its digest in the receipt, so that only the content is wrong."""
    path = folder / name
    tables.write_parquet(path, change(tables.read_parquet(path)))
    receipt = store.read_json(folder / "done.json")
    store.write_json(folder / "done.json", receipt | {"files": receipt["files"] | {name: store.file_digest(path)}})


def said(change):
    return lambda folder: store.write_json(folder / "done.json", change(store.read_json(folder / "done.json")))


def pids(column, first):
    return lambda frame: frame.with_columns(pl.Series(column, [first, *frame[column][1:].to_list()], dtype=frame.schema[column]))


BROKEN = {
    "mined/faq/pairs-00000.parquet: has another digest than the receipt says": ("mined/faq", lambda f: (f / "pairs-00000.parquet").write_bytes(b"x")),
    "mined/faq/dropped.parquet: is missing, and the receipt names it": ("mined/faq", lambda f: (f / "dropped.parquet").unlink()),
    "mined/faq/x.txt: is not in the receipt": ("mined/faq", lambda f: (f / "x.txt").write_text("")),
    "shaped/faq: has no receipt done.json": ("shaped/faq", lambda f: (f / "done.json").unlink()),
    "rows_in 17 is not rows used + dropped 16": ("curated/faq", said(lambda r: r | {"rows_in": 17})),
    "tuples_made 16 is not kept + merged + held out + dropped 17": ("curated/faq", said(lambda r: r | {"merged": 1})),
    "lines 'echo' 0 is not the receipt's 1": ("curated/faq", said(lambda r: r | {"dropped": {"echo": 1}})),
    "passages 99 is not rows in the tables": ("curated/faq", said(lambda r: r | {"passages": 99})),
    "1 tuples have no positive (": ("curated/faq", lambda f: rewrite(f, "pairs-00000.parquet", pids("positives", []))),
    "1 tuples name a passage that does not exist (": ("curated/faq", lambda f: rewrite(f, "pairs-00000.parquet", pids("positives", [7, 999]))),
    "1 tuples have a negative that is a positive (": ("mined/faq", lambda f: rewrite(f, "pairs-00000.parquet", pids("negatives", [0, 4, 5]))),
    "1 tuples name a negative twice (": ("mined/faq", lambda f: rewrite(f, "pairs-00000.parquet", pids("negatives", [5, 5, 6]))),
    "do not have one of 'negative_scores' per negative": ("mined/faq", lambda f: rewrite(f, "pairs-00000.parquet", pids("negative_scores", [0.5]))),
    "1 tuples have a score that is not a number": ("mined/faq", lambda f: rewrite(f, "pairs-00000.parquet", pids("negative_scores", [0.5, 0.5, float("inf")]))),
    "1 passages have a key that is not their text's (0 is the first)": ("curated/faq", lambda f: rewrite(f, "passages-00000.parquet", pids("text", "changed"))),
    "2 tuples have the id of another (": ("curated/tone", lambda f: rewrite(f, "pairs-00000.parquet", pids("id", "tone/1"))),
    "was mined from other tuples than curated/tone": ("curated/tone", lambda f: rewrite(f, "pairs-00000.parquet", pids("id", "tone/77"))),
    "queries 1 is not the receipt's held out 2": (
        "heldout/faq",
        lambda f: (
            (f / "queries.jsonl").write_text((f / "queries.jsonl").read_text().splitlines()[0] + "\n"),
            said(lambda r: r | {"files": r["files"] | {"queries.jsonl": store.file_digest(f / "queries.jsonl")}})(f),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_verify_tells_what_is_wrong(made, tmp_path, message):
    whole = tmp_path / "b"
    shutil.copytree(made, whole, ignore=shutil.ignore_patterns("embeddings"))
    stage, damage = BROKEN[message]
    damage(whole / stage)
    found = [f"{one.where}: {one.what}" for one in problems(whole)]
    assert [line for line in found if message in line], found
    assert curate.main(["verify", str(whole), "-q"], standalone_mode=False) == 1


def test_the_problems_and_their_order_do_not_depend_on_the_number_of_processes(made, tmp_path):
    whole = tmp_path / "b"
    shutil.copytree(made, whole)
    for stage in ("mined/tone", "mined/faq", "shaped/faq", "curated/tone"):
        (whole / stage / "x.txt").write_text("")
    (vectors,) = whole.glob("embeddings/*/shard-00000.json")
    vectors.write_bytes(vectors.read_bytes() + b" ")
    unfinished = whole / "curated/.tuplesmith-00000000000000aa.tmp"  # of another command; no process of this machine holds it
    unfinished.mkdir()
    alone = problems(whole)
    assert len(alone) > 4
    assert problems(whole, processes=2) == alone
    assert unfinished.exists()


def test_a_run_that_was_refused_at_once_is_no_problem_of_the_build(made, tmp_path):
    shutil.copytree(made, tmp_path / "b")
    (tmp_path / "b" / "train").mkdir()
    (tmp_path / "b" / "train" / ".train.lock").touch()
    assert problems(tmp_path / "b") == []
