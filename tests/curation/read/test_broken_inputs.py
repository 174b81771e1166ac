"""Each reader, given what it is not for: one line, nothing of it in the build, and the source beside it whole."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile

import polars as pl
import pytest

from curation.build.build import build
from tests.curation.read.broken import manifest

ROWS = [{"q": f"what is {n}?", "a": f"it is {n}"} for n in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet(frame: pl.DataFrame, arrow: bool = False) -> bytes:
    whole = io.BytesIO()
    frame.write_ipc(whole) if arrow else frame.write_parquet(whole)
    return whole.getvalue()


def in_zip(name: str, data: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(name, data)
    return whole.getvalue()


def in_tar(name: str, data: bytes, **about: object) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in about.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(data))
    return whole.getvalue()


CONTENTS = {
    "empty": b"",
    "blank": b"\n \n\t\n",
    "zeros": bytes(5000),
    "high": bytes(range(128, 256)) * 20,
    "random": bytes((n * n * 7919 >> 3) & 255 for n in range(5000)),
    "html": b"<!DOCTYPE html>\n<html><body>404: not found</body></html>\n",
    "error": b'{"error": "Entry not found"}',
    "null": b"null",
    "number": b"1e400",
    "digits": b"[" + b"9" * 6000 + b"]",
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "lists": json.dumps([[["a"]], [["b"]]]).encode(),
    "records": b"".join(json.dumps({"q": {"x": n}, "a": [{"y": n}]}).encode() + b"\n" for n in range(4)),
    "surrogates": b'{"q": "\\ud800", "a": "\\udfff"}\n' * 4,
    "keys": b'{"": "x", "__row": 1, "q": null}\n' * 4,
    "bom": b"\xef\xbb\xbf\xef\xbb\xbf",
    "utf-16": "q,a\n".encode("utf-16"),
    "quotes": b'q,a\n"x,y\n' * 4,
    "bare quotes": b'q,a\n"x"y,z\n' * 4,
    "one cell": b"q\na\nb\n",
    "wide": b",".join(b"c%d" % n for n in range(3000)) + b"\n1\n",
    "entities": b'<!DOCTYPE d [<!ENTITY a "aaaa">]><d><p>&a;</p></d>',
    "deep xml": b"<d>" + b"<p>" * 5000,
    "cut gzip": gzip.compress(LINES)[:40],
    "a zip": in_zip("a.jsonl", LINES),
    "a tar": in_tar("a.jsonl", LINES),
    "parquet": parquet(pl.DataFrame({"x": [1]})),
    "cut parquet": parquet(pl.DataFrame(ROWS))[:-20],
    "flat parquet": parquet(pl.DataFrame({"q": [b"\xff"], "a": [b"\xfe"]})),
    "struct parquet": parquet(pl.DataFrame({"q": [{"x": 1}], "a": [[{"y": 1}]]})),
    "no rows": parquet(pl.DataFrame({"q": [], "a": []})),
    "arrow": parquet(pl.DataFrame({"x": [1]}), arrow=True),
    "cut arrow": parquet(pl.DataFrame(ROWS), arrow=True)[:-400],
    "python": b"def f(:\n",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}  # fmt: skip
READERS = {
    "json": "x.json",
    "json records": "x.json, records: data/items",
    "json star": "x.json, records: '*'",
    "json header": "x.json, header: [q, a]",
    "jsonl": "x.jsonl",
    "jsonl records": "x.jsonl, records: q",
    "csv": "x.csv",
    "csv header": "x.csv, header: [q, a]",
    "tsv": "x.tsv",
    "parquet": "x.parquet",
    "arrow": "x.arrow",
    "squad": "x.json, reader: squad",
    "xml": "x.xml, reader: xml, records: p",
    "aligned": "[x.txt, x.txt], reader: aligned, header: [q, a]",
    "lines": "x.txt, reader: lines",
    "lines pattern": "x.txt, reader: lines, pattern: '(?P<q>.)(?P<a>.*)'",
    "folders": "x.txt, reader: folders, fields: {query: text, positive: label}",
    "embedding-training-data": "x.jsonl, reader: embedding-training-data",
    "flagembedding": "x.jsonl, reader: flagembedding",
    "tevatron": "x.jsonl, reader: tevatron",
    "gz": "x.jsonl.gz",
    "bz2": "x.jsonl.bz2",
    "xz": "x.jsonl.xz",
    "zst": "x.jsonl.zst",
    "zip": "x.zip",
    "tar": "x.tar",
    "tar.gz": "x.tar.gz",
}
FITS = {"lines pattern", "folders", "aligned", "csv header", "json star"}  # to which odd texts are texts


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_given_what_it_is_not_for(tmp_path, reader):
    names = [part for part in READERS[reader].split(", ") if part.startswith(("x.", "[x."))]
    ending = names[0].strip("[]").partition(".")[2]
    sources = []
    for number, content in enumerate(CONTENTS.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / f"x.{ending}").write_bytes(content)
        sources.append(f"files: {READERS[reader].replace('x.', f'{number}/x.')}, max_record: 1")
    outcome = build(manifest(tmp_path, sources), tmp_path / "b")
    assert outcome.receipts["good"]["kept"] == 4
    for number, content in enumerate(CONTENTS):
        error = str(outcome.failed.get(f"s{number}", ""))
        assert error or reader in FITS or (reader, content) in {("tsv", "quotes"), ("zip", "a zip"), ("tar", "a tar")}, (
            reader,
            content,
        )
        assert len(error.encode().splitlines()) <= 1
        assert "this is a fault of tuplesmith" not in error, (reader, content, error)
        assert len(error) < 1200, (reader, content, error)
        assert error == "" or not (tmp_path / "b" / "curated" / f"s{number}").exists()


MEMBERS = {
    "../x.jsonl": "outside of the archive",
    "/etc/x.jsonl": "outside of the archive",
    "C:\\x.jsonl": "outside of the archive",
    "a/" * 1500 + "x.jsonl": "",
    "n" * 5000 + ".jsonl": "",
    "new\nline.jsonl": "",
    "\x1b[31m.jsonl": "",
    "\u202egnp.jsonl": "",
    "a\x00b.jsonl": None,
}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_with_odd_names(tmp_path, kind):
    sources = []
    for number, name in enumerate(MEMBERS):
        data = in_zip(name, LINES) if kind == "zip" else in_tar(name, LINES)
        (tmp_path / f"{number}.{kind}").write_bytes(data)
        sources += [
            f"files: {number}.{kind}",
            f"files: {number}.{kind}, member: nothing",
            f"files: {number}.{kind}, member: '*[!x]'",
        ]
    outcome = build(manifest(tmp_path, sources), tmp_path / "b")
    assert outcome.receipts["good"]["kept"] == 4
    for number in range(len(sources)):
        error = str(outcome.failed.get(f"s{number}", ""))
        message = list(MEMBERS.values())[number // 3]
        assert len(error.encode().splitlines()) <= 1
        assert "this is a fault of tuplesmith" not in error, error
        assert message is None or number % 3 or (message in error and bool(error) == bool(message)), (number, error)
