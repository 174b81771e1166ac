"""Which tuples a step trains on, and which of their texts the model reads.

The plan is a pure function of (seed, epoch, step). Each batch has tuples of one source. Each tuple comes once per epoch, or
with `positives: all` once per positive; `evenness` and `weight` make small sources come more often. The batches of all
sources are shuffled. So the position in the data is one integer, the step, and a run can resume at any step at once.

With `cluster_batches` the rows of a batch are of one cluster, except where two clusters meet. Each pass puts the clusters of a
source into another order, and the rows of each cluster too.

Every random draw depends on the seed, the source's name and the tuple's own key. Adding a source or a tuple changes neither
the negatives and positives drawn for other tuples nor their order, except where tuples with the same positive must be kept
out of the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from curation.core.errors import BuildError
from curation.core.record import draws
from curation.recipe.settings import Train
from training.tokens import Source, take
from training.vectors import Places

SPREAD_ROUNDS = 20
ROWS_AT_ONCE = 1 << 18  # rows that are sorted at a time
FLIP = np.uint64(0x5555555555555555)  # gives a second order from the same draws
LAST = np.uint64(0xFFFFFFFFFFFFFFFF)  # sorts after every draw


class Batch(NamedTuple):
    """What one step reads: n distinct texts, the shortest first, and the texts that each of b tuples consists of."""

    source: str
    task: str
    in_batch: bool  # whether other rows' positives count as negatives too
    rows: np.ndarray  # (b,) i64, row numbers in the source
    ids: np.ndarray  # (T,) i64, the tokens of all texts
    starts: np.ndarray  # (n+1,) i64, where each text begins
    query: np.ndarray  # (b,) i64, the number of the text
    positive: np.ndarray  # (b,) i64
    negative: np.ndarray  # (b, k) i64, 0 where the tuple has fewer than k
    has_negative: np.ndarray  # (b, k) bool
    shared: np.ndarray  # (b, b) bool: positive j equals, or is a near-duplicate of, a positive of tuple i, and j != i
    teacher: np.ndarray  # (b, 1 + k) f32, the miner's scores of positive and negatives; NaN if unknown
    shared_negative: np.ndarray | None  # (b, b, k) bool: the same for negative m of tuple j; None unless the loss needs it
    vectors: np.ndarray | None = None  # (n, teacher's dim) f32, a teacher's vector of each text


class Plan:
    """The order of batches. It caches the orders of the epoch that was last asked for, and nothing else."""

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        recipe: Train,
        teacher: Places | None = None,
        clusters: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Read what batches depend on: the recipe's batch, positives, negatives, loss and evenness, and settings per source.

        `teacher` has the vectors of a teacher, `clusters` the cluster of each row by source.
        """
        self.teacher, self.clusters = teacher, clusters or {}
        self.sources, self.seed, self.batch, self.positives = list(sources), seed, recipe.batch, recipe.positives
        self.masks_negatives = recipe.loss == "infonce"  # it uses other rows' negatives too, so mask the false ones
        own = [recipe.of(source.name) for source in sources]
        self.negatives = [recipe.negatives if one.negatives is None else one.negatives for one in own]
        self.in_batch = [in_batch_of(recipe, source) for source in sources]
        sizes = [len(source.positives) if self.positives == "all" else len(source) for source in sources]
        self.batches = [-(-size // self.batch) for size in sizes]  # per pass over a source; its last batch may be smaller
        weights = [one.weight for one in own]
        self.shares = batches_per_epoch(self.batches, sizes, recipe.evenness, weights)
        self.steps_per_epoch = sum(self.shares)
        self._epoch = -1
        self._order = np.zeros((0, 2), dtype=np.int64)
        self._rows: dict[tuple[int, int], np.ndarray] = {}

    def check(self) -> None:
        """Refuse a source whose loss would always be 0.

        Raises:
            BuildError: its tuples have no negatives, and no positive of another tuple counts as one.
        """
        for number, source in enumerate(self.sources):
            if self.negatives[number] and len(source.negatives):
                continue
            why = "its tuples have no negatives" if self.negatives[number] else "`negatives` is 0"
            or_else = ""
            if not self.in_batch[number]:
                other = "and positives of other tuples do not count as negatives (`in_batch`)"
                or_else = f"`sources: {{{source.name}: {{in_batch: yes}}}}`, "
            elif self.batch == 1 or len(source) == 1:
                other = "and a batch has one tuple"
            elif np.ptp(source.identity[source.positives]) == 0:
                other = "and all of them have the same positive"
            else:
                continue
            or_else = "a larger `batch`, " if self.batch == 1 and self.in_batch[number] else or_else
            hint = f"give it negatives, {or_else}or leave it out with `--only`"
            raise BuildError(f"source '{source.name}'", f"has nothing to learn from: {why}, {other}", hint)

    def chosen(self, step: int) -> tuple[Source, np.ndarray, np.ndarray]:
        """Return the source of a step, its rows (b,) i64, and for each row the place of its positive in `source.positives`."""
        number, passes, batch = self._position(step)
        source = self.sources[number]
        if (number, passes) not in self._rows:
            in_batch = self.in_batch[number]
            self._rows[number, passes] = row_order(
                source, self.seed, passes, self.batch, in_batch, self.positives, self.clusters.get(source.name)
            )
        chosen = self._rows[number, passes][batch * self.batch : (batch + 1) * self.batch]
        if self.positives == "all":
            return source, np.searchsorted(source.positive_starts, chosen, side="right") - 1, chosen
        return source, chosen, trained_positives(source, chosen, self.seed, passes, self.positives)

    def batch_at(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over all epochs."""
        source, rows, places = self.chosen(step)
        number, passes, _ = self._position(step)
        slots = draw_negatives(source, rows, self.seed, passes, self.negatives[number])
        batch = assemble(source, rows, slots, self.in_batch[number], places, self.teacher)
        return batch._replace(shared_negative=shared_negatives(source, rows, slots)) if self.masks_negatives else batch

    def steps_of(self, total: int) -> dict[str, int]:
        """Return how many of the first `total` steps train on each source."""
        numbers = [self._position(step)[0] for step in range(total)]
        return {source.name: numbers.count(number) for number, source in enumerate(self.sources)}

    def _position(self, step: int) -> tuple[int, int, int]:
        """Return the number of a step's source, how many passes over it are complete, and the batch within this pass."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # Shuffle the batches of all sources: (source, batch within its share) per step, (steps, 2) i64.
            keys = [
                draws(self.seed, f"{source.name}/order/{epoch}", np.arange(count))
                for source, count in zip(self.sources, self.shares, strict=True)
            ]
            numbers = np.repeat(np.arange(len(self.sources)), self.shares)
            batches = np.concatenate([np.arange(count) for count in self.shares])
            order = np.stack([numbers, batches], axis=1)[np.argsort(np.concatenate(keys), kind="stable")]
            self._epoch, self._order, self._rows = epoch, order, {}
        number, batch = self._order[place].tolist()
        return number, *divmod(epoch * self.shares[number] + batch, self.batches[number])


def in_batch_of(recipe: Train, source: Source) -> bool:
    """Return whether other rows' positives are negatives of a source's rows.

    In other tasks than retrieval they too often belong to the same class; a recipe can ask for them.
    """
    own = recipe.of(source.name).in_batch
    return source.task == "retrieval" if own is None else own


def batches_per_epoch(batches: Sequence[int], sizes: Sequence[int], evenness: float, weights: Sequence[float]) -> list[int]:
    """Return the number of batches of each source in an epoch.

    By default these are the batches of one pass over each source. With `evenness` or weights the total stays the same, and a
    source gets a share proportional to weight * size^(1/evenness), at least one batch.
    """
    if evenness == 1 and len(set(weights)) <= 1:
        return list(batches)
    weight = np.array(weights) * np.array(sizes, dtype=np.float64) ** (1 / evenness)
    exact = (sum(batches) - len(batches)) * weight / weight.sum()
    share = 1 + np.floor(exact).astype(np.int64)
    left = sum(batches) - int(share.sum())
    share[np.argsort(np.floor(exact) - exact, kind="stable")[:left]] += 1  # the largest remainders
    return [int(count) for count in share]


def row_order(
    source: Source,
    seed: int,
    passes: int,
    batch: int,
    in_batch: bool,
    positives: str = "first",
    clusters: np.ndarray | None = None,
) -> np.ndarray:
    """Return the rows of a source in the order of pass number `passes`, (rows,) i64; with `all`, places of positives instead.

    With `clusters` (rows,) i64 the rows of each cluster are together.
    """
    keys, within = np.asarray(source.rows), None
    if positives == "all":  # the first positive of a row is drawn by the row's own key, each further one by another key
        counts = np.diff(source.positive_starts)
        nth = np.arange(len(source.positives)) - np.repeat(source.positive_starts[:-1], counts)
        keys = np.repeat(keys, counts)
        keys = np.where(nth > 0, draws(seed, f"{source.name}/further positive", keys + nth.astype(np.uint64)), keys)
        clusters = None if clusters is None else np.repeat(clusters, counts)
    order = np.argsort(draws(seed, f"{source.name}/epoch/{passes}", keys), kind="stable")
    if clusters is not None:
        turns = np.argsort(np.argsort(draws(seed, f"{source.name}/clusters/{passes}", np.arange(clusters.max() + 1))))
        order = order[np.argsort(turns[clusters[order]], kind="stable")]
        within = turns[clusters[order]]  # ascending
    if not in_batch:
        return order
    every = np.arange(len(source))
    places = slice(None) if positives == "all" else trained_positives(source, every, seed, passes, positives)
    return spread(order, source.identity[source.positives[places]], batch, seed, f"{source.name}/spread/{passes}", within)


def trained_positives(source: Source, rows: np.ndarray, seed: int, passes: int, positives: str) -> np.ndarray:
    """Return the place in `source.positives` of the positive that each row is trained on in pass `passes`, (b,) i64.

    With `first` it is the row's first positive, with `sampled` one that is drawn for this pass.
    """
    first = take(source.positive_starts, rows)
    if positives == "first":
        return np.asarray(first)
    count = (take(source.positive_starts, rows + 1) - first).astype(np.uint64)
    drawn = draws(seed, f"{source.name}/positive/{passes}", take(source.rows, rows)) % count
    return np.asarray(first + drawn.astype(np.int64))


def spread(
    order: np.ndarray, identity: np.ndarray, batch: int, seed: int, purpose: str, within: np.ndarray | None = None
) -> np.ndarray:
    """Return the order changed so that rows of equal identity are in different batches, as far as possible.

    Rows whose identity occurs earlier in their batch change places with equally many drawn rows, in several rounds. Usually a
    few per cent of the rows have to move. The loss masks what remains after the last round. Rows change places only with rows of
    the same number in `within` (n,), which ascends with their places.
    """
    best, fewest, before = order, len(order), len(order)
    for turn in range(SPREAD_ROUNDS):
        again = repeated(order, identity, batch)
        if len(again) < fewest:
            best, fewest = order, len(again)
        if not len(again) or len(again) > max(0.9 * before, batch):  # done, or too many rows have the same passage
            break
        before = len(again)
        drawn = draws(seed, f"{purpose}/{turn}", np.arange(len(order)))
        moved = np.union1d(again, np.argsort(drawn, kind="stable")[: len(again)])
        order = order.copy()
        turned = drawn[moved] ^ FLIP
        by = np.argsort(turned, kind="stable") if within is None else np.lexsort((turned, within[moved]))
        order[moved] = order[moved[by]]
    return best


def repeated(order: np.ndarray, identity: np.ndarray, batch: int) -> np.ndarray:
    """Return the places in an order whose identity occurs earlier in their batch, (n,) i64.

    It works on some batches at a time, which needs less memory than sorting all rows.
    """
    found, step = [np.zeros(0, np.int64)], batch * -(-ROWS_AT_ONCE // batch)
    for first in range(0, len(order), step):
        mine = identity[order[first : first + step]]
        at = np.arange(len(mine)) // batch
        by_cell = np.lexsort((mine, at))  # stable: the first of equal ones keeps its place
        found.append(first + by_cell[1:][(np.diff(mine[by_cell]) == 0) & (np.diff(at[by_cell]) == 0)])
    return np.concatenate(found)


def draw_negatives(source: Source, rows: np.ndarray, seed: int, passes: int, k: int) -> np.ndarray:
    """Return k negatives of each row, drawn for this pass, as places in `source.negatives`, (b, k) i64.

    A row with fewer than k gets all of them, then -1.
    """
    first = take(source.negative_starts, rows)
    count = take(source.negative_starts, rows + 1) - first
    most = int(count.max(initial=0))
    if not most or not k:
        return np.full((len(rows), k), -1, dtype=np.int64)
    purpose, slot = f"{source.name}/negatives/{passes}", np.arange(most)
    start = draws(seed, purpose, take(source.rows, rows))
    draw = draws(seed, purpose, start[:, None] + slot.astype(np.uint64))
    absent = slot >= count[:, None]
    draw[absent] = LAST
    chosen = np.argsort(draw, axis=1, kind="stable")[:, :k]  # (b, at most k)
    places = np.where(np.take_along_axis(absent, chosen, axis=1), -1, first[:, None] + chosen)
    return np.pad(places, ((0, 0), (0, k - places.shape[1])), constant_values=-1)


def assemble(
    source: Source,
    rows: np.ndarray,
    slots: np.ndarray,
    in_batch: bool,
    places: np.ndarray | None = None,
    vectors: Places | None = None,
) -> Batch:
    """Return the batch of some tuples, with each distinct text once, and a teacher's vectors of them if there are any.

    `slots` is as `draw_negatives` returns it, `places` as `trained_positives`; by default the first positives.
    """
    has, first = slots >= 0, take(source.positive_starts, rows)
    places = first if places is None else places
    positive = take(source.positives, places)
    passages = np.concatenate([positive, take(source.negatives, slots[has])])
    texts = np.concatenate([take(source.query, rows), take(source.text, passages)])
    distinct, number = np.unique(texts, return_inverse=True)
    order = np.argsort(take(source.starts, distinct + 1) - take(source.starts, distinct), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    number, b = place[number], len(rows)
    negative = np.zeros(slots.shape, dtype=np.int64)
    negative[has] = number[2 * b :]
    ids, starts = gather_segments(source.ids, source.starts, distinct[order])
    teacher = np.full((b, 1 + slots.shape[1]), np.nan, dtype=np.float32)
    teacher[:, 0] = np.where(places == first, take(source.positive_score, rows), np.nan)  # only first positives have a score
    teacher[:, 1:][has] = take(source.negative_scores, slots[has])
    which = number[:b], number[b : 2 * b], negative, has
    shared = shared_positives(source, rows, places)
    of_texts = vectors.vectors(source, distinct[order]) if vectors else None
    return Batch(source.name, source.task, in_batch, rows, ids, starts, *which, shared, teacher, None, of_texts)


def gather_segments(values: np.ndarray, starts: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen segments of flat values, concatenated, as (values i64, starts i64)."""
    first = take(starts, chosen)
    length = take(starts, chosen + 1) - first
    new = np.concatenate([[0], np.cumsum(length)])
    places = np.arange(new[-1]) + np.repeat(first - new[:-1], length)
    return take(values, places).astype(np.int64), new


def shared_positives(source: Source, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return (b, b) bool: the positive of row j must not be a negative of row i != j, because of its id or its group."""
    trained = take(source.positives, places)
    return _shared(source, rows, take(source.identity, trained)[:, None])[:, :, 0]


def shared_negatives(source: Source, rows: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Return (b, b, k) bool: negative m of row j must not be a negative of row i != j, because of its id or its group."""
    if not (slots >= 0).any():
        return np.zeros((len(rows), *slots.shape), dtype=bool)
    return _shared(source, rows, take(source.identity, take(source.negatives, np.maximum(slots, 0))))


def _shared(source: Source, rows: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Return (b, b, k) bool: passage m of row j, given by its identity (b, k), is a positive of row i != j."""
    passages, starts = gather_segments(source.positives, source.positive_starts, rows)
    mine = take(source.identity, passages)  # (all positives of all rows,)
    shared = np.logical_or.reduceat(mine[:, None, None] == identity, starts[:-1], axis=0)
    shared[np.arange(len(rows)), np.arange(len(rows))] = False
    return shared
