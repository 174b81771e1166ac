"""F2LLM's two losses (arXiv 2510.02294, section 3), InfoNCE over all candidates, and a guard against false negatives.

Further terms, off by default: queries among queries and passages among passages, hardness weights, spread-out vectors,
distillation. All embeddings are rows of unit length, so a product is a cosine.

The task of a batch's source decides which of F2LLM's losses apply: of retrieval both, of classification and clustering the one
over a row's own negatives alone (`data.in_batch_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    spread_out: Tensor | None = None  # None unless asked for, and for a task without in-batch negatives
    vectors: Tensor | None = None  # None without a teacher's vectors

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
    hardness: float = 0.0,
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
        hardness: see `hard_loss`.
    """
    hard = hard_loss(query, positive, negative, has_negative, temperature, hardness)
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
    query_query: bool = False,
    passage_passage: bool = False,
    margin: float | None = None,
    hardness: float = 0.0,
) -> Losses:
    """Return the mean cross-entropy of each positive among all positives and negatives of the batch (arXiv 1807.03748).

    Arguments are as for `contrastive`; `shared_negative` is (b, b, k) bool, which other rows' negatives must not count as
    negatives of a row. Without `in_batch` a row has only its own negatives.

    With `query_query`, `passage_passage` and `margin` it is the loss of Qwen3-Embedding (arXiv 2506.05176, section 3.1), whose
    softmax has more negatives: how near a row's query is to other queries, and its positive to other rows' passages.

    Args:
        query_query: other rows' queries count as negatives of a query, unless their positives are shared.
        passage_passage: other rows' passages count as negatives of a positive, except shared ones.
        margin: exclude each negative, also a row's own, whose score is above that of the row's positive by more than this.
        hardness: see `hard_loss`; it weights a row's own negatives only.
    """
    if not in_batch:
        hard = hard_loss(query, positive, negative, has_negative, temperature, hardness)
        return Losses(hard, hard, None)
    b, k = negative.shape[:2]
    own = ~has_negative.flatten().expand(b, -1)  # (b, b * k)
    others = own.new_zeros(b, b) if shared is None else shared
    absent = own if shared_negative is None else own | shared_negative.flatten(1)
    candidates = torch.cat([positive, negative.flatten(0, 1)])  # (b + b * k, dim)
    itself = torch.eye(b, dtype=torch.bool, device=own.device)
    related = itself | others | others.T  # (b, b): rows that have a positive in common
    further = []
    if query_query:
        further.append((query, query, related))
    if passage_passage:
        further.append((positive, candidates, torch.cat([related, absent | itself.repeat_interleave(k, dim=1)], dim=1)))
    excluded = torch.cat([others, absent], dim=1)
    return Losses(softmax_loss(query, candidates, excluded, temperature, further, margin, hardness), None, None)


def hard_loss(
    query: Tensor, positive: Tensor, negative: Tensor, has_negative: Tensor, temperature: float, hardness: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy of each positive among itself and its row's own negatives.

    `hardness` is the strength a of EmbeddingGemma's weights (arXiv 2509.20354, section 2.2): each negative counts
    exp(a * cosine) times. The weight itself gets no gradient.
    """
    near = (query * positive).sum(-1, keepdim=True)  # (b, 1)
    far = torch.einsum("bd,bkd->bk", query, negative).masked_fill(~has_negative, -torch.inf)
    logits = torch.cat([near, far], dim=1) / temperature
    if hardness:
        logits = logits + F.pad(hardness * far.detach(), (1, 0))
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def softmax_loss(
    query: Tensor,
    candidates: Tensor,
    excluded: Tensor | None,
    temperature: float,
    further: Sequence[tuple[Tensor, Tensor, Tensor]] = (),
    margin: float | None = None,
    hardness: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy of candidate i for query i among all n candidates, except those `excluded` (b, n) bool.

    Args:
        further: negatives that are not scored by the query, each (left (b, dim), right (m, dim), excluded (b, m) bool): the
            score of right j for row i is left i times right j.
        margin, hardness: as for `infonce`; the own negatives of row i are the k candidates from b + i * k on.
    """
    b, n = len(query), len(candidates)
    own = torch.arange(b, n, device=query.device).view(b, n // b - 1) if hardness else None  # (b, k), columns

    def some(first: int, query: Tensor, *lefts: Tensor) -> Tensor:
        rows = slice(first, first + len(query))
        target = torch.arange(first, first + len(query), device=query.device)
        scores = query @ candidates.T  # (rows, n)
        logits = scores / temperature
        if own is not None:
            logits = logits.scatter_add(1, own[rows], hardness * scores.detach().gather(1, own[rows]))
        if excluded is not None:
            logits = logits.masked_fill(excluded[rows], -torch.inf)
        limit = None if margin is None else scores.detach().gather(1, target[:, None]) + margin
        if limit is not None:
            logits = logits.masked_fill(scores > limit, -torch.inf)
        for left, (_, right, out) in zip(lefts, further, strict=True):
            more = left @ right.T
            hidden = out[rows] if limit is None else out[rows] | (more > limit)
            logits = torch.cat([logits, (more / temperature).masked_fill(hidden, -torch.inf)], dim=1)
        return F.cross_entropy(logits, target, reduction="sum")

    return by_rows(some, query, *(left for left, _, _ in further)) / b


def by_rows(some: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """Return the sum of `some(first row, rows of each part)` over all rows, 0-d.

    A large batch is computed some rows at a time, and again in the backward pass, so b x n numbers never exist at once.
    """
    if len(parts[0]) <= QUERIES_AT_ONCE:
        return some(0, *parts)
    pieces = enumerate(zip(*(torch.split(part, QUERIES_AT_ONCE) for part in parts), strict=True))
    each = [checkpoint(some, number * QUERIES_AT_ONCE, *rows, use_reentrant=False) for number, rows in pieces]
    return torch.stack(each).sum()


def spread_out(vectors: Tensor, shared: Tensor | None) -> Tensor:
    """Return the mean squared cosine of each two of b vectors, (b, dim), 0-d; it is 1 / dim for random directions.

    This is EmbeddingGemma's regulariser (arXiv 2509.20354, equation 4), the second moment of that of arXiv 1708.06320. Pairs
    that are `shared` (b, b) bool, in one direction or the other, do not count.
    """
    unit = F.normalize(vectors, dim=1)
    apart = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    if shared is not None:
        apart &= ~(shared | shared.T)

    def some(first: int, rows: Tensor) -> Tensor:
        return (rows @ unit.T).square().masked_fill(~apart[first : first + len(rows)], 0.0).sum()

    return by_rows(some, unit) / apart.sum().clamp(min=1)


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


def matched_cosines(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference between the student's and the teacher's cosines of all n x n pairs of texts, 0-d.

    It is the similarity loss of Stella (arXiv 2412.19048), which needs no projection where dimensions differ.

    Args:
        student: (n, dim), of any length.
        teacher: (n, teacher's dim), of any length.
    """
    student, teacher = F.normalize(student, dim=1), F.normalize(teacher.to(student.dtype), dim=1)

    def some(first: int, rows: Tensor, wanted: Tensor) -> Tensor:
        return (rows @ student.T - wanted @ teacher.T).square().sum()

    return by_rows(some, student, teacher) / len(student) ** 2
