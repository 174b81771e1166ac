"""Decontamination: datatrove's n-gram filter and ours on the same texts, in turns; MB a CPU-second, and what each rule catches.

    python benchmarks/decontaminate.py PEER_PYTHON [TEXTS] [PEER_TEXTS] [ROUNDS]

PEER_PYTHON is an interpreter with datatrove. It runs `NGramsDecontFilter` as shipped (13-grams, its English tokenizer), index
made beforehand, on PEER_TEXTS of the texts; ours does the same texts and all of them, normalising included. One thread each.

Evaluation set: 5,000 questions, 5,000 sentences (SQuAD v1) and 3,000 news. Hard negatives: other questions about the same
articles, other sentences of them, other news. Edited: one word in its place another word of the set. Embedded: between two hard
negatives, or in a text of our own for news.
"""

from __future__ import annotations

import csv
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
from dedup_texts import corpus

from curation.clean import overlap_index, overlap_lookup
from curation.clean.overlap_texts import DOCUMENT, EVAL_TEXTS, QUERY
from curation.core.text import normalised

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TEXTS, PEER_TEXTS, ROUNDS = 131_000, 20_000, 3
SIZES = {"questions": 5000, "sentences": 5000, "news": 3000}
PLANTS = 2000
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.text import ngrams, simplify_text
work = NGramsDecontFilter("unused", config=NGramsDecontConfig(n_grams=13))
def grams(text):
    words = work.tokenizer.word_tokenize(simplify_text(text, work.config.norm_config))
    return map(work.hash_func, map(" ".join, ngrams(words, 13)))
job = json.load(open(sys.argv[1]))
work._index_hashes = {gram: "set" for text in job["evaluation"] for gram in grams(text)}
for name, texts in job["sets"].items():
    documents = [Document(text=text, id=str(at)) for at, text in enumerate(texts)]
    started = time.process_time()
    caught = [work.filter(document) is not True for document in documents]
    print(json.dumps([name, time.process_time() - started, sum(caught)]), flush=True)
"""


def lines_of(*names: str) -> list[str]:
    """Return the distinct texts of files, shuffled; texts of equal normalised form count once."""
    texts = [line.strip() for name in names for line in (DATA / name).read_text().splitlines()]
    return shuffled(texts)


def shuffled(texts: list[str]) -> list[str]:
    """Return texts of distinct form in an order that is always the same."""
    once = list({form: text for form, text in zip(normalised(pl.Series(texts)), texts, strict=True) if form}.values())
    random.Random(1).shuffle(once)
    return once


def news() -> list[str]:
    """Return the descriptions of AG News."""
    (path,) = (DATA / "ag_news_test").glob("*.csv")
    return shuffled([row[-1] for row in csv.reader(path.open()) if len(row) > 1])


def plants(texts: list[str], hard: list[str]) -> dict[str, list[str]]:
    """Return copies of evaluation texts: exact, edited, embedded."""
    draw = random.Random(2)
    words = [word for text in texts for word in text.split()]

    def edited(text: str) -> str:
        parts = text.split()
        at = draw.randrange(len(parts))
        other = next(word for word in iter(lambda: draw.choice(words), None) if word != parts[at])
        return " ".join([*parts[:at], other, *parts[at + 1 :]])

    some = draw.sample(texts, min(PLANTS, len(texts)))
    embedded = [f"{draw.choice(hard)} {text} {draw.choice(hard)}" for text in some]
    return {
        "exact": some,
        "one word changed": [edited(text) for text in some],
        "embedded": embedded,
        "hard negatives": hard[:PLANTS],
    }


def timed(work: Callable[[], object]) -> float:
    """Return CPU-seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Print the figures."""
    peer, *numbers = sys.argv[1:]
    count, few, rounds = [*map(int, numbers), *(TEXTS, PEER_TEXTS, ROUNDS)[len(numbers) :]]
    pools = {
        "questions": lines_of("squad_v1_nqg/tgt-dev.txt", "squad_v1_nqg/tgt-test.txt"),
        "sentences": lines_of("squad_v1_nqg/src-dev.txt", "squad_v1_nqg/src-test.txt"),
        "news": news(),
    }
    evaluation = {name: pool[: SIZES[name]] for name, pool in pools.items()}
    sets = {
        f"{name}, {kind}": texts
        for name, pool in pools.items()
        for kind, texts in plants(evaluation[name], pool[SIZES[name] :]).items()
    }
    rows = [
        (name, str(at), QUERY if name == "questions" else DOCUMENT, t)
        for name, ts in evaluation.items()
        for at, t in enumerate(ts)
    ]
    texts = corpus(count)
    some = texts.gather_every(max(1, len(texts) // few))
    with tempfile.TemporaryDirectory() as folder:
        frame = pl.DataFrame(rows, schema=EVAL_TEXTS, orient="row")
        seconds = timed(lambda: overlap_index.write_index(Path(folder), [frame], pl.Series([], dtype=pl.String)))
        index = overlap_index.read_index(Path(folder))
        assert index
        overlap_lookup.look_up(index, some)  # compiled, or loaded, and warm
        print(f"index of {len(rows)} texts: {seconds:.2f} CPU-s")
        print(f"{len(texts)} texts, {megabytes(texts):.1f} MB; peer {megabytes(some):.2f} MB")
        speeds: dict[str, list[float]] = {"datatrove": [], "ours, the same texts": [], "ours, all": []}
        theirs: dict[str, int] = {}
        for turn in range(rounds):
            speeds["ours, all"].append(megabytes(texts) / timed(lambda: overlap_lookup.look_up(index, texts)))
            speeds["ours, the same texts"].append(megabytes(some) / timed(lambda: overlap_lookup.look_up(index, some)))
            job = {"evaluation": [row[3] for row in rows], "sets": {"speed": some.to_list(), **(sets if turn == 0 else {})}}
            (Path(folder) / "job.json").write_text(json.dumps(job))
            printed = subprocess.run([peer, "-c", PEER, f"{folder}/job.json"], capture_output=True, text=True, check=True).stdout
            for name, taken, caught in map(json.loads, printed.splitlines()):
                if name == "speed":
                    speeds["datatrove"].append(megabytes(some) / taken)
                theirs.setdefault(name, caught)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, median in medians.items():
        runs = ", ".join(f"{value:.2f}" for value in speeds[name])
        print(f"{name}: {median:.2f} MB/CPU-s ({runs}), {median / medians['datatrove']:.0f}x")
    for name, made in sets.items():
        found = overlap_lookup.look_up(index, pl.Series(made))["text"].n_unique()
        print(f"{name}: ours {found / len(made):.4f}, datatrove {theirs[name] / len(made):.4f} of {len(made)}")


def megabytes(texts: pl.Series) -> float:
    """Return the size of texts."""
    return float(texts.str.len_bytes().sum() / 1e6)


if __name__ == "__main__":
    main()
