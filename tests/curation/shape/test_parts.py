"""A source shaped part by part gives the tables, the drops and the complaints that shaping it whole gives."""

from __future__ import annotations

import errno
import json
import os
import pickle
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from curation.build import shape_stage
from curation.build.build import build, job_of
from curation.build.numbering import number, pairs_of, passages_of
from curation.core import store, tables
from curation.core import texts as texts_of_a_source
from curation.core.errors import BuildError, SourceError
from curation.core.progress import silent
from curation.core.store import read_json
from curation.core.tables import read_parquet, read_table
from curation.core.texts import FILES, TextWriter, facts_of, open_texts
from curation.engine.local import Here
from curation.engine.pool import Workers
from curation.recipe.manifest import load_manifest
from curation.shape.numbered import numbered, spelled

PAIR = "task: retrieval, max_bad: 0.5, fields: {query: q, positive: p, negatives: [n]}"


def rows(count: int) -> list[dict]:
    """Rows of which some queries recur, near and far, some passages do, and some are bad, poor or echoes."""
    made = []
    for at in range(count):
        query = f"what is {at % 7} of caf\u00e9 {at}" if at % 5 else f"asked again {at % 4}"
        if at % 11 == 3:
            query = f"what is it, cafe\u0301 {at // 30}"  # not composed
        row = {"q": query, "p": f"The passage, number {at % 9}! " * 3, "n": None if at % 3 else f"the passage number {at % 6}"}
        row |= {"p": query.upper()} if at % 17 == 0 else {"p": " "} if at % 13 == 0 else {}
        made.append(row)
    return made


def built(base: Path, name: str, said: str, size: int | None = None) -> tuple[object, Path]:
    (base / "m.yaml").write_text(f"name: one\nsources:\n  - {{name: one, files: data.jsonl, {said}}}\n")
    with pytest.MonkeyPatch.context() as patch:
        if size:
            patch.setattr("curation.build.shape_stage.PORTION", size)
            patch.setattr("curation.read.blocks.BLOCK", size)
            patch.setattr("curation.read.sources.BATCH", 10 if size > 500 else 3)
            patch.setattr(tables, "ROWS_PER_GROUP", 25)
            patch.setattr(tables, "ROWS_PER_SHARD", 50)
        outcome = build(base / "m.yaml", base / name)
    return {name: str(error) for name, error in outcome.failed.items()} or outcome.receipts["one"], base / name


def test_parts_of_any_size_make_the_same_tables(tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows(150)) + "no row\n" + '{"q": 1, "p": "x"}\n'
    )
    monkeypatch.setattr(shape_stage, "check_readable", lambda *given: pytest.fail("all rows were held at once"))
    for more in ("", ", both_ways: yes", ", filters: {min_chars: 15, no_echo: no}"):
        receipt, whole = built(tmp_path, f"whole{len(more)}", PAIR + more)
        assert receipt["merged"] > 5
        for size in (900, 2_000) if not more else (2_000,):
            receipts, apart = built(tmp_path, f"apart{size}{len(more)}", PAIR + more, size)
            assert len(tables.table_files(apart / "curated/one", "pairs")) > 1
            for stage in ("shaped", "cleaned"):
                some, other = (
                    spelled(read_table(base / stage / "one", "tuples"), open_texts(base / "shaped/one"))
                    for base in (apart, whole)
                )
                assert some.equals(other)
            for table in ("pairs", "passages"):
                assert read_table(apart / "curated/one", table).equals(read_table(whole / "curated/one", table))
            for file in ("curated/one/dropped.parquet", "cleaned/one/forms.parquet"):
                assert read_parquet(apart / file).equals(read_parquet(whole / file))
            assert {key: receipts[key] for key in receipts if key not in ("files", "digest")} == {
                key: receipt[key] for key in receipt if key not in ("files", "digest")
            }
            assert (apart / "report.html").read_text().count("<article") == (whole / "report.html").read_text().count("<article")


