"""F2LLM's two losses (arXiv 2510.02294, section 3), InfoNCE over all candidates, and a guard against false negatives.

All embeddings are rows of unit length, so a product is a cosine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

QUERIES_AT_ONCE = 512  # rows of the matrix of scores that are in memory at a time


class Losses(NamedTuple):
    """Means over the rows of a batch, 0-d."""

    total: Tensor  # the (weighted) sum of the terms below; of `infonce` with in-batch negatives the only one
    hard: Tensor | None  # None if a row's own and other rows' negatives share a softmax
    in_batch: Tensor | None  # None in that case too, and for a task without in-batch negatives
    distilled: Tensor | None = None  # None without a teacher

    def detach(self) -> Losses:
        """Return the same numbers without their graph."""
        return Losses(self.total.detach(), *(None if term is None else term.detach() for term in self[1:]))


def contrastive(
    query: Tensor,
    positive: Tensor,
    negative: Tensor,
    has_negative: Tensor,
    shared: Tensor | None,
    temperature: float,
    in_batch: bool,
    symmetric: bool = False,
    detached: bool = False,
) -> Losses:
    """Return the loss of b tuples of one source.

    Args:
        query: (b, dim).
        positive: (b, dim).
        negative: (b, k, dim), with any value where `has_negative` is false.
        has_negative: (b, k) bool.
        shared: (b, b) bool, which other rows' positives must not count as negatives of a row; None = F2LLM's own formula.
        temperature: divides the cosines.
        in_batch: add the in-batch term.
        symmetric: the in-batch term is the mean of queries among passages and passages among queries.
        detached: the in-batch term gives passages no gradient.
    """
    hard = hard_loss(query, positive, negative, has_negative, temperature)
    if not in_batch:
        return Losses(hard, hard, None)
    among = softmax_loss(query, positive.detach() if detached else positive, shared, temperature)
    if symmetric:
        back = softmax_loss(positive, query, None if shared is None else shared.T, temperature)
        among = (among + back) / 2
    return Losses(hard + among, hard, among)


def infonce(
    query: Tensor,
    positive: Tensor,
    negative: Tensor,
    has_negative: Tensor,
    shared: Tensor | None,
    shared_negative: Tensor | None,
    temperature: float,
    in_batch: bool,
) -> Losses:
    """Return the mean cross-entropy of each positive among all positives and negatives of the batch (arXiv 1807.03748).

    Arguments are as for `contrastive`; `shared_negative` is (b, b, k) bool, which other rows' negatives must not count as
    negatives of a row. Without `in_batch` a row has only its own negatives.
    """
    if not in_batch:
        hard = hard_loss(query, positive, negative, has_negative, temperature)
        return Losses(hard, hard, None)
    b = len(query)
    own = ~has_negative.flatten().expand(b, -1)  # (b, b * k)
    others = own.new_zeros(b, b) if shared is None else shared
    absent = own if shared_negative is None else own | shared_negative.flatten(1)
    candidates = torch.cat([positive, negative.flatten(0, 1)])  # (b + b * k, dim)
    return Losses(softmax_loss(query, candidates, torch.cat([others, absent], dim=1), temperature), None, None)


def hard_loss(query: Tensor, positive: Tensor, negative: Tensor, has_negative: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of each positive among itself and its row's own negatives."""
    near = (query * positive).sum(-1, keepdim=True)  # (b, 1)
    far = torch.einsum("bd,bkd->bk", query, negative).masked_fill(~has_negative, -torch.inf)
    logits = torch.cat([near, far], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def softmax_loss(query: Tensor, candidates: Tensor, excluded: Tensor | None, temperature: float) -> Tensor:
    """Return the mean cross-entropy of candidate i for query i among all n candidates, except those `excluded` (b, n) bool.

    A large batch is computed some rows at a time, and again in the backward pass, so b x n numbers never exist at once.
    """

    def some(first: int, query: Tensor, candidates: Tensor) -> Tensor:
        logits = query @ candidates.T / temperature  # (rows, n)
        if excluded is not None:
            logits = logits.masked_fill(excluded[first : first + len(query)], -torch.inf)
        return F.cross_entropy(logits, torch.arange(first, first + len(query), device=logits.device), reduction="sum")

    if len(query) <= QUERIES_AT_ONCE:
        return some(0, query, candidates) / len(query)
    parts = enumerate(torch.split(query, QUERIES_AT_ONCE))
    each = [checkpoint(some, part * QUERIES_AT_ONCE, rows, candidates, use_reentrant=False) for part, rows in parts]
    return torch.stack(each).sum() / len(query)


def too_near(query: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Return (b, b) bool: which positives of other rows score above the row's own positive by more than a margin.

    They are probably false negatives. This is the guard of Qwen3-Embedding (arXiv 2506.05176, section 3.1), with a margin of 0.1.
    """
    scores = (query @ positive.T).detach()
    near = scores > scores.diagonal()[:, None] + margin
    return near & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)


def distillation(query: Tensor, positive: Tensor, negative: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean divergence KL(teacher || student) over each row's positive and own negatives.

    Args:
        query: (b, dim).
        positive: (b, dim).
        negative: (b, k, dim).
        teacher: (b, 1 + k), cosines or a cross-encoder's scores. NaN excludes a candidate; a row with fewer than two
            candidates contributes 0.
        temperature: divides the scores of both.
    """
    student = torch.cat([(query * positive).sum(-1, keepdim=True), torch.einsum("bd,bkd->bk", query, negative)], dim=1)
    known = ~teacher.isnan()
    wanted = torch.where(known, teacher / temperature, -torch.inf)
    wanted = wanted.masked_fill(~known.any(dim=1, keepdim=True), 0.0).softmax(dim=1)  # a row of nothing but -inf gives NaN
    given = (student / temperature).masked_fill(~known, torch.finfo(student.dtype).min).log_softmax(dim=1)
    each = (torch.xlogy(wanted, wanted) - wanted * given).masked_fill(~known, 0.0).sum(dim=1)
    return each.masked_fill(known.sum(dim=1) < 2, 0.0).mean()
