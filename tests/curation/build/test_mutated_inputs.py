"""Damaged files through every reader: a row is read, lost with a reason, or the file is refused in one line; none vanishes.

Bytes flipped, files cut, parts doubled, lines swapped, other encodings: drawn by a seeded generator, so a failure comes
back. The originals are small files of every format; with `shared_data`, also the heads of real ones.
"""

# ruff: noqa: RUF001, PT017  (Chinese punctuation; what an error says is looked at where it is caught)
from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard

from curation.core.errors import UserError
from curation.read.sources import ROW, take
from curation.recipe.source import Source
from curation.shape.shapes import to_tuples

TEXTS = [
    ("Wer schrieb „Emma“?", "Jane Austen, 1815."),
    ('He said "no", twice', "a,b;\tc"),
    ("多少分？", "308分"),
    ("x" * 300, "été\u2028"),
]
PAIRS = [(f"{query} {n}", f"{answer} {n}") for n in range(8) for query, answer in TEXTS]
ROWS = [{"q": query, "a": answer, "n": n} for n, (query, answer) in enumerate(PAIRS)]
SECONDS = 20  # no file of a few kilobytes may take longer, on a busy machine


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=n % 2 == 0) + "\n" for n, row in enumerate(rows)).encode()


def packed(write: Callable[[io.BytesIO], object]) -> bytes:
    whole = io.BytesIO()
    write(whole)
    return whole.getvalue()


def in_csv(rows: list[dict], **options: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **options).writerows([list(rows[0]), *(row.values() for row in rows)])
    return text.getvalue().encode()


def in_zip(name: str, content: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def in_tar(name: str, content: bytes, mode: str = "w:gz") -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


QUESTIONS = [{"id": str(n), "question": q, "answers": [{"text": a, "answer_start": 0}]} for n, (q, a) in enumerate(PAIRS)]
SQUAD = {"data": [{"title": "T", "paragraphs": [{"context": "C.", "qas": QUESTIONS[i : i + 4]}]} for i in range(0, 32, 4)]}
XML = "<d>" + "".join(f"<p id='{n}'><q>{q.replace('&', '')}</q><a>{a}</a></p>\n" for n, (q, a) in enumerate(PAIRS)) + "</d>"
FLAG = [{"query": q, "pos": [a], "neg": ["no", "never"]} for q, a in PAIRS]
TEVATRON = [{"query_id": "1", "query": q, "positive_passages": [{"docid": "1", "title": "t", "text": a}]} for q, a in PAIRS]
FRAME = pl.DataFrame(ROWS)
ORIGINALS: dict[str, tuple[bytes, dict, tuple[str, str]]] = {
    "a.json": (json.dumps(ROWS, indent=1).encode(), {}, ("q", "a")),
    "dict.json": (json.dumps({q: {"a": a} for q, a in PAIRS}).encode(), {"records": "*"}, ("key", "a")),
    "lists.json": (json.dumps({"train": PAIRS}, ensure_ascii=False).encode(), {"records": "train", "header": ["q", "a"]}, ("q", "a")),
    "a.jsonl": (jsonl(ROWS), {}, ("q", "a")),
    "deep.jsonl": (jsonl([{"q": q, "e": [{"a": a}, {"a": "b"}]} for q, a in PAIRS]), {"records": "e"}, ("q", "a")),
    "a.csv": (in_csv(ROWS), {}, ("q", "a")),
    "bare.csv": (in_csv(ROWS, lineterminator="\n"), {"header": False}, ("column_1", "column_2")),
    "a.tsv": ("".join(f"{q}\t{n}\n" for n, (q, _) in enumerate(PAIRS)).encode(), {"header": ["q", "a"]}, ("q", "a")),
    "a.parquet": (packed(FRAME.write_parquet), {}, ("q", "a")),
    "a.arrow": (packed(FRAME.write_ipc), {}, ("q", "a")),
    "stream.arrow": (packed(FRAME.write_ipc_stream), {}, ("q", "a")),
    "squad.json": (json.dumps(SQUAD).encode(), {"reader": "squad"}, ("question", "context")),
    "a.xml": (XML.encode(), {"reader": "xml", "records": "p"}, ("q", "a")),
    "a.txt": ("".join(f"L{n} {q}\n" for n, (q, _) in enumerate(PAIRS)).encode(), {"reader": "lines"}, ("label", "text")),
    "aligned.txt": ("".join(f"{q}\n" for q, _ in PAIRS).encode(), {"reader": "aligned", "header": ["q", "a"]}, ("q", "a")),
    "post": (f"From: x\nSubject: y\n\n{XML}\n".encode(), {"reader": "folders"}, ("text", "label")),
    "etd.jsonl": (jsonl([{"set": [q, a]} for q, a in PAIRS]), {"reader": "embedding-training-data"}, ("query", "positives")),
    "flag.jsonl": (jsonl(FLAG), {"reader": "flagembedding"}, ("query", "pos")),
    "tevatron.jsonl": (jsonl(TEVATRON), {"reader": "tevatron"}, ("query", "positives")),
    "a.jsonl.gz": (gzip.compress(jsonl(ROWS), mtime=0), {}, ("q", "a")),
    "a.jsonl.zst": (zstandard.ZstdCompressor(write_checksum=True).compress(jsonl(ROWS)), {}, ("q", "a")),
    "a.zip": (in_zip("a.jsonl", jsonl(ROWS)), {}, ("q", "a")),
    "a.tar.gz": (in_tar("a.jsonl", jsonl(ROWS)), {}, ("q", "a")),
    "a.tar": (in_tar("a.csv", in_csv(ROWS), "w"), {}, ("q", "a")),
    "parquet.zip": (in_zip("a.parquet", packed(FRAME.write_parquet)), {}, ("q", "a")),
}  # fmt: skip
CHECKED = ("a.jsonl.gz", "a.jsonl.zst", "a.zip", "nli.zip", "parquet.zip")  # the file has a checksum: all rows, or an error


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def hollow(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data)), draw.choice((1, 7, 200))
    return data[:at] + draw.choice((b"", bytes(size))) + data[at + size :]


