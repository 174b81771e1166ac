"""F2LLM's two losses (arXiv 2510.02294, section 3), InfoNCE over all candidates, and a guard against false negatives.

All embeddings are rows of unit length, so a product is a cosine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS_AT_ONCE = 512  # of the scores in a batch
IN_BATCH_TASKS = ("retrieval",)  # elsewhere other rows' positives are of the same class too often, unless classes are known


class Losses(NamedTuple):
    """Means over the rows of a batch, 0-d; `total` is the (weighted) sum of the others, or stands alone where they are one."""

    total: Tensor
    hard: Tensor | None  # None where own and other rows' negatives share a softmax
    in_batch: Tensor | None  # None there too, and for a task without it
    distilled: Tensor | None = None  # None without a teacher


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
        negative: (b, k, dim), anything where `has_negative` is false.
        has_negative: (b, k) bool.
        shared: (b, b) bool, which other rows' positives are no negatives of a row; None gives F2LLM's own formula.
        temperature: divides the cosines.
        in_batch: add the in-batch term.
        symmetric: that term is the mean of queries among passages and passages among queries.
        detached: that term gives passages no gradient.
    """
    hard = hard_loss(query, positive, negative, has_negative, temperature)
    if not in_batch:
        return Losses(hard, hard, None)
    among = own_among(query, positive.detach() if detached else positive, shared, temperature)
    if symmetric:
        back = own_among(positive, query, None if shared is None else shared.T, temperature)
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

    Arguments are as for `contrastive`; `shared_negative` is (b, b, k) bool, which other rows' negatives are no negatives
    of a row. Without `in_batch` a row has its own negatives only.
    """
    if not in_batch:
        hard = hard_loss(query, positive, negative, has_negative, temperature)
        return Losses(hard, hard, None)
    b = len(query)
    own = ~has_negative.flatten().expand(b, -1)  # (b, b * k)
    others = own.new_zeros(b, b) if shared is None else shared
    absent = own if shared_negative is None else own | shared_negative.flatten(1)
    candidates = torch.cat([positive, negative.flatten(0, 1)])  # (b + b * k, dim)
    return Losses(own_among(query, candidates, torch.cat([others, absent], dim=1), temperature), None, None)


def hard_loss(query: Tensor, positive: Tensor, negative: Tensor, has_negative: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of each positive among itself and its row's own negatives."""
    near = (query * positive).sum(-1, keepdim=True)  # (b, 1)
    far = torch.einsum("bd,bkd->bk", query, negative).masked_fill(~has_negative, -torch.inf)
    logits = torch.cat([near, far], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def own_among(query: Tensor, candidates: Tensor, out: Tensor | None, temperature: float) -> Tensor:
    """Return the mean cross-entropy of candidate i for query i, among all n candidates but those that `out` (b, n) takes out.

    A large batch is computed some rows at a time, and again on the way back: never are there b x n numbers.
    """

    def some(first: int, query: Tensor, candidates: Tensor) -> Tensor:
        logits = query @ candidates.T / temperature  # (rows, n)
        if out is not None:
            logits = logits.masked_fill(out[first : first + len(query)], -torch.inf)
        return F.cross_entropy(logits, torch.arange(first, first + len(query), device=logits.device), reduction="sum")

    if len(query) <= ROWS_AT_ONCE:
        return some(0, query, candidates) / len(query)
    parts = enumerate(torch.split(query, ROWS_AT_ONCE))
    each = [checkpoint(some, part * ROWS_AT_ONCE, rows, candidates, use_reentrant=False) for part, rows in parts]
    return torch.stack(each).sum() / len(query)


def too_near(query: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Return (b, b) bool: another row's positive that scores above the row's own by more than a margin is no negative.

    The guard of Qwen3-Embedding (arXiv 2506.05176, section 3.1), whose margin is 0.1.
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
        teacher: (b, 1 + k), cosines or a cross-encoder's scores; NaN takes a candidate out, a row with fewer than two counts 0.
        temperature: divides the scores of both.
    """
    student = torch.cat([(query * positive).sum(-1, keepdim=True), torch.einsum("bd,bkd->bk", query, negative)], dim=1)
    known = ~teacher.isnan()
    wanted = torch.where(known, teacher / temperature, -torch.inf)
    wanted = wanted.masked_fill(~known.any(dim=1, keepdim=True), 0.0).softmax(dim=1)  # a row of nothing but -inf gives NaN
    given = (student / temperature).masked_fill(~known, torch.finfo(student.dtype).min).log_softmax(dim=1)
    each = (torch.xlogy(wanted, wanted) - wanted * given).masked_fill(~known, 0.0).sum(dim=1)
    return each.masked_fill(known.sum(dim=1) < 2, 0.0).mean()
