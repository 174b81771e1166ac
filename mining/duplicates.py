"""Which passages cannot be negatives of a query, whatever they score: duplicates, copies, and passages with the answer.

- A duplicate: a passage in the same group as the query or as one of its positives (`group` in the curated tables).
- A copy: a passage that shares most of its word 3-grams with a positive. A character of a script without spaces counts as
  a word. A text of fewer than three words is one shingle, so it is a copy of an equal text only.
- A passage that contains an answer of the query word for word (`fields: {answer: ...}`).
- A passage of the document that a positive is from (`fields: {positive_id: ...}`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from curation.core import tables
from curation.core.text import normalised
from mining.kernels import shared_parts
from mining.lists import Ragged, contains, ragged

_SPACELESS = (
    r"\x{E00}-\x{EFF}\x{1000}-\x{109F}\x{1780}-\x{17FF}\x{3040}-\x{30FF}\x{3400}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{3FFFF}"
)
WORD = rf"[{_SPACELESS}]|[\S--[{_SPACELESS}]]+"  # in a normalised text: a word, or a character of a script without spaces
ANSWERS = "answers.parquet"  # in a curated source: `key` of a query, `answers` as a list
OWN_DOCUMENTS = "own_documents.parquet"  # in a curated source: `key` of a query, `documents`: ids of those of its positives
DOCUMENTS = "documents.parquet"  # `document`: its id, `passages`: keys of its passages
PROBES = 6  # shingles looked up for every pair; a copy (.8 or more) has none of these once in 15,000 times
TEXTS = 1 << 14  # texts shingled at once
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Duplicates:
    """The groups of a source's passages and queries, as arrays."""

    groups: np.ndarray  # (passages,) int64 by pid: the number of the group; -1 where a text has no duplicate
    query_groups: np.ndarray  # (rows,) int64, in the same numbers
    query_pids: np.ndarray  # (rows,) int64: the passage with the query's own text; -1 where there is none
    forbidden: Ragged  # per row: `group_or_pid` of its positives and of the positives of queries in its group

    def same_query(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return (q, k) bool: whether a candidate is the query of its row, or a duplicate of it."""
        groups = self.query_groups[rows, None]
        return np.asarray((ids == self.query_pids[rows, None]) | ((groups >= 0) & (self.groups[ids] == groups)))

    def same_group(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return (q, k) bool: whether a candidate duplicates a positive of its row, or of a row whose query is a duplicate."""
        return contains(self.forbidden.rows(rows), group_or_pid(self.groups, ids))


def read_duplicates(curated: Path, hide: bool = False, promoted: Ragged | None = None) -> Duplicates:
    """Read the groups of a curated source; `promoted` are further positives of each row.

    With `hide`, only the first positive of each row is known.
    """
    passages = tables.read_table(curated, "passages", ["pid", "key", "group"])
    pairs = tables.read_table(curated, "pairs", ["key", "group", "positives"]).with_row_index("row")
    if hide:
        pairs = pairs.with_columns(pl.col("positives").list.head(1))
    if promoted is not None:
        further = tables.lists(promoted.ids.astype(np.uint32), np.diff(promoted.starts), None)
        pairs = pairs.with_columns(pl.concat_list("positives", further))
    query_pids = pairs.select("key").join(passages.select("key", "pid"), on="key", how="left", maintain_order="left")["pid"]
    # the positives of each row, and those of all rows whose query is in the same group
    grouped = pairs.drop_nulls("group")
    others = grouped.select("group", "row").join(grouped.select("group", "positives"), on="group").select("row", "positives")
    lists = pl.concat([pairs.select("row", "positives"), others]).explode("positives", empty_as_null=False, keep_nulls=False)
    lists = lists.unique().sort("row", "positives").group_by("row", maintain_order=True).agg("positives")
    positives = ragged(pairs.select("row").join(lists, on="row", how="left", maintain_order="left")["positives"])
    groups, query_groups, own = (
        column.cast(pl.Int64).fill_null(-1).to_numpy() for column in (passages["group"], pairs["group"], query_pids)
    )
    return Duplicates(groups, query_groups, own, Ragged(positives.starts, group_or_pid(groups, positives.ids)))


def group_or_pid(groups: np.ndarray, pids: np.ndarray) -> np.ndarray:
    """Return a number that is equal for duplicates: that of the group, or for a passage without a group one of its own."""
    return np.where(groups[pids] >= 0, groups[pids], int(groups.max(initial=-1)) + 1 + pids)


def shingles_of(texts: Iterable[str], pids: np.ndarray) -> Ragged:
    """Return the word 3-grams of texts by pid: sorted distinct codes, `pid << 32 | hash`, 8 bytes per word of the corpus.

    Args:
        texts: one for each pid.
        pids: (n,) ascending; other pids have no shingles.
    """
    rest, parts = iter(texts), [np.empty(0, np.uint64)]
    for first in range(0, len(pids), TEXTS):
        some = pids[first : first + TEXTS]
        words = normalised(pl.Series([next(rest) for _ in some], dtype=pl.String)).fill_null("").str.extract_all(WORD)
        counts = words.list.len().to_numpy().astype(np.int64)
        hashes = words.explode().drop_nulls().hash(seed=1).to_numpy()
        row = np.repeat(np.arange(len(counts)), counts)
        ends = counts.cumsum()[row]  # of the text that each word is in
        # mix the hash of each word with those of the next two words of its text
        mixed = hashes * _MIX[0]
        for step in (1, 2):
            later = np.arange(len(hashes)) + step
            mixed += np.where(later < ends, hashes[np.minimum(later, len(hashes) - 1)], np.uint64(step)) * _MIX[step]
        whole = np.arange(len(hashes)) + 2 < ends
        whole |= (np.arange(len(hashes)) == ends - counts[row]) & (counts[row] < 3)  # a short text is one shingle
        parts.append(np.unique((mixed[whole] >> _HALF) | (some[row[whole]].astype(np.uint64) << _HALF)))
    codes = np.concatenate(parts)
    lengths = np.bincount((codes >> _HALF).astype(np.int64), minlength=int(pids.max(initial=-1)) + 1)
    return Ragged(np.concatenate([[0], lengths.cumsum()]), codes)


def overlaps(shingles: Ragged, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (n,) float32: the share of the smaller text's shingles that the other has too, for pids left[i], right[i].

    The result is 0 where the other text has none of the first `PROBES` shingles, by hash, of the smaller one.
    """
    return np.asarray(shared_parts(shingles.starts, shingles.ids, left, right, PROBES))


def read_answers(curated: Path) -> pl.DataFrame:
    """Return the answers of a source: `key` of the query and `answer` as normalised words; empty where it has no answers."""
    if not (curated / ANSWERS).exists():
        return pl.DataFrame(schema={"key": pl.Binary, "answer": pl.String})
    lists = tables.read_parquet(curated / ANSWERS).explode("answers", empty_as_null=False)
    return lists.select("key", _in_words(lists["answers"]).alias("answer")).drop_nulls().unique(maintain_order=True)


@dataclass(frozen=True)
class OwnDocuments:
    """Which documents the positives of queries are from, and their passages."""

    of_query: pl.DataFrame  # key, document
    passages: pl.DataFrame  # document, pid

    def contain(self, keys: pl.Series, ids: np.ndarray) -> np.ndarray:
        """Return (q, k) bool: whether a candidate is a passage of a document of its row's positives; `keys` (q,) of queries."""
        asked = pl.DataFrame({"row": np.arange(len(keys)), "key": keys})
        both = asked.join(self.of_query, on="key").join(self.passages, on="document").select("row", "pid").unique()
        lists = both.sort("row", "pid").group_by("row", maintain_order=True).agg("pid")
        return contains(ragged(asked.join(lists, on="row", how="left", maintain_order="left")["pid"].fill_null([])), ids)


def read_own_documents(curated: Path) -> OwnDocuments | None:
    """Return the documents of a source's positives; None if it names none."""
    if not (curated / OWN_DOCUMENTS).exists():
        return None
    pids = tables.read_table(curated, "passages", ["pid", "key"]).rename({"key": "passages"})
    passages = tables.read_parquet(curated / DOCUMENTS).explode("passages").join(pids, on="passages").select("document", "pid")
    of_query = tables.read_parquet(curated / OWN_DOCUMENTS).explode("documents").rename({"documents": "document"})
    return OwnDocuments(of_query.drop_nulls(), passages)


def contains_answer(
    answers: pl.DataFrame, keys: pl.Series, ids: np.ndarray, texts: Callable[[np.ndarray], Iterable[str]]
) -> np.ndarray:
    """Return (q, k) bool: whether a passage contains an answer of its row's query, whatever the letter case and punctuation.

    Args:
        answers: from `read_answers`.
        keys: (q,) keys of the rows' queries.
        ids: (q, k) pids; -1 marks an empty place.
        texts: returns the texts of ascending pids.
    """
    found = np.zeros(ids.shape, bool)
    asked = pl.DataFrame({"key": keys}).with_row_index("row").join(answers, on="key").select("row", "answer")
    rows = asked["row"].unique().sort().to_numpy()
    if not ids.size or not len(rows):
        return found
    needed = np.unique(np.maximum(ids[rows], 0))
    passages = pl.DataFrame({"pid": needed, "text": _in_words(pl.Series(list(texts(needed)), dtype=pl.String))})
    columns = np.arange(ids.shape[1])
    table = pl.DataFrame(
        {"row": np.repeat(rows, len(columns)), "column": np.tile(columns, len(rows)), "pid": ids[rows].reshape(-1)}
    )
    both = table.join(asked, on="row").join(passages, on="pid")
    hits = both.filter(pl.col("text").str.contains(pl.col("answer"), literal=True))
    found[hits["row"].to_numpy(), hits["column"].to_numpy()] = True
    return found


def _in_words(texts: pl.Series) -> pl.Series:
    """Return texts as words, each with a space before and after it, so that only whole words match; null without words."""
    words = normalised(texts).str.extract_all(WORD).list.join(" ")
    return pl.select(pl.when(words != "").then(" " + words + " ")).to_series()
