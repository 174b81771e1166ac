"""Every packing is read or named, a pointer in place of a file is reported anywhere, and so are folders that other tools saved."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from curation.read.sources import table_rows
from curation.recipe.source import Table
from tests.curation.read.broken import build_all, build_one

ROWS = [{"q": f"what is {n}?", "a": f"it is {n}"} for n in range(2000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


def zstd(data: bytes, window: int) -> bytes:
    settings = zstandard.ZstdCompressionParameters(window_log=window, enable_ldm=True, write_checksum=True)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()  # which does not know the size beforehand
    return stream.compress(data) + stream.flush()


def in_tar(data: bytes, name: str = "a.jsonl", mode: str = "w") -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return whole.getvalue()


def in_zip(data: bytes, name: str = "a.jsonl") -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(name, data)
    return whole.getvalue()


PACKED = {
    "a.jsonl.bz2": bz2.compress(LINES),
    "two.jsonl.bz2": bz2.compress(LINES[:40_000]) + bz2.compress(LINES[40_000:]),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.JSONL.XZ": lzma.compress(LINES),
    "nine.jsonl.xz": lzma.compress(LINES, preset=9),
    "two.jsonl.xz": lzma.compress(LINES[:40_000]) + bytes(8) + lzma.compress(LINES[40_000:]),
    "lines.json.gz": gzip.compress(LINES),
    "long27.jsonl.zst": zstd(LINES, 27),
    "long31.jsonl.zst": zstd(LINES, 31),
    "a.tar.bz2": in_tar(LINES, mode="w:bz2"),
    "a.tbz2": in_tar(LINES, mode="w:bz2"),
    "a.tar.xz": in_tar(LINES, mode="w:xz"),
    "a.txz": in_tar(LINES, mode="w:xz"),
    "xz.zip": in_zip(lzma.compress(LINES), "a.jsonl.xz"),
    "bz2.tar": in_tar(bz2.compress(LINES), "a.jsonl.bz2"),
}


@pytest.mark.parametrize("name", PACKED)
def test_what_is_packed_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name])
    table = Table(files=[name], file_column="from")
    rows = [row for batch in table_rows(table, tmp_path) for row in batch.frame.select("q", "a", "from").iter_rows(named=True)]
    called = (
        Path(name).stem.rpartition(".")[0] if Path(name).suffix.lower() in (".gz", ".bz2", ".xz", ".zst") else Path(name).stem
    )
    assert rows == [{**row, "from": called} for row in ROWS]


def test_what_is_packed_and_broken_is_reported(tmp_path):
    files = {}
    for name in ("a.jsonl.bz2", "a.jsonl.xz", "long27.jsonl.zst", "a.tar.xz", "xz.zip"):
        data = PACKED[name]
        files[f"cut.{name}"] = data[: len(data) // 2]
        files[f"flipped.{name}"] = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :]
        files[f"more.{name}"] = data + b"more than zeros"
    files["plain.jsonl.bz2"], files["plain.jsonl.xz"], files["empty.jsonl.xz"] = LINES, LINES, b""
    names = [name for name in files if not name.startswith("more.") or "tar" not in name]
    for name, one in zip(names, build_all(tmp_path, files, [f"files: {name}" for name in names]), strict=True):
        assert one.error or (name == "more.xz.zip" and len(one.pairs) == len(ROWS)), name  # a zip may stand before other bytes
        assert name.startswith("more.xz") or "fetch the file again" in one.error, one.error
    wrong = build_one(tmp_path, {"a.jsonl": PACKED["a.jsonl.xz"], "b.jsonl": PACKED["a.jsonl.bz2"]}, "files: a.jsonl").error
    assert wrong.endswith("it is packed: rename it so that it ends in .xz")


def test_a_bomb_of_xz_and_bz2_stops_at_max_unpacked(tmp_path):
    files = {"a.jsonl.xz": lzma.compress(b"\n" * 30_000_000), "b.jsonl.bz2": bz2.compress(b"\n" * 30_000_000)}
    for one in build_all(tmp_path, files, [f"files: {name}, max_unpacked: 0.01" for name in files]):
        assert "the source unpacks to more than the 0.01 GB of its `max_unpacked`" in one.error


def test_a_git_lfs_pointer_is_reported_wherever_it_is(tmp_path):
    outer = [
        "a.jsonl",
        "a.json",
        "a.csv",
        "a.tsv",
        "a.parquet",
        "a.arrow",
        "a.jsonl.gz",
        "a.jsonl.zst",
        "a.jsonl.bz2",
        "a.jsonl.xz",
    ]
    outer += ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.py", "a.csv.gz"]
    inner = {
        "in.zip": in_zip(POINTER),
        "csv.zip": in_zip(POINTER, "a.csv"),
        "in.tar": in_tar(POINTER),
        "in.tar.gz": in_tar(POINTER, "a.parquet", "w:gz"),
        "packed.zip": in_zip(POINTER, "a.jsonl.gz"),
        "in.jsonl.gz": gzip.compress(POINTER),
    }
    (tmp_path / "good.txt").write_text("x\n")
    (tmp_path / "bad.txt").write_bytes(POINTER)
    sources = [f"files: {name}" for name in (*outer, *inner)]
    sources += [
        "files: bad.txt, reader: lines",
        "files: [good.txt, bad.txt], reader: aligned, header: [q, a]",
        "files: good.jsonl, corpus: {files: a.jsonl}, queries: {files: good.jsonl}, fields: {query_id: q, positive_id: a}",
    ]
    done = build_all(tmp_path, {**dict.fromkeys(outer, POINTER), **inner}, sources)
    for source, one in zip(sources, done, strict=True):
        assert one.error.endswith("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"), (source, one.error)


def saved(folder: Path, name: str, split: str | None = None) -> None:
    import datasets

    features = datasets.Features({"q": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    texts = {"q": [f"a text of number {n}" for n in range(6)], "label": [0, 1] * 3}
    data = datasets.Dataset.from_dict(texts, features=features, split=split)
    (datasets.DatasetDict({split: data}) if name == "dict" and split else data).save_to_disk(
        folder / name, num_shards={split: 2} if name == "dict" else 2
    )


@pytest.mark.parametrize(("name", "split", "keys"), [("one", None, ""), ("one", "train", ""), ("one", "test", ", split: test"), ("dict", "train", ""), ("dict", "dev", ", split: dev")])  # fmt: skip
def test_a_folder_of_save_to_disk_is_read(tmp_path, name, split, keys):
    saved(tmp_path, name, split)
    fields = "task: classification, fields: {query: q, label: label}"
    done = build_one(tmp_path, {}, f"path: ./{name}{keys}, {fields}")
    assert done.error == ""
    assert done.pairs == [(f"a text of number {n}", [["bad", "good"][n % 2]]) for n in range(6)]
    wrong = build_one(tmp_path, {}, f"path: ./{name}, split: nope, {fields}").error
    assert wrong == f"./{name}: no split 'nope'; there are: {split or 'train'}"


def test_a_folder_of_save_to_disk_that_is_broken(tmp_path):
    fields = "task: classification, fields: {query: q, label: label}"
    for number, (state, message) in enumerate(
        [
            ("{", "was not saved by `save_to_disk` as it should be (JSONDecodeError"),
            ('{"_split": null}', "was not saved by `save_to_disk` as it should be (KeyError: '_data_files'); save it again"),
            ("[]", "was not saved by `save_to_disk` as it should be (AttributeError"),
            ('{"_data_files": [{"filename": "../../x.arrow"}]}', "'../../x.arrow'"),
            ('{"_data_files": [{"filename": "data.arrow"}]}', "its file 'data.arrow' is missing; save it again"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        error = build_one(folder, {"d/state.json": state}, f"path: ./d, {fields}").error
        assert message in error


@pytest.mark.parametrize(
    ("corpus", "positive"),
    [
        ([{"_id": "d1", "text": "a text"}], "a text"),
        ([{"_id": "d1", "title": "A title", "text": "a text"}], "A title\na text"),
        ([{"_id": "d1", "title": "", "text": "a text"}], "a text"),
        ([{"_id": "d1", "text": "a text"}, {"_id": "d2", "title": "x", "text": "another"}], "a text"),
    ],
)
def test_titles_of_a_beir_corpus_are_optional(tmp_path, corpus, positive):
    files = {
        "b/corpus.jsonl": "".join(json.dumps(one) + "\n" for one in corpus),
        "b/queries.jsonl": '{"_id": "q1", "text": "a query"}\n',
        "b/qrels/train.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    }
    assert build_one(tmp_path, files, "files: b, reader: beir, fields: {query_id: query-id, positive_id: corpus-id}").pairs == [
        ("a query", [positive])
    ]


def test_a_member_that_is_named_itself_is_the_only_one(tmp_path):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, query in (("a[1].jsonl", "what is this"), ("a1.jsonl", "what is that")):
            archive.writestr(name, json.dumps({"q": query, "a": "an answer"}) + "\n")
    keys = ["member: 'a[1].jsonl'", "member: 'a[!x].jsonl'", "member: ['a[1].jsonl', a1.jsonl]"]
    done = build_all(tmp_path, {"x.zip": whole.getvalue()}, [f"files: x.zip, {key}" for key in keys])
    this, that = ("what is this", ["an answer"]), ("what is that", ["an answer"])
    assert [one.pairs for one in done] == [[this], [that], [this, that]]


@pytest.mark.parametrize("ending", ["lz4", "7z", "rar", "br", "Z", "xlsx", "pkl"])
def test_what_is_not_read_is_reported_by_its_ending(tmp_path, ending):
    name = f"a.jsonl.{ending}" if ending not in ("xlsx", "pkl") else f"a.{ending}"
    hint = "unpack it, or pack it as gz, zst, bz2 or xz" if name != f"a.{ending}" else "save it as csv, jsonl or parquet"
    error = build_one(tmp_path, {name: b"\x04\x22\x4d\x18" + bytes(40)}, f"files: {name}").error
    assert error == f"{name}: is a '.{ending.lower()}' file, which is not read; {hint}"
