"""From tuples of texts to tables of ids: each text is stored once, and tuples hold its number.

Tuples are read in frames, several times: once to number the texts, for which their keys are held in memory and not the
texts, and then once for each table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import polars as pl
import xxhash

from curation.core.record import PAIRS, PASSAGES, composed
from curation.core.text import normalised, numbered

SIDES = ("positives", "negatives")
Frames = Callable[[], Iterator[pl.DataFrame]]  # TUPLES, the same each time


class Numbers(NamedTuple):
    """The number of every text of a source."""

    roles: dict[str, np.ndarray]  # role -> the number (i32) of each text in that role, frame after frame
    keys: pl.Series  # by number
    groups: pl.Series  # u32, null for a text without a duplicate
    passages: int  # smaller numbers are passages, the others queries
    corpus: pl.Series


class _FrameTexts(NamedTuple):
    """The texts of one frame."""

    roles: dict[str, np.ndarray]  # role -> the number of each text, within this frame
    keys: pl.Series  # by number
    forms: pl.Series  # of equal ones, texts are duplicates


def number(frames: Frames, corpus: pl.Series, task: str, families: pl.DataFrame | None = None) -> Numbers:
    """Number the texts of a source; texts with equal keys get one number.

    Passages are numbered in the order in which they first occur: positives, given negatives, the rest of a corpus. In a
    clustering source every text is a passage, because it may be a positive or negative of another. Duplicates get one
    group: texts of one family (`families`: text, family), or without `families` of one normalised form.
    """
    met = [
        _texts_of_frame({side: _long(frame, side)["text"] for side in SIDES} | {"query": frame["query"]}, families)
        for frame in frames()
    ]
    met.append(_texts_of_frame({"corpus": corpus}, families))

    # one number for each key, in any order at first
    codes, keys = numbered(pl.concat([one.keys for one in met]))
    forms = pl.concat([one.forms for one in met]).gather(np.unique(codes, return_index=True)[1])
    starts = np.cumsum([0, *(len(one.keys) for one in met)])
    order = [*(["query"] if task == "clustering" else []), *SIDES, "corpus", "query"]
    parts = {
        role: [codes[start + one.roles[role]] for start, one in zip(starts[:-1], met, strict=True) if role in one.roles]
        for role in order
    }
    by_role = {role: np.concatenate(some) for role, some in parts.items()}

    # then in the order in which texts first occur
    place = _first_places(np.concatenate([by_role[role] for role in order]), len(keys))
    renamed = np.argsort(np.argsort(place, kind="stable"), kind="stable").astype(np.int32)
    roles = {role: renamed[some] for role, some in by_role.items()}
    passages = int(max((roles[role].max() for role in order[:-1] if len(roles[role])), default=-1)) + 1
    at = np.argsort(renamed, kind="stable")

    # groups of duplicates (u32), numbered in the order of queries, then passages; null for a text without a duplicate
    forms = forms.gather(at)
    places = _first_places(np.concatenate([roles["query"], np.arange(passages)]), len(forms))
    frame = pl.DataFrame({"same": forms, "place": places})
    duplicate = pl.col("same").is_not_null() & pl.col("same").is_duplicated()
    first = pl.when(duplicate).then(pl.col("place").min().over("same"))
    groups = frame.select((first.rank("dense") - 1).cast(pl.UInt32).alias("group"))["group"]
    return Numbers(roles, keys.gather(at).alias("key"), groups, passages, corpus)


def _texts_of_frame(roles: dict[str, pl.Series], families: pl.DataFrame | None) -> _FrameTexts:
    numbers, texts = numbered(pl.concat([texts.alias("text") for texts in roles.values()]))
    ends = np.cumsum([len(some) for some in roles.values()])
    keys = _digests(composed(texts))
    if families is None:
        forms = _digests(normalised(texts))
    else:
        forms = pl.DataFrame({"text": texts}).join(families, on="text", how="left", maintain_order="left")["family"]
    return _FrameTexts(dict(zip(roles, np.split(numbers, ends[:-1]), strict=True)), keys, forms)


def _digests(texts: pl.Series) -> pl.Series:
    """Return xxh3-128 of each text, null for null."""
    given = texts.cast(pl.Binary).to_list()
    return pl.Series([None if text is None else xxhash.xxh3_128_digest(text) for text in given], dtype=pl.Binary)


def _first_places(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return where each number below `count` first occurs, (count,) i64; the length of `numbers` if it does not occur."""
    place = np.full(count, len(numbers))
    place[numbers[::-1]] = np.arange(len(numbers))[::-1]  # written from the end, so the first occurrence is written last
    return place


def _long(frame: pl.DataFrame, side: str) -> pl.DataFrame:
    """Return at, text: one row per text of the list column `side`."""
    long = frame.with_row_index("at").select("at", pl.col(side).alias("text"))
    return long.explode("text", empty_as_null=False).drop_nulls("text")


def pairs_of(frames: Frames, numbers: Numbers) -> Iterator[pl.DataFrame]:
    """Yield PAIRS frame by frame. No negative of a tuple is among its positives, and no passage occurs twice."""
    done = dict.fromkeys((*SIDES, "query"), 0)
    for frame in frames():
        pids = {}
        for side in SIDES:
            at = _long(frame, side)["at"]
            some = numbers.roles[side][done[side] : done[side] + len(at)]
            done[side] += len(at)
            pids[side] = pl.DataFrame([at, pl.Series("pid", some).cast(pl.UInt32)]).unique(maintain_order=True)
        pids["negatives"] = pids["negatives"].join(pids["positives"], on=["at", "pid"], how="anti", maintain_order="left")
        asked = numbers.roles["query"][done["query"] : done["query"] + len(frame)]
        done["query"] += len(frame)
        pairs = frame.drop(SIDES).with_row_index("at").with_columns(numbers.keys.gather(asked), numbers.groups.gather(asked))
        for side, long in pids.items():
            lists = long.group_by("at", maintain_order=True).agg(pl.col("pid").alias(side))
            pairs = pairs.join(lists, on="at", how="left", maintain_order="left").with_columns(pl.col(side).fill_null([]))
        yield pairs.select(list(PAIRS)).cast(PAIRS)


def passages_of(frames: Frames, numbers: Numbers, task: str) -> Iterator[pl.DataFrame]:
    """Yield PASSAGES part by part, each text as it is first spelled; there is at least one part."""

    def texts_of(role: str) -> Iterator[pl.Series]:
        if role == "corpus":
            yield numbers.corpus
        else:
            yield from (frame["query"] if role == "query" else _long(frame, role)["text"] for frame in frames())

    start = 0
    for role in (*(["query"] if task == "clustering" else []), *SIDES, "corpus"):
        done = 0
        for texts in texts_of(role) if start < numbers.passages and len(numbers.roles[role]) else ():
            some = numbers.roles[role][done : done + len(texts)]
            done += len(texts)
            new = np.flatnonzero(some > np.maximum.accumulate(np.concatenate([[start - 1], some[:-1]])))
            at = slice(start, start + len(new))
            table = pl.DataFrame([texts.gather(new).alias("text"), numbers.keys[at], numbers.groups[at]])
            yield table.with_row_index("pid", start).select(list(PASSAGES)).cast(PASSAGES)
            start += len(new)
    if not start:
        yield pl.DataFrame(schema=PASSAGES)
