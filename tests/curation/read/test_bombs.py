"""Small inputs that ask for much: patterns that backtrack, folders that hold themselves, records without an end."""

from __future__ import annotations

import glob
import gzip
import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from curation.read.paths import matches, matching
from tests.curation.read.broken import build_all, build_one, manifest

LINE = b'{"q": "what is this", "a": "an answer"}\n'
PAIR = ("what is this", ["an answer"])
DEEP = "/".join(["aaaa"] * 200)


def test_a_pattern_of_many_stars_on_a_deep_archive(tmp_path):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(f"{DEEP}/b.jsonl", LINE)
        archive.writestr("a.jsonl", LINE)
    many = "**/" + "*a/**/" * 12
    done = build_all(
        tmp_path, {"x.zip": whole.getvalue()}, [f"files: x.zip, member: '{many}*.{end}'" for end in ("jsonl", "csv")]
    )
    assert done[0].pairs == [PAIR]
    assert done[1].error.startswith(f"x.zip: no member matches '{many}*.csv'")


def test_a_pattern_of_many_stars_on_a_deep_folder(tmp_path):
    deep = tmp_path / "/".join(["aaaa"] * 60)
    deep.mkdir(parents=True)
    (deep / "b.jsonl").write_bytes(LINE)
    many = "**/" + "*a/**/" * 12
    done = build_all(tmp_path, {}, [f"files: '{many}*.{end}'" for end in ("jsonl", "csv")])
    assert done[0].pairs == [PAIR]
    assert done[1].error == f"{many}*.csv: matches no file; paths are relative to the manifest's folder"


def test_folders_that_hold_themselves(tmp_path):
    inner = tmp_path / "data" / "in"
    inner.mkdir(parents=True)
    (inner / "x.jsonl").write_bytes(LINE)
    for name in ("one", "two", "three"):
        (inner / name).symlink_to("..")
        (inner / f"{name}-too").symlink_to(".")
    (inner / "gone").symlink_to("nowhere")
    (tmp_path / "beside").symlink_to("data/in")
    done = build_all(tmp_path, {}, ["files: 'data/**/*.jsonl'", "files: '**/in/**/x.jsonl'", "files: 'beside/**'"])
    assert [(one.error, one.pairs) for one in done] == [("", [PAIR])] * 3


NAMES = st.sampled_from(["a", "ab", "b.txt", ".a", "[a]", "a*"])
PARTS = st.sampled_from(["*", "**", "a*", "?", "[a]", ".*", "b.txt", "*b*", "a"])


def by_hand(names: list[str], parts: list[str]) -> bool:
    """Whether names match a pattern, by trying all ways: `glob`'s own rule for each part."""
    if parts == ["**"]:
        parts = ["**", "*"]  # all files in a folder
    if not parts:
        return not names
    if parts[0] == "**" and by_hand(names, parts[1:]):
        return True
    if not names:
        return False
    if parts[0] == "**":
        return not names[0].startswith(".") and by_hand(names[1:], parts)
    fits = names[0] == parts[0] or (fnmatchcase(names[0], parts[0]) and names[0].startswith(".") <= parts[0].startswith("."))
    return fits and by_hand(names[1:], parts[1:])


@given(st.lists(NAMES, min_size=1, max_size=5), st.lists(PARTS, min_size=1, max_size=5))
def test_patterns_match_as_they_would_one_by_one(names, parts):
    assert matches("/".join(names), "/".join(parts)) == by_hand(names, parts)


