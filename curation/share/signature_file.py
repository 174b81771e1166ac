"""`curate signatures`: the MinHash signatures of a build in a parquet file. datasketch reads them:

    index = MinHashLSH(num_perm=128, params=(16, 6))
    for id_, signature in read_signatures("signatures.parquet"):
        index.insert(id_, signature)

The header (parquet metadata) holds datasketch's version, scheme and seed, and the shingling; signatures with different headers
cannot be compared. The id of a query is its tuple's, the id of a passage is `source#pid`. Texts too short for shingles have
no signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import polars as pl
from datasketch import MinHash

from curation.clean.shingles import SHINGLING
from curation.clean.signatures import SEED, minhash_digests, prepare
from curation.core.builds import receipts
from curation.core.errors import BuildError
from curation.core.tables import read_table, write_blocks

SCHEME = "affine32"
NUM_PERM = 128
ROW_GROUP = 1 << 16  # texts


def header() -> dict[str, str]:
    """Return what two signatures must have in common to be compared."""
    numbers = {"seed": str(SEED), "permutations": str(NUM_PERM)}
    return {"datasketch": metadata.version("datasketch"), "scheme": SCHEME, **numbers, "shingling": SHINGLING}


def write_signatures(build: Path, out: Path, only: Iterable[str] = ()) -> int:
    """Write id str, signature (128,) u32 of the queries and passages of a build; return how many.

    Raises:
        BuildError: no build, or no such source.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0

    def blocks() -> Iterator[pl.DataFrame]:
        nonlocal count
        yield _block(pl.Series("id", [], pl.String), pl.Series("text", [], pl.String))
        for name in receipts(build, only):
            folder = build / "curated" / name
            pairs, passages = read_table(folder, "pairs", ["id", "query"]), read_table(folder, "passages", ["pid", "text"])
            pids = passages.select(pl.format("{}#{}", pl.lit(name), "pid").alias("id"))["id"]
            for ids, texts in ((pairs["id"], pairs["query"]), (pids, passages["text"])):
                for first in range(0, len(ids), ROW_GROUP):
                    block = _block(ids.slice(first, ROW_GROUP), texts.slice(first, ROW_GROUP))
                    count += len(block)
                    yield block

    write_blocks(out, blocks(), header())
    return count


def _block(ids: pl.Series, texts: pl.Series) -> pl.DataFrame:
    found = minhash_digests(prepare(texts), NUM_PERM)
    some = (found != np.uint32(0xFFFFFFFF)).any(axis=1)  # else the digest of the empty set
    signature = pl.Series("signature", found[some], dtype=pl.Array(pl.UInt32, NUM_PERM))
    return pl.DataFrame([ids.filter(pl.Series(some)), signature])


def read_signatures(*paths: Path | str) -> Iterator[tuple[str, MinHash]]:
    """Yield the id and the MinHash of every signature of files.

    Raises:
        BuildError: a file holds no signatures, or was made by another datasketch or shingling than the first.
    """
    first: dict[str, str] | None = None
    for path in paths:
        try:
            metadata_of_file = pl.read_parquet_metadata(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise BuildError(path, f"not readable as parquet ({error})", "run `curate signatures` again") from None
        written = {key: metadata_of_file.get(key, "") for key in header()}
        if not written["scheme"]:
            raise BuildError(path, "holds no signatures", "name a file of `curate signatures`")
        first = first or written
        for key, value in written.items():
            if value != first[key]:
                what = f"was made with {key} '{value}', and {paths[0]} with '{first[key]}'; their signatures do not compare"
                raise BuildError(path, what, "write both again with the same version")
        for id_, values in pl.read_parquet(path).iter_rows():
            hashes = np.asarray(values, dtype=np.uint32)
            yield id_, MinHash(num_perm=NUM_PERM, seed=int(written["seed"]), scheme=written["scheme"], hashvalues=hashes)