def doubled(data: bytes, draw: random.Random) -> bytes:
    at, end = sorted((draw.randrange(len(data)), draw.randrange(len(data) + 1)))
    return draw.choice((data + data, data[:end] + data[at:]))


def swapped(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def encoded(data: bytes, draw: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-32", "latin-1", "cp1252", "utf-8-sig", "utf-7", "gb18030")), "replace")


MUTATIONS = (flipped, cut, hollow, doubled, swapped, encoded)


def source_of(name: str, keys: dict, fields: tuple[str, str]) -> Source:
    files = [name, f"{name}.beside"] if keys.get("reader") == "aligned" else [name]
    return Source(name="s", files=files, task="retrieval", fields={"query": fields[0], "positive": fields[1]}, **keys)


def outcome(folder: Path, name: str, data: bytes, keys: dict, fields: tuple[str, str]) -> int | str:
    """Rows read and lost, or the one line that refuses the file; all else that is raised is a failure."""
    (folder / name).write_bytes(data)
    source = source_of(name, keys, fields)
    started = time.monotonic()
    try:
        rows, lost = take(source, 1, None, folder, lambda _: None)
        numbers = rows[ROW].to_list() + [one.row for one in lost]
        assert sorted(numbers) == list(range(len(numbers)))
        assert all(one.reason and one.evidence for one in lost)
        try:
            made = to_tuples(source, rows, 1)
            assert len(made.tuples) + len(made.dropped) == len(rows)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        return len(numbers)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    finally:
        assert time.monotonic() - started < SECONDS


def expected(name: str, data: bytes, keys: dict) -> int | None:
    """How many rows and losses a damaged file must account for, by other means; None where only the file itself can tell."""
    if not name.endswith((".jsonl", ".tsv", ".csv", ".txt")) or "records" in keys:
        return None
    text = data.decode("utf-8-sig")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if name.endswith(".csv"):
        rows = [row for row in csv.reader(io.StringIO(text, newline="\n"), strict=False) if row]
        return len(rows) - (keys.get("header") is not False)
    if name == "aligned.txt":
        return len(text.split("\n")) - text.endswith("\n")
    if name.endswith(".tsv"):
        return sum(map(bool, lines)) - ("header" not in keys)
    return sum(not f"{line}\n".isspace() for line in lines)


def assert_reported_or_whole(folder: Path, name: str, original: tuple[bytes, dict, tuple[str, str]], seeds: range) -> None:
    data, keys, fields = original
    whole = outcome(folder, name, data, keys, fields)
    assert isinstance(whole, int), whole
    for seed in seeds:
        for mutation in MUTATIONS:
            changed = mutation(data, random.Random(f"{name}/{mutation.__name__}/{seed}"))
            got = outcome(folder, name, changed, keys, fields)
            if isinstance(got, int) and name in CHECKED and changed != data:
                assert got == whole or mutation is doubled, (mutation.__name__, seed, got)
            elif isinstance(got, int) and (count := expected(name, changed, keys)) is not None:
                assert got == count, (mutation.__name__, seed, got, count)


def beside(folder: Path) -> None:
    (folder / "aligned.txt.beside").write_text("".join(f"{n}\n" for n in range(len(PAIRS))))


@pytest.mark.parametrize("name", ORIGINALS)
def test_damaged_files(tmp_path, name):
    beside(tmp_path)
    assert_reported_or_whole(tmp_path, name, ORIGINALS[name], range(2))  # 26 files, 6 kinds of damage: 312 inputs


REAL: dict[str, tuple[str, dict, tuple[str, str]]] = {
    "val.jsonl": ("indonli/val.jsonl", {}, ("premise", "hypothesis")),
    "test.csv": ("banking77/test.csv", {}, ("text", "category")),
    "dev.tsv": ("paws_wiki/dev.tsv", {"header": False}, ("column_2", "column_3")),
    "mrpc.tsv": ("mrpc/msr_paraphrase_test.txt", {}, ("#1 String", "#2 String")),
    "TREC": ("trec6/TREC.train", {"reader": "lines", "encoding": "latin-1"}, ("text", "label")),
    "truth.json": ("pubmedqa/test_ground_truth.json", {"records": "*"}, ("key", "value")),
    "intents.parquet": ("clinc150_parquet/validation-00000-of-00001.parquet", {}, ("text", "intent")),
    "nli.zip": ("breaking_nli/breaking_nli_dataset.zip", {}, ("sentence1", "sentence2")),
    "data.tsv": ("amcd/JP_valid.tsv", {}, ("sentence", "is_counterfactual")),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REAL)
def test_damaged_real_files(shared_data, tmp_path, name):
    file, keys, fields = REAL[name]
    data = (shared_data / file).read_bytes()
    if not name.endswith((".zip", ".parquet", ".json")):
        data = b"".join(data.splitlines(keepends=True)[:100])
    assert_reported_or_whole(tmp_path, name, (data, keys, fields), range(2))


@pytest.mark.long
@pytest.mark.parametrize("name", ORIGINALS)
def test_many_more_damaged_files(tmp_path, name):
    beside(tmp_path)
    assert_reported_or_whole(tmp_path, name, ORIGINALS[name], range(2, 40))