def test_patterns_find_the_files_that_glob_finds(tmp_path):
    draw = random.Random(1)
    names = ["a", "ab", "b.txt", ".a", "c"]
    folders = [tmp_path / Path(*inner) for size in (1, 2, 3) for inner in itertools.product(["a", ".h", "bc"], repeat=size)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        for name in draw.sample(names, 2):
            if not (folder / name).exists():
                (folder / name).touch()
    parts = ["*", "**", "a*", "?", ".*", "b.txt", "*b*", "a", "[ab]*", ".."]
    for _ in range(300):
        pattern = Path(*(draw.choice(parts[:-1] if not at else parts) for at in range(draw.randint(1, 4))))
        pattern = pattern / "*" if pattern.name == "**" else pattern  # of which `glob` does not know whether it is for files
        wanted = {
            os.path.normpath(name)
            for name in glob.glob(str(pattern), root_dir=tmp_path, recursive=True)
            if (tmp_path / name).is_file()
        }
        assert {os.path.normpath(name) for name in matching(pattern, tmp_path)} == wanted, pattern


@pytest.mark.parametrize("folder", ["my[data]", "a*b", "what?", "[x]/[y]", "{a,b}"])
def test_folders_whose_names_hold_signs_of_patterns(tmp_path, folder):
    files = {f"{folder}/one.jsonl": LINE, f"{folder}/in/two.jsonl": LINE.replace(b"this", b"that"), "b/one.jsonl": b"{}"}
    sources = [
        f'files: "{folder}/{rest}"' for rest in ("one.jsonl", "*.jsonl", "**/one.jsonl", "in/t*.jsonl", "[i]n/*", "**/*.jsonl")
    ]
    done = build_all(tmp_path, files, sources)
    other = ("what is that", ["an answer"])
    assert [one.error for one in done] == [""] * 6
    assert [one.pairs for one in done] == [[PAIR], [PAIR], [PAIR], [other], [other], [other, PAIR]]


def test_a_manifest_and_a_build_in_a_folder_whose_name_holds_signs(tmp_path):
    folder = tmp_path / "my[data]*"
    folder.mkdir()
    done = build_one(folder, {"x.jsonl": LINE}, "files: '*x.jsonl'", "dedup: {across: yes}")
    assert (done.error, done.pairs) == ("", [PAIR])


BIG, FITS = "y" * 150_000, "z" * 80_000  # of which the latter fits `max_record: 0.1`


def in_format(kind: str, text: str) -> tuple[str, bytes]:
    """Return a file's name and what it holds: a small record, one whose positive is `text`, and a small one."""
    answers = ["an answer", text, "another answer"]
    rows = [{"q": f"what is {n}", "a": answer} for n, answer in enumerate(answers)]
    lines = [json.dumps(row) for row in rows]
    content = {
        "jsonl": "\n".join(lines),
        "csv": "q,a\n" + "".join(f"{row['q']},{row['a']}\n" for row in rows),
        "quoted.csv": "q,a\n" + "".join(f'"{row["q"]}","{row["a"]}"\n' for row in rows),
        "many-lines.csv": "q,a\n" + "".join(f'"{row["q"]}","{NEW_LINE.join(textwrap.wrap(row["a"], 500))}"\n' for row in rows),
        "tsv": "q\ta\n" + "".join(f"{row['q']}\t{row['a']}\n" for row in rows),
        "json": json.dumps(rows),
        "lines.json": "\n".join(lines),
        "deep.json": json.dumps({"data": rows}),
        "many.jsonl": "\n".join(json.dumps(row, indent=1) for row in rows),
        "txt": "".join(f"{row['q']}\t{row['a']}\n" for row in rows),
        "xml": "<d>" + "".join(f"<p><q>{row['q']}</q><a>{row['a']}</a></p>" for row in rows) + "</d>",
        "attributes.xml": "<d>" + "".join(f"<p q='{row['q']}' a='{row['a']}'/>" for row in rows) + "</d>",
    }
    return f"x.{kind}", content[kind].encode()


NEW_LINE = "\n"
KINDS = {
    "jsonl": "",
    "json": "",
    "lines.json": "",
    "deep.json": ", records: data",
    "many.jsonl": "",
    "csv": "",
    "quoted.csv": "",
    "many-lines.csv": "",
    "tsv": "",
    "txt": ", reader: lines, pattern: '(?P<q>[^\t]*)\t(?P<a>.*)'",
    "xml": ", reader: xml, records: p",
    "attributes.xml": ", reader: xml, records: p, fields: {query: '@q', positive: '@a'}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_larger_than_max_record(tmp_path, kind):
    (name, big), (_, fits) = in_format(kind, BIG), in_format(kind, FITS)
    files = {name: big, f"{name}.gz": gzip.compress(big), f"fits.{name}": fits}
    keys = f"{KINDS[kind]}, max_record: 0.1"
    done = build_all(tmp_path, files, [f"files: {name}{keys}", f"files: {name}.gz{keys}", f"files: fits.{name}{keys}"])
    assert all(re.match(rf"{name}(\.gz)?(:\d)?: .* takes more than the 0.1 MB of `max_record`", one.error) for one in done[:2])
    assert done[2].error == ""
    assert len(done[2].pairs) == 3


def test_a_file_larger_than_max_record_where_a_file_is_a_record(tmp_path):
    files = {"a/x.txt": BIG, "a/y.txt": FITS, "b/x.txt": "short text"}
    keys = ", max_record: 0.1 MB, max_bad: 0"
    done = build_all(
        tmp_path,
        files,
        [
            f"files: '[ab]/*', reader: folders, task: classification, fields: {{query: text, label: label}}{keys}",
        ],
    )
    assert "first: a/x.txt: this file takes more than the 0.1 MB of `max_record`; raise it if the file is right" in done[0].error


def test_elements_within_elements_are_held_once(tmp_path):
    nested = "<d><p>" + "<e>" * 50 + FITS + "</e>" * 50 + "</p></d>"
    done = build_all(tmp_path, {"x.xml": nested}, ["files: x.xml, reader: xml, records: p, max_record: 0.1"])
    assert "takes more than the 0.1 MB of `max_record`" in done[0].error


def test_a_long_quoted_field_is_no_unclosed_quote(tmp_path):
    text = "word, " * 900_000 + "end"  # 5.4 MB
    done = build_one(tmp_path, {"x.csv": f'q,a\nwhat is this,"{text}"\nwhat is that,short\n'}, "files: x.csv")
    assert done.pairs == [("what is this", [text]), ("what is that", ["short"])]


@pytest.mark.long
@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.gz", "x.txt.gz", "x.xml.gz", "x.json.gz", "x.jsonl.zst"])
def test_a_line_of_300_mb_takes_little_memory(tmp_path, name):
    big = b'"' + b"y" * 300_000_000
    big = {"json": b"[" + big, "xml": b"<d><p>" + big}.get(name.split(".")[1], big)
    (tmp_path / name).write_bytes(gzip.compress(big, 1) if name.endswith("gz") else zstandard.compress(big))
    keys = {"txt": ", reader: lines", "xml": ", reader: xml, records: p"}.get(name.split(".")[1], "")
    path = manifest(tmp_path, [f"files: {name}{keys}"])
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom curation.build.build import build\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(build(Path(sys.argv[1]), Path(sys.argv[2])).failed['s0'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "b")]
    said, kilobytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "takes more than the 64 MB of `max_record`" in said
    assert int(kilobytes) < 800_000
