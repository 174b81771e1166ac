"""Exact search on GPUs: candidates in half precision, whose scores `search` computes again.

Each card holds the corpus, or, where it does not fit, several cards hold a copy between them; each copy searches for a part
of the queries. A corpus larger than all cards passes through them in rounds. What half precision changes is bounded query
by query: with x, y rounded to x', y', |x'y' - xy| <= |x'-x| |y'| + |x| |y'-y|, and both distances are measured. Where the
candidates fetched to spare do not reach that far down `search` fetches more, so that a GPU gives the rows of the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import faiss
import numpy as np

from curation.core.errors import SetupError, listed
from mining.embeddings import Vectors
from mining.search import PASSAGES, Exact, rounding

MOST = 2_048  # candidates a query that faiss can select on a GPU; a wider search is the CPU's
LEAST_QUERIES, LEAST_PASSAGES = 16, 1 << 12  # below these a card is given up
SCRATCH = 1 << 30  # bytes of a card that faiss works in
SHARE = 0.8  # of the rest that the corpus may take
LENGTH = 1.01  # more than the length of any vector, rounded
NO_ROOM = ("out of memory", "alloc fail", "allocator fail")  # in what torch and faiss say


class Card(Protocol):
    """A GPU that holds a part of a corpus."""

    name: str

    def free(self) -> int:
        """Return the bytes that are free for a corpus once it has let go of the one it holds."""
        ...

    def hold(self, rows: int, dim: int) -> None:
        """Let go of what it holds and make room for other vectors."""
        ...

    def put(self, start: int, vectors: np.ndarray) -> None:
        """Take vectors (n, dim) float16 as rows `start` and on."""
        ...

    def knn(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (q, k) float32 and rows (q, k) int64 of the k best, descending, for queries (q, dim) float16."""
        ...


