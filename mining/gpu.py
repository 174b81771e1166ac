"""Exact search on GPUs: they find candidates in half precision, and `search` computes the scores again.

Each GPU holds the corpus. If the corpus does not fit, several GPUs hold one copy between them; each copy searches for a
share of the queries. A corpus larger than all GPUs passes through them in rounds. faiss searches if it is built for GPUs,
otherwise torch does: both give the same rows.

The error of half precision has a limit for each query: with x, y rounded to x', y', |x'y' - xy| <= |x'-x| |y'| + |x| |y'-y|,
and both distances are measured. To that the sum adds its own error. The product of two float16 numbers has 22 bits, so it
is exact in float32; float16 numbers keep all of their 11 bits in TF32 too, so that setting changes nothing. Sums are
float32, but tensor cores cut off where a processor rounds. Where the spare candidates do not cover that error `search`
fetches more, so the results are those of the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from curation.core.errors import SetupError, listed
from mining.embeddings import Vectors
from mining.search import PASSAGES, Exact, rounding

LEAST_QUERIES, LEAST_PASSAGES = 16, 1 << 12  # blocks are not made smaller than this when memory runs out
SCRATCH = 1 << 30  # bytes of a GPU that faiss or torch works in
SCORES = 1 << 29  # bytes of the scores that torch selects from at once
GROUP = 16  # passages whose best score torch looks at first
SHARE = 0.8  # of the other free bytes that the corpus may take
LENGTH = 1.01  # exceeds the length of any rounded vector
CUT_OFF = 2  # a tensor core adds 4 or more products to a sum and cuts each off: at most 1.5 times `rounding`
OUT_OF_MEMORY = ("out of memory", "alloc fail", "alloc_fail", "allocator fail")  # in messages of torch, cuBLAS and faiss
DRIVERS = ("nvidia*", "dxg", "kfd")  # in /dev where there is a GPU: NVIDIA's, through Windows, AMD's


class Gpu:
    """A CUDA device that holds a part of a corpus and searches it with torch."""

    engine = "torch"
    widest = 1 << 31  # candidates per query that it can select

    def __init__(self, name: str) -> None:
        """Take the device `name`: cuda:N, or cpu in tests."""
        import torch

        self.torch, self.name = torch, name
        self.held: Any = None

    def free(self) -> int:
        """Release the vectors and return the bytes that are free for a corpus."""
        self.held = None
        self.torch.cuda.empty_cache()
        return int(SHARE * max(0, self.torch.cuda.mem_get_info(self.name)[0] - SCRATCH))

    def memory(self) -> str:
        """Return how much memory is free, for an error message."""
        free, total = self.torch.cuda.mem_get_info(self.name)
        return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"

    def hold(self, rows: int, dim: int) -> None:
        """Release the vectors and make room for others."""
        self.held = None
        self.held = self.torch.empty((rows, dim), dtype=self.torch.float16, device=self.name)

    def put(self, start: int, vectors: np.ndarray) -> float:
        """Store vectors (n, dim) float32 from row `start` on; return the largest distance of one to what is stored."""
        exact = self.torch.from_numpy(vectors).to(self.name)
        half = self.held[start : start + len(vectors)]
        half.copy_(exact)
        return float((exact - half.float()).norm(dim=1).max())

    def knn(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (q, k) float32, descending, and rows (q, k) int64 for queries (q, dim) float16; sums are float32."""
        asked = self.torch.from_numpy(queries).to(self.name)
        step = max(k, GROUP, SCORES // (4 * len(queries)))
        best: Any = None
        rows: Any = None
        for start in range(0, len(self.held), step):
            scores, found = self.highest(self.products(asked, self.held[start : start + step]), k)
            found += start
            if best is not None:
                scores, found = self.torch.cat([best, scores], 1), self.torch.cat([rows, found], 1)
                scores, at = scores.topk(min(k, scores.shape[1]))
                found = found.gather(1, at)
            best, rows = scores, found
        return best.cpu().numpy(), rows.cpu().numpy()

    def highest(self, scores: Any, k: int) -> tuple[Any, Any]:
        """Return the highest k of scores (q, n), descending, and their columns; all of them if n is smaller.

        The k groups with the highest maxima contain k highest scores. Looking there first reads all scores once, where a
        selection among all of them reads each several times.
        """
        groups, rest = divmod(scores.shape[1], GROUP)
        if groups < 4 * k:
            return tuple(scores.topk(min(k, scores.shape[1])))
        parts = scores[:, : groups * GROUP].unflatten(1, (groups, GROUP))
        chosen = parts.amax(2).topk(k, sorted=False).indices  # (q, k)
        inside = self.torch.arange(GROUP, device=scores.device)
        columns = (chosen[:, :, None] * GROUP + inside).flatten(1)
        last = self.torch.arange(scores.shape[1] - rest, scores.shape[1], device=scores.device).expand(len(scores), rest)
        columns = self.torch.cat([columns, last], 1)
        found, at = scores.gather(1, columns).topk(k)
        return found, columns.gather(1, at)

    def products(self, queries: Any, passages: Any) -> Any:
        """Return inner products (q, n) float32 of float16 tensors (q, dim) and (n, dim)."""
        matmul = self.torch.backends.cuda.matmul
        if queries.is_cuda and not matmul.allow_fp16_accumulation:
            return self.torch.mm(queries, passages.T, out_dtype=self.torch.float32)
        return queries.float() @ passages.float().T


class FaissGpu(Gpu):
    """A CUDA device that holds a part of a corpus and searches it with faiss, on torch tensors."""

    engine = "faiss"
    widest = 2_048

    def __init__(self, name: str) -> None:
        """Take the device cuda:N."""
        import faiss.contrib.torch_utils  # lets faiss.knn_gpu take tensors that are on the device

        super().__init__(name)
        self.number = int(name.split(":")[1])
        self.resources = faiss.StandardGpuResources()
        self.resources.setTempMemory(SCRATCH)

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
        if k > min(gpu.widest for gpu in self.gpus):
            return super().fetch(queries, k)
        half = queries.astype(np.float16)
        while True:
            try:
                self.room = self.room or min(gpu.free() for gpu in self.gpus) // (2 * queries.shape[1])
                self._check_room()
                ids, scores = self._fetch_half(half, k)
                return ids, scores[:, -1] + self.slack(queries)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.room, self.held = min(self.room, len(self.corpus)) // 2, -1
                self._check_room()

    def _check_room(self) -> None:
        """Refuse to search where so few rows fit on a GPU that the search would not end."""
        if self.room < min(LEAST_PASSAGES, len(self.corpus)):
            raise SetupError(
                listed(gpu.name for gpu in self.gpus),
                f"out of memory: even a search in small blocks does not fit ({self.gpus[0].memory()})",
                "end other programs on the GPU, or run with --device cpu",
            )

    def slack(self, queries: np.ndarray) -> np.ndarray:
        """Return the largest error (q,) of a score of each query in half precision."""
        return (_distance(queries, queries.astype(np.float16)) + self.error) * LENGTH + CUT_OFF * rounding(queries.shape[1])

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
                vectors = np.ascontiguousarray(self.corpus[np.arange(start, min(start + self.block, piece.stop))], np.float32)
                for gpu in gpus:
                    self.error = max(self.error, gpu.put(start - piece.start, vectors))


def find_gpus(device: str) -> list[Gpu]:
    """Return the GPUs to search on: none with `cpu` or where there is none, one with `cuda:1`, otherwise all.

    Raises:
        SetupError: the device is unknown or not available.
    """
    there = device != "auto" or "torch" in sys.modules or any(any(Path("/dev").glob(name)) for name in DRIVERS)
    if device == "cpu" or not there:  # torch takes a second to load
        return []
    import torch

    from training.model.device import device_of

    place = device_of(device)
    if place.type != "cuda":
        return []
    kind = FaissGpu if faiss.get_num_gpus() else Gpu
    numbers = range(torch.cuda.device_count()) if place.index is None else [place.index]
    return [kind(f"cuda:{number}") for number in numbers]


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
