"""The two losses against a double loop in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training import loss as losses
from training.loss import (
    QUERIES_AT_ONCE,
    contrastive,
    distillation,
    hard_loss,
    infonce,
    matched_cosines,
    softmax_loss,
    spread_out,
    too_near,
)


def unit(*shape, seed):
    values = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).normal(size=shape))
    return torch.nn.functional.normalize(values, dim=-1)


def by_loops(query, positive, negative, has, shared, temperature):
    """Return (hard, in_batch) as F2LLM defines them, one product at a time."""
    hard = in_batch = 0.0
    for i in range(len(query)):
        near = math.exp(float(query[i] @ positive[i]) / temperature)
        far = sum(math.exp(float(query[i] @ negative[i, j]) / temperature) for j in range(negative.shape[1]) if has[i, j])
        hard -= math.log(near / (near + far)) / len(query)
        others = sum(
            math.exp(float(query[i] @ positive[j]) / temperature)
            for j in range(len(query))
            if j != i and not (shared is not None and shared[i, j])
        )
        in_batch -= math.log(near / (near + others)) / len(query)
    return hard, in_batch


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_equals_the_double_loop(masked, temperature):
    query, positive, negative = unit(6, 16, seed=1), unit(6, 16, seed=2), unit(6, 4, 16, seed=3)
    has = torch.tensor([[True] * 4, [True] * 3 + [False], [False] * 4, [True] * 4, [True] + [False] * 3, [True] * 4])
    shared = None
    if masked:
        shared = torch.zeros(6, 6, dtype=torch.bool)
        shared[0, 1] = shared[1, 0] = shared[4, 2] = True
    hard, in_batch = by_loops(query, positive, negative, has, shared, temperature)
    got = contrastive(query, positive, negative, has, shared, temperature, True)
    assert float(got.hard) == pytest.approx(hard, rel=1e-12)
    assert float(got.in_batch) == pytest.approx(in_batch, rel=1e-12)
    assert float(got.total) == pytest.approx(hard + in_batch, rel=1e-12)


def test_without_in_batch_negatives_there_is_the_hard_term_only():
    query, positive, negative = unit(3, 8, seed=1), unit(3, 8, seed=2), unit(3, 1, 8, seed=3)
    has = torch.ones(3, 1, dtype=torch.bool)
    got = contrastive(query, positive, negative, has, None, 0.05, False)
    assert got.in_batch is None
    assert float(got.total) == float(got.hard) == float(hard_loss(query, positive, negative, has, 0.05))


def test_a_row_with_all_others_masked_and_one_without_negatives_cost_nothing_and_are_finite():
    query, positive = unit(3, 8, seed=4), unit(3, 8, seed=5)
    shared = ~torch.eye(3, dtype=torch.bool)
    assert float(softmax_loss(query, positive, shared, 0.05)) == 0
    none = torch.zeros(3, 2, dtype=torch.bool)
    query.requires_grad_(True)
    loss = hard_loss(query, positive, unit(3, 2, 8, seed=6), none, 0.05) + softmax_loss(query, positive, shared, 0.05)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(query.grad).all()
    assert hard_loss(query, positive, positive.new_zeros(3, 0, 8), none[:, :0], 0.05).item() == 0


def test_every_part_gets_a_gradient():
    parts = [unit(4, 8, seed=1), unit(4, 8, seed=2), unit(4, 2, 8, seed=3)]
    for part in parts:
        part.requires_grad_(True)
    contrastive(*parts, torch.ones(4, 2, dtype=torch.bool), None, 0.05, True).total.backward()
    assert all(float(part.grad.norm()) > 0.1 for part in parts)


def test_in_batch_gradient_reaches_other_rows_passages():
    query, positive = unit(4, 8, seed=1), unit(4, 8, seed=2).requires_grad_(True)
    logits = query @ positive.T / 0.05
    torch.nn.functional.cross_entropy(logits[:1], torch.zeros(1, dtype=torch.long)).backward()
    alone = positive.grad.clone()
    positive.grad = None
    softmax_loss(query, positive, None, 0.05).backward()
    assert not torch.allclose(positive.grad, alone / 4)
    assert (positive.grad.norm(dim=1) > 0).all()


def test_a_large_batch_has_the_loss_and_gradients_of_one_product_without_keeping_its_scores():
    b, n = 2 * QUERIES_AT_ONCE + 3, 3 * QUERIES_AT_ONCE
    query, candidates = (unit(count, 8, seed=seed).requires_grad_() for count, seed in ((b, 1), (n, 2)))
    out = torch.from_numpy(np.random.Generator(np.random.Philox(3)).random((b, n)) < 0.1)
    out[torch.arange(b), torch.arange(b)] = False
    logits = (query @ candidates.T / 0.05).masked_fill(out, -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(b))
    wanted = torch.autograd.grad(expected, [query, candidates])
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        got = softmax_loss(query, candidates, out, 0.05)
    assert sum(kept) < b * n / 10
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(torch.autograd.grad(got, [query, candidates]), wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def qwen3_by_loops(query, positive, negative, has, shared, shared_negative, temperature, terms, margin, hardness):
    """Return Qwen3-Embedding's loss, one product at a time; `terms` are those of its softmax besides query and passages."""
    b, k, loss = len(query), negative.shape[1], 0.0
    for i in range(b):
        near = float(query[i] @ positive[i])
        others = []  # (score, how often it counts)
        for j in range(b):
            if j != i and not shared[i, j]:
                others.append((float(query[i] @ positive[j]), 1.0))
            if j != i and not shared[i, j] and not shared[j, i]:
                if "query_query" in terms:
                    others.append((float(query[i] @ query[j]), 1.0))
                if "passage_passage" in terms:
                    others.append((float(positive[i] @ positive[j]), 1.0))
            for m in range(k):
                if has[j, m] and not shared_negative[i, j, m]:
                    score = float(query[i] @ negative[j, m])
                    others.append((score, math.exp(hardness * score) if j == i else 1.0))
                    if j != i and "passage_passage" in terms:
                        others.append((float(positive[i] @ negative[j, m]), 1.0))
        counted = [(score, weight) for score, weight in others if margin is None or score <= near + margin]
        everything = math.exp(near / temperature) + sum(weight * math.exp(score / temperature) for score, weight in counted)
        loss -= (near / temperature - math.log(everything)) / b
    return loss


