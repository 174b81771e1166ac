"""Candidates scored again by a cross-encoder: only those that a choice depends on, and each pair of texts once."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.core import store
from curation.core.errors import ModelError
from curation.core.progress import Advance
from curation.engine.pool import Workers
from curation.recipe.settings import Mine
from mining.embeddings import Embeddings
from mining.lists import contains
from mining.negatives import Candidates, Chosen, Rules, choose, eligible_candidates, pick, surviving
from training.model.files import find_model

if TYPE_CHECKING:
    from training.model.reranker import CrossEncoder

SCORES_FORMAT = 2  # raised when the same model and texts give other scores
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"  # Qwen3-Reranker's own
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (n,) and pids (n,) to scores (n,) float32


class Reranker:
    """The cross-encoder, or language model, of a `mine:` section, loaded when a pair must be scored.

    Scores are stored like vectors of one dimension, in `reranked/<fingerprint>`, by the key of both texts.
    """

    dim = 1

    def __init__(self, build: Path, settings: Mine, workers: Workers) -> None:
        """Find the model; its weights are read when they are needed, by the workers."""
        assert settings.reranker is not None
        self.name, self.device, self.folder = settings.reranker, workers.device, build / "reranked"
        self.replaces_scores = settings.reranker_scores
        self.dtype: str = settings.dtype
        if self.dtype == "auto":
            self.dtype = next(workers.run(_dtype_there, [self.device]))[1]()
        files = find_model(self.name)
        self.described: dict[str, object] = {"model": self.name, "dtype": self.dtype}
        self.is_language_model, self.has_own_prompt = files.causal(), files.sentence is not None
        self.fingerprint = self._digest()

    def asked(self, instruction: str, query: str) -> str:
        """Return the text of a query; for a language model with the source's instruction, or else the model's own."""
        if self.has_own_prompt and not instruction:
            return query  # the model adds the prompt of its folder
        return f"<Instruct>: {instruction or INSTRUCTION}\n<Query>: {query}" if self.is_language_model else query

    def scores(
        self,
        queries: Sequence[str],
        rows: np.ndarray,
        passages: Sequence[str],
        places: np.ndarray,
        advance: Advance,
        workers: Workers,
    ) -> np.ndarray:
        """Return the score (n,) float32 of each query `rows[i]` with the passage `places[i]`."""

        def pairs() -> Iterator[str]:
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                yield f"{len(queries[row])}:{queries[row]}{passages[place]}"

        return self._scores[self._scores.ensure(pairs(), advance, workers)][:, 0]

    def encode(self, texts: Sequence[str], advance: Advance = lambda done: None) -> np.ndarray:
        """Return the scores (n, 1) float32 of pairs as `scores` joins them: length of the query, ":", both texts."""
        cut = [(text.index(":") + 1, int(text[: text.index(":")])) for text in texts]
        queries = [text[start : start + length] for text, (start, length) in zip(texts, cut, strict=True)]
        passages = [text[start + length :] for text, (start, length) in zip(texts, cut, strict=True)]
        return self._model.scores(queries, passages, advance)[:, None]

    @cached_property
    def _scores(self) -> Embeddings:
        return Embeddings(self.folder, self)

    def _digest(self) -> str:
        return store.digest_of([SCORES_FORMAT, find_model(self.name).digests(), self.dtype])

    @cached_property
    def _model(self) -> CrossEncoder:
        from training.model.reranker import load_reranker  # imports torch, so only when a pair must be scored

        if self._digest() != self.fingerprint:
            what = f"has other files on {platform.node()} than where the work began"
            raise ModelError(self.name, what, "put the same files on all machines")
        return load_reranker(self.name, device=self.device, dtype=self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_model", "_scores")}


def _dtype_there(device: str) -> str:
    """Return what dtype `auto` means on the device of a worker."""
    from training.model.reranker import dtype_here

    return dtype_here(device)


def choose_reranked(
    score: Score, candidates: Candidates, wanted: np.ndarray, rules: Rules, depth: int = 0
) -> tuple[Candidates, Chosen]:
    """Choose as `negatives.choose` would with a score for every candidate, but score only those that matter.

    A candidate without a score passes the reranker's filters. Each round scores all candidates that the choice depends
    on, until it depends on none without a score. Returns also the candidates with their scores. The nearest `depth`
    candidates are scored in any case, except positives.
    """
    scores = np.full(candidates.ids.shape, np.nan, np.float32)
    positives = score(candidates.positives.row_of_each(), candidates.positives.ids)
    found = replace(candidates, reranked=scores, reranked_positives=positives)
    near = candidates.ids[:, :depth]
    rows, columns = np.nonzero((near >= 0) & ~contains(candidates.positives, near))
    scores[rows, columns] = score(rows, near[rows, columns]) if len(rows) else 0
    while True:
        # what passes the filters, up to the last candidate that is taken, or by chance could be taken
        taken, _ = eligible_candidates(found, rules)
        if rules.pick == "top":
            taken = pick(found, taken, wanted, rules.pick)
        until_last = taken[:, ::-1].cumsum(axis=1)[:, ::-1] > 0
        rows, columns = np.nonzero(surviving(found, rules)[0] & until_last & np.isnan(scores))
        if not len(rows):
            return found, choose(found, wanted, rules)
        scores[rows, columns] = score(rows, found.ids[rows, columns])
