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

import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import faiss
import numpy as np

from curation.core.errors import SetupError, first_line, is_out_of_memory, listed
from mining.embeddings import Part, Vectors
from mining.kernels import inner_products
from mining.search import PASSAGES, Exact, rounding

LEAST_QUERIES, LEAST_PASSAGES = 16, 1 << 12  # blocks are not made smaller than this when memory runs out
THREADS = 4  # blocks of queries that are worked on at once
SCRATCH = 1 << 30  # bytes of a GPU that faiss or torch works in
SCORES = 1 << 29  # bytes of the scores that torch selects from at once
MOST_NUMBERS = 1 << 30  # of the passages that are multiplied at once
GROUP = 16  # passages whose best score torch looks at first
SHARE = 0.8  # of the other free bytes that the corpus may take
LENGTH = 1.01  # exceeds the length of any rounded vector
CUT_OFF = 2  # a tensor core adds 4 or more products to a sum and cuts each off: at most 1.5 times `rounding`
LANES = (8, 4, 2)  # float64 numbers in a vector of AVX-512, of AVX2, of SSE and NEON
DRIVERS = ("nvidia*", "dxg", "kfd")  # in /dev where there is a GPU: NVIDIA's, through Windows, AMD's


class Gpu:
    """A CUDA device that holds a part of a corpus and searches it with torch."""

    engine = "torch"
    widest = 1 << 31  # candidates per query that it can select

    def __init__(self, name: str) -> None:
        """Take the device `name`: cuda:N, or cpu in tests."""
        import torch

        self.torch, self.name = torch, name
        self.held: Any = None  # (n, dim) float16
        self.exact: Any = None  # (n, dim) float32, where there is room
        self.holder: Any = None  # token of the index whose corpus it is

    def free(self) -> int:
        """Release the vectors and return the bytes that are free for a corpus."""
        self.held = self.exact = self.holder = None
        self.torch.cuda.empty_cache()
        return int(SHARE * max(0, self.torch.cuda.mem_get_info(self.name)[0] - SCRATCH))

    def memory(self) -> str:
        """Return how much memory is free, for an error message."""
        from training.model.device import free_memory

        return free_memory(self.torch.device(self.name))

    def hold(self, rows: int, dim: int, exact: bool = False) -> None:
        """Release the vectors and make room for others; with `exact` in float32 too."""
        self.held = self.exact = None
        self.held = self.torch.empty((rows, dim), dtype=self.torch.float16, device=self.name)
        if exact:
            self.exact = self.torch.empty((rows, dim), dtype=self.torch.float32, device=self.name)

    def put(self, start: int, vectors: np.ndarray) -> float:
        """Store vectors (n, dim) float32 from row `start` on; return the largest distance of one to what is stored."""
        exact = self.torch.from_numpy(vectors).to(self.name)
        half = self.held[start : start + len(vectors)]
        half.copy_(exact)
        if self.exact is not None:
            self.exact[start : start + len(vectors)] = exact
        return float((exact - half.float()).norm(dim=1).max())

    def knn(self, queries: np.ndarray, k: int, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (q, k) float32, descending, and rows (q, k) int64 of a part of what it holds.

        Queries (q, dim) are float16, sums float32. A part of fewer rows gives them all.
        """
        asked = self.torch.from_numpy(queries).to(self.name)
        step = max(k, GROUP, min(SCORES // (4 * len(queries)), MOST_NUMBERS // queries.shape[1]))
        best: Any = None
        rows: Any = None
        held = self.held[part]
        for start in range(0, len(held), step):
            scores, found = self.highest(self.products(asked, held[start : start + step]), k)
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

    def scores(self, queries: np.ndarray, of_each: np.ndarray, rows: np.ndarray, lanes: int) -> np.ndarray:
        """Return the inner product (p,) float64 of query `of_each[i]` with row `rows[i]`, in the order of `sums_in_lanes`."""
        torch = self.torch
        asked, one, other = (torch.tensor(array, device=self.name) for array in (queries, of_each, rows))
        found = torch.empty(len(rows), dtype=torch.float64, device=self.name)
        step = max(1, SCORES // (24 * queries.shape[1]))  # float32 and float64 numbers of both vectors
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            found[some] = sums_in_lanes(asked[one[some]].double(), self.exact[other[some]].double(), lanes)
        return np.asarray(found.cpu().numpy())

    def sums(self, left: np.ndarray, right: np.ndarray, lanes: int) -> np.ndarray:
        """Return the inner products (n,) float64 of the rows of two float32 arrays, in the order of `sums_in_lanes`."""
        here, there = (self.torch.from_numpy(array).to(self.name).double() for array in (left, right))
        return np.asarray(sums_in_lanes(here, there, lanes).cpu().numpy())


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

    def check(self) -> None:
        """Search once: faiss and torch may bring two versions of CUDA, which do not always work in one process.

        Raises:
            ArithmeticError: the result is wrong.
            RuntimeError: the search fails.
        """
        vectors = np.random.default_rng(0).standard_normal((300, 64), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.hold(len(vectors), 64)
        self.put(0, vectors)
        scores, rows = self.knn(vectors.astype(np.float16), 3, slice(0, 300))
        self.free()
        if (rows[:, 0] != np.arange(300)).any() or np.abs(scores[:, 0] - 1).max() > 0.01:
            raise ArithmeticError("its results are wrong")

    def knn(self, queries: np.ndarray, k: int, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (q, k) float32, descending, and rows (q, k) int64 of a part of what it holds.

        Queries (q, dim) are float16, sums float32. A part of fewer rows gives them all.
        """
        with self.torch.cuda.device(self.number):  # faiss works on the current stream of this device
            asked, held = self.torch.from_numpy(queries).to(self.name), self.held[part]
            scores, rows = faiss.knn_gpu(
                self.resources, asked, held, min(k, len(held)), metric=faiss.METRIC_INNER_PRODUCT, device=self.number
            )
            return scores.cpu().numpy(), rows.cpu().numpy()


class OnGpus(Exact):
    """A corpus that is searched whole on GPUs, in the order of its groups."""

    def __init__(self, corpus: Vectors, gpus: Sequence[Gpu], block: int = PASSAGES, groups: np.ndarray | None = None) -> None:
        """Take a corpus (n, dim); the first search copies it to the GPUs, `block` rows at a time."""
        super().__init__(corpus, block, groups)
        self.gpus, self.lock, self.token = gpus, Lock(), object()
        self.room, self.held = 0, -1  # room: bytes of a GPU for the corpus; held: the round that is on the GPUs
        self.error = 0.0  # largest distance between a passage and its rounded vector, so far
        self.order = None if groups is None else np.argsort(groups, kind="stable")  # rows as the GPUs hold them
        self.exact = False  # whether the GPUs hold the float32 vectors too, and can score candidates
        self.place = self.order if self.order is None else np.argsort(self.order)  # of each row in `order`
        self.lanes: dict[int, int] = {}  # dimension -> sums in the processor's order, from `lanes_of`

    def fetch(self, queries: np.ndarray, k: int, group: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (q, k) int64 of nearly the best, and an upper limit (q,) for the scores of all others.

        With `group`, only rows in other groups count.

        Raises:
            SetupError: a GPU runs out of memory even for small blocks.
        """
        spans = [slice(0, len(self.corpus))]
        if group is not None:
            assert self.groups is not None
            first, start, stop = np.searchsorted(self.groups[self.order], [0, group, group + 1]).tolist()
            spans = [slice(first, start), slice(stop, len(self.corpus))]
        elif k > min(gpu.widest for gpu in self.gpus):
            return super().fetch(queries, k)
        half = queries.astype(np.float16)
        with self.lock:
            while True:
                try:
                    self.room = self.room or min(gpu.free() for gpu in self.gpus)
                    ids, scores = self._fetch_half(half, k, spans)
                    return ids if self.order is None else self.order[ids], scores[:, -1] + self.slack(queries)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    self.room, self.held = min(self.room, len(self.corpus) * self.bytes_per_row(half.shape[1])) // 2, -1

    @property
    def threads(self) -> int:
        """Return how many blocks of queries to work on at once: while the GPUs search one, processors filter others."""
        return min(THREADS, os.cpu_count() or 1)

    def _only(self, rows: np.ndarray, group: int) -> Exact:
        return Others(self, rows, group)

    def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the inner product (q, k) float64 of each query (q, dim) with its own rows (q, k) of the corpus.

        The GPUs compute the bits of the CPU; if they cannot, or do not hold the corpus, the CPU does.
        """
        with self.lock:
            dim = queries.shape[1]
            if self.exact and self._holds(0):
                try:
                    if dim not in self.lanes:
                        self.lanes[dim] = lanes_of(self.gpus[0], dim)
                    if self.lanes[dim]:
                        return self._scores_on_gpus(queries, rows if self.place is None else self.place[rows], self.lanes[dim])
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
        return super().scores(queries, rows)

    def slack(self, queries: np.ndarray) -> np.ndarray:
        """Return the largest error (q,) of a score of each query in half precision."""
        lost = queries.astype(np.float64) - queries.astype(np.float16)
        distance = np.asarray(np.sqrt(np.einsum("nd,nd->n", lost, lost)))
        return (distance + self.error) * LENGTH + CUT_OFF * rounding(queries.shape[1])

    def bytes_per_row(self, dim: int) -> int:
        """Return what a row takes on a GPU: float16, and float32 too if all rows fit on the GPUs at once."""
        rows = self.room // (6 * dim)
        return 6 * dim if rows and len(split(len(self.corpus), rows, len(self.gpus))[1]) == 1 else 2 * dim

    def _holds(self, number: int) -> bool:
        return self.held == number and all(gpu.holder is self.token for gpu in self.gpus)

    def _fetch_half(self, half: np.ndarray, k: int, spans: list[slice]) -> tuple[np.ndarray, np.ndarray]:
        """Return places and scores (q, k) of the best in half precision among spans of the corpus, searching all GPUs at once."""
        dim = half.shape[1]
        rows = self.room // self.bytes_per_row(dim)
        if rows < min(LEAST_PASSAGES, len(self.corpus)):  # such a search would not end
            raise SetupError(
                listed(gpu.name for gpu in self.gpus),
                f"out of memory: even a search in small blocks does not fit ({self.gpus[0].memory()})",
                "end other programs on the GPU, or run with --device cpu",
            )
        copies, rounds = split(len(self.corpus), rows, len(self.gpus))
        heap = faiss.ResultHeap(len(half), k, keep_max=True)
        for number, pieces in enumerate(rounds):
            holders = self._holders(pieces, copies)
            if not self._holds(number):
                self.held = -1  # until the copy is complete
                self.exact = self.bytes_per_row(dim) == 6 * dim
                self._copy_to_gpus(pieces, holders, dim)
                self.held = number
            shares = np.array_split(np.arange(len(half)), copies)
            jobs = [
                (gpu, some, slice(start, stop), piece.start)
                for piece, gpus in zip(pieces, holders, strict=True)
                for span in spans
                for start, stop in [(max(span.start, piece.start) - piece.start, min(span.stop, piece.stop) - piece.start)]
                for gpu, some in zip(gpus, shares, strict=True)
                if len(some) and start < stop
            ]
            with ThreadPoolExecutor(max(1, len(self.gpus))) as pool:
                found = pool.map(lambda job: knn_in_halves(job[0], half[job[1]], k, job[2]), jobs)
                for (_, some, part, offset), (scores, places) in zip(jobs, found, strict=True):
                    heap.add_result_subset(some, scores, places + part.start + offset)
        heap.finalize()
        return heap.I, heap.D

    def _holders(self, pieces: list[slice], copies: int) -> list[Sequence[Gpu]]:
        """Return the GPUs of each piece."""
        return [self.gpus[i :: len(pieces)][:copies] for i in range(len(pieces))]

    def _copy_to_gpus(self, pieces: list[slice], holders: list[Sequence[Gpu]], dim: int) -> None:
        """Copy each piece of the corpus to its GPUs; each row is read once."""
        for gpu in self.gpus:
            gpu.holder = self.token
        for piece, gpus in zip(pieces, holders, strict=True):
            for gpu in gpus:
                gpu.hold(piece.stop - piece.start, dim, self.exact)
            for start in range(piece.start, piece.stop, self.block):
                places = np.arange(start, min(start + self.block, piece.stop))
                rows = places if self.order is None else self.order[places]
                vectors = np.ascontiguousarray(self.corpus[rows], np.float32)
                for gpu in gpus:
                    self.error = max(self.error, gpu.put(start - piece.start, vectors))

    def _scores_on_gpus(self, queries: np.ndarray, places: np.ndarray, lanes: int) -> np.ndarray:
        """Return the scores (q, k) of places, each from a GPU that holds it."""
        copies, rounds = split(len(self.corpus), self.room // self.bytes_per_row(queries.shape[1]), len(self.gpus))
        row_of_each, flat, found = np.repeat(np.arange(len(places)), places.shape[1]), places.ravel(), np.empty(places.size)
        jobs = []
        for piece, gpus in zip(rounds[0], self._holders(rounds[0], copies), strict=True):
            here = np.flatnonzero((flat >= piece.start) & (flat < piece.stop))
            jobs += [(gpu, some, piece.start) for gpu, some in zip(gpus, np.array_split(here, copies), strict=True)]
        with ThreadPoolExecutor(max(1, len(self.gpus))) as pool:
            results = pool.map(lambda job: job[0].scores(queries, row_of_each[job[1]], flat[job[1]] - job[2], lanes), jobs)
            for (_, some, _), scores in zip(jobs, results, strict=True):
                found[some] = scores
        return found.reshape(places.shape)


class Others(Exact):
    """The rows of an index on GPUs that are not in one group."""

    def __init__(self, index: OnGpus, rows: np.ndarray, group: int) -> None:
        """Take the index, its rows that count, and the group that does not."""
        super().__init__(Part(index.corpus, rows), index.block)
        self.index, self.rows, self.group = index, rows, group

    def fetch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (q, k) int64 of nearly the best, and an upper limit (q,) for the scores of all others."""
        if k > min(gpu.widest for gpu in self.index.gpus):
            return super().fetch(queries, k)
        found, limit = self.index.fetch(queries, k, self.group)
        return np.searchsorted(self.rows, found), limit

    def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the inner product (q, k) float64 of each query (q, dim) with its own rows (q, k)."""
        return self.index.scores(queries, self.rows[rows])


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
    names = [f"cuda:{n}" for n in (range(torch.cuda.device_count()) if place.index is None else [place.index])]
    try:
        if faiss.get_num_gpus():
            found = [FaissGpu(name) for name in names]
            for gpu in found:
                gpu.check()
            return list(found)
    except (ArithmeticError, AttributeError, ImportError, RuntimeError) as error:
        what = "faiss cannot search on a GPU next to torch %s, which was built for CUDA %s (%s); torch searches instead"
        logging.getLogger("tuplesmith").warning(what, torch.__version__, torch.version.cuda, first_line(error))
    return [Gpu(name) for name in names]


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


def knn_in_halves(gpu: Gpu, queries: np.ndarray, k: int, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Search on a GPU; if it runs out of memory, search for half of the queries at a time."""
    try:
        return gpu.knn(queries, k, part)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(queries) <= LEAST_QUERIES:
            raise
    middle = len(queries) // 2
    parts = [knn_in_halves(gpu, some, k, part) for some in (queries[:middle], queries[middle:])]
    return np.vstack([scores for scores, _ in parts]), np.vstack([rows for _, rows in parts])


def sums_in_lanes(left: Any, right: Any, lanes: int) -> Any:
    """Return the inner products (p,) of float64 tensors (p, dim), summed as a processor with vectors of `lanes` numbers does.

    The compiler of `kernels.inner_products` keeps four such vectors of sums, adds them one after the other, and then adds the
    upper half of the lanes to the lower half until one number is left. Products of float32 numbers are exact in float64, so
    the order of the sum alone decides its bits.
    """
    width = 4 * lanes
    sums = left.new_zeros(len(left), width)
    for start in range(0, left.shape[1], width):
        sums.addcmul_(left[:, start : start + width], right[:, start : start + width])
    total = sums[:, :lanes]
    for start in range(lanes, width, lanes):
        total = total + sums[:, start : start + lanes]
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total[:, 0]


def lanes_of(gpu: Gpu, dim: int) -> int:
    """Return the number of lanes with which a GPU computes the bits of this processor; 0 if there is none.

    Random vectors show it: two orders of a sum differ in about half of all scores.
    """
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((256, dim), np.float32) for _ in range(2))
    wanted = inner_products(left, right, np.arange(256)[:, None])[:, 0]
    for lanes in LANES:
        if dim % (4 * lanes) == 0 and gpu.sums(left, right, lanes).tobytes() == wanted.tobytes():
            return lanes
    return 0
