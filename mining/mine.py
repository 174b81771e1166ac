"""A build's tuples get their negatives. For each source: encode, search, choose, write.

Retrieval sources are searched; the corpus is the source's distinct positives. Clustering sources with labels draw texts
of other classes. Classification sources keep the other label, which they were built with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation import store
from curation.errors import BuildError
from curation.manifest_models import Mine
from curation.progress import Progress, silent
from curation.schema import NEGATIVES
from mining.builds import described, selected, settings_of
from mining.embeddings import Embeddings, Encoder
from mining.negatives import Rules
from mining.rows import Found, Tally, by_class, by_search, finished, given_only

FORMAT = 1  # raised when the same settings give other rows
QUERIES = 4_096  # rows a block: with 1,024 numbers a vector and 120 candidates, about 60 MB
Open = Callable[[Mine, str], Encoder]
Fill = Callable[[pl.DataFrame, int], Found]


@dataclass(frozen=True)
class Job:
    """One source to mine, and all that its rows depend on."""

    build: Path
    name: str
    entry: Mapping[str, Any]  # the source in build.json
    settings: Mine
    seed: int
    way: str  # search, class or given
    digest: str
    described: Mapping[str, object]  # the encoder; empty where none is needed
    source: str  # the digest of the curated stage

    @property
    def curated(self) -> Path:
        """Return the folder to read."""
        return self.build / "curated" / self.name

    @property
    def mined(self) -> Path:
        """Return the folder to write."""
        return self.build / "mined" / self.name

    @property
    def wanted(self) -> int:
        """Return the number of negatives a row."""
        return NEGATIVES["classification"] if self.way == "given" else self.settings.negatives


def open_encoder(settings: Mine, device: str) -> Encoder:
    """Load the model of a `mine:` section."""
    from training.encode import load_encoder  # torch: only where something must be encoded

    return load_encoder(
        settings.model, device=device, dtype=settings.dtype, max_tokens=settings.max_tokens, prompt=settings.prompt
    )


def mine_build(
    build: Path, only: Sequence[str] = (), device: str = "auto", progress: Progress = silent, load: Open = open_encoder
) -> dict[str, dict[str, Any]]:
    """Mine the sources of a build and return their receipts, each with `ran`: whether there was anything to do.

    Raises:
        BuildError: the folder holds no whole build, or was changed by hand.
        ManifestError: its manifest has no usable `mine:` section.
        ModelError: the model cannot be loaded, or gives numbers that are none.
    """
    receipts = {}
    described(build)  # complain before anything is written
    settings = settings_of(build)
    encoder = cache(lambda: load(settings, device))
    with store.locked(build, "mine negatives"):
        for job in jobs(build, only, encoder):
            receipt, ran = store.run_stage(job.mined, job.digest, partial(_mine, job, encoder, progress))
            receipts[job.name] = {**receipt, "ran": ran}
    return receipts


def plan(build: Path, only: Sequence[str] = (), device: str = "auto", load: Open = open_encoder) -> dict[str, dict[str, Any]]:
    """Return what `mine_build` would do: for each source the way, the rows, and whether it would run."""
    encoder = cache(lambda: load(settings_of(build), device))
    found = {}
    for job in jobs(build, only, encoder):
        receipt = store.read_receipt(job.mined) or {}
        found[job.name] = {"way": job.way, "rows_in": job.entry["tuples"], "ran": receipt.get("digest") != job.digest}
    return found


def jobs(build: Path, only: Sequence[str], encoder: Callable[[], Encoder]) -> Iterator[Job]:
    """Return the sources to mine, checked, in the build's order."""
    whole = described(build)
    settings = settings_of(build)
    for name in selected(build, whole, only):
        entry, curated = whole["sources"][name], build / "curated" / name
        receipt = store.read_receipt(curated)
        if receipt is None or "digest" not in receipt:
            raise BuildError(curated, "is missing or unfinished", "run `curate build` again")
        store.check_files(curated, receipt)
        way = _way(entry["task"], curated)
        opened = encoder() if way == "search" else None
        depends = _settings(way, settings) | {
            "format": FORMAT,
            "curated": receipt["digest"],
            "encoder": [opened.fingerprint, opened.described] if opened else [],
            "instruction": entry["instruction"] if opened else "",
            "seed": int(whole["seed"]),
        }
        yield Job(
            build,
            name,
            entry,
            settings,
            int(whole["seed"]),
            way,
            store.digest_of(depends),
            opened.described if opened else {},
            receipt["digest"],
        )


def signature(job: Job) -> str:
    """Return everything that shapes the negatives, in one line."""
    parts = {**job.described, **_settings(job.way, job.settings), "seed": job.seed, "format": FORMAT}
    return f"mine:{job.way}|" + "|".join(f"{key}:{value}" for key, value in parts.items() if value is not None)


def warning(name: str, receipt: Mapping[str, Any]) -> str | None:
    """Return a line for a source of which more than half the rows were lost, naming the filter that took most."""
    lost = sum(receipt["dropped"].values())
    if lost * 2 <= receipt["rows_in"]:
        return None
    text = f"{name}: {lost:,} of {receipt['rows_in']:,} rows have too few negatives and were dropped"
    taken = {key: count for key, count in receipt["filters"].items() if count}
    if taken:
        most = max(taken, key=lambda key: taken[key])
        text += f"; '{most}' took most candidates ({taken[most]:,} of {receipt['candidates']:,}"
        text += f", which is {receipt['candidates'] // receipt['rows_in']} a row)"
    return text


