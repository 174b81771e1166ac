"""The plan: every tuple once an epoch, one source a batch, any step alone, and texts gathered once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.recipe.settings import OfSource, Train
from training import data
from training.data import Plan, assemble, batches_per_epoch, draw_negatives, row_order, shared_negatives, shared_positives, spread
from training.tokens import WINDOW, Source, take


def flat(lists):
    starts = np.cumsum([0, *map(len, lists)])
    return np.array([value for row in lists for value in row], dtype=np.uint32), starts.astype(np.int64)


def source_of(name, positives, negatives, identity=None, task="retrieval", keys=None):
    """Return a source whose query i is text i, whose passage p is text rows + p, and whose text t has 1 + t % 5 tokens."""
    rows, passages = len(positives), 1 + max(map(max, [*positives, *[row or [0] for row in negatives]]), default=0)
    lengths = 1 + np.arange(rows + passages) % 5
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Source(
        name, task, Path(name), "digest",
        ids=np.repeat(np.arange(rows + passages), lengths).astype(np.uint16), starts=starts,
        rows=np.array(keys if keys is not None else np.arange(rows) * 7919 + 1, dtype=np.uint64),
        query=np.arange(rows, dtype=np.uint32),
        positives=flat(positives)[0], positive_starts=flat(positives)[1],
        negatives=flat(negatives)[0], negative_starts=flat(negatives)[1],
        text=(rows + np.arange(passages)).astype(np.uint32),
        identity=np.array(identity if identity is not None else np.arange(passages), dtype=np.int64),
        positive_score=np.arange(rows, dtype=np.float32) / rows,
        negative_scores=np.arange(len(flat(negatives)[0]), dtype=np.float32),
    )  # fmt: skip


def plain(name, rows, negatives=6, **more):
    return source_of(
        name, [[i] for i in range(rows)], [[(i + j + 1) % rows for j in range(negatives)] for i in range(rows)], **more
    )


def plan_of(given, seed, batch, negatives, **keys):
    return Plan(given, seed, Train(model="m", batch=batch, negatives=negatives, **keys))


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4), batch=st.integers(1, 17), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_every_row_once_an_epoch_and_one_source_a_batch(sizes, batch, seed):
    plan = plan_of([plain(f"s{i}", size) for i, size in enumerate(sizes)], seed, batch, 3)
    assert plan.steps_per_epoch == sum(-(-size // batch) for size in sizes)
    for epoch in range(2):
        seen = {source.name: [] for source in plan.sources}
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            source, rows, _ = plan.chosen(step)
            assert 1 <= len(rows) <= batch
            seen[source.name].extend(rows.tolist())
        assert all(sorted(seen[f"s{i}"]) == list(range(size)) for i, size in enumerate(sizes))


def test_any_step_alone_equals_the_step_of_a_walk():
    sources = [plain("a", 40), plain("b", 23)]
    walk = plan_of(sources, 7, 5, 2)
    for step in range(30):
        walk.batch_at(step)
    for step in (29, 3, 14, 0, 27):
        alone, walked = plan_of(sources, 7, 5, 2).batch_at(step), walk.batch_at(step)
        assert alone.source == walked.source
        assert all(np.array_equal(x, y) for x, y in zip(alone[2:], walked[2:], strict=True))


def test_sources_are_interleaved_and_epochs_differ():
    plan = plan_of([plain("a", 200), plain("b", 200)], 1, 10, 1)
    names = [plan.chosen(step)[0].name for step in range(40)]
    assert max(len(run) for run in "".join(names).replace("ab", "a b").replace("ba", "b a").split()) < 12
    assert names != [plan.chosen(step)[0].name for step in range(40, 80)]
    first = {step: plan.chosen(step)[1].tolist() for step in range(40)}
    assert first != {step: plan.chosen(40 + step)[1].tolist() for step in range(40)}
    assert first != {step: plan_of(plan.sources, 2, 10, 1).chosen(step)[1].tolist() for step in range(40)}


def test_another_source_or_another_row_leaves_the_order_of_the_others():
    keys = np.random.Philox(5).random_raw(50)
    small, large = plain("a", 49, keys=keys[:49]), plain("a", 50, keys=keys)
    one, two = plan_of([small], 3, 10, 2), plan_of([large, plain("b", 30)], 3, 10, 2)

    first, second = (np.concatenate([rows for _, rows in sorted(in_source_order(plan, "a"))]) for plan in (one, two))
    assert [row for row in second if row != 49] == first.tolist()


def in_source_order(plan, name):
    """Return the batches of a source with their number in it."""
    plan.chosen(0)
    number = [source.name for source in plan.sources].index(name)
    places = np.flatnonzero(plan._order[:, 0] == number)
    return [(int(plan._order[place, 1]), plan.chosen(int(place))[1].tolist()) for place in places]


def test_negatives_are_the_rows_own_and_redrawn_each_epoch():
    source = plain("a", 50, negatives=24)
    rows = np.arange(50)
    draws = [draw_negatives(source, rows, 42, epoch, 7) for epoch in range(40)]
    for drawn in draws:
        assert drawn.shape == (50, 7)
        for row in rows:
            own = set(range(row * 24, row * 24 + 24))
            assert len(set(drawn[row]) & own) == 7
    assert not np.array_equal(np.sort(draws[0]), np.sort(draws[1]))
    share = np.bincount(np.concatenate(draws).ravel() % 24, minlength=24) / (40 * 50 * 7)
    assert np.abs(share - 1 / 24).max() < 0.006  # every place is drawn alike


def test_a_rows_negatives_depend_on_no_other_row():
    source = plain("a", 50, negatives=9)
    every = draw_negatives(source, np.arange(50), 42, 3, 4)
    for row in (0, 17, 49):
        assert np.array_equal(draw_negatives(source, np.array([row]), 42, 3, 4)[0], every[row])


def test_a_row_short_of_negatives_has_its_own_and_then_none():
    source = source_of("a", [[0], [1], [2]], [[3, 4], [], [5, 6, 7, 8]])
    drawn = draw_negatives(source, np.arange(3), 1, 0, 3)
    assert [sorted(row[row >= 0]) for row in drawn[:2]] == [[0, 1], []]
    assert ((drawn[2] >= 2) & (drawn[2] < 6)).all()
    assert draw_negatives(source, np.array([1]), 1, 0, 3).tolist() == [[-1, -1, -1]]
    assert draw_negatives(source, np.arange(3), 1, 0, 0).shape == (3, 0)
    batch = plan_of([source], 1, 3, 3).batch_at(0)
    assert batch.has_negative.sum(axis=1).tolist() == [{0: 2, 1: 0, 2: 3}[row] for row in batch.rows.tolist()]


@given(seed=st.integers(0, 1000), rows=st.integers(1, 12), k=st.integers(0, 4))
@settings(max_examples=40)
def test_a_batch_holds_each_text_once_and_maps_back(seed, rows, k):
    random = np.random.Generator(np.random.Philox(seed))
    positives = [[int(p)] for p in random.integers(0, 6, rows)]
    negatives = [random.integers(0, 6, random.integers(0, 5)).tolist() for _ in range(rows)]
    source = source_of("a", positives, negatives)
    chosen = random.permutation(rows)
    slots = draw_negatives(source, chosen, seed, 0, k)
    batch = assemble(source, chosen, slots, True)
    texts = [batch.ids[a:b].tolist() for a, b in zip(batch.starts, batch.starts[1:], strict=False)]
    lengths = [len(text) for text in texts]
    assert lengths == sorted(lengths)
    # In these sources the tokens of a text are its number, so the texts can be read off.
    assert len({text[0] for text in texts}) == len(texts)
    assert all(set(text) == {text[0]} and len(text) == 1 + text[0] % 5 for text in texts)
    for i, row in enumerate(chosen):
        assert texts[batch.query[i]][0] == row
        assert texts[batch.positive[i]][0] == rows + positives[row][0]
        for j in range(k):
            assert batch.has_negative[i, j] == (slots[i, j] >= 0)
            if batch.has_negative[i, j]:
                assert texts[batch.negative[i, j]][0] == rows + source.negatives[slots[i, j]]
    used = {*batch.query, *batch.positive, *batch.negative[batch.has_negative]}
    assert used == set(range(len(texts)))


def test_shared_positives_by_id_by_group_and_by_second_positive():
    #            row 0       1    2         3 (duplicate of 0's positive)   4
    source = source_of("a", [[0], [0], [1, 3], [2], [3]], [[], [], [], [], []], identity=[7, 100, 7, 101])
    want = np.zeros((5, 5), dtype=bool)
    for i, j in [(0, 1), (1, 0), (0, 3), (3, 0), (1, 3), (3, 1), (2, 4)]:  # (4, 2) is not: row 2 trains on passage 1
        want[i, j] = True
    assert np.array_equal(shared_positives(source, np.arange(5), source.positive_starts[:-1]), want)
    order = np.array([4, 2, 0, 3, 1])
    assert np.array_equal(shared_positives(source, order, source.positive_starts[order]), want[np.ix_(order, order)])


@pytest.mark.parametrize("rows", [1_000_000])
def test_a_plan_of_a_million_rows_starts_at_any_step_at_once(rows):
    import time

    source = plain("a", 1)
    keys = np.random.Philox(1).random_raw(rows)
    zeros = np.zeros(rows, dtype=np.uint32)
    starts = np.arange(rows + 1)
    large = Source(
        "a", "retrieval", Path("a"), "d", source.ids, source.starts, keys, zeros, zeros, starts, zeros, starts,
        np.zeros(1, np.uint32), np.zeros(1, np.int64), zeros, zeros,
    )  # fmt: skip
    begun = time.perf_counter()
    plan = plan_of([large], 1, 512, 1)
    plan.batch_at(plan.steps_per_epoch - 3)
    assert time.perf_counter() - begun < 5


def test_shared_negatives_by_id_and_by_group_but_never_a_rows_own():
    # Passage 3 is passage 0 in another form (one group), and row 2 has two positives.
    source = source_of("a", [[0], [1], [2, 4]], [[3, 5], [0, 4], [5, 1]], identity=[7, 101, 102, 7, 104, 105])
    slots = np.array([[0, 1], [2, 3], [5, -1]])
    found = {tuple(place) for place in np.argwhere(shared_negatives(source, np.arange(3), slots)).tolist()}
    # (0, 0, 0) is row 0's own; row 0's positive is row 1's negative; row 2's is too; row 1's is row 2's.
    assert found - {(i, 2, 1) for i in range(3)} == {(0, 1, 0), (2, 1, 1), (1, 2, 0)}
    assert not shared_negatives(source, np.arange(3), np.full((3, 2), -1)).any()
    assert plan_of([source], 1, 3, 2).batch_at(0).shared_negative is None
    assert plan_of([source], 1, 3, 2, loss="infonce").batch_at(0).shared_negative.shape == (3, 3, 2)


@given(
    groups=st.lists(st.integers(0, 30), min_size=1, max_size=120),
    batch=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_rows_of_one_identity_are_kept_apart(groups, batch, seed):
    order = np.argsort(np.arange(len(groups)) * 7919 % 131, kind="stable")
    spreaded = spread(order, np.array(groups), batch, seed, "p")
    assert sorted(spreaded) == sorted(order)
    assert (spreaded == spread(order, np.array(groups), batch, seed, "p")).all()

    def doubles(rows):
        batches = [np.array(groups)[rows[first : first + batch]] for first in range(0, len(rows), batch)]
        return sum(len(one) - len(set(one.tolist())) for one in batches)

    assert doubles(spreaded) <= doubles(order)


def test_five_questions_a_paragraph_never_meet_in_a_batch():
    paragraph = [[row // 5] for row in range(4000)]
    source = source_of("squad", paragraph, [[] for _ in paragraph])
    order = row_order(source, 1, 0, 64, True)
    first = [order[start : start + 64] // 5 for start in range(0, 4000, 64)]
    assert all(len(set(one.tolist())) == len(one) for one in first)
    assert sorted(order) == list(range(4000))
    moved = (row_order(source, 1, 0, 64, False) != order).mean()
    assert 0 < moved < 0.3  # only a few have to move


@pytest.mark.parametrize("in_batch", [True, False])
def test_batches_of_clusters_have_each_row_once_and_one_cluster_but_where_two_meet(in_batch):
    paragraph = [[row // 5] for row in range(4000)]
    source = source_of("squad", paragraph, [[] for _ in paragraph])
    clusters = np.arange(4000) // 5 % 7  # a paragraph's questions are in one cluster
    passes = [row_order(source, 1, number, 64, in_batch, clusters=clusters) for number in (0, 0, 1)]
    assert (passes[0] == passes[1]).all()
    assert (passes[0] != passes[2]).mean() > 0.9
    orders = set()
    for order in passes:
        assert sorted(order) == list(range(4000))
        met = clusters[order]
        assert (np.diff(met) != 0).sum() == 6  # each cluster in one piece
        orders.add(tuple(dict.fromkeys(met.tolist())))
        batches = [order[start : start + 64] for start in range(0, 4000, 64)]
        alone = [rows for rows in batches if len(set(clusters[rows].tolist())) == 1]
        assert len(alone) >= len(batches) - 6
        again = sum(len(rows) - len(set((rows // 5).tolist())) for rows in batches)
        assert again <= 20 if in_batch else again > 500  # within a cluster rows are exchanged, which leaves a few
    assert len(orders) == 2
    every = row_order(source, 1, 0, 64, in_batch, "all", clusters)
    assert (np.diff(clusters[every]) != 0).sum() == 6


@pytest.mark.parametrize("evenness", [1, 2, 5])
def test_the_steps_stay_and_small_sources_come_more_often(evenness):
    sizes = [10_000, 900, 33]
    batches = [-(-size // 10) for size in sizes]
    got = batches_per_epoch(batches, sizes, evenness, [1, 1, 1])
    assert sum(got) == sum(batches)
    wanted = np.array(sizes) ** (1 / evenness)
    assert np.abs(np.array(got) / sum(got) - wanted / wanted.sum()).max() < 0.003


def test_a_source_that_is_passed_through_twice_has_new_orders_and_negatives():
    plan = plan_of([plain("large", 400), plain("small", 21)], 5, 10, 2, evenness=3)
    assert plan.steps_per_epoch == 43
    assert plan.shares[1] > 2 * plan.batches[1]
    seen = [plan.chosen(step)[1].tolist() for step in range(3 * plan.steps_per_epoch) if plan.chosen(step)[0].name == "small"]
    assert len(seen) == 3 * plan.shares[1]
    counts = np.bincount(np.concatenate(seen), minlength=21)
    assert counts.max() - counts.min() <= 1  # over epochs every tuple comes equally often
    large = [plan.chosen(step)[1] for step in range(2 * plan.steps_per_epoch) if plan.chosen(step)[0].name == "large"]
    assert np.bincount(np.concatenate(large), minlength=400).max() <= 2  # it goes on where the epoch before ended
    assert plan.batch_at(100).rows.tolist() == plan_of(plan.sources, 5, 10, 2, evenness=3).batch_at(100).rows.tolist()


def test_a_sources_own_settings_are_carried_to_its_batches():
    sources = [plain("a", 100), plain("b", 100), plain("c", 100, task="classification")]
    own = {"b": OfSource(weight=3, negatives=4, in_batch=False), "c": OfSource(in_batch=True)}
    plan, plainly = plan_of(sources, 1, 10, 2, sources=own), plan_of(sources, 1, 10, 2)
    assert plainly.shares == [10, 10, 10]
    assert plan.shares == [7, 17, 6]  # a weight of 3 against 1 and 1: the number of steps stays
    found = {batch.source: batch for batch in map(plan.batch_at, range(30))}
    assert {name: batch.has_negative.shape[1] for name, batch in found.items()} == {"a": 2, "b": 4, "c": 2}
    assert {name: batch.in_batch for name, batch in found.items()} == {"a": True, "b": False, "c": True}
    assert {batch.source: batch.in_batch for batch in map(plainly.batch_at, range(30))} == {"a": True, "b": True, "c": False}
    seen = np.concatenate([batch.rows for batch in map(plan.batch_at, range(30)) if batch.source == "b"])
    assert sorted(np.bincount(seen)) == [1] * 30 + [2] * 70


def test_a_source_with_in_batch_loss_has_no_passage_twice_in_a_batch_and_another_may():
    paragraphs = [[row // 5] for row in range(400)]
    for in_batch in (True, False):
        source = source_of("s", paragraphs, [[] for _ in paragraphs], task="clustering")
        plan = plan_of([source], 1, 20, 0, sources={"s": OfSource(in_batch=in_batch)})
        twice = sum(len(batch.rows) - len(set((batch.rows // 5).tolist())) for batch in map(plan.batch_at, range(20)))
        assert (twice == 0) == in_batch


def test_teacher_scores_stand_beside_their_candidates():
    source = source_of("a", [[0], [1]], [[2, 3], [4]])
    batch = assemble(source, np.array([1, 0]), np.array([[2, -1], [1, 0]]), True)
    assert batch.teacher[:, 0].tolist() == [0.5, 0.0]
    assert batch.teacher[1].tolist() == [0.0, 1.0, 0.0]
    assert batch.teacher[0, 1] == 2.0
    assert np.isnan(batch.teacher[0, 2])


@pytest.mark.parametrize("at_once", [1, 7, 1 << 18])
def test_repeated_finds_all_but_the_first_of_an_identity_in_a_batch(monkeypatch, at_once):
    monkeypatch.setattr(data, "ROWS_AT_ONCE", at_once)
    draw = np.random.default_rng(0)
    order, identity = draw.permutation(101), draw.integers(0, 30, 101)
    expected = []
    for place, row in enumerate(order):
        before = order[place // 8 * 8 : place]
        if identity[row] in identity[before]:
            expected.append(place)
    assert sorted(data.repeated(order, identity, 8).tolist()) == expected
    assert expected
    assert data.repeated(order[:0], identity[:0], 8).tolist() == []


def mapped_megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) / 1024


def test_of_a_large_mapped_file_no_more_than_a_window_stays_in_memory(tmp_path):
    count = 4 * WINDOW // 8
    np.save(tmp_path / "a.npy", np.arange(count, dtype=np.int64))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    places = np.random.default_rng(0).integers(0, count, (1000, 8))
    places[0, :2] = 0, count - 1
    before = mapped_megabytes()
    assert (take(mapped, places) == places).all()
    assert mapped_megabytes() - before < 8
    mapped[places]
    assert mapped_megabytes() - before > 50  # what it would be
    assert take(mapped, places[:0]).shape == (0, 8)
