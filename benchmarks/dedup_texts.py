"""Texts to find near-duplicates in, real ones and such as are made of them, and which of them truly have one."""

from __future__ import annotations

import csv
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "curation" / "clean"))

from shingle_oracle import shingle

from curation.clean.shingles import CHARS, EXACT, WIDTH, WORDS, WORDS_ONLY
from curation.core.record import draws
from curation.core.text import normalised

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LEAST_CHARS = 40
BORDER = 1 << 40  # added to the number of a text taken as a shorter one


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


def synthesised(count: int, batch: int = 1 << 16) -> Iterator[pl.Series]:
    """Yield batches of texts made of words of real ones, as long as these up to 64 words; one in twenty is an edit of another."""
    texts = [text.split() for text in corpus(100_000)]
    words = pl.Series([word for text in texts for word in text])
    lengths = np.array([min(max(1, len(text)), 64) for text in texts])
    for first in range(0, count, batch):
        numbers = np.arange(first, min(first + batch, count))
        ends = np.cumsum(lengths[draws(1, "length", numbers) % len(lengths)])
        chosen = words.gather(draws(1, f"words {first}", np.arange(ends[-1])) % len(words))
        lists = pa.LargeListArray.from_arrays(pa.array(np.append(0, ends)), chosen.to_arrow(compat_level=pl.CompatLevel.oldest()))
        made = pl.Series(lists).list.join(" ")
        places = np.arange(len(made))
        edited = places[1::20] - 1  # what the second of every twenty is an edit of
        places[1::20] = len(made) + np.arange(len(edited))
        yield pl.concat([made, made.gather(edited).str.replace(r" ?\S*$", " changed")]).gather(places)


def truth(texts: pl.Series, threshold: float) -> set[int]:
    """Return the texts that have a near-duplicate: texts of Jaccard >= t share one of their rarest (1 - t) n + 1 shingles."""
    frames, first = [], 0
    for part in (texts.slice(start, 5000) for start in range(0, len(texts), 5000)):
        forms = normalised(part).fill_null("")
        made = shingle(forms)
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
        border = forms.filter(pl.Series((made.kinds == WORDS) & (np.diff(made.starts) <= WORDS_ONLY - WIDTH[WORDS])))
        again = shingle(border, with_chars=True)
        owner = first + np.flatnonzero((made.kinds == WORDS) & (np.diff(made.starts) <= WORDS_ONLY - WIDTH[WORDS]))
        owner = BORDER + np.repeat(owner, np.diff(again.starts))
        frames.append(pl.DataFrame({"text": owner, "kind": np.full(len(owner), CHARS, np.uint8), "hash": again.hashes}).unique())
        first += len(part)
    long = pl.concat(frames).with_columns(pl.len().over("hash").alias("often"), pl.len().over("text").alias("size"))
    rank = pl.struct("often", "hash").rank("ordinal").over("text")
    rare = long.filter(rank <= ((1 - threshold) * pl.col("size") + 1e-9).floor() + 1).select("text", "kind", "hash", "size")
    met = rare.join(rare, on=["hash", "kind"], suffix="_b").filter(pl.col("text") < pl.col("text_b"))
    sizes = pl.min_horizontal("size", "size_b") >= threshold * pl.max_horizontal("size", "size_b")
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
        if both >= threshold * (n + m - both) and min(a, b) < BORDER:
            found |= {a % BORDER, b % BORDER}
    return found
