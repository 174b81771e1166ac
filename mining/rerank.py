"""Candidates scored again by a cross-encoder: only those that a choice rests on, and each pair of texts once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curation.core import store
from curation.core.progress import Advance
from curation.recipe.settings import Mine
from mining.embeddings import Embeddings
from mining.negatives import Candidates, Chosen, Rules, choose, eligible_of, picked, surviving
from training.model.files import find_model

if TYPE_CHECKING:
    from training.model.cross_encoder import CrossEncoder

FORMAT = 2  # raised when the same model and texts give other scores
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"  # Qwen3-Reranker's own
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (n,) and pids (n,) to scores (n,) float32


class Reranker:
    """The cross-encoder, or language model, of a `mine:` section, loaded where a pair was not scored before.

    Scores are kept as vectors of one dimension are, under `reranked/<fingerprint>`, by the key of both texts.
    """

    dim = 1

    def __init__(self, build: Path, settings: Mine, device: str) -> None:
        """Find the model; its weights are read where they are needed."""
        assert settings.reranker is not None
        self.folder, self.settings, self.device = build / "reranked", settings, device
        self.described: dict[str, object] = {"model": settings.reranker, "dtype": self._dtype}
        files = find_model(settings.reranker)
        self._causal, self._own = files.causal(), files.sentence is not None
        self.fingerprint = store.digest_of([FORMAT, files.digests(), self._dtype])

    def asked(self, instruction: str, query: str) -> str:
        """Return what the model is given for a query of a source: a language model the source's instruction too, or its own."""
        if self._own and not instruction:
            return query  # to which the model puts the prompt of its folder
        return f"<Instruct>: {instruction or INSTRUCTION}\n<Query>: {query}" if self._causal else query

    def scores(
        self, queries: Sequence[str], rows: np.ndarray, passages: Sequence[str], places: np.ndarray, advance: Advance
    ) -> np.ndarray:
        """Return the score (n,) float32 of each query `rows[i]` with the passage `places[i]`."""

        def pairs() -> Iterator[str]:
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                yield f"{len(queries[row])}:{queries[row]}{passages[place]}"

        return self._store[self._store.ensure(pairs, advance)][:, 0]

    def encode(self, texts: Sequence[str], advance: Advance = lambda done: None) -> np.ndarray:
        """Return (n, 1) float32 of pairs as `scores` writes them."""
        cut = [(text.index(":") + 1, int(text[: text.index(":")])) for text in texts]
        queries = [text[start : start + length] for text, (start, length) in zip(texts, cut, strict=True)]
        passages = [text[start + length :] for text, (start, length) in zip(texts, cut, strict=True)]
        return self._loaded.scores(queries, passages, advance)[:, None]

    @cached_property
    def _store(self) -> Embeddings:
        return Embeddings(self.folder, self)

    @cached_property
    def _loaded(self) -> CrossEncoder:
        from training.model.reranker import load_reranker  # torch: only where something must be scored

        assert self.settings.reranker is not None
        return load_reranker(self.settings.reranker, device=self.device, dtype=self._dtype)

    @cached_property
    def _dtype(self) -> str:
        if self.settings.dtype != "auto":
            return self.settings.dtype
        from training.model.cross_encoder import dtype_here

        return dtype_here(self.device)


def chosen_with(score: Score, candidates: Candidates, wanted: np.ndarray, rules: Rules) -> tuple[Candidates, Chosen]:
    """Choose as `negatives.choose` would if every candidate had a score, without scoring those that cannot matter.

    What has no score yet passes. All that the choice rests on is scored, and the choice is made again until it rests on
    nothing without. Return also the candidates with their scores.
    """
    found = replace(
        candidates,
        reranked=np.full(candidates.ids.shape, np.nan, np.float32),
        reranked_positives=score(candidates.positives.row_of_each(), candidates.positives.ids),
    )
    assert found.reranked is not None
    while True:
        rows, columns = np.nonzero(_relied_on(found, wanted, rules) & np.isnan(found.reranked))
        if not len(rows):
            return found, choose(found, wanted, rules)
        found.reranked[rows, columns] = score(rows, found.ids[rows, columns])


def _relied_on(candidates: Candidates, wanted: np.ndarray, rules: Rules) -> np.ndarray:
    """Return (q, k) bool: what passes, up to the last candidate that is taken or, by chance, could be."""
    taken, _ = eligible_of(candidates, rules)
    if rules.pick == "top":
        taken = picked(candidates, taken, wanted, rules.pick)
    until_last = taken[:, ::-1].cumsum(axis=1)[:, ::-1] > 0
    return np.asarray(surviving(candidates, rules)[0] & until_last)
