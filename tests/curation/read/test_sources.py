"""Where rows come from: globs, local datasets in Hub layout through `datasets`, installed Python code; and samples of them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.core import record
from curation.core.errors import SourceError
from curation.read import sources
from curation.read.hub import hub_errors
from curation.read.readers import ROW, Lost
from curation.read.sources import input_digests, read_parts, table_rows, take
from curation.recipe.source import Source, Table

CARD = """---
configs:
- config_name: one
  data_files:
  - {split: train, path: one/train.parquet}
  - {split: test, path: one/test.parquet}
dataset_info:
- config_name: one
  features:
  - {name: text, dtype: string}
  - name: label
    dtype:
      class_label: {names: {'0': negative, '1': positive}}
---
"""
LANGUAGES = """---
configs:
- config_name: de
  data_files: de/*.jsonl
- config_name: en
  data_files: en/*.jsonl
---
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def hub_folder(tmp_path) -> Path:
    folder = tmp_path / "sets" / "mine"
    (folder / "one").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    (folder / "README.md").write_text(CARD)
    rows = pl.DataFrame({"text": [f"text {n}" for n in range(300)], "label": [n % 2 for n in range(300)]})
    rows.with_columns(label=pl.when(pl.col("text") == "text 7").then(-1).otherwise("label")).write_parquet(
        folder / "one/train.parquet"
    )
    rows.head(2).write_parquet(folder / "one/test.parquet")
    languages = tmp_path / "sets" / "languages"
    for language in ("de", "en"):
        (languages / language).mkdir(parents=True)
        rows = [json.dumps({"q": f"{language}{n}", "a": ["x", "y"]}) for n in range(5)]
        (languages / language / "rows.jsonl").write_text("\n".join(rows))
    (languages / "README.md").write_text(LANGUAGES)
    return folder


def source(**keys) -> Source:
    return Source(**{"name": "s", "task": "retrieval", "fields": {"query": "q", "positive": "a"}, **keys})


def all_rows(table: Table, base: Path) -> pl.DataFrame:
    return pl.concat([batch.frame for batch in table_rows(table, base)], how="diagonal_relaxed")


def message(table: Table, base: Path) -> str:
    with pytest.raises(SourceError) as caught:
        all_rows(table, base)
    return str(caught.value)


def lines(path: Path, *values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"q": value, "a": "x"}) + "\n" for value in values))


# --- files ---


def test_globs_are_sorted_taken_once_and_numbered_through(tmp_path):
    for name, value in (("d/b.jsonl", "b"), ("d/a.jsonl", "a"), ("d/e/c.jsonl", "c"), ("d/[x].jsonl", "x"), ("d/.h.jsonl", "h")):
        lines(tmp_path / name, value)
    rows = all_rows(Table(files=["d/b.jsonl", "d/*.jsonl", "d/**/*.jsonl", "d/[x].jsonl"]), tmp_path)
    assert rows["q"].to_list() == ["b", "x", "a", "c"]
    assert rows[ROW].to_list() == [0, 1, 2, 3]
    assert all_rows(Table(files=[f"{tmp_path}/d/a*"]), Path("elsewhere"))["q"].to_list() == ["a"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines(tmp_path / "a.jsonl", "a")
    assert all_rows(Table(files=["~/a.jsonl"]), Path("elsewhere"))["q"].to_list() == ["a"]


def test_missing_files_are_reported(tmp_path):
    lines(tmp_path / "d/train.jsonl", 1)
    hint = "paths are relative to the manifest's folder"
    assert (
        message(Table(files=["d/trian.jsonl"]), tmp_path) == f"d/trian.jsonl: no such file (did you mean 'train.jsonl'?); {hint}"
    )
    assert message(Table(files=["e/f.jsonl"]), tmp_path) == f"e/f.jsonl: no such file; {hint}"
    (tmp_path / "d/gone.csv").symlink_to("gone.csv")
    expected = "d/gone.csv: is a symbolic link that leads to no file; it points to gone.csv"
    assert message(Table(files=["d/gone.csv"]), tmp_path) == expected
    assert message(Table(files=["d/*.tsv"]), tmp_path) == f"d/*.tsv: matches no file; {hint}"
    (tmp_path / "d/gone.csv").unlink()
    assert message(Table(files=["d/*.csv"]), tmp_path) == f"d/*.csv: matches no file; {hint}"
    assert message(Table(files=["d"]), tmp_path) == "d: is a folder; name its files, such as `d/*.jsonl`"
    with pytest.raises(SourceError, match=r"^e/f\.jsonl: no such file"):
        input_digests(Table(files=["e/f.jsonl"]), tmp_path)


def test_inputs_follow_the_bytes(tmp_path):
    lines(tmp_path / "a.jsonl", 1)
    lines(tmp_path / "b.jsonl", 2)
    table = Table(files=["*.jsonl"])
    before = input_digests(table, tmp_path)
    assert list(before) == ["a.jsonl", "b.jsonl"]
    assert input_digests(table, tmp_path) == before
    lines(tmp_path / "b.jsonl", 3)
    after = input_digests(table, tmp_path)
    assert after["a.jsonl"] == before["a.jsonl"]
    assert after["b.jsonl"] != before["b.jsonl"]


# --- datasets in Hub layout ---


def test_a_local_folder_in_hub_layout(hub_folder, tmp_path):
    for keys in ({}, {"config": "one"}):
        rows = all_rows(Table(path="sets/mine", **keys), tmp_path)
        assert rows["text"].to_list() == [f"text {n}" for n in range(300)]
        assert rows["label"].to_list()[:9] == ["negative", "positive"] * 3 + ["negative", None, "negative"]
        assert rows[ROW].to_list() == list(range(300))
    assert len(all_rows(Table(path="sets/mine", split="test"), tmp_path)) == 2
    assert set(input_digests(Table(path="sets/mine"), tmp_path)) == {"README.md", "one/train.parquet"}
    rows = all_rows(Table(path=str(hub_folder.parent / "languages"), config="en"), Path("elsewhere"))
    assert rows.drop(ROW).row(4, named=True) == {"q": "en4", "a": ["x", "y"]}


@pytest.mark.parametrize(("limit", "name"), [(3, "mine"), (900, "mine"), (3, "languages"), (5, "languages")])
def test_the_first_rows_are_streamed(hub_folder, tmp_path, limit, name):
    where = {"path": f"sets/{name}", "config": {"mine": None, "languages": "en"}[name]}
    where |= {"fields": {"query": "text", "positive": "label"}} if name == "mine" else {}
    got, lost = take(source(**where, sample="first"), 1, limit, tmp_path, lambda n: None)
    where.pop("fields", None)
    assert got.equals(all_rows(Table(**where), tmp_path).head(limit))
    assert lost == []


def test_complaints_of_datasets_are_one_line(hub_folder, tmp_path, monkeypatch):
    scripted = tmp_path / "scripted"
    scripted.mkdir()
    (scripted / "scripted.py").write_text("raise SystemExit('ran')")
    (tmp_path / "void").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "train.jsonl").write_text('{"a": 1}\n{"a":\n')
    assert message(Table(path="sets/languages", config="fr"), tmp_path) == "sets/languages: no config 'fr'; there are: de, en"
    assert message(Table(path="sets/mine", split="dev"), tmp_path) == "sets/mine: no split 'dev'; there are: train, test"
    streamed = source(path="sets/mine", split="dev", sample="first", limit=1)
    assert message(streamed, tmp_path) == "sets/mine: no split 'dev'; there are: train, test"
    assert message(Table(path="sets/languages"), tmp_path) == "sets/languages: needs a `config:`; there are: de, en"
    assert message(Table(path="scripted"), tmp_path) == (
        "scripted: comes with a loading script, which would run code; `revision: refs/convert/parquet` may hold the same rows"
    )
    assert message(Table(path="nobody/nothing"), tmp_path) == (
        "nobody/nothing: cannot be downloaded while the Hub is switched off; unset HF_HUB_OFFLINE, or name a local folder"
    )
    with pytest.raises(SourceError, match=r"^nobody/nothing: cannot be downloaded while the Hub is switched off"):
        input_digests(Table(path="nobody/nothing"), tmp_path)
    assert message(Table(path="./nothing"), tmp_path) == "./nothing: no such folder; paths are relative to the manifest's folder"
    expected = f"{hub_folder}: is a local folder, so `revision` does not apply; leave it out"
    assert message(Table(path=str(hub_folder), revision="v1"), tmp_path) == expected
    monkeypatch.chdir(hub_folder.parent)
    assert message(Table(path="mine"), tmp_path) == "mine: no such folder; paths are relative to the manifest's folder"
    found = message(Table(path="void"), tmp_path)
    assert found.startswith("void: `datasets` cannot read it (")
    assert "\n" not in found
    (rows,) = table_rows(Table(path="broken"), tmp_path)
    assert (rows.frame["a"].to_list(), rows.lost[0].evidence) == (["1"], "broken/train.jsonl:2: Expecting value at column 7")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Dataset 'o/n' is a gated dataset on the Hub. Visit the page", "is a gated dataset; ask for access on its page, then `hf auth login`"),
        ("Dataset 'o/n' doesn't exist on the Hub or cannot be accessed.", "no such dataset on the Hub, or a private one; check the id; `hf auth login` for a private one"),
        ("Revision 'v9' doesn't exist for dataset 'o/n' on the Hub.", "no revision 'v9'; name a commit, tag or branch of the dataset"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses(tmp_path, monkeypatch, error, said):
    import datasets
    import huggingface_hub

    def refuse(*args, **keys):
        raise datasets.exceptions.DatasetNotFoundError(error)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    assert message(Table(path="o/n", revision="v9"), tmp_path) == f"o/n: {said}"


def test_an_unreachable_hub(tmp_path, monkeypatch):
    import huggingface_hub

    def fail(*args, **keys):
        raise ConnectionError("Couldn't reach 'o/n' on the Hub (ConnectError)")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    assert message(Table(path="o/n"), tmp_path) == "o/n: the Hub cannot be reached; check the network, or name a local folder"


def test_a_half_read_stream_does_not_abort_the_interpreter(hub_folder, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom curation.recipe.source import Source\nfrom curation.read.sources import take\n"
        "s = Source(name='s', task='retrieval', fields={'query': 'q', 'positive': 'a'}, path='sets/mine', sample='first')\n"
        "print(len(take(s, 1, 2, Path(sys.argv[1]), lambda n: None)[0]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2\n", "")


def test_files_of_a_dataset(hub_folder, tmp_path):
    table = Table(path="sets/languages", files=["*/rows.jsonl"])
    assert all_rows(table, tmp_path)["q"].to_list() == [f"{language}{n}" for language in ("de", "en") for n in range(5)]
    assert list(input_digests(table, tmp_path)) == ["de/rows.jsonl", "en/rows.jsonl"]
    assert message(Table(path="sets/languages", files=["fr/*"]), tmp_path).startswith("fr/*: matches no file;")
    assert message(Table(path="nobody/nothing", files=["fr/*"]), tmp_path) == (
        "nobody/nothing: cannot be downloaded while the Hub is switched off; unset HF_HUB_OFFLINE, or name a local folder"
    )


def test_the_name_of_a_file_as_a_column(tmp_path):
    for name in ("math.example.org.jsonl", "plain"):
        lines(tmp_path / "posts" / name, "x")
    table = Table(files=["posts/*"], reader="jsonl", file_column="site")
    assert all_rows(table, tmp_path)["site"].to_list() == ["math.example.org", "plain"]
    assert message(table.model_copy(update={"file_column": "q"}), tmp_path) == (
        "posts/math.example.org.jsonl: has a column 'q' itself; give 'file_column' another name"
    )


@pytest.mark.parametrize("sample", ["first", "random"])
def test_rows_passed_over_are_neither_read_nor_lost(tmp_path, sample):
    mixed_file(tmp_path, 30)
    rest = {"files": ["a.jsonl"], "sample": sample, "skip": 9, "max_bad": 1}
    got, lost = take(source(**rest), 1, None, tmp_path, lambda n: None)
    assert sorted([*got[ROW], *(one.row for one in lost)]) == list(range(9, 30))
    fewer, _ = take(source(**rest), 1, 6, tmp_path, lambda n: None)
    assert len(fewer) == 6
    assert set(fewer[ROW]) <= set(got[ROW])
    if sample == "first":
        assert fewer[ROW].to_list() == got[ROW].to_list()[:6]


# --- python ---


# --- samples ---


def mixed_file(folder: Path, rows: int) -> None:
    """Write rows 0, 1, ...: every third is broken."""
    content = (f'{{"q": {n}, "a": "x"}}\n' if n % 3 else "broken\n" for n in range(rows))
    (folder / "a.jsonl").write_text("".join(content))


@pytest.mark.parametrize("limit", [1, 10, 500, 9_999, 50_000, None])
def test_a_sample_is_the_smallest_draws_in_row_order(tmp_path, limit):
    mixed_file(tmp_path, 60_000)
    wanted, met = source(files=["a.jsonl"]), []
    got, lost = take(wanted, 5, limit, tmp_path, met.append)
    order = record.draws(5, "s/limit", np.arange(60_000))
    good = sorted((n for n in range(60_000) if n % 3), key=lambda n: order[n])[:limit]
    assert got["q"].to_list() == [str(n) for n in sorted(good)]
    assert got[ROW].to_list() == sorted(good)
    visited = 60_000 if limit is None or limit > 40_000 else None
    last = max(order[n] for n in good)
    assert [one.row for one in lost] == [n for n in range(0, 60_000, 3) if visited or order[n] <= last]
    assert sum(met) == 60_000
    for folder in (tmp_path, None):  # rows in files, or held
        parts = list(read_parts(wanted, 5, limit, tmp_path, 60_000, met.append, folder))
        assert pl.concat([frame for frame, _ in parts]).equals(got)
        assert [one for _, some in parts for one in some] == lost
    large = limit is None or limit > 5_000
    assert (len(parts) > 1) == large
    assert bool(list(tmp_path.glob("drawn-*.arrow"))) == (large and limit is not None)


def test_a_sample_depends_on_seed_and_name_alone(tmp_path):
    mixed_file(tmp_path, 1000)
    first = take(source(files=["a.jsonl"]), 1, 50, tmp_path, lambda n: None)[0]
    assert take(source(files=["./a.jsonl"]), 1, 50, tmp_path, lambda n: None)[0].equals(first)
    assert not take(source(files=["a.jsonl"]), 2, 50, tmp_path, lambda n: None)[0].equals(first)
    assert not take(source(files=["a.jsonl"], name="t"), 1, 50, tmp_path, lambda n: None)[0].equals(first)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 50])
