"""The way of sources that are searched: texts to vectors, vectors to candidates, candidates to negatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from curation.core import store, tables
from curation.core.errors import BuildError
from curation.core.progress import Progress
from curation.core.record import MINED, draws
from mining import ivf
from mining.answers import answered, answers_of
from mining.candidates import Corpus, Searched, once, read, saved, search
from mining.classes import classes_of
from mining.copies import shingles_of
from mining.embeddings import Embeddings, Part, Vectors
from mining.gpu import Card, Cards, cards_of
from mining.jobs import Job
from mining.lists import Ragged, contains, ragged
from mining.models import Models
from mining.negatives import Candidates, Chosen, Rules, choose, relax, replaced
from mining.rerank import Score, chosen_with
from mining.rows import Found, padded, rescored
from mining.search import Exact
from mining.twins import Twins, twins_of

if TYPE_CHECKING:
    from mining.bm25 import Lexical

QUERIES = 4_096  # rows a block: with 1,024 numbers a vector and 120 candidates, about 60 MB
LEAST_SEEN = 100  # candidates a row that are always fetched, so that a smaller range_max searches nothing again
MOST_WIDENED = 20  # known positives that every query's search makes room for; where there are more, the rows in need
SPARE_DRAWS, MOST_DRAWS = 16, 8_192  # draws beyond four for each negative that lacks; numbers a row has of its own


class Search:
    """A source being searched. Reads candidates from disk; opens model and vectors only where some are missing."""

    def __init__(self, job: Job, models: Models, progress: Progress, hide: bool = False) -> None:
        """Take a source; with `hide` only the first positive of a row is known, the others are texts like any other."""
        self.job, self.models, self.progress, self.hide = job, models, progress, hide
        self.wanted, self.reranker, settings = job.wanted, models.reranker, job.settings
        lists = tables.read_table(job.curated, "pairs", ["positives"])["positives"]
        self.corpus_pids = lists.explode().drop_nulls().unique().sort().to_numpy().astype(np.int64)
        if self.classes:
            self.corpus_pids = np.flatnonzero(self.classes[0] >= 0)
        most = int(lists.list.len().to_numpy().max(initial=1))
        self.rows = len(lists)
        self.widest = settings.range_max + most
        self.fetched = max(settings.range_max, LEAST_SEEN) + min(most, MOST_WIDENED)
        self.digest = store.digest_of([job.searched, self.fetched])
        self.ivf = job.way == "search" and settings.index == "ivf"  # whether a large corpus is searched in part only
        self.folder = job.build / "candidates" / job.name
        self.listed = self.folder / "index" if self.ivf and len(self.corpus_pids) >= ivf.LEAST else None  # the index

    def prepare(self, frame: pl.DataFrame, number: int, rows: np.ndarray, wait: bool = True) -> Path:
        """Search for block `number`, the rows numbered `rows` (q,) of the source, unless that is done; return its folder.

        Where another process is at it: leave it alone, or wait for it.
        """
        folder = self.folder / f"{number:05d}"
        saved(folder, self.digest, lambda: self.look(frame, rows, self.fetched), wait)
        return folder

    def candidates(self, frame: pl.DataFrame, number: int, rows: np.ndarray, rules: Rules) -> Candidates:
        """Return the candidates of block `number`."""
        return self.known(frame, read(self.prepare(frame, number, rows)), rows, rules)

    def positives(self, frame: pl.DataFrame) -> Ragged:
        """Return the known positives of some rows."""
        return ragged(frame["positives"]).first() if self.hide else ragged(frame["positives"])

    def look(self, frame: pl.DataFrame, rows: np.ndarray, k: int) -> Searched:
        """Search for the k nearest passages of some rows."""
        embeddings, places, asked = self.vectors
        known = self.positives(frame)
        classes, own = (self.classes[0], self.classes[1][rows]) if self.classes else (None, None)
        corpus = Corpus(Part(embeddings, places), self.corpus_pids, self.index, self.exact, self.shingles, classes)
        reorder = self._by_words(frame["query"]) if self.job.settings.candidates != "dense" else None
        return search(embeddings[asked[rows]], known, ragged(frame["negatives"]), corpus, k, own, reorder)

    def _by_words(self, queries: pl.Series) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function that replaces candidates by those of BM25, or by the best of both rankings."""
        from mining.bm25 import fused  # bm25s: only where it is asked for

        def reorder(ids: np.ndarray) -> np.ndarray:
            found = self.lexical.nearest(queries, ids.shape[1])
            return fused(ids, found) if self.job.settings.candidates == "both" else found

        return reorder

    @cached_property
    def index(self) -> Exact:
        """The corpus by its vectors."""
        embeddings, places, asked = self.vectors
        corpus, folder = Part(embeddings, places[self.corpus_pids]), self.listed
        if folder is None:
            return self.exact(corpus)

        digest, about = store.digest_of([self.digest, ivf.FORMAT]), (self.fetched, self.job.seed, self.job.name)
        once(folder, digest, lambda part: ivf.write(part, corpus, Part(embeddings, asked), *about), wait=True)
        return ivf.Lists(corpus, folder)

    def exact(self, corpus: Vectors) -> Exact:
        """Return the exact search of a corpus, on GPUs where there are any."""
        return Cards(corpus, self.cards) if self.cards else Exact(corpus)

    @cached_property
    def cards(self) -> list[Card]:
        """The GPUs to search on."""
        return cards_of(self.job.device)

    def said(self) -> dict[str, Any]:
        """Return what a receipt tells of the search."""
        if not self.ivf:
            return {}
        receipt = (store.read_receipt(self.listed) if self.listed else None) or {}
        return {"index": {key: receipt[key] for key in ivf.SAID if key in receipt} or {"kind": "exact"}}

    @cached_property
    def lexical(self) -> Lexical:
        """The corpus by its words."""
        from mining.bm25 import Lexical

        return Lexical(self._passages(self.corpus_pids), self.corpus_pids)

    def known(self, frame: pl.DataFrame, found: Searched, rows: np.ndarray, rules: Rules) -> Candidates:
        """Return what was found for some rows, with all that the rules ask for."""
        known = self.positives(frame)
        given = ragged(frame["negatives"])  # none is a positive, by `curation.build.build.numbering`
        twins = self.twins if rules.exclude_query or rules.exclude_group or rules.distinct else None
        safe = np.maximum(found.ids, 0) if twins or rules.pick != "top" else found.ids
        return Candidates(
            found.ids,
            found.scores,
            known,
            found.positive_scores,
            given.head(self.wanted),
            found.given_scores[given.heads(self.wanted)],
            found.similarity,
            found.overlap,
            twins.same_query(safe, rows) if twins else None,
            twins.same_group(safe, rows) if twins else None,
            twins.groups[safe] if twins else None,
            draws(self.job.seed, f"{self.job.name}/pick", rows[:, None] << 32 | safe) if rules.pick != "top" else None,
            answered(self.answers, frame["key"], found.ids, self._passages) if rules.exclude_answer else None,
        )

    def fill(self, frame: pl.DataFrame, number: int, rows: np.ndarray, rules: Rules, shortage: str) -> Found:
        """Choose for a block of rows.

        sentence-transformers looks at range_max + the most positives of any query, for every query. Where one query has
        very many, only rows that found too little are looked at so far here: the same rows come out.
        """
        near = self.candidates(frame, number, rows, rules).narrowed(self.widest)
        lacking = self.wanted - np.diff(near.given.starts)
        chosen = self.choose(frame, near, lacking, rules)[1]
        seen = np.full(len(frame), min(near.ids.shape[1], len(self.corpus_pids)))
        short, filled = np.flatnonzero(chosen.found < lacking), dict[str, int]()
        if len(short):
            part, need, some = near.rows(short), lacking[short], frame[short]
            if min(self.widest, len(self.corpus_pids)) > near.ids.shape[1]:
                part = self.known(some, self.look(some, rows[short], self.widest), rows[short], rules)
                seen[short] = part.ids.shape[1]
            part, again = self.choose(some, part, need, rules)
            if shortage == "relax":
                again, filled["relax"] = relax(part, again, need, rules)
            elif shortage == "random":
                filled["random"] = self._pad(part, again, need, rows[short], some["key"], rules)
            chosen = replaced(chosen, short, again)
        found = Found(near.given, near.given_scores, chosen, MINED, near.first_scores(), seen, filled)
        graded = self.reranker and self.reranker.settings.reranker_scores
        return rescored(found, near.positives.first(), self._scorer(frame)) if graded else found

    def choose(self, frame: pl.DataFrame, near: Candidates, wanted: np.ndarray, rules: Rules) -> tuple[Candidates, Chosen]:
        """Choose up to `wanted` (q,) negatives of each row; return also the candidates, with what the reranker said of them."""
        if self.reranker is None or (rules.reranker_margin is None and rules.reranker_max_score is None):
            return near, choose(near, wanted, rules)
        return chosen_with(self._scorer(frame), near, wanted, rules)

    def _scorer(self, frame: pl.DataFrame) -> Score:
        """Return the function that has the reranker score queries of the frame with passages."""
        reranker = self.reranker
        assert reranker is not None
        queries = [reranker.asked(self.job.entry["instruction"], text) for text in frame["query"]]

        def score(rows: np.ndarray, pids: np.ndarray) -> np.ndarray:
            needed, places = np.unique(pids, return_inverse=True)
            texts = list(self._passages(needed))
            with self.progress(f"{self.job.name}: rerank", len(rows), "pairs") as advance:
                return reranker.scores(queries, rows, texts, places, advance)

        return score

    def _pad(self, part: Candidates, chosen: Chosen, need: np.ndarray, rows: np.ndarray, keys: pl.Series, rules: Rules) -> int:
        """Fill rows, in place, with passages drawn from the corpus that no filter on texts forbids; return how many."""
        lacking = need - chosen.found
        tries = SPARE_DRAWS + 4 * int(lacking.max(initial=0))
        numbers = draws(self.job.seed, f"{self.job.name}/fill", rows[:, None] * MOST_DRAWS + np.arange(tries))
        drawn = self.corpus_pids[(numbers % np.uint64(len(self.corpus_pids))).astype(np.int64)]
        bad = contains(part.positives, drawn) | contains(part.given, drawn)
        if rules.exclude_query:
            bad |= self.twins.same_query(drawn, rows)
        if rules.exclude_group:
            bad |= self.twins.same_group(drawn, rows)
        if rules.exclude_answer:
            bad |= answered(self.answers, keys, drawn, self._passages)
        if self.classes:
            bad |= self.classes[0][drawn] == self.classes[1][rows, None]
        return padded(chosen, drawn, bad, lacking)

    @cached_property
    def answers(self) -> pl.DataFrame:
        """The answers of the source's questions."""
        return answers_of(self.job.curated)

    @cached_property
    def twins(self) -> Twins:
        """Which texts count as the same."""
        return twins_of(self.job.curated, self.hide)

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The class of each passage and of each row, where negatives come from other classes."""
        return classes_of(self.job.curated) if self.job.way == "hard" else None

    @cached_property
    def shingles(self) -> Ragged:
        """What tells copies of a positive."""
        return shingles_of(self._passages(self.corpus_pids), self.corpus_pids)

    @cached_property
    def vectors(self) -> tuple[Embeddings, np.ndarray, np.ndarray]:
        """The store, with all of the source's texts in it; the place in it of each passage, and of each row's query."""
        encoder, job = self.models.encoder(), self.job
        pairs = tables.read_table(job.curated, "pairs", ["negatives"])["negatives"].explode().drop_nulls().unique()
        needed = np.union1d(self.corpus_pids, pairs.to_numpy())
        embeddings = Embeddings(job.build / "embeddings", encoder, job.settings.store)
        places = np.full(int(needed.max(initial=-1)) + 1, -1, np.int64)

        def texts() -> Iterator[str]:
            yield from map(encoder.passage, self._passages(needed))
            for frame in tables.shards(job.curated, "pairs", ["query"]):
                yield from (encoder.query(job.entry["instruction"], text) for text in frame["query"])

        with self.progress(f"{job.name}: encode", len(needed) + self.rows, "texts") as advance:
            found = embeddings.ensure(texts, advance)
        places[needed] = found[: len(needed)]
        return embeddings, places, found[len(needed) :]

    def _passages(self, needed: np.ndarray) -> Iterator[str]:
        """Return the texts of the needed passages, in order, shard by shard."""
        wanted = pl.Series("pid", needed, dtype=pl.UInt32)
        for frame in tables.shards(self.job.curated, "passages", ["pid", "text"]):
            yield from frame.filter(pl.col("pid").is_in(wanted.implode()))["text"]


def blocks(curated: Path) -> Iterator[tuple[int, int, np.ndarray, pl.DataFrame]]:
    """Return a source's rows in blocks: number of the shard, of the block, of each row (q,), and the rows; no row, one block.

    Raises:
        BuildError: a row has no positive.
    """
    number, first = 0, 0
    for shard, pairs in enumerate(tables.shards(curated, "pairs")):
        for start in range(0, max(len(pairs), 1), QUERIES):
            frame = pairs.slice(start, QUERIES)
            bare = frame.filter(frame["positives"].list.len() == 0)
            if len(bare):
                raise BuildError(curated, f"tuple '{bare['id'][0]}' has no positive", "run `curate build` again")
            yield shard, number, np.arange(first, first + len(frame)), frame
            number, first = number + 1, first + len(frame)