TOGETHER = {  # sources whose rows depend on each other, or that have more than tuples: their tuples go on in portions
    "nli": "task: retrieval, max_bad: 0.5, fields: {query: q, positive: p, label: l}, labels: {'0': positive, '1': negative, '2': positive}",
    "classes": "task: classification, max_bad: 0.5, fields: {query: q, label: two}, labels: {'0': dull, '1': fun}",
    "clusters": "task: clustering, fields: {query: q, label: l}",
    "answers": "task: retrieval, max_bad: 0.5, fields: {query: q, positive: p, answer: a}",
    "limit": "task: retrieval, max_bad: 0.5, limit: 90, fields: {query: q, positive: p}, holdout: 60",
    "graded": "task: retrieval, max_bad: 0.5, threshold: 1, limit: 140, fields: {query: q, positive: p, score: s}",
    "qrels": "task: retrieval, max_bad: 0.5, fields: {query_id: i, positive_id: d, score: s}, threshold: 1, "
    "corpus: {files: corpus.jsonl}, queries: {files: queries.jsonl}",
}


@pytest.mark.parametrize("shape", TOGETHER)
def test_tuples_in_portions_of_any_size_make_the_same_tables(tmp_path, monkeypatch, shape):
    judged = [
        row | {"l": at % 3, "two": at % 2, "s": at % 4, "a": f"number {at}", "i": at % 40, "d": at % 60}
        for at, row in enumerate(rows(150))
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    for name, texts in (
        ("queries", [f"query {at}" for at in range(40)]),
        ("corpus", [f"the passage {at % 55}" for at in range(60)]),
    ):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"_id": str(at), "text": text}) + "\n" for at, text in enumerate(texts))
        )
    counts, filtered = [], shape_stage.filtered
    monkeypatch.setattr(shape_stage, "filtered", lambda *given: counts.append(1) or filtered(*given))
    receipt, whole = built(tmp_path, "whole", TOGETHER[shape])
    assert "rows_in" in receipt, receipt
    portions, counts[:] = len(counts), []
    receipts, apart = built(tmp_path, "apart", TOGETHER[shape], 700)
    assert len(counts) > portions + 2
    for table in ("pairs", "passages"):
        assert read_table(apart / "curated/one", table).equals(read_table(whole / "curated/one", table))
    for file in ("curated/one/dropped.parquet", "cleaned/one/forms.parquet", "shaped/one/heldout.parquet"):
        assert read_parquet(apart / file).equals(read_parquet(whole / file))
    assert {key: receipts[key] for key in receipts if key not in ("files", "digest")} == {
        key: receipt[key] for key in receipt if key not in ("files", "digest")
    }