class Gpu:
    """A CUDA device, by faiss on tensors of torch."""

    def __init__(self, number: int) -> None:
        import faiss.contrib.torch_utils  # lets faiss.knn_gpu take tensors where they are
        import torch

        self.torch, self.number, self.name = torch, number, f"cuda:{number}"
        self.resources = faiss.StandardGpuResources()
        self.resources.setTempMemory(SCRATCH)
        self.held: Any = None

    def free(self) -> int:
        """Return the bytes that are free for a corpus."""
        self.held = None
        self.torch.cuda.empty_cache()
        return int(SHARE * max(0, self.torch.cuda.mem_get_info(self.number)[0] - SCRATCH))

    def hold(self, rows: int, dim: int) -> None:
        """Let go of what it holds and make room for other vectors."""
        self.held = None
        self.held = self.torch.empty((rows, dim), dtype=self.torch.float16, device=self.name)

    def put(self, start: int, vectors: np.ndarray) -> None:
        """Take vectors (n, dim) float16 as rows `start` and on."""
        self.held[start : start + len(vectors)] = self.torch.from_numpy(vectors).to(self.name)

    def knn(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows of the k best; products are float16, sums float32."""
        with self.torch.cuda.device(self.number):  # the stream that faiss works on is the current one of this device
            asked = self.torch.from_numpy(queries).to(self.name)
            scores, rows = faiss.knn_gpu(
                self.resources, asked, self.held, k, metric=faiss.METRIC_INNER_PRODUCT, device=self.number
            )
            return scores.cpu().numpy(), rows.cpu().numpy()


class Cards(Exact):
    """A corpus to search whole on GPUs."""

    def __init__(self, corpus: Vectors, cards: Sequence[Card], block: int = PASSAGES) -> None:
        """Take a corpus (n, dim), which the cards read when it is first searched, `block` rows at once."""
        super().__init__(corpus, block)
        self.cards, self.room, self.held = cards, 0, -1
        self.error = 0.0  # the longest distance of a passage from its rounded self, so far

    def fetch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (q, k) int64 of about the best, and a limit (q,) that no other one scores above.

        Raises:
            SetupError: a card runs out of memory however little it is given.
        """
        if k > MOST:
            return super().fetch(queries, k)
        half = queries.astype(np.float16)
        while True:
            try:
                self.room = self.room or max(1, min(card.free() for card in self.cards) // (2 * queries.shape[1]))
                ids, scores = self._fetch(half, k)
                return ids, scores[:, -1] + self.slack(queries)
            except RuntimeError as error:
                if not no_room(error):
                    raise
                self.room, self.held = min(self.room, len(self.corpus)) // 2, -1
                if self.room < LEAST_PASSAGES:
                    raise SetupError(
                        listed(card.name for card in self.cards),
                        "no memory is left to search in, not even for small blocks",
                        "end what else uses the GPU, or take --device cpu",
                    ) from None

    def slack(self, queries: np.ndarray) -> np.ndarray:
        """Return the most (q,) that a score of each query in half precision can be off."""
        return (_distance(queries, queries.astype(np.float16)) + self.error) * LENGTH + rounding(queries.shape[1])

    def _fetch(self, half: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        copies, rounds = planned(len(self.corpus), self.room, len(self.cards))
        heap = faiss.ResultHeap(len(half), k, keep_max=True)
        for number, pieces in enumerate(rounds):
            holders = [self.cards[i :: len(pieces)][:copies] for i in range(len(pieces))]
            if self.held != number:
                self._hold(pieces, holders, half.shape[1])
                self.held = number
            shares = np.array_split(np.arange(len(half)), copies)
            jobs = [
                (card, some, piece)
                for piece, cards in zip(pieces, holders, strict=True)
                for card, some in zip(cards, shares, strict=True)
                if len(some)
            ]
            with ThreadPoolExecutor(len(jobs)) as pool:
                found = pool.map(lambda job: halving(job[0], half[job[1]], min(k, job[2].stop - job[2].start)), jobs)
                for (_, some, piece), (scores, rows) in zip(jobs, found, strict=True):
                    heap.add_result_subset(some, scores, rows + piece.start)
        heap.finalize()
        return heap.I, heap.D

    def _hold(self, pieces: list[slice], holders: list[Sequence[Card]], dim: int) -> None:
        """Let the cards hold their pieces of the corpus; each row is read once."""
        for piece, cards in zip(pieces, holders, strict=True):
            for card in cards:
                card.hold(piece.stop - piece.start, dim)
            for start in range(piece.start, piece.stop, self.block):
                vectors = self.corpus[np.arange(start, min(start + self.block, piece.stop))]
                half = vectors.astype(np.float16)
                self.error = max(self.error, float(_distance(vectors, half).max()))
                for card in cards:
                    card.put(start - piece.start, half)


def cards_of(device: str) -> list[Card]:
    """Return the GPUs to search on: none with `cpu` or without faiss-gpu, one with `cuda:1`, else all."""
    there = 0 if device == "cpu" else faiss.get_num_gpus()
    return [Gpu(number) for number in ([int(device.split(":")[1])] if there and ":" in device else range(there))]


def planned(rows: int, room: int, cards: int) -> tuple[int, list[list[slice]]]:
    """Return how many copies of a corpus the cards hold, and, round by round, the pieces that a copy's cards hold.

    Args:
        rows: of the corpus.
        room: rows that a card has room for.
        cards: how many.
    """
    pieces = -(-rows // room)
    width = min(pieces, cards)  # cards to a copy
    size = -(-rows // (-(-pieces // width) * width))
    cut = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    return cards // width, [cut[first : first + width] for first in range(0, len(cut), width)]


def halving(card: Card, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search on a card; where it runs out of memory, for half of the queries at a time."""
    try:
        return card.knn(queries, k)
    except RuntimeError as error:
        if not no_room(error) or len(queries) <= LEAST_QUERIES:
            raise
    middle = len(queries) // 2
    parts = [halving(card, some, k) for some in (queries[:middle], queries[middle:])]
    return np.vstack([scores for scores, _ in parts]), np.vstack([rows for _, rows in parts])


def no_room(error: RuntimeError) -> bool:
    """Tell whether a GPU said that its memory is full."""
    return any(word in str(error).lower() for word in NO_ROOM)


def _distance(vectors: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Return how far (n,) each vector lies from its rounded self, float64."""
    off = vectors.astype(np.float64) - half
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", off, off)))