@pytest.mark.parametrize(("k", "at_once"), [(3, 2), (3, 512), (0, 512)])
@pytest.mark.parametrize("terms", [(), ("query_query",), ("passage_passage",), ("query_query", "passage_passage")])
@pytest.mark.parametrize(("margin", "hardness"), [(None, 0.0), (0.1, 0.0), (0.1, 5.0)])
def test_the_further_terms_of_a_softmax_equal_the_double_loop(terms, margin, hardness, at_once, k, monkeypatch):
    monkeypatch.setattr(losses, "QUERIES_AT_ONCE", at_once)
    query, positive, negative = unit(5, 6, seed=1), unit(5, 6, seed=2), unit(5, k, 6, seed=3)
    has = torch.arange(5 * k).reshape(5, k) % 4 != 3
    shared, shared_negative = torch.zeros(5, 5, dtype=torch.bool), torch.zeros(5, 5, k, dtype=torch.bool)
    shared[0, 1] = shared[3, 2] = shared_negative[0, 1, :] = shared_negative[2, 4, :1] = True
    arguments = (query, positive, negative, has, shared, shared_negative, 0.2)
    switches = {name: name in terms for name in ("query_query", "passage_passage")}
    got = infonce(*arguments, True, **switches, margin=margin, hardness=hardness)
    expected = qwen3_by_loops(*arguments, terms, margin, hardness)
    assert float(got.total) == pytest.approx(expected, rel=1e-12)
    if margin is not None and k:
        assert expected != pytest.approx(qwen3_by_loops(*arguments, terms, None, hardness), rel=1e-3)


def test_the_further_terms_are_those_of_sentence_transformers():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    query, positive, negative = unit(5, 8, seed=1), unit(5, 8, seed=2), unit(5, 2, 8, seed=3)
    theirs = MultipleNegativesRankingLoss(
        torch.nn.Module(),
        directions=("query_to_doc", "query_to_query", "doc_to_doc"),
        hardness_mode="hard_negatives",
        hardness_strength=5.0,
    )
    expected = theirs.compute_loss_from_embeddings([query, positive, *negative.unbind(1)], None)
    has = torch.ones(5, 2, dtype=torch.bool)
    got = infonce(query, positive, negative, has, None, None, 0.05, True, True, True, hardness=5.0)
    assert float(got.total) == pytest.approx(float(expected), rel=1e-5)