EVERY = {
    **TOGETHER,
    "pairs": PAIR,
    "scored": "task: retrieval, max_bad: 0.5, threshold: 1, both_ways: yes, fields: {query: q, positive: p, score: s, answer: a}",
    "teacher": "task: retrieval, max_bad: 0.5, fields: {query: q, positive: p, negatives: n, positive_score: s, negative_scores: t}",
    "listed": "task: retrieval, max_bad: 0.5, fields: {query: q, documents: docs, score: v}",
    "ids": "task: clustering, max_bad: 0.5, fields: {query: q, label: l, id: i}",
    "sample": "task: retrieval, max_bad: 0.5, limit: 7, fields: {query: q, positive: p, answer: a}",
    "first": "task: clustering, max_bad: 0.5, limit: 12, sample: first, fields: {query: q, label: l}",
    "chunks": "task: retrieval, max_bad: 1, limit: 5, fields: {query_id: i, positive_id: d}, "
    "corpus: {files: corpus.jsonl, chunk: {tokens: 8, overlap: 2}}, queries: {files: queries.jsonl}",
    "beside": "task: retrieval, max_bad: 0.5, fields: {query: q, positive: p, negatives: n}, "
    "corpus: {files: corpus.jsonl, chunk: {tokens: 8, overlap: 2}}",
    "own documents": "task: retrieval, max_bad: 0.5, fields: {query: q, positive: p, positive_id: d, answer: a}, "
    "corpus: {files: corpus.jsonl, chunk: {tokens: 8, overlap: 2}}",
    "named": "task: retrieval, max_bad: 1, by_id: yes, fields: {query: i, positive: d, negatives: ds}, "
    "corpus: {files: corpus.jsonl}, queries: {files: queries.jsonl}",
    "named lists": "task: retrieval, max_bad: 1, by_id: yes, fields: {query: q, documents: ds, score: v}, "
    "corpus: {files: corpus.jsonl, all: yes}",
    "skipped": "task: clustering, max_bad: 0.5, skip_labels: ['2'], fields: {query: q, label: l}",
}
WORDS = st.sampled_from(
    ["", " ", "ab", "a red fox", "A red fox!", "noir caf\u00e9", "noir cafe\u0301", "seven wells", "an old oak", "oak and fox"]
)
ROWS = st.fixed_dictionaries(
    {
        "q": WORDS,
        "p": WORDS,
        "n": st.none() | WORDS,
        "l": st.sampled_from(["0", "1", "1", "2", None]),
        "two": st.sampled_from("01"),
    }
    | {"s": st.sampled_from([0.0, 1.0, 1.5, 2.0, None]), "t": st.sampled_from([0.25, 0.5, None]), "a": st.none() | WORDS}
    | {"i": st.integers(0, 19), "d": st.integers(0, 19), "x": st.sampled_from(["", "", "", "no row"])}
)


@pytest.mark.parametrize("shape", EVERY)
@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(some=st.lists(ROWS, min_size=3, max_size=30), size=st.sampled_from([1, 300]))
def test_any_rows_give_the_same_tables_in_parts(shape, some, size):
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        lists = [row | {"docs": [row["p"], row["n"]], "v": [row["s"], row["t"]], "ds": [row["d"], row["i"]]} for row in some]
        (base / "data.jsonl").write_text("".join((row["x"] or json.dumps(row)) + "\n" for row in lists))
        for name, texts in (("queries", 19), ("corpus", 18)):  # the others are blank
            lines = [
                json.dumps({"_id": str(at), "text": f"{name} {at % 13} " * (1 + 4 * (at % 3)) * (at < texts)}) + "\n"
                for at in range(20)
            ]
            (base / f"{name}.jsonl").write_text("".join(lines))
        whole, apart = shaped(base, "whole", EVERY[shape], 1 << 30), shaped(base, "apart", EVERY[shape], size)
        assert whole.keys() == apart.keys()
        for name, found in whole.items():
            assert found.equals(apart[name]) if isinstance(found, pl.DataFrame) else found == apart[name], name


