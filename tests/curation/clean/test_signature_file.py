"""`curate signatures`: what it writes loads in datasketch and finds what near-duplicate removal found; nothing else mixes in."""

from __future__ import annotations

import json

import polars as pl
import pytest
from click.testing import CliRunner
from datasketch import MinHash, MinHashLSH
from test_near import kind_and_shingles, shingle_hash

from curation.build.build import build
from curation.clean.pairs import bands_for
from curation.cli import curate
from curation.core.errors import BuildError
from curation.core.tables import write_parquet
from curation.share import signature_file
from curation.share.signature_file import read_signatures, write_signatures

ASK = "how do I find all of the empty files below a folder on my"
ROWS = [(f"{ASK} disk", "use find"), (f"{ASK} disc", "use locate"), ("what now", " ".join(f"word{at}" for at in range(40)))]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signatures")
    (folder / "faq.jsonl").write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in ROWS))
    source = "  - {name: faq, files: faq.jsonl, task: retrieval, fields: {query: q, positive: a}}\n"
    (folder / "m.yaml").write_text(f"name: s\nsources:\n{source}")
    build(folder / "m.yaml", folder / "b")
    return folder / "b"


def test_datasketch_loads_them_and_finds_the_near_duplicates(built, tmp_path):
    done = CliRunner().invoke(curate, ["signatures", str(built), "-o", str(tmp_path / "deep" / "s.parquet")])
    assert done.exit_code == 0, done.output
    assert done.output == f"{tmp_path / 'deep' / 's.parquet'}: 3 signatures\n"
    found = dict(read_signatures(tmp_path / "deep" / "s.parquet"))
    assert list(found) == ["faq/0", "faq/1", "faq#2"]  # the others are too short for shingles
    index = MinHashLSH(num_perm=128, params=bands_for(0.8))
    for id_, signature in found.items():
        index.insert(id_, signature)
    own = MinHash(num_perm=128, scheme="affine32", hashfunc=lambda shingle: shingle_hash(shingle) >> 32)
    own.update_batch(list(kind_and_shingles(f"{ASK} disk")[1]))
    assert sorted(index.query(own)) == ["faq/0", "faq/1"]
    assert own.jaccard(found["faq/0"]) == 1
    assert index.query(found["faq#2"]) == ["faq#2"]


def test_signatures_of_two_kinds_do_not_mix(built, tmp_path, monkeypatch):
    write_signatures(built, tmp_path / "a.parquet")
    monkeypatch.setattr(signature_file, "SHINGLING", "words5")
    write_signatures(built, tmp_path / "b.parquet", ["faq"])
    assert len(list(read_signatures(tmp_path / "b.parquet"))) == 3
    with pytest.raises(BuildError) as caught:
        list(read_signatures(tmp_path / "a.parquet", tmp_path / "b.parquet"))
    said = str(caught.value)
    assert said.startswith(
        f"{tmp_path / 'b.parquet'}: was made with shingling 'words5', and {tmp_path / 'a.parquet'} with 'words3>=25"
    )
    assert said.endswith("their signatures do not compare; write both again with the same version")


def test_what_holds_no_signatures_says_so(tmp_path):
    write_parquet(tmp_path / "x.parquet", pl.DataFrame({"id": ["a"]}))
    with pytest.raises(BuildError, match=r"x\.parquet: holds no signatures; name a file of `curate signatures`$"):
        list(read_signatures(tmp_path / "x.parquet"))
    (tmp_path / "y.parquet").write_text("text")
    with pytest.raises(BuildError, match="not readable as parquet"):
        list(read_signatures(tmp_path / "y.parquet"))