def test_hard_negatives_count_by_their_hardness_and_the_weight_gets_no_gradient():
    query, positive, negative = unit(4, 8, seed=1), unit(4, 8, seed=2), unit(4, 3, 8, seed=3)
    has = torch.tensor([[True] * 3, [True, False, True], [False] * 3, [True] * 3])
    expected = 0.0
    for i in range(4):
        near = math.exp(float(query[i] @ positive[i]) / 0.2)
        scores = [float(query[i] @ negative[i, m]) for m in range(3) if has[i, m]]
        far = sum(math.exp(5 * score) * math.exp(score / 0.2) for score in scores)
        expected -= math.log(near / (near + far)) / 4
    weighted = query.clone().requires_grad_()
    got = contrastive(weighted, positive, negative, has, None, 0.2, False, hardness=5.0).total
    assert float(got.detach()) == pytest.approx(expected, rel=1e-12)
    got.backward()
    constant = query.clone().requires_grad_()
    scores = torch.einsum("bd,bkd->bk", constant, negative)
    far = (scores / 0.2 + 5 * scores.detach()).masked_fill(~has, -torch.inf)
    near = (constant * positive).sum(-1, keepdim=True) / 0.2
    (-torch.cat([near, far], 1).log_softmax(1)[:, 0]).mean().backward()
    assert torch.allclose(weighted.grad, constant.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("at_once", [2, 512])
def test_spread_out_is_the_mean_square_of_the_cosines_of_pairs(at_once, monkeypatch):
    monkeypatch.setattr(losses, "QUERIES_AT_ONCE", at_once)
    vectors = 3 * unit(5, 8, seed=1)
    shared = torch.zeros(5, 5, dtype=torch.bool)
    shared[0, 1] = shared[3, 2] = True
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    squares = {(i, j): float(vectors[i] @ vectors[j] / 9) ** 2 for i, j in pairs}
    assert float(spread_out(vectors, None)) == pytest.approx(sum(squares.values()) / 20, rel=1e-12)
    left = [square for pair, square in squares.items() if set(pair) not in ({0, 1}, {2, 3})]
    assert float(spread_out(vectors, shared)) == pytest.approx(sum(left) / 16, rel=1e-12)
    alone = vectors[:1].clone().requires_grad_()
    spread_out(alone, None).backward()
    assert not alone.grad.any()


def joint_by_loops(query, positive, negative, has, shared, shared_negative, temperature):
    """Return InfoNCE over every positive and negative of the batch, one product at a time."""
    b, k, loss = len(query), negative.shape[1], 0.0
    for i in range(b):
        near = math.exp(float(query[i] @ positive[i]) / temperature)
        everything = near
        for j in range(b):
            if j != i and not (shared is not None and shared[i, j]):
                everything += math.exp(float(query[i] @ positive[j]) / temperature)
            for m in range(k):
                if has[j, m] and not (shared_negative is not None and shared_negative[i, j, m]):
                    everything += math.exp(float(query[i] @ negative[j, m]) / temperature)
        loss -= math.log(near / everything) / b
    return loss


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("k", [0, 3])
def test_infonce_equals_the_double_loop(masked, k):
    query, positive, negative = unit(5, 16, seed=1), unit(5, 16, seed=2), unit(5, k, 16, seed=3)
    has = torch.arange(5 * k).reshape(5, k) % 4 != 3
    shared = shared_negative = None
    if masked:
        shared, shared_negative = torch.zeros(5, 5, dtype=torch.bool), torch.zeros(5, 5, k, dtype=torch.bool)
        shared[0, 1] = shared[3, 2] = True
        shared_negative[2, 4, :1] = shared_negative[0, 1, :] = True
    arguments = (query, positive, negative, has, shared, shared_negative, 0.2)
    got = infonce(*arguments, True)
    assert float(got.total) == pytest.approx(joint_by_loops(*arguments), rel=1e-12)
    assert got.hard is None
    assert got.in_batch is None


def test_infonce_of_a_task_without_softmax_loss_has_own_negatives_only():
    query, positive, negative = unit(3, 8, seed=1), unit(3, 8, seed=2), unit(3, 2, 8, seed=3)
    has = torch.ones(3, 2, dtype=torch.bool)
    got = infonce(query, positive, negative, has, None, None, 0.05, False)
    assert float(got.total) == float(got.hard) == float(hard_loss(query, positive, negative, has, 0.05))


def test_passages_among_queries_too():
    query, positive, negative = unit(5, 8, seed=1), unit(5, 8, seed=2), unit(5, 1, 8, seed=3)
    has, shared = torch.ones(5, 1, dtype=torch.bool), torch.zeros(5, 5, dtype=torch.bool)
    shared[0, 3] = True
    one, other = (
        by_loops(query, positive, negative, has, shared, 0.1)[1],
        by_loops(positive, query, negative, has, shared.T, 0.1)[1],
    )
    got = contrastive(query, positive, negative, has, shared, 0.1, True, symmetric=True)
    assert float(got.in_batch) == pytest.approx((one + other) / 2, rel=1e-12)


def test_another_rows_positive_that_scores_above_the_own_one_is_masked():
    query, positive = unit(6, 4, seed=1), unit(6, 4, seed=2)
    scores = query @ positive.T
    got = too_near(query.requires_grad_(), positive, 0.1)
    assert got.any()
    for i in range(6):
        for j in range(6):
            assert bool(got[i, j]) == (i != j and float(scores[i, j]) > float(scores[i, i]) + 0.1)


def test_distillation_is_the_divergence_from_the_teacher():
    query, positive, negative = unit(4, 8, seed=1), unit(4, 8, seed=2), unit(4, 3, 8, seed=3)
    nan = math.nan
    teacher = torch.tensor([[0.9, 0.2, 0.5, 0.1], [0.8, nan, 0.3, nan], [nan, nan, nan, nan], [0.7, nan, nan, nan]]).double()
    expected = 0.0
    for i in range(2):  # the others have nothing to compare
        known = [j for j in range(4) if not math.isnan(float(teacher[i, j]))]
        passages = [positive[i], *negative[i]]
        wanted = [math.exp(float(teacher[i, j]) / 0.2) for j in known]
        given = [math.exp(float(query[i] @ passages[j]) / 0.2) for j in known]
        for w, g in zip(wanted, given, strict=True):
            expected += w / sum(wanted) * math.log((w / sum(wanted)) / (g / sum(given))) / 4
    student = query.clone().requires_grad_()
    got = distillation(student, positive, negative, teacher, 0.2)
    assert float(got.detach()) == pytest.approx(expected, rel=1e-9)
    got.backward()
    assert student.grad.isfinite().all()
    assert not student.grad[2:].any()


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn():
    query, positive, negative = unit(3, 8, seed=1), unit(3, 8, seed=2), unit(3, 2, 8, seed=3)
    teacher = torch.cat([(query * positive).sum(-1, keepdim=True), torch.einsum("bd,bkd->bk", query, negative)], 1)
    assert float(distillation(query, positive, negative, teacher, 0.05)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [7, QUERIES_AT_ONCE + 3])
def test_matched_cosines_equal_the_double_loop_whatever_the_teachers_dimension(n):
    student = 3 * torch.from_numpy(np.random.Generator(np.random.Philox(1)).normal(size=(n, 8)))
    teacher = unit(n, 20, seed=2) / 2
    wanted = 0.0
    for i in range(n):
        for j in range(n if n < 10 else 1):  # of the large one the first column, which shows that each row meets its own
            one, other = (float(x[i] @ x[j] / x[i].norm() / x[j].norm()) for x in (student, teacher))
            wanted += (one - other) ** 2
    if n < 10:
        got = matched_cosines(student.requires_grad_(), teacher)
        assert float(got.detach()) == pytest.approx(wanted / n**2, rel=1e-12)
        assert torch.autograd.gradcheck(lambda x: matched_cosines(x, teacher), student)
        assert float(matched_cosines(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    else:
        unit_student, unit_teacher = (torch.nn.functional.normalize(x, dim=1) for x in (student, teacher))
        plain = (unit_student @ unit_student.T - unit_teacher @ unit_teacher.T).square()
        assert float(plain[:, 0].sum()) == pytest.approx(wanted, rel=1e-9)
        assert float(matched_cosines(student, teacher)) == pytest.approx(float(plain.mean()), rel=1e-12)
