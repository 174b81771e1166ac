"""Search in millions of synthetic vectors: CPU-seconds for each block of 4,096 queries, own memory and mapped pages.

    python benchmarks/search.py exact|ivf QUERIES PASSAGES [STORE]
    python benchmarks/search.py real QUERIES EMBEDDINGS      both, of vectors of a build's `embeddings/...`: as even as texts are

Texts are encoded by a stand-in and stored, then blocks of queries, one positive each, are searched, k 120, and written with
all that filters ask of them, as `mine negatives` does. Blocks are alike: 100,000 queries are 25 of them. Vectors and
candidates stay in STORE for another call; an `ivf` after an `exact` counts the recall.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from mine import DIM, FAMILY, FakeEncoder, Forgetful, Numbers

from curation.core import store
from mining import candidates, ivf
from mining.duplicates import shingles_of
from mining.embeddings import Embeddings, Part
from mining.lists import Ragged
from mining.search import QUERIES, Exact, nearest

K, SEED = 120, 42


class Highest:
    """The most memory of this process so far, looked at twenty times per second: its own, and pages of mapped files."""

    def __init__(self) -> None:
        self.own = self.mapped = 0
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Look again and again."""
        while True:
            said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.own = max(self.own, int(said["RssAnon"].split()[0]))
            self.mapped = max(self.mapped, int(said["RssFile"].split()[0]))
            time.sleep(0.05)

    def say(self, what: str, begun: float) -> None:
        """Print what was done, the CPU-seconds since `begun`, and the memory."""
        spent = time.process_time() - begun
        print(f"{what}: {spent:.1f} CPU-s; at most {self.own / 1024:.0f} MB own, {self.mapped / 1024:.0f} MB mapped", flush=True)


def main(kind: str, queries: int, passages: int, place: Path) -> None:
    """Store, search block by block, print."""
    highest = Highest()
    encoder = FakeEncoder(dim=DIM, vectors=Numbers())
    encoder.calls = Forgetful()

    def texts() -> Iterator[str]:
        return (f"p of {n // FAMILY} with {n} that tells {n} of item {n}" for n in range(passages))

    begun = time.process_time()
    vectors = Embeddings(place, encoder)
    asked = (f"q {n} is of item {n * 17 % passages}" for n in range(queries))
    found = vectors.ensure(itertools.chain(texts(), asked))
    highest.say(f"stored {len(vectors):,} vectors", begun)

    begun = time.process_time()
    corpus = Part(vectors, found[:passages])
    shingles = shingles_of(texts(), np.arange(passages))
    highest.say("shingles", begun)
    index = Exact(corpus)
    if kind == "ivf":
        begun, folder = time.process_time(), place / "index"
        write = partial(ivf.write_index, corpus=corpus, questions=Part(vectors, found[passages:]), k=K, seed=SEED, source="s")
        store.run_stage(folder, str(passages), write)
        index = ivf.Lists(corpus, folder)
        highest.say(f"index {[(store.read_receipt(folder) or {})[key] for key in ivf.IN_RECEIPT]}", begun)
    whole = candidates.Corpus(corpus, np.arange(passages), index, shingles)
    for start in range(0, queries, QUERIES):
        begun = time.process_time()
        rows = np.arange(start, min(start + QUERIES, queries))
        positives, given = Ragged(np.arange(len(rows) + 1), rows * 17 % passages), Ragged(np.zeros(len(rows) + 1, int), rows[:0])
        folder, exact = (place / f"{name}-{passages}-{start}" for name in (kind, "exact"))
        near = candidates.search(vectors[found[passages + rows]], positives, given, whole, K, None)
        store.run_stage(folder, str(time.time()), partial(candidates.write_candidates, found=near))
        highest.say(f"{kind} {len(rows):,} queries x {passages:,} passages", begun)
        if kind == "ivf" and exact.exists():
            both = zip(*(candidates.read_candidates(one).ids for one in (folder, exact)), strict=True)
            print(f"  recall {np.mean([len(np.intersect1d(*pair)) / K for pair in both]):.4f}", flush=True)


def real(queries: int, embeddings: Path, place: Path) -> None:
    """Search an embedding store for some of its vectors, drawn evenly, among the others."""
    highest = Highest()
    shards = [np.fromfile(path, np.float32) for path in sorted(embeddings.glob("*.f32"))]
    vectors = np.concatenate(shards).reshape(-1, store.read_json(embeddings / "meta.json")["dim"])
    chosen = np.arange(queries) * (len(vectors) // queries)
    asked, corpus = vectors[chosen], np.delete(vectors, chosen, axis=0)
    del vectors, shards
    found, what = [], f"{queries:,} queries x {len(corpus):,} passages"
    for kind in ("exact", "ivf"):
        index, begun = Exact(corpus), time.process_time()
        if kind == "ivf":
            about = ivf.write_index(place, corpus, asked, K, SEED, "s")
            store.write_json(place / store.RECEIPT, {"files": {ivf.INDEX_FILE: store.file_digest(place / ivf.INDEX_FILE)}})
            index = ivf.Lists(corpus, place)
            highest.say(f"index {about}", begun)
            begun = time.process_time()
        found.append(nearest(asked, index, K)[0])
        highest.say(f"{kind} {what}", begun)
    print(f"recall {np.mean([len(np.intersect1d(*pair)) / K for pair in zip(*found, strict=True)]):.4f}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        if sys.argv[1] == "real":
            real(int(sys.argv[2]), Path(sys.argv[3]), Path(place))
            sys.exit()
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4] if len(sys.argv) > 4 else place))
