"""sentence-transformers' miner on given vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.util import cos_sim, dot_score, mine_hard_negatives, pairwise_cos_sim, pairwise_dot_score

F2LLM = {"range_min": 5, "range_max": 100, "max_score": 0.8, "relative_margin": 0.05, "num_negatives": 24}


class Vectors:
    """What the miner calls of a model; with `exact`, the same vectors multiplied in float64 (else in float32)."""

    device = torch.device("cpu")

    def __init__(self, encode, exact=False):
        self.encode, self.dtype = encode, np.float64 if exact else np.float32
        self.similarity = dot_score if exact else cos_sim
        self.similarity_pairwise = pairwise_dot_score if exact else pairwise_cos_sim

    def encode_query(self, texts, **_):
        return self.encode(list(texts)).astype(self.dtype)

    encode_document = encode_query

    def get_embedding_dimension(self):
        return self.encode(["x"]).shape[1]


def peer_rows(queries: Sequence[str], positives: Sequence[str], model, use_faiss=False, **settings):
    """Return {query: (positive score of its first positive, negatives, scores)} for the rows that the peer keeps."""
    dataset = Dataset.from_dict({"query": list(queries), "positive": list(positives)})
    found = mine_hard_negatives(
        dataset, model, output_format="n-tuple", output_scores=True, verbose=False, use_faiss=use_faiss, **{**F2LLM, **settings}
    ).to_dict()
    count = {**F2LLM, **settings}["num_negatives"]
    rows = {}
    columns = zip(*(found[f"negative_{n}"] for n in range(1, count + 1)), strict=True) if found["query"] else []
    for query, scores, *texts in zip(found["query"], found["scores"], columns, strict=True):
        rows.setdefault(query, (scores[0], list(texts[0]), scores[1:]))
    return rows


def same_but_for_rounding(ours: tuple, theirs: tuple, rounding: float = 1e-6) -> bool:
    """Tell whether two rows differ only in texts whose scores are one number as far as float32 can tell."""
    return len(ours[1]) == len(theirs[1]) and all(
        mine == other or abs(score - peer) < rounding
        for mine, other, score, peer in zip(ours[1], theirs[1], ours[2], theirs[2], strict=True)
    )
