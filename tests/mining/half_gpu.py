"""A fake GPU that rounds as a GPU does, and runs out of memory as one does."""

from __future__ import annotations

import faiss
import numpy as np
import torch

from mining.gpu import sums_in_lanes

FAISS = "Error in allocMemory: StandardGpuResources: alloc fail type TemporaryMemoryOverflow (cudaMalloc error out of memory [2])"


class Half:
    """Holds float16 vectors; products of them are summed in float32. Has `room` bytes, and answers `most` queries at once."""

    engine, widest, holder = "torch", 1 << 20, None

    def __init__(self, number=0, room=1 << 30, most=1 << 20):
        self.name, self.room, self.most = f"cuda:{number}", room, most
        self.held = np.empty((0, 0), np.float16)
        self.asked, self.loads, self.scored = [], 0, 0

    def free(self):
        return self.room

    def hold(self, rows, dim, exact=False):
        if rows * dim * (6 if exact else 2) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.exact = np.zeros((rows, dim), np.float32) if exact else None
        self.held, self.loads = np.zeros((rows, dim), np.float16), self.loads + 1

    def put(self, start, vectors):
        assert vectors.dtype == np.float32
        half = vectors.astype(np.float16)
        self.held[start : start + len(vectors)] = half
        if self.exact is not None:
            self.exact[start : start + len(vectors)] = vectors
        return float(np.linalg.norm(vectors.astype(np.float64) - half, axis=1).max())

    def knn(self, queries, k, part):
        if len(queries) > self.most:
            raise RuntimeError(FAISS)
        self.asked.append(k)
        held = self.held[part].astype("f4")
        return faiss.knn(queries.astype("f4"), held, min(k, len(held)), metric=faiss.METRIC_INNER_PRODUCT)

    def scores(self, queries, of_each, rows, lanes):
        self.scored += len(rows)
        return self.sums(queries[of_each], self.exact[rows], lanes)

    def sums(self, left, right, lanes):
        return sums_in_lanes(torch.from_numpy(left).double(), torch.from_numpy(right).double(), lanes).numpy()

    def memory(self):
        return "0.1 of 79.6 GiB are free"
