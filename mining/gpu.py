"""Exact search on GPUs: they find candidates in half precision, and `search` computes the scores again.

Each GPU holds the corpus. If the corpus does not fit, several GPUs hold one copy between them; each copy searches for a
share of the queries. A corpus larger than all GPUs passes through them in rounds.

The error of half precision has a limit for each query: with x, y rounded to x', y', |x'y' - xy| <= |x'-x| |y'| + |x| |y'-y|,
and both distances are measured. Where the spare candidates do not cover that error `search` fetches more, so the results
are those of the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from curation.core.errors import SetupError, listed
from mining.embeddings import Vectors
from mining.search import PASSAGES, Exact, rounding

MOST = 2_048  # candidates per query that faiss can select on a GPU; wider searches run on the CPU
LEAST_QUERIES, LEAST_PASSAGES = 16, 1 << 12  # blocks are not made smaller than this when memory runs out
SCRATCH = 1 << 30  # bytes of a GPU that faiss works in
SHARE = 0.8  # of the other free bytes that the corpus may take
LENGTH = 1.01  # exceeds the length of any rounded vector
OUT_OF_MEMORY = ("out of memory", "alloc fail", "allocator fail")  # in the messages of torch and faiss


class Gpu:
    """A CUDA device that holds a part of a corpus, searched by faiss on torch tensors."""

    def __init__(self, number: int) -> None:
        import faiss.contrib.torch_utils  # lets faiss.knn_gpu take tensors that are on the device
        import torch

        self.torch, self.number, self.name = torch, number, f"cuda:{number}"
        self.resources = faiss.StandardGpuResources()
        self.resources.setTempMemory(SCRATCH)
        self.held: Any = None

    def free(self) -> int:
        """Release the vectors and return the bytes that are free for a corpus."""
        self.held = None
        self.torch.cuda.empty_cache()
        return int(SHARE * max(0, self.torch.cuda.mem_get_info(self.number)[0] - SCRATCH))

    def hold(self, rows: int, dim: int) -> None:
        """Release the vectors and make room for others."""
        self.held = None
        self.held = self.torch.empty((rows, dim), dtype=self.torch.float16, device=self.name)

    def put(self, start: int, vectors: np.ndarray) -> None:
        """Store vectors (n, dim) float16 from row `start` on."""
        self.held[start : start + len(vectors)] = self.torch.from_numpy(vectors).to(self.name)

    def knn(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (q, k) float32, descending, and rows (q, k) int64 for queries (q, dim) float16; sums are float32."""
        with self.torch.cuda.device(self.number):  # faiss works on the current stream of this device
            asked = self.torch.from_numpy(queries).to(self.name)
            scores, rows = faiss.knn_gpu(
                self.resources, asked, self.held, k, metric=faiss.METRIC_INNER_PRODUCT, device=self.number
            )
            return scores.cpu().numpy(), rows.cpu().numpy()


