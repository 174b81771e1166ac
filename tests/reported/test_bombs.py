"""Small inputs that ask for much: patterns that backtrack, folders that hold themselves, records without an end."""

from __future__ import annotations

import glob
import io
import itertools
import os
import random
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.reading.globs import matches, matching
from tests.reported.broken import build_all, build_one

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
    assert done[1].error == f"{many}*.csv: matches no file; paths count from the manifest's folder"


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
