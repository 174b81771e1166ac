"""Ingest, shape and write: rows per second against `datasets.map` and polars with the same mapping, on real datasets made larger.

    python benchmarks/ingest.py [copies] [rounds] [dataset ...]      8, 3 and all by default

Each dataset is written `copies` times over, the copy's number behind every query, so that all rows differ. A round is
ours and the peer's, in turns, each in a process of its own that has imported what it needs. Times are CPU-seconds of
that process on one thread (wall-clock says little on a shared machine), medians of the rounds. "shape" is our first
stage, which does what the peer does and merges equal queries too: read, shape, filter, write, digest, receipt. "build" is
all of `curate build` with one worker: also decontamination, groups, identities, passages. The peer is `load_dataset`, a `map` to
query and positive (or label) with the same filters, `to_parquet`, without its cache; "batched" is the same with
`batched=True`. "polars" is the same mapping as one lazy query, written by hand. Of the datasets `long rows` has texts of about
1 kB, the others are short. Memory is the peak above what the imports took.
"""

from __future__ import annotations

import csv
import gc
import json
import re
import resource
import statistics
import sys
import tempfile
import time
import unicodedata
from functools import partial
from multiprocessing import get_context
from pathlib import Path

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
LABELS = {"0": "states a fact", "1": "says what did not happen"}
SOURCES = {
    "indonli (jsonl)": ("jsonl", "premise", "task: retrieval, fields: {query: premise, positive: hypothesis}"),
    "squad_v2 (jsonl)": ("jsonl", "question", "task: retrieval, fields: {query: question, positive: context}"),
    "hate_davidson (csv)": ("csv", "tweet", "task: clustering, fields: {query: tweet, label: class}"),
    "amcd (tsv)": ("tsv", "sentence", f"task: classification, labels: {json.dumps(LABELS)}, "
                   "fields: {query: sentence, label: is_counterfactual}"),
    "clinc150 (parquet)": ("parquet", "text", "task: clustering, fields: {query: text, label: intent}"),
    "long-rows (parquet)": ("parquet", "question", "task: retrieval, fields: {query: question, positive: context}"),
}  # fmt: skip