@pytest.mark.parametrize("shape", sorted(EVERY.keys() - {"qrels", "chunks"}))
def test_no_source_without_a_fault_is_held_whole(tmp_path, monkeypatch, shape):
    judged = [
        {**row, "n": f"the passage number {at % 6}", "l": at % 3, "two": at % 2, "s": at % 4, "t": 0.5, "a": f"number {at}"}
        | {"i": at % 20, "d": at % 20, "docs": [row["p"], "other"], "v": [2, 0], "ds": [at % 20, (at + 3) % 20]}
        for at, row in enumerate(rows(150))
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    if shape == "ids":
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row | {"i": at}) + "\n" for at, row in enumerate(judged)))
    for name in ("queries", "corpus"):
        lines = [json.dumps({"_id": str(at), "text": f"{name} {at}"}) + "\n" for at in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    monkeypatch.setattr(shape_stage, "check_readable", lambda *given: pytest.fail("all rows were held at once"))
    found = shaped(tmp_path, "apart", EVERY[shape], 700)
    assert "error" not in found, found


class Elsewhere:
    """Workers that get everything by pickle and files, as other processes do, in this one."""

    device, threads = "cpu", 1

    def run(self, function, items, threads=1):
        for item in items:
            sent, there = pickle.loads(pickle.dumps((function, item)))
            yield item, partial(sent, there)


@pytest.mark.parametrize("shape", EVERY)
@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(
    some=st.lists(ROWS, min_size=3, max_size=30),
    size=st.sampled_from([1, 300]),
    group=st.sampled_from([1, 5]),
    ending=st.sampled_from(["parquet", "jsonl"]),
    lacks=st.sampled_from([None, "p", "n", "s"]),
)
def test_any_pieces_of_files_give_the_same_tables_and_files_wherever_they_are_read(shape, some, size, group, ending, lacks):
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        for name in ("queries", "corpus"):
            lines = [json.dumps({"_id": str(at), "text": f"{name} {at % 13}"}) + "\n" for at in range(20)]
            (base / f"{name}.jsonl").write_text("".join(lines))
        lists = [row | {"docs": [row["p"], row["n"]], "v": [row["s"], row["t"]], "ds": [row["d"], row["i"]]} for row in some]
        table = pl.DataFrame(lists, infer_schema_length=None, strict=False)
        table[:3].drop(lacks or []).write_parquet(base / "data-0.parquet", row_group_size=group)
        if ending == "parquet":
            table[3:].write_parquet(base / "data-1.parquet", row_group_size=group)
        else:
            (base / "data-1.jsonl").write_text("".join(((row["x"] and "{") or json.dumps(row)) + "\n" for row in lists[3:]))
        whole = shaped(base, "whole", EVERY[shape], 1 << 30, "data-*")
        here = shaped(base, "here", EVERY[shape], size, "data-*")
        there = shaped(base, "there", EVERY[shape], size, "data-*", Elsewhere())
        assert whole.keys() == here.keys() == there.keys()
        for name, found in whole.items():
            for other in (here[name], there[name]):
                assert found.equals(other) if isinstance(found, pl.DataFrame) else found == other, name
        for path in (base / "here").rglob("*"):
            assert path.read_bytes() == (base / "there" / path.name).read_bytes(), path.name


def shaped(
    base: Path, name: str, said: str, size: int, files: str = "data.jsonl", workers: Workers | None = None
) -> dict[str, object]:
    """Return what the first stage of a build writes, with texts in place of their numbers, or its error."""
    folder = base / name
    folder.mkdir()
    (base / "m.yaml").write_text(f"name: one\nsources:\n  - {{name: one, files: '{files}', {said}}}\n")
    manifest = load_manifest(base / "m.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curation.build.shape_stage.PORTION", size)
        patch.setattr("curation.read.blocks.BLOCK", size)
        patch.setattr("curation.read.sources.SPAN", size)
        patch.setattr("curation.read.sources.BATCH", 3 if size < 1000 else 20_000)
        try:
            job = shape_stage.with_inputs(job_of(manifest, manifest.sources[0], base, base, None))
            receipt = shape_stage.shape(job, folder, silent, workers or Here())
        except SourceError as error:
            return {"error": str(error)}
    texts = open_texts(folder)
    found = {path.name: read_parquet(path) for path in folder.glob("*.parquet") if path.name[:4] not in ("tupl", "corp")}
    found["tuples"] = spelled(read_table(folder, "tuples"), texts)
    found["corpus"] = texts.at(read_parquet(folder / "corpus.parquet")["text"]).to_frame()
    found["heldout_numbers.parquet"] = spelled(found["heldout_numbers.parquet"], texts)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set()
    return found | {"receipt": receipt}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"other": 1}, PAIR),  # another column
        ({"q": "Instruct: b\nQuery: x"}, PAIR),
        ({"id": "5"}, "task: retrieval, fields: {query: q, positive: p, id: id}"),
        ({"q": ["list"]}, PAIR),
        ({"p": {"a": "object"}}, PAIR),
    ],
)
def test_what_only_all_rows_tell_is_reported_of_all_rows(tmp_path, changed, said):
    some = [row | {"id": str(at)} for at, row in enumerate(rows(60))]
    some[0]["q"] = "Instruct: a\nQuery: y" if "Instruct" in str(changed) else some[0]["q"]
    some[57] |= changed
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    whole, apart = built(tmp_path, "whole", said), built(tmp_path, "apart", said, 900)
    assert (whole[0] if "one" in whole[0] else whole[0]["rows_dropped"]) == (
        apart[0] if "one" in apart[0] else apart[0]["rows_dropped"]
    )
    if "one" not in whole[0]:
        for table in ("pairs", "passages"):
            assert read_table(apart[1] / "curated/one", table).equals(read_table(whole[1] / "curated/one", table))