def _way(task: str, curated: Path) -> str:
    if task == "classification":
        return "given"
    labelled = task == "clustering" and store.read_table(curated, "pairs", ["label"])["label"].null_count() == 0
    return "class" if labelled else "search"


def _settings(way: str, settings: Mine) -> dict[str, object]:
    """Return the settings that matter for a way, so that no other one makes it run again."""
    if way == "search":
        return settings.model_dump(
            exclude={"model", "dtype", "max_tokens", "prompt"}
        )  # these are in the fingerprint or the texts
    return {"shortage": settings.shortage} | ({"negatives": settings.negatives} if way == "class" else {})


def _mine(job: Job, encoder: Callable[[], Encoder], progress: Progress, folder: Path) -> dict[str, Any]:
    """Do one source: files into `folder`, and what its receipt says."""
    ways: dict[str, Callable[[], Fill]] = {
        "search": lambda: _searcher(job, encoder(), progress),
        "class": lambda: _drawer(job),
        "given": lambda: given_only,
    }
    tally = _write(job, folder, ways[job.way](), progress)
    said = {
        **asdict(tally),
        "way": job.way,
        "curated": job.source,
        "signature": signature(job),
        "settings": _settings(job.way, job.settings),
    }
    return said | ({"encoder": dict(job.described)} if job.described else {})


def _searcher(job: Job, encoder: Encoder, progress: Progress) -> Fill:
    """Encode the source and return the function that searches and chooses for a block of its rows."""
    lists = store.read_table(job.curated, "pairs", ["positives", "negatives"])
    corpus = lists["positives"].explode().drop_nulls().unique().sort().to_numpy().astype(np.int64)
    needed = np.union1d(corpus, lists["negatives"].explode().drop_nulls().to_numpy())
    most_positives = int(lists["positives"].list.len().to_numpy().max(initial=1))
    instruction = job.entry["instruction"]
    embeddings = Embeddings(job.build / "embeddings", encoder)
    places = np.full(int(needed.max(initial=-1)) + 1, -1, np.int64)
    with progress(f"{job.name}: encode", len(needed) + len(lists), "texts") as advance:
        places[needed] = embeddings.ensure((encoder.passage(text) for text in _passages(job, needed)), advance)
        queries = (text for frame in _pairs(job) for text in frame["query"])
        asked = embeddings.ensure((encoder.query(instruction, text) for text in queries), advance)
    rules = Rules(**{key: getattr(job.settings, key) for key in Rules.__dataclass_fields__})
    widest = rules.range_max + most_positives

    def fill(frame: pl.DataFrame, first: int) -> Found:
        vectors = embeddings.take(asked[first : first + len(frame)])
        return by_search(frame, vectors, embeddings.view(places), corpus, job.wanted, widest, rules)

    return fill


def _drawer(job: Job) -> Fill:
    """Return the function that draws texts of other classes for a block of rows."""
    pairs = store.read_table(job.curated, "pairs", ["key", "label"])
    labels = pairs["label"].unique().sort()
    numbers = pl.DataFrame({"label": labels, "class": np.arange(len(labels))})
    of_key = pairs.unique("key", keep="first").join(numbers, on="label").select("key", "class")
    passages = store.read_table(job.curated, "passages", ["pid", "key"])
    classes = passages.join(of_key, on="key", how="left", maintain_order="left")["class"].fill_null(-1).to_numpy()

    def fill(frame: pl.DataFrame, first: int) -> Found:
        own = frame.join(numbers, on="label", how="left", maintain_order="left")["class"].fill_null(-1).to_numpy()
        return by_class(frame, classes, own, first, job.wanted, job.seed, job.name)

    return fill


def _write(job: Job, folder: Path, fill: Fill, progress: Progress) -> Tally:
    """Fill all rows block by block; a shard is written for each shard read."""
    tally, dropped, first = Tally(), [], 0
    constants = {key: str(job.entry.get(key, "")) for key in ("task", "instruction", "language")}
    constants |= {"source": job.name, "signature": signature(job)}
    with progress(f"{job.name}: negatives", job.entry["tuples"], "rows") as advance:
        for number, pairs in enumerate(_pairs(job)):
            kept = []
            for start in range(0, max(len(pairs), 1), QUERIES):
                block = pairs.slice(start, QUERIES)
                rows, lost = finished(job.name, block, fill(block, first), job.wanted, job.settings.shortage, tally)
                kept.append(rows)
                dropped.append(lost)
                first += len(block)
                advance(len(block))
            store.write_parquet(folder / f"pairs-{number:05d}.parquet", pl.concat(kept), constants)
    store.write_parquet(folder / "dropped.parquet", pl.concat(dropped), constants)
    return tally


def _pairs(job: Job) -> Iterator[pl.DataFrame]:
    for shard in sorted(job.curated.glob("pairs-[0-9]*.parquet")):
        yield store.read_parquet(shard)


def _passages(job: Job, needed: np.ndarray) -> Iterator[str]:
    """Return the texts of the needed passages, in order, shard by shard."""
    wanted = pl.Series("pid", needed, dtype=pl.UInt32)
    for shard in sorted(job.curated.glob("passages-[0-9]*.parquet")):
        frame = store.read_parquet(shard, ["pid", "text"])
        yield from frame.filter(pl.col("pid").is_in(wanted.implode()))["text"]