class OnGpus(Exact):
    """A corpus that is searched whole on GPUs."""

    def __init__(self, corpus: Vectors, gpus: Sequence[Gpu], block: int = PASSAGES) -> None:
        """Take a corpus (n, dim); the first search copies it to the GPUs, `block` rows at a time."""
        super().__init__(corpus, block)
        self.gpus, self.room, self.held = gpus, 0, -1  # room: rows per GPU; held: the round that is on the GPUs
        self.error = 0.0  # largest distance between a passage and its rounded vector, so far

    def fetch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (q, k) int64 of nearly the best, and an upper limit (q,) for the scores of all others.

        Raises:
            SetupError: a GPU runs out of memory even for small blocks.
        """
        if k > MOST:
            return super().fetch(queries, k)
        half = queries.astype(np.float16)
        while True:
            try:
                self.room = self.room or max(1, min(gpu.free() for gpu in self.gpus) // (2 * queries.shape[1]))
                ids, scores = self._fetch_half(half, k)
                return ids, scores[:, -1] + self.slack(queries)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.room, self.held = min(self.room, len(self.corpus)) // 2, -1
                if self.room < LEAST_PASSAGES:
                    raise SetupError(
                        listed(gpu.name for gpu in self.gpus),
                        "out of memory: even a search in small blocks does not fit",
                        "end other programs on the GPU, or run with --device cpu",
                    ) from None

    def slack(self, queries: np.ndarray) -> np.ndarray:
        """Return the largest error (q,) of a score of each query in half precision."""
        return (_distance(queries, queries.astype(np.float16)) + self.error) * LENGTH + rounding(queries.shape[1])

    def _fetch_half(self, half: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and scores (q, k) of the best in half precision, searching all GPUs at once."""
        copies, rounds = split(len(self.corpus), self.room, len(self.gpus))
        heap = faiss.ResultHeap(len(half), k, keep_max=True)
        for number, pieces in enumerate(rounds):
            holders = [self.gpus[i :: len(pieces)][:copies] for i in range(len(pieces))]  # the GPUs of each piece
            if self.held != number:
                self._copy_to_gpus(pieces, holders, half.shape[1])
                self.held = number
            shares = np.array_split(np.arange(len(half)), copies)
            jobs = [
                (gpu, some, piece)
                for piece, gpus in zip(pieces, holders, strict=True)
                for gpu, some in zip(gpus, shares, strict=True)
                if len(some)
            ]
            with ThreadPoolExecutor(len(jobs)) as pool:
                found = pool.map(lambda job: knn_in_halves(job[0], half[job[1]], min(k, job[2].stop - job[2].start)), jobs)
                for (_, some, piece), (scores, rows) in zip(jobs, found, strict=True):
                    heap.add_result_subset(some, scores, rows + piece.start)
        heap.finalize()
        return heap.I, heap.D

    def _copy_to_gpus(self, pieces: list[slice], holders: list[Sequence[Gpu]], dim: int) -> None:
        """Copy each piece of the corpus to its GPUs; each row is read once."""
        for piece, gpus in zip(pieces, holders, strict=True):
            for gpu in gpus:
                gpu.hold(piece.stop - piece.start, dim)
            for start in range(piece.start, piece.stop, self.block):
                vectors = self.corpus[np.arange(start, min(start + self.block, piece.stop))]
                half = vectors.astype(np.float16)
                self.error = max(self.error, float(_distance(vectors, half).max()))
                for gpu in gpus:
                    gpu.put(start - piece.start, half)


def find_gpus(device: str) -> list[Gpu]:
    """Return the GPUs to search on: none with `cpu` or without faiss-gpu, one with `cuda:1`, otherwise all."""
    count = 0 if device == "cpu" else faiss.get_num_gpus()
    return [Gpu(number) for number in ([int(device.split(":")[1])] if count and ":" in device else range(count))]


def split(rows: int, room: int, gpus: int) -> tuple[int, list[list[slice]]]:
    """Return how many copies of a corpus fit on the GPUs, and, round by round, the pieces that the GPUs of a copy hold.

    Args:
        rows: in the corpus.
        room: rows that fit on one GPU.
        gpus: how many there are.
    """
    pieces = -(-rows // room)
    width = min(pieces, gpus)  # GPUs per copy
    size = -(-rows // (-(-pieces // width) * width))
    cut = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    return gpus // width, [cut[first : first + width] for first in range(0, len(cut), width)]


def knn_in_halves(gpu: Gpu, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search on a GPU; if it runs out of memory, search for half of the queries at a time."""
    try:
        return gpu.knn(queries, k)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(queries) <= LEAST_QUERIES:
            raise
    middle = len(queries) // 2
    parts = [knn_in_halves(gpu, some, k) for some in (queries[:middle], queries[middle:])]
    return np.vstack([scores for scores, _ in parts]), np.vstack([rows for _, rows in parts])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error says that the memory of a GPU is full."""
    return any(word in str(error).lower() for word in OUT_OF_MEMORY)


def _distance(vectors: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Return the distance (n,) float64 between each vector and its rounded one."""
    off = vectors.astype(np.float64) - half
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", off, off)))
