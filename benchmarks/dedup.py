"""Near-duplicates: datasketch 2.0 and ours on the same texts, in turns; seconds and CPU-seconds, medians and ratios.

    python benchmarks/dedup.py [TEXTS] [ROUNDS]

The peer does the same work: the same normalising (polars), the same shingles as Python sets, xxhash's 32 bits,
`MinHash.bulk` with affine32, `MinHashLSH` with the same bands, and the exact Jaccard of every candidate pair. Texts: those of
../shared/data, every twentieth once more with a word changed. Recall and precision are over texts that have a near-duplicate,
against all pairs with Jaccard >= 0.8, found by a join on the rarest shingles of each text.
"""

from __future__ import annotations

import csv
import json
import resource
import statistics
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import xxhash
from datasketch import MinHash, MinHashLSH

from curation.near import bands_for, near
from curation.shingles import CHARS, EXACT, SPACELESS, WIDTH, WORDS, kinds_of, shingle
from curation.text import normalised

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
THRESHOLD = 0.8
TEXTS, ROUNDS = 131_000, 3
LEAST_CHARS = 40


def strings(value: object) -> Iterator[str]:
    """Yield every string within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def strings_of(path: Path) -> Iterator[str]:
    """Yield the texts of a file: JSON strings, cells, lines, or the files of an archive."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            yield from (archive.extractfile(member).read().decode("utf-8", "replace") for member in archive if member.isfile())
    elif path.suffix in (".json", ".jsonl"):
        yield from strings(json_of(path.read_text("utf-8", "replace")))
    elif path.suffix == ".csv":
        yield from (cell for row in csv.reader(path.read_text("utf-8", "replace").splitlines()) for cell in row)
    elif path.suffix in (".tsv", ".txt"):
        yield from (cell for line in path.read_text("utf-8", "replace").splitlines() for cell in line.split("\t"))


def json_of(whole: str) -> object:
    """Return a JSON document, or JSON Lines as a list."""
    try:
        return json.loads(whole)
    except ValueError:
        return [json.loads(line) for line in whole.splitlines()]