def test_what_is_lost_after_the_last_wanted_row_counts_in_no_batch(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(sources, "BATCH", batch)
    monkeypatch.setattr("curation.read.blocks.BLOCK", 8 * batch)
    lines = [b'{"q": "a"}', b"no row", b'{"q": "b"}', b"no row", b"no row", b'{"q": "c"}', b"no row"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for limit, lost in ((1, []), (2, [1]), (3, [1, 3, 4])):
        rows = take(source(files=["a.jsonl"], sample="first"), 1, limit, tmp_path, lambda n: None)
        assert len(rows.frame) == limit
        assert [one.row for one in rows.lost] == lost


def test_the_first_rows_and_what_was_lost_before_them(tmp_path):
    mixed_file(tmp_path, 100_000)
    met = []
    got, lost = take(source(files=["a.jsonl"], sample="first"), 1, 3, tmp_path, met.append)
    assert got["q"].to_list() == ["1", "2", "4"]
    assert lost == [
        Lost(0, "bad_json", "a.jsonl:1: Expecting value at column 1", True),
        Lost(3, "bad_json", "a.jsonl:4: Expecting value at column 1", True),
    ]
    assert sum(met) < 50_000


def test_parts_of_different_columns_and_types(tmp_path):
    lines(tmp_path / "a.jsonl", 1)
    lines(tmp_path / "b.jsonl", "x")
    (tmp_path / "c.jsonl").write_text('{"other": 1}\n')
    got, _ = take(source(files=["a.jsonl", "b.jsonl", "c.jsonl"]), 1, None, tmp_path, lambda n: None)
    assert got["q"].to_list() == ["1", "x", None]
    lines(tmp_path / "d.jsonl", ["x"])
    got, _ = take(source(files=["a.jsonl", "d.jsonl"]), 1, None, tmp_path, lambda n: None)
    assert got["q"].to_list() == [["1"], ["x"]]


def test_a_limit_takes_the_memory_of_its_rows_however_many_there_are(tmp_path):
    for name, count in (("small.jsonl", 40_000), ("large.jsonl", 400_000)):
        with (tmp_path / name).open("w") as file:
            file.writelines(f'{{"q": "{n}{"x" * 400}", "a": "b"}}\n' for n in range(count))
    measure = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from curation.recipe.source import Source\n"
        "from curation.read.sources import take\n"
        "for name in ('small.jsonl', 'large.jsonl'):\n"
        "    s = Source(name='s', task='retrieval', fields={'query': 'q', 'positive': 'a'}, files=[name], limit=5000)\n"
        "    rows, _ = take(s, 1, 5000, Path(sys.argv[1]), lambda n: None)\n"
        "    print(len(rows), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    printed = subprocess.run([sys.executable, "-c", measure, tmp_path], capture_output=True, text=True, check=True).stdout.split()
    assert printed[0] == printed[2] == "5000"
    assert int(printed[3]) - int(printed[1]) < 60_000  # kB; the file is 160 MB larger


@pytest.mark.parametrize(("number", "what"), [(13, "may not be read or written by this user"), (28, "the disk is full")])
def test_a_cache_of_the_hub_that_cannot_be_written(number, what):
    with pytest.raises(SourceError) as found, hub_errors(Table(path="o/n")):
        raise OSError(number, "no", "/far/cache/blob")
    assert str(found.value).startswith(f"o/n: /far/cache/blob {what}; ")
    assert str(found.value).endswith(" (HF_HOME says where the Hub's cache is)")


def test_row_groups_are_read_apart_where_no_row_depends_on_another(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SPAN", 150)
    rows = pl.DataFrame({"q": [f"query {at}" for at in range(70)], "p": ["a passage"] * 70, "i": range(70)})
    rows[:40].write_parquet(tmp_path / "a.parquet", row_group_size=4)
    rows[40:].write_parquet(tmp_path / "b.parquet", row_group_size=30)
    rows.drop("i").write_parquet(tmp_path / "other.parquet")
    rows.write_ndjson(tmp_path / "c.jsonl")
    (tmp_path / "packed.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])

    def spans(files="[ab].parquet", **more):
        said = {"name": "s", "files": files, "task": "retrieval", "fields": {"query": "q", "positive": "p"}, **more}
        return sources.spans(Source(**said), tmp_path)

    found = spans()
    assert len(found) > 3
    assert [(span.file.name, span.file.groups[0]) for span in found][-2:] == [
        ("a.parquet", found[-2].file.groups[0]),
        ("b.parquet", 0),
    ]
    assert [group for span in found for group in span.file.groups] == [*range(10), 0]
    source = Source(name="s", files="[ab].parquet", task="retrieval", fields={"query": "q", "positive": "p"})
    apart = pl.concat(part.frame for span in found for part in sources.read_span(source, span, 1))
    assert apart.equals(sources.take(source, 0, None, tmp_path, abs).frame)
    for files in ("packed.parquet.gz", "broken.parquet", ["c.jsonl", "broken.parquet"]):
        assert spans(files) == [], files
    for more in ({"limit": 9}, {"skip": 3}, {"member": "x"}):
        assert spans(**more) == [], more
    mixed = spans(["c.jsonl", "other.parquet"])
    assert mixed[-1] == sources.Span(mixed[-1].file, 70)
    monkeypatch.setattr(sources, "MOST_OF_A_SPAN", 1)
    assert spans() == []


LINES = [
    b'{"q": "a", "p": "b"}',
    '{"q": "é", "p": "\u2028"}'.encode(),
    b'{"q": "a"',
    b'{"p": 1}',
    b'{"q": "\xff"}',
    b'{"q": ["x"]}',
]
OTHERS = [b"", b" ", b"[1]", b'"x"', b'{"q":\n"a"}', b"\xef\xbb\xbf{}"]


@settings(max_examples=150, deadline=None)
@given(
    some=st.lists(st.sampled_from(LINES), min_size=1, max_size=12),
    odd=st.none() | st.tuples(st.integers(0, 12), st.sampled_from(OTHERS)),
    end=st.sampled_from([b"\n", b"\r\n"]),
    head=st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
    last=st.booleans(),
    size=st.sampled_from([1, 40]),
    block=st.sampled_from([1, 7, 30, 1 << 22]),
)
def test_any_lines_are_read_apart_as_they_are_read_together(some, odd, end, head, last, size, block):
    if odd:
        some = [*some[: odd[0]], odd[1], *some[odd[0] :]]
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SPAN", size)
        patch.setattr("curation.read.blocks.BLOCK", block)
        (Path(place) / "a.jsonl").write_bytes(head + end.join(some) + (end if last else b""))
        one = source(files=["a.jsonl"], fields={"query": "q", "positive": "p"})

        def read(parts) -> tuple[list, list] | str:
            try:
                parts = list(parts)
            except SourceError as error:
                return str(error)
            rows = [row for part in parts for row in part.frame.rows(named=True)]
            texts = [[row[ROW], *(pl.Series([row.get(name)]).explode()[0] for name in "qp")] for row in rows]
            return texts, [one for part in parts for one in part.lost]

        cut = sources.spans(one, Path(place))
        if cut:
            apart = read(part for span in cut for part in sources.read_span(one, span, 1))
            assert apart == read(read_parts(one, 1, None, Path(place), 1, abs))
        if not odd and some[0].endswith(b"}") and (block > 1 or not head):
            assert cut
