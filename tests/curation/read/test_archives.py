"""Members of archives: the same rows as from the files themselves, and one line for every archive that is not to be trusted."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest
import zstandard

from curation.core.errors import SourceError
from curation.read.archives import ZSTD_BITE
from curation.read.sources import input_digests, table_rows
from curation.recipe.source import Table
from tests.curation.read.test_readers import read

LINES = b"".join(json.dumps({"n": n, "text": f"line {n}"}).encode() + b"\n" for n in range(3000))
WANTED = [{"n": str(n), "text": f"line {n}"} for n in range(3000)]


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return path


def tarred(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name, info.size = name, 0 if isinstance(content, tarfile.TarInfo) else len(content)
            archive.addfile(info, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content))
    return path


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def complaint(base: Path, files: str, **keys) -> str:
    with pytest.raises(SourceError) as caught:
        list(table_rows(Table(files=[files], **keys), base))
    return str(caught.value)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("files", "keys", "count", "column", "golden"),
    [
        ("breaking_nli/breaking_nli_dataset.zip", {}, 8_193, "sentence2", ("Several women stand on a platform near the red line.", "Protesters are holding signs that say stop killing in Saudi Arabia.")),
        ("climate_fever/climate_fever.zip", {"member": "climate-fever.jsonl"}, 1_535, "claim_id", ("0", "3134")),
        ("climate_fever/climate_fever.zip", {"member": "*.json"}, 1_535, "claim_id", ("0", "3134")),
        ("climate_fever/climate_fever.zip", {"member": "climate-fever.csv"}, 1_535, "claim_id", ("0", "3134")),
    ],
)  # fmt: skip
def test_real_archives(shared_data, files, keys, count, column, golden):
    rows, lost = read(shared_data, files, **keys)
    assert (len(rows), lost) == (count, [])
    assert (rows[0][column], rows[-1][column]) == golden


@pytest.mark.shared_data
def test_several_data_files_are_listed(shared_data):
    assert complaint(shared_data, "climate_fever/climate_fever.zip") == (
        "climate_fever/climate_fever.zip: holds 3 data files: climate-fever.csv, climate-fever.json, climate-fever.jsonl; "
        "name one or more with `member:`"
    )


def test_every_packing_gives_the_rows_of_the_plain_file(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    frames = zstandard.ZstdCompressor().compress(LINES[:40_000]) + zstandard.ZstdCompressor().compress(LINES[40_000:])
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    zipped(tmp_path / "a.zip", {"data/a.jsonl": LINES, "data/README.txt": b"?", "__MACOSX/data/a.jsonl": b"junk"})
    zipped(tmp_path / "stored.zip", {"./a.jsonl.zst": frames}, zipfile.ZIP_STORED)
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")):
        tarred(tmp_path / f"a.{ending}", {"data/a.jsonl": LINES, "data/.b.jsonl": b"junk"}, mode)
    (tmp_path / "a.tar.zst").write_bytes(zstandard.ZstdCompressor().compress((tmp_path / "a.tar").read_bytes()))
    for name in sorted(path.name for path in tmp_path.iterdir()):
        assert read(tmp_path, name) == (WANTED, []), name


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_members_by_name_and_pattern_come_in_the_order_of_the_archive(tmp_path, name):
    members = {f"{folder}/{part}.csv": f"n\n{folder}{part}\n".encode() for folder in ("x", "y/z") for part in (2, 1)}
    (zipped if name.endswith("zip") else tarred)(tmp_path / name, members | {"x/notes": b"-"})

    def values(member: str | list[str]) -> list[str]:
        return [row["n"] for row in read(tmp_path, name, member=member)[0]]

    assert values("x/1.csv") == ["x1"]
    assert values(["x/1.csv", "y/*/2.csv"]) == ["x1", "y/z2"]
    assert values("*/*.csv") == ["x2", "x1"]
    assert values("**/*.csv") == ["x2", "x1", "y/z2", "y/z1"]
    assert complaint(tmp_path, name, member="x/3.csv") == f"{name}: no member 'x/3.csv' (did you mean 'x/2.csv'?)"
    assert complaint(tmp_path, name, member=["x/1.csv", "*.txt"]) == (
        f"{name}: no member matches '*.txt'; it holds x/2.csv, x/1.csv, y/z/2.csv, y/z/1.csv, x/notes"
    )
    unknown = f"{name}:x/notes: has no ending that shows its format; set `reader:` to one of json, jsonl, csv"
    assert complaint(tmp_path, name, member="x/notes").startswith(unknown)


def test_aligned_files_may_each_be_packed(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"1\n2\n"))
    (tmp_path / "b.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"x\ny\n"))
    table = Table(files=["a.txt.gz", "b.txt.zst"], reader="aligned", header=["a", "b"])
    (rows,) = table_rows(table, tmp_path)
    assert rows.frame.drop("__row").rows() == [("1", "x"), ("2", "y")]


def test_parquet_inside_an_archive(tmp_path):
    whole = io.BytesIO()
    pl.DataFrame({"n": range(5)}).write_parquet(whole)
    tarred(tmp_path / "a.tgz", {"p.parquet": whole.getvalue()})
    zipped(tmp_path / "a.zip", {"p.parquet": whole.getvalue()})
    for name in ("a.tgz", "a.zip"):
        assert [row["n"] for row in read(tmp_path, name, member="p.parquet")[0]] == list(range(5))
    (tmp_path / "e.parquet.gz").write_bytes(gzip.compress(b""))
    assert complaint(tmp_path, "e.parquet.gz") == "e.parquet.gz: is empty"


def test_errors_name_archive_member_and_line(tmp_path):
    broken = b'{"q": 1}\nbroken\n'
    for name, pack in (("a.zip", zipped), ("a.tar.gz", tarred)):
        pack(tmp_path / name, {"a.jsonl": broken, "b.csv": b"a\nx\n\xff\n", "c.jsonl.gz": gzip.compress(broken)})
        assert read(tmp_path, name, member="a.jsonl")[1][0].evidence == f"{name}:a.jsonl:2: Expecting value at column 1"
        assert read(tmp_path, name, member="c.jsonl.gz")[1][0].evidence.startswith(f"{name}:c.jsonl.gz:2: ")
        assert complaint(tmp_path, name, member="b.csv") == (
            f"{name}:b.csv:3: byte 0xff is not utf-8 text; declare the file's own encoding with `encoding:`"
        )


# --- what must not happen ---

OUTSIDE = "would be written outside of the archive's folder; nothing in it is read; pack it again if you trust it"


@pytest.mark.parametrize("name", ["../a.jsonl", "x/../../a.jsonl", "/etc/a.jsonl", "..\\a.jsonl", "C:/a.jsonl"])
def test_members_that_would_be_written_outside_are_refused(tmp_path, name):
    for archive, pack in (("a.zip", zipped), ("a.tar.gz", tarred)):
        pack(tmp_path / archive, {name: LINES, "b.jsonl": LINES})
        for member in ([], ["b.jsonl"]):
            said = name.replace("\\", "\\\\")
            assert complaint(tmp_path, archive, member=member).replace("\\\\", "\\") == (
                f"{archive}: member '{said}' {OUTSIDE}".replace("\\\\", "\\")
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "a.zip"]


def test_links_are_not_followed(tmp_path):
    tarred(tmp_path / "out.tar", {"d/a.jsonl": link("../../etc/passwd"), "b.jsonl": LINES}, "w")
    out = f"out.tar: member 'd/a.jsonl', which leads to 'd/../../etc/passwd', {OUTSIDE}"
    assert complaint(tmp_path, "out.tar", member="b.jsonl") == out
    tarred(tmp_path / "hard.tar", {"a.jsonl": link("/etc/passwd", tarfile.LNKTYPE)}, "w")
    assert OUTSIDE in complaint(tmp_path, "hard.tar")
    tarred(tmp_path / "in.tar", {"b.jsonl": LINES, "a.jsonl": link("b.jsonl"), "pipe": link("", tarfile.FIFOTYPE)}, "w")
    assert read(tmp_path, "in.tar")[0] == WANTED
    followed = "which is not followed; name the file itself with `member:`"
    assert complaint(tmp_path, "in.tar", member="*.jsonl") == f"in.tar:a.jsonl: is a link, {followed}"
    assert complaint(tmp_path, "in.tar", member="pipe") == f"in.tar:pipe: is a device, {followed}"
    info = zipfile.ZipInfo("a.jsonl")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert complaint(tmp_path, "a.zip") == f"a.zip: member 'a.jsonl', which leads to '/etc/passwd', {OUTSIDE}"
    tarred(tmp_path / "folder.tar", {"d": link("", tarfile.DIRTYPE), "d/a.jsonl": LINES}, "w")
    assert complaint(tmp_path, "folder.tar", member="d") == f"folder.tar:d: is a folder, {followed}"
    assert read(tmp_path, "folder.tar", member="**")[0] == WANTED


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.zip", "deep.zip", "a.tar.gz", "a.tar.zst", "other.tar.gz"])
def test_a_decompression_bomb_ends_with_one_line(tmp_path, name):
    bomb = b'{"q": "' + bytes(40_000_000) + b'"}\n'
    packed = {"gz": gzip.compress(bomb), "zst": zstandard.ZstdCompressor().compress(bomb)}
    if name.startswith("a.jsonl"):
        (tmp_path / name).write_bytes(packed[name.rpartition(".")[2]])
    elif name.endswith(".zip"):
        zipped(tmp_path / name, {"a.jsonl": bomb} if name == "a.zip" else {"a.jsonl.zst": packed["zst"]})
    else:
        tarred(tmp_path / "a.tar", {"a.jsonl": LINES, "z": bomb} if "other" in name else {"a.jsonl": bomb}, "w")
        tar = (tmp_path / "a.tar").read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(tar) if name.endswith("gz") else zstandard.ZstdCompressor().compress(tar))
    said = complaint(tmp_path, name, max_unpacked=0.01)
    assert said.startswith(name)
    assert said.endswith(
        ": the source unpacks to more than the 0.01 GB of its `max_unpacked`; a decompression bomb? raise the limit if you know the file"
    )


def test_what_a_header_says_of_the_size_is_not_believed(tmp_path):
    zipped(tmp_path / "a.zip", {"a.jsonl": LINES})
    whole = (tmp_path / "a.zip").read_bytes()
    for size in (10, 10**9):  # a longer file than was said is cut and its checksum wrong; a shorter one is whole
        forged = whole.replace(len(LINES).to_bytes(4, "little"), size.to_bytes(4, "little"))
        (tmp_path / "a.zip").write_bytes(forged)
        if size == 10:
            crc = "a.zip:a.jsonl: cannot be unpacked (Bad CRC-32 for file 'a.jsonl'); fetch the file again"
            assert complaint(tmp_path, "a.zip") == crc
        else:
            assert read(tmp_path, "a.zip") == (WANTED, [])
    info = tarfile.TarInfo("a.jsonl")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 * 10**9
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    assert (
        complaint(tmp_path, "a.tar") == "a.tar: not readable as an archive (a header of 8000000000 bytes); fetch the file again"
    )


def test_archives_that_are_cut_off_or_broken(tmp_path):
    again = "; fetch the file again"
    tar = tarred(tmp_path / "a.tar", {"a.jsonl": LINES, "b.jsonl": LINES}, "w").read_bytes()
    second = 512 + -(-len(LINES) // 512) * 512  # where b.jsonl's header begins
    for cut in (second, second + 200):
        (tmp_path / "cut.tar").write_bytes(tar[:cut])
        assert (
            complaint(tmp_path, "cut.tar", member="a.jsonl")
            == f"cut.tar: not readable as an archive (cut off or broken at byte {cut}){again}"
        )
    (tmp_path / "cut.tar").write_bytes(tar[: second + 5000])
    assert (
        complaint(tmp_path, "cut.tar", member="b.jsonl") == f"cut.tar:b.jsonl: cannot be unpacked (unexpected end of data){again}"
    )
    (tmp_path / "flip.tar").write_bytes(tar[: second + 20] + b"?" + tar[second + 21 :])
    flipped = f"flip.tar: not readable as an archive (cut off or broken at byte {second + 512}){again}"
    assert complaint(tmp_path, "flip.tar", member="a.jsonl") == flipped
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(tar)[:-4])
    assert complaint(tmp_path, "cut.tar.gz", member="a.jsonl") == f"cut.tar.gz: the packed data are cut off{again}"
    for junk in (b"", b"no archive", tar):
        (tmp_path / "a.zip").write_bytes(junk)
        assert complaint(tmp_path, "a.zip") == f"a.zip: not readable as an archive (File is not a zip file){again}"
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
    for cut in (len(frame) - 1, ZSTD_BITE, 0):
        (tmp_path / "cut.jsonl.zst").write_bytes(frame[:cut])
        assert complaint(tmp_path, "cut.jsonl.zst") == f"cut.jsonl.zst: the packed data are cut off{again}"
    (tmp_path / "cut.jsonl.zst").write_bytes(frame[:-1] + b"\0")
    assert complaint(tmp_path, "cut.jsonl.zst").startswith("cut.jsonl.zst: cannot be unpacked (zstd decompressor error: ")


def test_archives_that_cannot_be_read_as_they_are(tmp_path):
    zipped(tmp_path / "a.zip", {"a.jsonl": LINES}, zipfile.ZIP_BZIP2)
    assert complaint(tmp_path, "a.zip") == "a.zip:a.jsonl: is packed by method 12, which is not read; pack it with deflate"
    whole = bytearray(zipped(tmp_path / "a.zip", {"a.jsonl": LINES}).read_bytes())
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(whole)
    assert complaint(tmp_path, "a.zip") == "a.zip:a.jsonl: is encrypted; unpack it with its password, and name the file itself"
    tarred(tmp_path / "a.tar", {}, "w")
    assert complaint(tmp_path, "a.tar") == "a.tar: holds no data files: nothing at all; name one or more with `member:`"
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a.jsonl")
            info.size = len(LINES)
            archive.addfile(info, io.BytesIO(LINES))
    assert complaint(tmp_path, "b.tar", member="a.jsonl") == "b.tar:a.jsonl: is in the archive twice; pack it again"
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert complaint(tmp_path, "a.jsonl", member="a.jsonl") == (
        "a.jsonl: is not an archive, so `member:` does not apply; archives are zip, .tar, .tar.gz, .tgz, .tar.bz2, .tbz2, .tar.xz, .txz, .tar.zst"
    )


def test_what_is_packed_is_said_where_the_name_hides_it(tmp_path):
    zipped(tmp_path / "a.csv", {"a.csv": b"a\n" + bytes(range(256)) * 9}, zipfile.ZIP_STORED)
    assert complaint(tmp_path, "a.csv").endswith("it is packed: rename it so that it ends in .zip")


def test_a_change_inside_an_archive_changes_the_digest(tmp_path):
    table = Table(files=["a.zip"])
    zipped(tmp_path / "a.zip", {"a.jsonl": LINES})
    before = input_digests(table, tmp_path)
    zipped(tmp_path / "a.zip", {"a.jsonl": LINES[:-10]})
    assert input_digests(table, tmp_path) != before