def corpus(count: int) -> pl.Series:
    """Return texts drawn evenly over all files; the last twentieth are others with one word changed."""
    every = (text for path in sorted(DATA.rglob("*")) if path.is_file() for text in strings_of(path))
    found = pl.Series(list(dict.fromkeys(text for text in every if len(text) >= LEAST_CHARS)))
    own = min(len(found), count - count // 20)
    texts = found.gather(np.linspace(0, len(found) - 1, own).astype(int)).to_list()
    edited = [text.split(" ") for text in texts[:: max(1, own // (count // 20))]]
    for at, words in enumerate(edited):
        words[at % len(words)] = "changed"
    return pl.Series([*texts, *(" ".join(words) for words in edited)])


def sets_of(forms: pl.Series) -> list[set[bytes]]:
    """Return the shingles of each normalised text, in Python."""
    made = []
    for form, kind in zip(forms, kinds_of(forms), strict=True):
        width = WIDTH[kind]
        if kind == WORDS:
            words = form.split(" ")
            made.append({" ".join(words[at : at + width]).encode() for at in range(len(words) - width + 1)})
        elif kind in (CHARS, SPACELESS):
            made.append({form[at : at + width].encode() for at in range(len(form) - width + 1)})
        else:
            made.append({form.encode()} if kind == EXACT and form else set())
    return made


def theirs(texts: pl.Series) -> set[int]:
    """Return the texts that have a near-duplicate, by datasketch and exact verification."""
    sets = sets_of(normalised(texts).fill_null(""))
    bands, rows = bands_for(THRESHOLD)
    index = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    made = MinHash.bulk(sets, num_perm=bands * rows, scheme="affine32", hashfunc=xxhash.xxh32_intdigest)
    found: set[int] = set()
    with index.insertion_session() as session:
        for at, sketch in enumerate(made):
            if sets[at]:
                session.insert(at, sketch, check_duplication=False)
    for at, sketch in enumerate(made):
        for other in index.query(sketch) if sets[at] else ():
            if other < at and len(sets[at] & sets[other]) >= THRESHOLD * len(sets[at] | sets[other]):
                found |= {at, other}
    return found


def ours(texts: pl.Series) -> set[int]:
    """Return the texts that have a near-duplicate, by us."""
    found = near(texts, THRESHOLD)
    good = found.score >= THRESHOLD
    firsts, copies = np.unique(found.form, return_counts=True)
    some = np.concatenate([found.left[good], found.right[good], firsts[copies > 1]])
    return set(np.flatnonzero(np.isin(found.form, some)).tolist())


def truth(texts: pl.Series) -> set[int]:
    """Return the texts that have a near-duplicate: texts of Jaccard >= t share one of their rarest (1 - t) n + 1 shingles."""
    frames, first = [], 0
    for part in (texts.slice(start, 5000) for start in range(0, len(texts), 5000)):
        made = shingle(part)
        owner = first + np.repeat(np.arange(len(part)), np.diff(made.starts))
        exact = np.flatnonzero((made.kinds == EXACT) & (made.forms != 0))
        frames.append(
            pl.DataFrame(
                {
                    "text": np.append(owner, first + exact),
                    "kind": np.append(made.kinds[owner - first], made.kinds[exact]),
                    "hash": np.append(made.hashes, made.forms[exact]),
                }
            ).unique()
        )
        first += len(part)
    long = pl.concat(frames).with_columns(pl.len().over("hash").alias("often"), pl.len().over("text").alias("size"))
    rank = pl.struct("often", "hash").rank("ordinal").over("text")
    rare = long.filter(rank <= ((1 - THRESHOLD) * pl.col("size") + 1e-9).floor() + 1).select("text", "kind", "hash", "size")
    met = rare.join(rare, on=["hash", "kind"], suffix="_b").filter(pl.col("text") < pl.col("text_b"))
    sizes = pl.min_horizontal("size", "size_b") >= THRESHOLD * pl.max_horizontal("size", "size_b")
    met = met.filter(sizes).select("text", "text_b", "size", "size_b").unique()
    sets = dict(
        long.join(pl.concat([met["text"], met["text_b"]]).unique().to_frame(), on="text", how="semi")
        .group_by("text")
        .agg("hash")
        .iter_rows()
    )
    sets = {text: set(hashes) for text, hashes in sets.items()}
    found: set[int] = set()
    for a, b, n, m in met.iter_rows():
        both = len(sets[a] & sets[b])
        if both >= THRESHOLD * (n + m - both):
            found |= {a, b}
    return found


def main() -> None:
    """Print the figures."""
    count, rounds = (int(word) for word in (sys.argv[1:] + [str(TEXTS), str(ROUNDS)][len(sys.argv) - 1 :]))
    texts = corpus(count)
    print(f"{len(texts)} texts, {texts.str.len_bytes().sum() / 1e6:.1f} MB")
    started = time.perf_counter()
    ours(texts.head(100))
    print(f"first call, compiled loops loaded or made: {time.perf_counter() - started:.2f} s")
    times: dict[str, list[tuple[float, float]]] = {"datasketch": [], "ours": []}
    flagged = {}
    for _ in range(rounds):
        for name, work in (("ours", ours), ("datasketch", theirs)):
            wall, cpu = time.perf_counter(), time.process_time()
            flagged[name] = work(texts)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            if name == "ours" and len(times[name]) == 1:
                print(f"peak memory after ours: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    known = truth(texts)
    medians = {name: [statistics.median(column) for column in zip(*taken, strict=True)] for name, taken in times.items()}
    for name, (wall, cpu) in medians.items():
        right = len(flagged[name] & known)
        print(
            f"{name}: {wall:.2f} s, {cpu:.2f} CPU-s, {len(texts) / wall:,.0f} texts/s, {len(texts) / cpu:,.0f} texts/CPU-s, "
            f"recall {right / len(known):.4f}, precision {right / len(flagged[name]):.4f} of {len(known)} texts"
        )
    (wall, cpu), (their_wall, their_cpu) = medians["ours"], medians["datasketch"]
    print(f"ratio: {their_wall / wall:.1f} in seconds, {their_cpu / cpu:.1f} in CPU-seconds")


if __name__ == "__main__":
    main()
