"""A source being searched: its texts to vectors, vectors to candidates, candidates to negatives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from curation.core import store, tables
from curation.core.errors import listed
from curation.core.progress import Progress, silent
from curation.core.record import MINED, draws
from curation.core.vectors import Stored
from curation.engine.local import Here
from curation.engine.pool import Results, held
from mining import ivf
from mining.candidates import PAIRS, Block, Corpus, Searched, blocks, read_candidates, read_classes, search, write_candidates
from mining.duplicates import (
    Duplicates,
    OwnDocuments,
    contains_answer,
    group_or_pid,
    overlaps,
    read_answers,
    read_duplicates,
    read_own_documents,
    shingles_of,
)
from mining.embeddings import Part
from mining.gpu import Gpu, OnGpus, find_gpus
from mining.jobs import Job, Models
from mining.lists import Ragged, contains, distinct, ragged
from mining.negatives import Candidates, Chosen, Judged, Negatives, Rules, above_positives, choose, relax
from mining.rerank import Score, choose_reranked
from mining.search import Exact

if TYPE_CHECKING:
    from mining.bm25 import Bm25

PASSAGE_PLACES, QUERY_PLACES = "passages.npy", "queries.npy"  # the places of vectors, by pid and by row
SEARCH_THREADS = 4  # blocks that a worker with a GPU works on at once
LEAST_SEEN = 100  # candidates per row that are always fetched, so that a smaller range_max searches nothing again
MOST_WIDENED = 20  # known positives that the search of every row makes room for; rows with more are searched again
ALIKE = 1e-6  # scores of a reranker that differ by less than this share are equal, and cosines that differ by less
FEW_COSINES = 10  # fewer may be equal by chance
MOST_NEAR = 100  # passages
FEWEST_PASSAGES = 50  # in fewer the ranks of positives say little about a model
SPARE_DRAWS = 16  # random passages drawn beyond four for each missing negative
FILL_DRAWS_PER_ROW = 8_192  # random numbers that each row has of its own
WHOLE_CORPUS = 1_024  # passages of a corpus in which a row that draws did not fill goes through all of them


class Rows(NamedTuple):
    """Rows that a worker searches for."""

    rows: np.ndarray  # (q,) their numbers in the source, ascending
    k: int
    folder: Path  # where the worker writes what it found
    digest: str  # for the receipt


class Sent(NamedTuple):
    """A source as it is sent to workers."""

    job: Job
    hide: bool
    places: Path  # the folder with the places of the vectors, `PASSAGE_PLACES` and `QUERY_PLACES`
    vectors: Path  # the folder of the vectors
    dim: int
    kind: str


class Search:
    """A source being searched. It reads candidates from disk, and opens model and vectors only where some are missing."""

    def __init__(self, job: Job, models: Models | None, progress: Progress, hide: bool = False) -> None:
        """Take a source; with `hide`, only the first positive of a row is known and the others are ordinary passages.

        In a worker there are no models, and `vectors` is set.
        """
        self.job, self._models, self.progress, self.hide = job, models, progress, hide
        self.wanted, self.reranker, settings = job.wanted, models.reranker if models else None, job.settings
        self.shared = models is not None and not isinstance(models.workers, Here)
        positives = tables.read_table(job.curated, "pairs", ["positives"])["positives"]
        self.rows = len(positives)

        # the corpus: the source's distinct positives, all its passages, or with labels all passages of known class
        self.classes = read_classes(job.curated) if job.strategy == "search_other_classes" else None
        self.corpus_pids = positives.explode().drop_nulls().unique().sort().to_numpy().astype(np.int64)
        if self.classes:
            self.corpus_pids = np.flatnonzero(self.classes[0] >= 0)
        elif job.strategy == "search" and settings.corpus == "all":
            self.corpus_pids = np.arange(len(tables.read_table(job.curated, "passages", ["pid"])))

        # how many candidates to fetch: what the rank window needs when all known positives are among the nearest
        most = int(positives.list.len().to_numpy().max(initial=1))
        self.widest = settings.range_max + most
        self.fetched = max(settings.range_max, LEAST_SEEN, settings.positive_rank or 0) + min(most, MOST_WIDENED)
        self.digest = store.digest_of([job.searched, self.fetched])
        self.folder = job.build / "candidates" / job.name
        self.asks_for_ivf = job.strategy == "search" and settings.index == "ivf"
        self.uses_ivf = self.asks_for_ivf and len(self.corpus_pids) >= ivf.LEAST
        self.promoted: Ragged | None = None  # by row of the source, from `promote`
        self.lowest, self.highest = np.inf, -np.inf  # of the reranker's scores
        self.cosines, self.farthest, self.nearest = 0, np.inf, -np.inf  # how many candidates had one, and which
        self.far = 0  # rows whose positive is not among the nearest passages

    @property
    def models(self) -> Models:
        """The models, and the workers that use them."""
        assert self._models
        return self._models

    def prepare(self) -> None:
        """Encode and search for all blocks whose candidates are not on disk; the workers do both."""
        curated, workers = self.job.curated, self.models.workers
        counted = [(block.number, len(block.rows)) for block in blocks(curated, ["id", "positives"])]
        missing = {number: rows for number, rows in counted if not store.is_current(self._folder(number), self.digest)}
        if not missing:
            return
        one_by_one = self.job.settings.candidates != "dense"  # BM25 may not be used by several threads at once
        run: Results[Any, None]
        if isinstance(workers, Here):
            _ = self.corpus  # encodes, with a progress bar of its own, before that of the search
            threads = 1 if one_by_one else self.index.threads
            run = workers.run(self._search_block, (block for block in blocks(curated) if block.number in missing), threads)
        else:
            rows = (block for block in blocks(curated, ["id", "positives"]) if block.number in missing)
            some = (Rows(block.rows, self.fetched, self._folder(block.number), self.digest) for block in rows)
            threads = 1 if one_by_one or workers.device == "cpu" else SEARCH_THREADS
            run = workers.run(partial(_search_there, self.sent), some, threads)
        where = f" on {self.engine}" if isinstance(workers, Here) and self.engine else ""
        with self.progress(f"{self.job.name}: search{where}", self.rows, "rows") as advance:
            advance(self.rows - sum(missing.values()))
            for block, done in run:
                done()
                advance(len(block.rows))

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:05d}"

    def _search_block(self, block: Block) -> None:
        """Search for a block and write its candidates."""
        look = partial(self.write_candidates, block.frame, block.rows, self.fetched)
        store.run_stage(self._folder(block.number), self.digest, look)

    def write_candidates(self, frame: pl.DataFrame, rows: np.ndarray, k: int, folder: Path) -> dict[str, Any]:
        """Search for rows, write what was found into a folder, and return the entries of its receipt."""
        engine = {"engine": f"{self.engine}, float16 rescored in float64"} if self.engine else {}
        return write_candidates(folder, self.look(frame, rows, k)) | engine

    def look(self, frame: pl.DataFrame, rows: np.ndarray, k: int) -> Searched:
        """Search for the k nearest passages of the rows numbered `rows` (q,), which are `frame`."""
        if self.shared:  # a worker searches: it has the corpus open
            folder = self.sent.places / "rows"
            for _, done in self.models.workers.run(partial(_search_there, self.sent), [Rows(rows, k, folder, "")]):
                done()
            found = read_candidates(folder)
            shutil.rmtree(folder)  # the maps stay
            return found
        vectors, _, asked = self.vectors
        own = self.classes[1][rows] if self.classes else None
        method = self.job.settings.candidates

        def by_words(ids: np.ndarray) -> np.ndarray:
            """Replace candidates by those of BM25, or by the best of both rankings."""
            from mining.bm25 import fuse  # an optional dependency

            found = self.bm25.nearest(frame["query"], ids.shape[1])
            return fuse(ids, found) if method == "both" else found

        reorder = None if method == "dense" else by_words
        return search(vectors[asked[rows]], self.known(frame), ragged(frame["negatives"]), self.corpus, k, own, reorder)

    def known(self, frame: pl.DataFrame) -> Ragged:
        """Return the known positives of some rows."""
        positives = ragged(frame["positives"])
        return positives.head(1) if self.hide else positives

    def candidates(self, block: Block, rules: Rules) -> Candidates:
        """Return the candidates of a block, after `prepare`, with all that the rules ask about them."""
        found = read_candidates(self._folder(block.number))
        return self.with_evidence(block.frame, found, block.rows, rules)

    def with_evidence(self, frame: pl.DataFrame, found: Searched, rows: np.ndarray, rules: Rules) -> Candidates:
        """Return what was found for the rows numbered `rows` (q,), with all that the rules ask about it."""
        given = ragged(frame["negatives"])  # `curate build` leaves no positive among them
        duplicates = self.duplicates if rules.exclude_query or rules.exclude_group or rules.distinct else None
        safe = np.maximum(found.ids, 0) if duplicates or rules.pick != "top" else found.ids
        draw = draws(self.job.seed, f"{self.job.name}/pick", rows[:, None] << 32 | safe) if rules.pick != "top" else None
        return Candidates(
            found.ids,
            found.scores,
            self.known(frame),
            found.positive_scores,
            given.head(self.wanted),
            found.given_scores[given.heads(self.wanted)],
            found.similarity,
            found.overlap,
            duplicates.same_query(safe, rows) if duplicates else None,
            duplicates.same_group(safe, rows) if duplicates else None,
            duplicates.groups[safe] if duplicates else None,
            draw,
            contains_answer(self.answers, frame["key"], found.ids, self._texts) if rules.exclude_answer else None,
            promoted=self.promoted.rows(rows) if self.promoted else None,
            same_document=self.own_documents.contain(frame["key"], found.ids) if self.own_documents else None,
        )

    def choose(self, frame: pl.DataFrame, near: Candidates, wanted: np.ndarray, rules: Rules) -> tuple[Candidates, Chosen]:
        """Choose up to `wanted` (q,) negatives of each row; return also the candidates, with the reranker's scores."""
        limits = (rules.reranker_margin, rules.reranker_max_score, rules.promote, rules.uncertain)
        if self.reranker is None or all(limit is None for limit in limits):
            return near, choose(near, wanted, rules)
        return choose_reranked(self.scorer(frame), near, wanted, rules)

    def promote(self, rules: Rules, depth: int, min_score: float | None) -> dict[str, Any]:
        """Find the candidates that the reranker puts above the positives of their row, after `prepare`; count them.

        Only the nearest `depth` are promoted, and with `min_score` only those that it scores at least that: others above the
        positives are kept from being negatives, by the filter `promote`. Of farther ones that a small reranker put above the
        positive 1 in 100 was right (benchmarks/RESULTS.md).
        From then on they are known positives of that row, and of rows whose query is a duplicate of that row's query. The
        query's own text, duplicates of a positive and given negatives are never promoted. If all scores are equal, nothing is.
        """
        assert rules.promote is not None
        evidence = replace(rules, exclude_query=True, exclude_group=True)
        counts, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for block in blocks(self.job.curated):
            near = self.candidates(block, evidence).narrowed(self.widest)
            lacking = self.wanted - np.diff(near.given.starts)
            near = choose_reranked(self.scorer(block.frame), near, lacking, rules, depth)[0]
            assert near.reranked is not None
            assert near.reranked_positives is not None
            assert near.same_query is not None
            assert near.same_group is not None
            known = near.same_query | near.same_group | contains(near.positives, near.ids) | contains(near.given, near.ids)
            above = above_positives(near, rules.promote) & (near.ids >= 0) & ~known
            above[:, depth:] = False
            if min_score is not None:
                above &= near.reranked >= min_score
            counts.append(above.sum(axis=1))
            found.append(near.ids[above])
        per_row, ids = np.concatenate(counts), np.concatenate(found)
        if self.alike:
            per_row, ids = np.zeros(self.rows, np.int64), ids[:0]
        self.promoted = Ragged(np.concatenate([[0], per_row.cumsum()]), ids)
        self.duplicates = read_duplicates(self.job.curated, self.hide, self.promoted)
        return {"promoted": len(ids), "rows": int((per_row > 0).sum()), "alike": self.alike}

    def judge(self, frame: pl.DataFrame, near: Candidates, reranked: np.ndarray | None) -> Judged:
        """Return what was found about the positives of some rows; `reranked` are the reranker's scores of the known ones."""
        known, first = near.positives, near.positives.starts[:-1]
        scores = near.positive_scores[first].astype(np.float64)
        others = (near.ids >= 0) & ~contains(ragged(frame["positives"]), near.ids)
        ranks = (others & (near.scores > scores[:, None])).sum(axis=1)
        beyond = ~(near.ids == known.ids[first, None]).any(axis=1) & (ranks == others.sum(axis=1))
        more = near.promoted or Ragged(np.zeros(len(frame) + 1, np.int64), np.empty(0, np.int64))

        # the known positives of each row, then its promoted ones, each with the reranker's score
        scored = np.full(len(known.ids), np.nan, np.float32) if reranked is None else reranked
        if self.reranker and reranked is None:
            scored[first] = self.scorer(frame)(np.arange(len(frame)), known.ids[first])
        of_more = self.scorer(frame)(more.row_of_each(), more.ids) if len(more.ids) else np.empty(0, np.float32)
        order = np.argsort(np.concatenate([known.row_of_each(), more.row_of_each()]), kind="stable")
        positives = Ragged(known.starts + more.starts, np.concatenate([known.ids, more.ids])[order])
        return Judged(scores, ranks, beyond, positives, np.diff(more.starts), np.concatenate([scored, of_more])[order])

    def fill(self, block: Block, rules: Rules, shortage: str) -> Negatives:
        """Choose the negatives of a block, after `prepare`.

        sentence-transformers considers range_max candidates plus the most positives of any query, for every query. If one
        query has very many positives, only rows that found too few negatives are searched that widely here, with the same
        result.
        """
        frame, rows = block.frame, block.rows
        every = self.candidates(block, rules)
        cosines = every.scores[every.ids >= 0]
        self.cosines += len(cosines)
        self.farthest = min(self.farthest, cosines.min(initial=np.inf))
        self.nearest = max(self.nearest, cosines.max(initial=-np.inf))
        near = every.narrowed(self.widest)
        lacking = self.wanted - np.diff(near.given.starts)
        scored, chosen = self.choose(frame, near, lacking, rules)
        judged = self.judge(frame, every, scored.reranked_positives) if self.job.strategy == "search" else None
        self.far += int((judged.beyond | (judged.ranks >= self.near_limit)).sum()) if judged else 0
        seen = np.full(len(frame), min(near.ids.shape[1], len(self.corpus_pids)))

        # rows that found too few: search wider where that finds more, then fill them as `shortage` says
        short, filled = np.flatnonzero(chosen.found < lacking), dict[str, int]()
        if len(short):
            part, need, some = near.rows(short), lacking[short], frame[short]
            if min(self.widest, len(self.corpus_pids)) > near.ids.shape[1]:
                part = self.with_evidence(some, self.look(some, rows[short], self.widest), rows[short], rules)
                seen[short] = part.ids.shape[1]
            part, again = self.choose(some, part, need, rules)
            if shortage == "relax":
                again, filled["relax"] = relax(part, again, need, rules)
            elif shortage == "random":
                filled["random"] = self._fill_at_random(part, again, need, rows[short], some["key"], rules)
            width = again.ids.shape[1]
            chosen.ids[short, :width], chosen.scores[short, :width] = again.ids, again.scores
            chosen.ranks[short, :width], chosen.found[short] = again.ranks, again.found
            for name, counts in again.removed.items():
                chosen.removed[name][short] = counts

        first_scores = near.positive_scores[near.positives.starts[:-1]]
        found = Negatives(near.given, near.given_scores, chosen, MINED, first_scores, seen, filled, judged)
        if not (self.reranker and self.reranker.replaces_scores):
            return found

        # the reranker's scores replace the cosines of the first positives, given negatives and chosen negatives
        first, given = near.positives.head(1), near.given
        row, column = np.nonzero(np.arange(chosen.ids.shape[1]) < chosen.found[:, None])
        each = [(first.row_of_each(), first.ids), (given.row_of_each(), given.ids), (row, chosen.ids[row, column])]
        scores = self.scorer(frame)(*(np.concatenate(part) for part in zip(*each, strict=True))).astype(np.float64)
        of_first, of_given, of_chosen = np.split(scores, np.cumsum([len(pids) for _, pids in each])[:-1])
        new_scores = np.full(chosen.scores.shape, np.nan)
        new_scores[row, column] = of_chosen
        more = replace(chosen, scores=new_scores)
        return replace(found, positive_scores=of_first, given_scores=of_given, more=more)

    def _fill_at_random(
        self,
        part: Candidates,
        chosen: Chosen,
        need: np.ndarray,
        rows: np.ndarray,
        keys: pl.Series,
        rules: Rules,
        every: bool = False,
    ) -> int:
        """Fill rows, in place, with passages drawn from the corpus that no filter on texts forbids; return how many.

        With `every` all passages are considered, in a random order.
        """
        lacking, passages = need - chosen.found, len(self.corpus_pids)
        tries = passages if every else SPARE_DRAWS + 4 * int(lacking.max(initial=0))
        purpose = f"{self.job.name}/{'fill from all' if every else 'fill'}"
        numbers = draws(self.job.seed, purpose, rows[:, None] * FILL_DRAWS_PER_ROW + np.arange(tries))
        drawn = self.corpus_pids[numbers.argsort(axis=1) if every else (numbers % np.uint64(passages)).astype(np.int64)]
        bad = contains(part.positives, drawn) | contains(part.given, drawn)
        if part.promoted:
            bad |= contains(part.promoted, drawn)
        if rules.exclude_query:
            bad |= self.duplicates.same_query(drawn, rows)
        if rules.exclude_group:
            bad |= self.duplicates.same_group(drawn, rows)
        if rules.containment is not None:
            each, step = part.positives.row_of_each(), max(1, PAIRS // tries)
            for first in range(0, len(each), step):
                some = slice(first, first + step)
                shared = overlaps(self.shingles, np.repeat(part.positives.ids[some], tries), drawn[each[some]].reshape(-1))
                np.logical_or.at(bad, each[some], shared.reshape(-1, tries) >= np.float32(rules.containment))
        if rules.exclude_answer:
            bad |= contains_answer(self.answers, keys, drawn, self._texts)
        if rules.exclude_document and self.own_documents:
            bad |= self.own_documents.contain(keys, drawn)
        if self.classes:
            bad |= self.classes[0][drawn] == self.classes[1][rows, None]
        free = Ragged(np.concatenate([[0], (~bad).sum(axis=1).cumsum()]), drawn[~bad])
        taken = Ragged(np.concatenate([[0], chosen.found.cumsum()]), chosen.ids[chosen.ids >= 0])
        same = group_or_pid(self.duplicates.groups, np.arange(len(self.duplicates.groups))) if rules.distinct else None
        fresh = distinct(free, taken, tries if len(drawn) else 0, same).head(lacking)
        row = fresh.row_of_each()
        chosen.ids[row, chosen.found[row] + np.arange(len(row)) - fresh.starts[row]] = fresh.ids
        chosen.found[:] += np.diff(fresh.starts)
        short = np.flatnonzero(chosen.found < need)
        if every or not len(short) or passages > WHOLE_CORPUS:
            return len(row)
        # draws repeat passages, so in a small corpus some that fit may not have been drawn
        rest = Chosen(chosen.ids[short], chosen.scores[short], chosen.ranks[short], chosen.found[short], {})
        more = self._fill_at_random(part.rows(short), rest, need[short], rows[short], keys[short], rules, every=True)
        chosen.ids[short], chosen.found[short] = rest.ids, rest.found
        return len(row) + more

    def scorer(self, frame: pl.DataFrame) -> Score:
        """Return a function with which the reranker scores queries of the frame and passages."""
        reranker = self.reranker
        assert reranker is not None
        queries = [reranker.asked(self.job.entry["instruction"], text) for text in frame["query"]]

        def score(rows: np.ndarray, pids: np.ndarray) -> np.ndarray:
            needed, places = np.unique(pids, return_inverse=True)
            texts = list(self._texts(needed))
            with self.progress(f"{self.job.name}: rerank", len(rows), "pairs") as advance:
                scores = reranker.scores(queries, rows, texts, places, advance, self.models.workers)
            self.lowest = min(self.lowest, float(scores.min(initial=np.inf)))
            self.highest = max(self.highest, float(scores.max(initial=-np.inf)))
            return scores

        return score

    @property
    def alike(self) -> bool:
        """Whether all scores that the reranker gave are equal; so are no scores."""
        return self.highest - self.lowest <= ALIKE * max(1.0, abs(self.highest))

    @property
    def near_limit(self) -> int:
        """Return how many nearest passages should hold the positives of most rows: a tenth of all, at most a hundred."""
        return min(MOST_NEAR, len(self.corpus_pids) // 10)

    def receipt_entries(self) -> dict[str, Any]:
        """Return what the receipt says about the model's vectors, the reranker, the index and answers."""
        found: dict[str, Any] = {"alike": True} if self.alike and np.isfinite(self.highest) else {}
        if self.cosines >= FEW_COSINES and self.nearest - self.farthest <= ALIKE:
            found["vectors_alike"] = True
        elif self.far * 2 > self.rows and len(self.corpus_pids) >= FEWEST_PASSAGES:
            found["far_positives"] = {"rows": self.far, "nearest": self.near_limit}
        if self.asks_for_ivf:
            receipt = (store.read_receipt(self.folder / "index") if self.uses_ivf else None) or {}
            found["index"] = {key: receipt[key] for key in ivf.IN_RECEIPT if key in receipt} or {"kind": "exact"}
        if self.job.settings.exclude_answer:
            found["answers"] = len(self.answers)
        return found

    @cached_property
    def vectors(self) -> tuple[Stored, np.ndarray, np.ndarray]:
        """The store with all texts of the source; the place in it of each passage (by pid) and of each row's query."""
        job, encoder, stored = self.job, self.models.encoder, self.models.vectors
        given = tables.read_table(job.curated, "pairs", ["negatives"])["negatives"].explode().drop_nulls().unique()
        needed = np.union1d(self.corpus_pids, given.to_numpy())

        def texts() -> Iterator[str]:
            yield from map(encoder.passage, self._texts(needed))
            for frame in tables.shards(job.curated, "pairs", ["query"]):
                yield from (encoder.query(job.entry["instruction"], text) for text in frame["query"])

        with self.progress(f"{job.name}: encode", len(needed) + self.rows, "texts") as advance:
            found = stored.ensure(texts(), advance, self.models.encoding)
        places = np.full(int(needed.max(initial=-1)) + 1, -1, np.int64)
        places[needed] = found[: len(needed)]
        return stored, places, found[len(needed) :]

    @cached_property
    def sent(self) -> Sent:
        """What workers need to search this source; an approximate index is written first."""
        stored, passages, asked = self.vectors
        if self.uses_ivf:
            _ = self.index
        folder = self.models.scratch / self.job.name / ("hiding" if self.hide else "search")
        folder.mkdir(parents=True)
        np.save(folder / PASSAGE_PLACES, passages)
        np.save(folder / QUERY_PLACES, asked)
        return Sent(self.job, self.hide, folder, stored.folder, stored.dim, stored.kind.name)

    @cached_property
    def index(self) -> Exact:
        """The corpus by its vectors."""
        vectors, places, asked = self.vectors
        corpus, folder = Part(vectors, places[self.corpus_pids]), self.folder / "index"
        if not self.uses_ivf:
            groups = self.classes[0][self.corpus_pids] if self.classes else None
            return OnGpus(corpus, self.gpus, groups=groups) if self.gpus else Exact(corpus, groups=groups)

        def work(part: Path) -> dict[str, Any]:
            return ivf.write_index(part, corpus, Part(vectors, asked), self.fetched, self.job.seed, self.job.name)

        store.run_stage(folder, store.digest_of([self.digest, ivf.INDEX_FORMAT]), work)
        return ivf.Lists(corpus, folder)

    @cached_property
    def corpus(self) -> Corpus:
        """What the source is searched in."""
        vectors, places, _ = self.vectors
        classes = self.classes[0] if self.classes else None
        return Corpus(Part(vectors, places), self.corpus_pids, self.index, self.shingles, classes)

    @cached_property
    def gpus(self) -> list[Gpu]:
        """The GPUs to search on."""
        return find_gpus(self.job.device)

    @property
    def engine(self) -> str:
        """Which GPUs search, and with what; empty if the CPU does."""
        return "" if self.uses_ivf or not self.gpus else f"{listed(gpu.name for gpu in self.gpus)} with {self.gpus[0].engine}"

    @cached_property
    def bm25(self) -> Bm25:
        """The corpus by its words."""
        from mining.bm25 import Bm25

        return Bm25(self._texts(self.corpus_pids), self.corpus_pids)

    @cached_property
    def duplicates(self) -> Duplicates:
        """The groups of the source's texts."""
        return read_duplicates(self.job.curated, self.hide)

    @cached_property
    def shingles(self) -> Ragged:
        """The word 3-grams of the corpus, which find copies of a positive."""
        return shingles_of(self._texts(self.corpus_pids), self.corpus_pids)

    @cached_property
    def answers(self) -> pl.DataFrame:
        """The answers of the source's queries."""
        return read_answers(self.job.curated)

    @cached_property
    def own_documents(self) -> OwnDocuments | None:
        """The documents that positives are from; None if the source names none."""
        return read_own_documents(self.job.curated)

    def _texts(self, needed: np.ndarray) -> Iterator[str]:
        """Yield the texts of these passages, in ascending order, shard by shard."""
        wanted = pl.Series("pid", needed, dtype=pl.UInt32)
        for frame in tables.shards(self.job.curated, "passages", ["pid", "text"]):
            yield from frame.filter(pl.col("pid").is_in(wanted.implode()))["text"]


def _search_there(sent: Sent, some: Rows) -> None:
    """Search for rows in a worker, which keeps the corpus, and write what was found as a stage."""

    def opened() -> Search:
        one = Search(sent.job, None, silent, sent.hide)
        places = [np.load(sent.places / name, mmap_mode="r") for name in (PASSAGE_PLACES, QUERY_PLACES)]
        one.vectors = Stored(sent.vectors, sent.dim, sent.kind), places[0], places[1]
        _ = one.corpus, one.gpus
        return one

    one = held("search", sent.places, opened)
    first, end = (int(some.rows[0]), int(some.rows[-1]) + 1) if len(some.rows) else (0, 0)
    frame = tables.read_rows(sent.job.curated, "pairs", first, end - first)[some.rows - first]
    store.run_stage(some.folder, some.digest, partial(one.write_candidates, frame, some.rows, some.k))
