"""Tuples of texts to tables of ids: texts stand once, tuples hold their numbers.

Tuples come in frames, and come again: once to be numbered, of which keys are kept and no texts, then for each table.
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
    """What every text of a source is called."""

    roles: dict[str, np.ndarray]  # role -> the number (i32) of each text that stands in it, frame after frame
    keys: pl.Series  # of each number
    groups: pl.Series  # u32, null for a text without a duplicate
    passages: int  # the numbers below are passages
    corpus: pl.Series


class _Met(NamedTuple):
    """The texts of a frame: numbers of its own for each role, and keys and forms of these."""

    roles: dict[str, np.ndarray]
    keys: pl.Series
    forms: pl.Series


def number(frames: Frames, corpus: pl.Series, task: str, families: pl.DataFrame | None = None) -> Numbers:
    """Number the texts of a source: those are the same whose keys are.

    Passages come in order of first appearance: positives, given negatives, the rest of a corpus. Those of a
    clustering are all its texts, as each may be another's positive or negative. Duplicates are texts of one family
    (`families`: text, family), or without these, of one normalised form.
    """
    met = [_met({side: _long(frame, side)["text"] for side in SIDES} | {"query": frame["query"]}, families) for frame in frames()]
    met.append(_met({"corpus": corpus}, families))
    codes, keys = numbered(pl.concat([one.keys for one in met]))
    forms = pl.concat([one.forms for one in met]).gather(np.unique(codes, return_index=True)[1])
    starts = np.cumsum([0, *(len(one.keys) for one in met)])
    order = [*(["query"] if task == "clustering" else []), *SIDES, "corpus", "query"]
    parts = {
        role: [codes[start + one.roles[role]] for start, one in zip(starts[:-1], met, strict=True) if role in one.roles]
        for role in order
    }
    by_role = {role: np.concatenate(some) for role, some in parts.items()}
    place = _first_places(np.concatenate([by_role[role] for role in order]), len(keys))
    called = np.argsort(np.argsort(place, kind="stable"), kind="stable").astype(np.int32)
    roles = {role: called[some] for role, some in by_role.items()}
    passages = int(max((roles[role].max() for role in order[:-1] if len(roles[role])), default=-1)) + 1
    at = np.argsort(called, kind="stable")
    groups = _groups(forms.gather(at), np.concatenate([roles["query"], np.arange(passages)]))
    return Numbers(roles, keys.gather(at).alias("key"), groups, passages, corpus)


def _met(roles: dict[str, pl.Series], families: pl.DataFrame | None) -> _Met:
    numbers, texts = numbered(pl.concat([texts.alias("text") for texts in roles.values()]))
    ends = np.cumsum([len(some) for some in roles.values()])
    keys = _digests(composed(texts))
    if families is None:
        forms = _digests(normalised(texts))
    else:
        forms = pl.DataFrame({"text": texts}).join(families, on="text", how="left", maintain_order="left")["family"]
    return _Met(dict(zip(roles, np.split(numbers, ends[:-1]), strict=True)), keys, forms)


def _digests(texts: pl.Series) -> pl.Series:
    """Return xxh3-128 of each text, null for null."""
    given = texts.cast(pl.Binary).to_list()
    return pl.Series([None if text is None else xxhash.xxh3_128_digest(text) for text in given], dtype=pl.Binary)


def _first_places(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return where each number below `count` stands first, (count,) i64; behind all others where it does not."""
    place = np.full(count, len(numbers))
    place[numbers[::-1]] = np.arange(len(numbers))[::-1]  # its first one, as the last to be written
    return place


def _groups(same: pl.Series, order: np.ndarray) -> pl.Series:
    """Return a group (u32) for each text that has a duplicate, else null; numbers count up as their texts come in `order`."""
    frame = pl.DataFrame({"same": same, "place": _first_places(order, len(same))})
    shared = pl.col("same").is_not_null() & pl.col("same").is_duplicated()
    first = pl.when(shared).then(pl.col("place").min().over("same"))
    return frame.select((first.rank("dense") - 1).cast(pl.UInt32).alias("group"))["group"]


def _long(frame: pl.DataFrame, side: str) -> pl.DataFrame:
    """Return at, text: one line a text of the list column `side`."""
    long = frame.with_row_index("at").select("at", pl.col(side).alias("text"))
    return long.explode("text", empty_as_null=False).drop_nulls("text")


def pairs_of(frames: Frames, numbers: Numbers) -> Iterator[pl.DataFrame]:
    """Return PAIRS frame by frame. No negative of a tuple is among its positives, and each stands once."""
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
    """Return PASSAGES part by part, the first spelling of each; there is at least one part."""
    start = 0
    for role in (*(["query"] if task == "clustering" else []), *SIDES, "corpus"):
        done = 0
        for texts in _in_role(frames, numbers, role) if start < numbers.passages else ():
            called = numbers.roles[role][done : done + len(texts)]
            done += len(texts)
            new = np.flatnonzero(called > np.maximum.accumulate(np.concatenate([[start - 1], called[:-1]])))
            at = slice(start, start + len(new))
            table = pl.DataFrame([texts.gather(new).alias("text"), numbers.keys[at], numbers.groups[at]])
            yield table.with_row_index("pid", start).select(list(PASSAGES)).cast(PASSAGES)
            start += len(new)
    if not start:
        yield pl.DataFrame(schema=PASSAGES)


def _in_role(frames: Frames, numbers: Numbers, role: str) -> Iterator[pl.Series]:
    if not len(numbers.roles[role]):
        return
    if role == "corpus":
        yield numbers.corpus
    else:
        yield from (frame["query"] if role == "query" else _long(frame, role)["text"] for frame in frames())