def test_scores_that_are_lists_in_some_parts_alone_are_read_at_once(tmp_path):
    some = [row | {"p": "a passage", "s": "0.5" if at < 30 else "[0.5]"} for at, row in enumerate(rows(60))]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    said = "task: retrieval, fields: {query: q, positive: p, positive_score: s}"
    whole, apart = built(tmp_path, "whole", said)[0], built(tmp_path, "apart", said, 1)[0]
    assert "column 's' holds '[0.5]' (row 30), which is not a number" in whole["one"]
    assert apart == whole


def test_a_stage_that_takes_nothing_out_holds_the_same_file(tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    _, folder = built(tmp_path, "build", PAIR)
    first, second = (folder / stage / "one" / "tuples-00000.parquet" for stage in ("shaped", "cleaned"))
    assert first.samefile(second)
    assert read_json(folder / "cleaned/one/done.json")["files"][first.name] == store.file_digest(first)


@pytest.mark.parametrize("task", ["retrieval", "clustering"])
def test_numbers_do_not_depend_on_the_frames(task):
    tuples = pl.DataFrame(
        {
            "row": range(6),
            "id": [f"s/{at}" for at in range(6)],
            "query": ["a", "b", "caf\u00e9", "B!", "cafe\u0301", "d"],
            "positives": [["x", "y", "x"], ["z"], ["b"], [], ["Y"], ["caf\u00e9"]],
            "negatives": [["y", "w"], [], ["w", "w"], ["x"], ["a"], []],
            "label": [None] * 6,
        },
        schema_overrides={"row": pl.UInt64, "label": pl.String},
    )
    corpus = pl.Series("text", ["new", "x", "new"])
    by_number, extra, texts = numbered(tuples, corpus)
    made = []
    for size in (6, 4, 1):

        def frames(size: int = size):
            return by_number.iter_slices(size)

        numbers = number(frames, texts, extra, task)
        made.append((pl.concat(pairs_of(texts, numbers, frame)[0] for frame in frames()), passages_of(texts, numbers, 0, 99)))
    pairs, passages = made[0]
    assert all(pairs.equals(other[0]) and passages.equals(other[1]) for other in made[1:])
    texts = passages["text"].to_list()
    assert texts == (["a", "b", "caf\u00e9", "B!", "d"] if task == "clustering" else []) + (
        ["x", "y", "z", "Y", "w", "new"] if task == "clustering" else ["x", "y", "z", "b", "Y", "caf\u00e9", "w", "a", "new"]
    )
    assert [[texts[pid] for pid in some] for some in pairs["positives"]] == [["x", "y"], ["z"], ["b"], [], ["Y"], ["caf\u00e9"]]
    assert [[texts[pid] for pid in some] for some in pairs["negatives"]] == [["w"], [], ["w"], ["x"], ["a"], []]
    assert pairs["key"][2] == pairs["key"][4]
    of_forms = {"b": pairs["group"][1], "B!": pairs["group"][3], "y": passages["group"][texts.index("y")]}
    assert of_forms["b"] == of_forms["B!"] is not None
    assert of_forms["y"] == passages["group"][texts.index("Y")] is not None
    assert pairs["group"][5] is None


def test_texts_are_found_by_number_wherever_they_are(tmp_path, monkeypatch):
    """Close to each other or far apart, in any order, several times, in files or in memory, long and empty ones."""
    draw = np.random.default_rng(3)
    words = ["", "a", "é", "日本語", "x" * 900, "ü" * 400]
    texts = pl.Series("text", [f"{at} {words[draw.integers(len(words))]}" if draw.random() < 0.9 else "" for at in range(2_000)])
    with ExitStack() as closing:
        writer = TextWriter(tmp_path, closing)
        writer.add(texts, facts_of(texts))
    for gap in (0, 1, 1_000, 1 << 15):
        monkeypatch.setattr(texts_of_a_source, "GAP", gap)
        for held in (open_texts(tmp_path), texts_of_a_source.Texts.of(texts), texts_of_a_source.Texts.of(texts.slice(700))):
            for count in (1, 2, 5, 300, 4_000):
                some = draw.integers(0, len(held), count).astype(np.uint32)
                assert held.at(some).to_list() == texts.slice(2_000 - len(held)).gather(some).to_list()


def test_texts_with_a_file_cut_short_are_refused_in_one_line(tmp_path):
    texts = pl.Series("text", ["caf\u00e9", "cafe\u0301", "", "a longer text of some words"])
    with ExitStack() as closing:
        writer = TextWriter(tmp_path, closing)
        assert [writer.add(some, facts_of(some)) for some in (texts[:3], texts[:0], texts[3:])] == [0, 3, 3]
    assert open_texts(tmp_path).at([3, 0, 2, 3, 1]).to_list() == texts.gather([3, 0, 2, 3, 1]).to_list()
    for name in FILES:
        whole = (tmp_path / name).read_bytes()
        for changed in (whole[:-1], whole + b"x", None):
            (tmp_path / name).unlink()
            if changed is not None:
                (tmp_path / name).write_bytes(changed)
            with pytest.raises(BuildError, match="was changed since it was written; delete"):
                open_texts(tmp_path)
        (tmp_path / name).write_bytes(whole)
    assert len(open_texts(tmp_path)) == 4


def test_sources_that_fail_keep_no_file_open(tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    sources = [f"  - {{name: s{at}, files: data.jsonl, holdout: 900, {PAIR}}}\n" for at in range(5)]
    (tmp_path / "m.yaml").write_text("name: many\nsources:\n" + "".join(sources))
    failed = build(tmp_path / "m.yaml", tmp_path / "b").failed
    assert len(failed) == 5
    assert all("leaves none of its" in str(error) for error in failed.values())
    descriptors = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    assert not [number for number in descriptors if os.path.lexists(number) and "texts." in os.readlink(number)]


def test_a_disk_without_memory_maps_makes_the_same_tables(tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60)))
    receipt, mapped = built(tmp_path, "mapped", PAIR)
    read = tmp_path / "read"
    assert receipt["kept"] > 20

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("numpy.memmap", refuse)
    assert not build(tmp_path / "m.yaml", read).failed
    for file in (path.relative_to(mapped) for path in (mapped / "curated").rglob("*.parquet")):
        assert (read / file).read_bytes() == (mapped / file).read_bytes()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("holdout: 500", "'holdout: 500' leaves none of its"),
        ("filters: {min_chars: 9000}", "filters drop all of its 139 tuples"),
        ("max_bad: 0", "'max_bad' allows 0.0%"),
    ],
)
def test_a_fault_of_the_whole_source_is_found_without_reading_it_again(tmp_path, monkeypatch, more, complaint):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row | {"p": row["p"].strip() or None}) + "\n" for row in rows(150)))
    monkeypatch.setattr(shape_stage, "check_readable", lambda *given: pytest.fail("all rows were held at once"))
    pair = "task: retrieval, fields: {query: q, positive: p}"
    failed, _ = built(tmp_path, "b", f"{pair}, {'' if 'max_bad' in more else 'max_bad: 0.5, '}{more}", 900)
    assert complaint in failed["one"]