def rows_of(name: str) -> list[dict]:
    """The rows of a real dataset."""
    if name.startswith("indonli"):
        lines = [line for path in sorted((DATA / "indonli").glob("*.jsonl")) for line in path.open()]
        return [{key: row[key] for key in ("premise", "hypothesis")} for row in map(json.loads, lines)]
    if name.startswith(("squad", "long")):
        articles = [
            one for path in sorted((DATA / "squad_v2_cs224n").glob("*.json")) for one in json.loads(path.read_text())["data"]
        ]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        rows = [{"question": qa["question"], "context": one["context"]} for one in paragraphs for qa in one["qas"]]
        if name.startswith("long"):  # each context differs, as those of a web corpus do
            rows = [row | {"context": f"{row['context']} {other['context'][:300]} ({at})"}
                    for at, (row, other) in enumerate(zip(rows, reversed(rows), strict=True))]  # fmt: skip
        return rows
    if name.startswith("hate"):
        return list(csv.DictReader((DATA / "hate_davidson/labeled_data.csv").open(newline="")))
    if name.startswith("amcd"):
        paths = sorted((DATA / "amcd").glob("*.tsv"))
        return [row for path in paths for row in csv.DictReader(path.open(newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)]
    import polars as pl

    return pl.read_parquet(DATA / "clinc150_parquet/*.parquet").to_dicts()


def write(name: str, folder: Path, copies: int) -> tuple[Path, int]:
    """Write a dataset `copies` times over; return its file and the number of its rows."""
    ending, query, _ = SOURCES[name]
    rows = rows_of(name)
    rows = [row | {query: f"{row[query]} #{copy}"} for copy in range(copies) for row in rows]
    path = folder / f"data.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif ending == "parquet":
        import polars as pl

        pl.DataFrame(rows).write_parquet(path)
    else:
        with path.open("w", newline="") as file:
            quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if ending == "tsv" else {}
            writer = csv.DictWriter(file, [name or "column_1" for name in rows[0]], **quoting)
            writer.writeheader()
            writer.writerows({key or "column_1": value for key, value in row.items()} for row in rows)
    return path, len(rows)


def ours(name: str, path: Path, out: Path, whole: bool = True) -> int:
    """Build it, or only its first stage; return the tuples kept."""
    from curation.build import stages
    from curation.build.build import build, job_of
    from curation.build.shape_stage import with_inputs
    from curation.recipe.manifest import load_manifest

    (out / "m.yaml").write_text(f"name: one\nsources:\n  - {{name: one, files: {path}, {SOURCES[name][2]}}}\n")
    if not whole:
        manifest = load_manifest(out / "m.yaml")
        receipt = stages.run(stages.SHAPE, with_inputs(job_of(manifest, manifest.sources[0], out, out / "build", None))).receipt
        return receipt["tuples_made"] - receipt["merged"] - sum(receipt["dropped"].values())
    outcome = build(out / "m.yaml", out / "build")
    assert not outcome.failed, outcome.failed
    return outcome.receipts["one"]["kept"]


def mapping(name: str):
    """The same mapping as a function of one row; None for a row that a filter drops."""
    _, query, said = SOURCES[name]
    positive, label = (re.search(rf"{key}: (\w+)}}", said) for key in ("positive", "label"))
    words = re.compile(r"[^\w]+")

    def form(text: str) -> str:
        return words.sub(" ", unicodedata.normalize("NFKC", text).lower()).strip()

    def one(row: dict) -> dict | None:
        made = {"query": row[query]}
        if positive:
            made["positive"] = row[positive[1]]
        elif "classification" in said:
            given = str(row[label[1]])
            made |= {"positive": LABELS[given], "negative": LABELS["1" if given == "0" else "0"], "label": given}
        else:
            made["label"] = str(row[label[1]])
        texts = [made["query"], made["positive"]] if positive else [made["query"]]
        short = any(len(text.strip()) < 3 for text in texts)
        return None if short or (positive and form(texts[0]) == form(texts[1])) else made

    return one


def peer(name: str, path: Path, out: Path, batched: bool = False) -> int:
    """`datasets`: load, map, filter, to_parquet; return the rows kept."""
    import datasets

    ending, one = SOURCES[name][0], mapping(name)
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if ending == "tsv" else {}
    kind = {"jsonl": "json", "tsv": "csv"}.get(ending, ending)
    data = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(out / "cache"), **options)

    def many(rows: dict) -> dict:
        made = [one(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
        kept = [row for row in made if row]
        return {key: [row[key] for row in kept] for key in (kept[0] if kept else ())}

    if batched:
        data = data.map(many, batched=True, remove_columns=data.column_names)
    else:
        nothing = dict.fromkeys(
            one({key: "abc 0" if isinstance(value, str) else value for key, value in data[0].items()}) or {}, None
        )
        data = data.map(lambda row: one(row) or nothing, remove_columns=data.column_names)
        data = data.filter(lambda row: row["query"] is not None)
    data.to_parquet(str(out / "out.parquet"))
    return len(data)


def by_hand(name: str, path: Path, out: Path) -> int:
    """The same mapping and filters as a polars query; return the rows kept."""
    import polars as pl

    ending, query, said = SOURCES[name]
    positive, label = (re.search(rf"{key}: (\w+)}}", said) for key in ("positive", "label"))
    if ending == "jsonl":
        rows = pl.scan_ndjson(path)
    elif ending == "parquet":
        rows = pl.scan_parquet(path)
    else:
        tsv = ending == "tsv"
        rows = pl.scan_csv(path, separator="\t" if tsv else ",", quote_char=None if tsv else '"', infer_schema=False)

    def form(text: pl.Expr) -> pl.Expr:
        return text.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[^\w]+", " ").str.strip_chars()

    texts = [pl.col(query).alias("query")]
    if positive:
        texts.append(pl.col(positive[1]).alias("positive"))
    elif "classification" in said:
        given = pl.col(label[1]).cast(pl.String)
        other = {"0": LABELS["1"], "1": LABELS["0"]}
        texts += [
            given.replace_strict(LABELS).alias("positive"),
            given.replace_strict(other).alias("negative"),
            given.alias("label"),
        ]
    else:
        texts.append(pl.col(label[1]).cast(pl.String).alias("label"))
    kept = rows.select(texts).filter(pl.col("query").str.strip_chars().str.len_chars() >= 3)
    if positive:
        kept = kept.filter(
            pl.col("positive").str.strip_chars().str.len_chars() >= 3, form(pl.col("query")) != form(pl.col("positive"))
        )
    kept.sink_parquet(out / "out.parquet")
    return pl.scan_parquet(out / "out.parquet").select(pl.len()).collect().item()


def timed(which: str, name: str, path: Path) -> tuple[float, int, float]:
    """Seconds, rows kept, and peak memory in MB above what the imports took."""
    import datasets

    import curation.build.build  # noqa: F401

    datasets.disable_caching()
    datasets.disable_progress_bars()
    work = {
        "build": ours,
        "shape": partial(ours, whole=False),
        "map": peer,
        "batched": partial(peer, batched=True),
        "polars": by_hand,
    }[which]
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        kept = work(name, path, Path(folder))
        seconds = time.process_time() - start
    return seconds, kept, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def compare(name: str, copies: int = 8, rounds: int = 3) -> None:
    """Print one line: our first stage, the whole build, `map`, `map(batched=True)`, polars by hand."""
    found: dict[str, list[tuple[float, int, float]]] = {"shape": [], "build": [], "map": [], "batched": [], "polars": []}
    with tempfile.TemporaryDirectory() as folder:
        path, count = write(name, Path(folder), copies)
        for _ in range(rounds):
            for which, got in found.items():
                with get_context("spawn").Pool(1) as pool:
                    got.append(pool.apply(timed, (which, name, path)))
    seconds = {which: statistics.median(one[0] for one in got) for which, got in found.items()}
    rates = ", ".join(
        f"{which} {count / seconds[which]:,.0f} rows/s ({seconds[which]:.2f} s, {got[0][1]:,} kept, +{got[0][2]:.0f} MB)"
        for which, got in found.items()
    )
    ratios = (
        f"{ours} " + ", ".join(f"{seconds[peer] / seconds[ours]:.2f}x {peer}" for peer in ("map", "batched", "polars"))
        for ours in ("shape", "build")
    )
    print(f"{name}, {count:,} rows: {rates}: {'; '.join(ratios)}", flush=True)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    wanted = [word for word in sys.argv[1:] if not word.isdigit()]
    for dataset in SOURCES:
        if not wanted or dataset.split()[0] in wanted:
            compare(dataset, *numbers[:2])
