"""Which tuples a step trains on, and what of them the model reads.

The plan is a pure function of (seed, epoch, step): each batch is of one source, each tuple comes once an epoch (unless
small sources are to come more often; with `positives: all` once with each of its positives), and the sources' batches lie
in a shuffled order. So the place in the data is one integer, the step, and a run goes on at any of them without walking
there. Every draw is made from the seed, the source's name and the tuple's own key, so another source, or another tuple of
the same one, changes neither a drawn negative or positive nor the order of two tuples (but where tuples with one positive
have to be kept out of one batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.core.errors import BuildError
from curation.core.record import draws
from curation.recipe.settings import Train
from training.loss import IN_BATCH_TASKS
from training.tokens import Source, taken

SPREADS = 20  # rounds
ROWS_AT_ONCE = 1 << 18
TURN = np.uint64(0x5555555555555555)  # makes a second order of the same draws
NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)  # sorts behind every draw


class Batch(NamedTuple):
    """What one step reads: n distinct texts, the shortest first, and which of them each of b tuples is made of."""

    source: str
    task: str
    in_batch: bool  # whether other rows' positives are negatives too
    rows: np.ndarray  # (b,) i64, row numbers in the source
    ids: np.ndarray  # (T,) i64, the tokens of all texts
    starts: np.ndarray  # (n+1,) i64
    query: np.ndarray  # (b,) i64, which of the n texts
    positive: np.ndarray  # (b,) i64
    negative: np.ndarray  # (b, k) i64, 0 where there is none
    has_negative: np.ndarray  # (b, k) bool
    shared: np.ndarray  # (b, b) bool: positive j is, or equals but for its form, a positive of tuple i, and j != i
    teacher: np.ndarray  # (b, 1 + k) f32, the miner's scores of positive and negatives; NaN where there is none
    shared_negative: np.ndarray | None  # (b, b, k) bool: likewise negative m of tuple j; None where no loss asks for it


class Plan:
    """The order of batches. It keeps the orders of the epoch it was last asked for, and nothing else."""

    def __init__(self, sources: Sequence[Source], seed: int, recipe: Train) -> None:
        """Take what batches depend on: of the recipe batch, positives, negatives, loss, evenness and what single sources have."""
        self.sources, self.seed, self.batch, self.positives = list(sources), seed, recipe.batch, recipe.positives
        self.joint = recipe.loss == "infonce"  # it takes other rows' negatives too, so tell the false ones
        own = [recipe.of(source.name) for source in sources]
        self.negatives = [recipe.negatives if one.negatives is None else one.negatives for one in own]
        tasks = [source.task in IN_BATCH_TASKS for source in sources]
        self.in_batch = [task if one.in_batch is None else one.in_batch for one, task in zip(own, tasks, strict=True)]
        sizes = [len(source.positives) if self.positives == "all" else len(source) for source in sources]
        self.batches = [-(-size // self.batch) for size in sizes]  # of a pass; the last of a source may be smaller
        weights = [one.weight for one in own]
        self.shares = shares(self.batches, sizes, recipe.evenness, weights)  # of an epoch
        self.steps_per_epoch = sum(self.shares)
        self._epoch = -1
        self._order = np.zeros((0, 2), dtype=np.int64)
        self._rows: dict[tuple[int, int], np.ndarray] = {}

    def check(self) -> None:
        """Refuse a source whose every loss would be 0, and teach nothing.

        Raises:
            BuildError: its tuples have no negatives, and no other tuple's positive is one.
        """
        for number, source in enumerate(self.sources):
            if self.negatives[number] and len(source.negatives):
                continue
            why = "its tuples have no negatives" if self.negatives[number] else "`negatives` is 0"
            if not self.in_batch[number]:
                other = "and other tuples' positives are none either (`in_batch`)"
            elif self.batch == 1 or len(source) == 1:
                other = "and a batch holds one tuple"
            elif np.ptp(source.identity[source.positives]) == 0:
                other = "and all of them have the same positive"
            else:
                continue
            hint = f"give it negatives, `sources: {{{source.name}: {{in_batch: yes}}}}`, or leave it out with `--only`"
            raise BuildError(f"source '{source.name}'", f"has nothing to learn from: {why}, {other}", hint)

    def rows(self, step: int) -> tuple[Source, np.ndarray]:
        """Return the source of a step, and which of its rows, (b,) i64."""
        return self.chosen(step)[:2]

    def chosen(self, step: int) -> tuple[Source, np.ndarray, np.ndarray]:
        """Return the source of a step, which of its rows, (b,) i64, and the place of each one's positive in `positives`."""
        number, time, batch = self._place(step)
        source = self.sources[number]
        if (number, time) not in self._rows:
            in_batch = self.in_batch[number]
            self._rows[number, time] = row_order(source, self.seed, time, self.batch, in_batch, self.positives)
        chosen = self._rows[number, time][batch * self.batch : (batch + 1) * self.batch]
        if self.positives == "all":
            return source, np.searchsorted(source.positive_starts, chosen, side="right") - 1, chosen
        return source, chosen, trained_places(source, chosen, self.seed, time, self.positives)

    def batch_at(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over all epochs."""
        source, rows, places = self.chosen(step)
        number, time, _ = self._place(step)
        slots = draw_negatives(source, rows, self.seed, time, self.negatives[number])
        batch = assemble(source, rows, slots, self.in_batch[number], places)
        return batch._replace(shared_negative=shared_negatives(source, rows, slots)) if self.joint else batch

    def _place(self, step: int) -> tuple[int, int, int]:
        """Return a step's source, how often that has been passed through before, and which batch of this pass it is."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order, self._rows = epoch, self._batch_order(epoch), {}
        number, batch = self._order[place].tolist()
        return number, *divmod(epoch * self.shares[number] + batch, self.batches[number])

    def _batch_order(self, epoch: int) -> np.ndarray:
        """Return (source, batch of its share) for each step of an epoch, (steps, 2) i64."""
        keys = [
            draws(self.seed, f"{source.name}/order/{epoch}", np.arange(count))
            for source, count in zip(self.sources, self.shares, strict=True)
        ]
        number = np.repeat(np.arange(len(self.sources)), self.shares)
        batch = np.concatenate([np.arange(count) for count in self.shares])
        return np.stack([number, batch], axis=1)[np.argsort(np.concatenate(keys), kind="stable")]


def shares(batches: Sequence[int], sizes: Sequence[int], evenness: float, weights: Sequence[float]) -> list[int]:
    """Return each source's batches of an epoch.

    Of the same number in all, a source has a share of weight * size^(1/evenness), and one at least. Where nothing is asked
    for, all of its own.
    """
    if evenness == 1 and len(set(weights)) <= 1:
        return list(batches)
    weight = np.array(weights) * np.array(sizes, dtype=np.float64) ** (1 / evenness)
    exact = (sum(batches) - len(batches)) * weight / weight.sum()
    share = 1 + np.floor(exact).astype(np.int64)
    left = sum(batches) - int(share.sum())
    share[np.argsort(np.floor(exact) - exact, kind="stable")[:left]] += 1  # the largest remainders
    return [int(count) for count in share]


def row_order(source: Source, seed: int, time: int, batch: int, in_batch: bool, positives: str = "first") -> np.ndarray:
    """Return the rows of a source in the order of its pass number `time`, (rows,) i64; of `all` positives their places."""
    keys = np.asarray(source.rows)
    if positives == "all":  # a row's first positive is drawn by the row's own key, each further one by another
        counts = np.diff(source.positive_starts)
        nth = np.arange(len(source.positives)) - np.repeat(source.positive_starts[:-1], counts)
        keys = np.repeat(keys, counts)
        keys = np.where(nth > 0, draws(seed, f"{source.name}/further positive", keys + nth.astype(np.uint64)), keys)
    order = np.argsort(draws(seed, f"{source.name}/epoch/{time}", keys), kind="stable")
    if not in_batch:
        return order
    every = np.arange(len(source))
    places = slice(None) if positives == "all" else trained_places(source, every, seed, time, positives)
    return spread(order, source.identity[source.positives[places]], batch, seed, f"{source.name}/spread/{time}")


def trained_places(source: Source, rows: np.ndarray, seed: int, time: int, positives: str) -> np.ndarray:
    """Return the place in `source.positives` of the positive that each row is trained on in pass `time`, (b,) i64.

    That is the row's `first` one, or for `sampled` one drawn for this pass.
    """
    first = taken(source.positive_starts, rows)
    if positives == "first":
        return np.asarray(first)
    count = (taken(source.positive_starts, rows + 1) - first).astype(np.uint64)
    drawn = draws(seed, f"{source.name}/positive/{time}", taken(source.rows, rows)) % count
    return np.asarray(first + drawn.astype(np.int64))


def spread(order: np.ndarray, identity: np.ndarray, batch: int, seed: int, purpose: str) -> np.ndarray:
    """Return the order with rows of one identity in different batches, as far as there are batches for them.

    Rows whose identity stands in their batch already change places with as many drawn ones, over and over: a few rows in
    a hundred have to move. What is left after some rounds is for the loss to mask.
    """
    best, fewest, before = order, len(order), len(order)
    for turn in range(SPREADS):
        again = repeated(order, identity, batch)
        if len(again) < fewest:
            best, fewest = order, len(again)
        if not len(again) or len(again) > max(0.9 * before, batch):  # done, or too many rows have the same passage
            break
        before = len(again)
        drawn = draws(seed, f"{purpose}/{turn}", np.arange(len(order)))
        moved = np.union1d(again, np.argsort(drawn, kind="stable")[: len(again)])
        order = order.copy()
        order[moved] = order[moved[np.argsort(drawn[moved] ^ TURN, kind="stable")]]
    return best


def repeated(order: np.ndarray, identity: np.ndarray, batch: int) -> np.ndarray:
    """Return the places of an order whose identity stands in their batch already, (n,) i64.

    Some batches at a time, so that the memory is not that of sorting all rows.
    """
    found, step = [np.zeros(0, np.int64)], batch * -(-ROWS_AT_ONCE // batch)
    for first in range(0, len(order), step):
        mine = identity[order[first : first + step]]
        at = np.arange(len(mine)) // batch
        by_cell = np.lexsort((mine, at))  # stable: the first of equal ones stays
        found.append(first + by_cell[1:][(np.diff(mine[by_cell]) == 0) & (np.diff(at[by_cell]) == 0)])
    return np.concatenate(found)


def draw_negatives(source: Source, rows: np.ndarray, seed: int, time: int, k: int) -> np.ndarray:
    """Return k of each row's negatives, drawn anew each epoch, as places in `source.negatives`, (b, k) i64.

    A row with fewer has all of its own and then -1.
    """
    first = taken(source.negative_starts, rows)
    count = taken(source.negative_starts, rows + 1) - first
    most = int(count.max(initial=0))
    if not most or not k:
        return np.full((len(rows), k), -1, dtype=np.int64)
    purpose, slot = f"{source.name}/negatives/{time}", np.arange(most)
    start = draws(seed, purpose, taken(source.rows, rows))
    draw = draws(seed, purpose, start[:, None] + slot.astype(np.uint64))
    absent = slot >= count[:, None]
    draw[absent] = NEVER
    chosen = np.argsort(draw, axis=1, kind="stable")[:, :k]  # (b, at most k)
    places = np.where(np.take_along_axis(absent, chosen, axis=1), -1, first[:, None] + chosen)
    return np.pad(places, ((0, 0), (0, k - places.shape[1])), constant_values=-1)


def assemble(source: Source, rows: np.ndarray, slots: np.ndarray, in_batch: bool, places: np.ndarray | None = None) -> Batch:
    """Gather the texts of some tuples, each distinct text once.

    `slots` is as `draw_negatives` returns it, and `places` as `trained_places`; by default they are of the first positives.
    """
    has, first = slots >= 0, taken(source.positive_starts, rows)
    places = first if places is None else places
    positive = taken(source.positives, places)
    passages = np.concatenate([positive, taken(source.negatives, slots[has])])
    texts = np.concatenate([taken(source.query, rows), taken(source.text, passages)])
    distinct, number = np.unique(texts, return_inverse=True)
    order = np.argsort(taken(source.starts, distinct + 1) - taken(source.starts, distinct), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    number, b = place[number], len(rows)
    negative = np.zeros(slots.shape, dtype=np.int64)
    negative[has] = number[2 * b :]
    ids, starts = gather(source.ids, source.starts, distinct[order])
    teacher = np.full((b, 1 + slots.shape[1]), np.nan, dtype=np.float32)
    teacher[:, 0] = np.where(places == first, taken(source.positive_score, rows), np.nan)  # further ones have none
    teacher[:, 1:][has] = taken(source.negative_scores, slots[has])
    which = number[:b], number[b : 2 * b], negative, has
    shared = shared_positives(source, rows, places)
    return Batch(source.name, source.task, in_batch, rows, ids, starts, *which, shared, teacher, None)


def gather(values: np.ndarray, starts: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen segments of flat values, one after the other, as (values i64, starts i64)."""
    first = taken(starts, chosen)
    length = taken(starts, chosen + 1) - first
    new = np.concatenate([[0], np.cumsum(length)])
    places = np.arange(new[-1]) + np.repeat(first - new[:-1], length)
    return taken(values, places).astype(np.int64), new


def shared_positives(source: Source, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return (b, b) bool: the positive of row j, at its place, is no negative for row i != j, by its id or its group."""
    trained = taken(source.positives, places)
    return _shared(source, rows, taken(source.identity, trained)[:, None])[:, :, 0]


def shared_negatives(source: Source, rows: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Return (b, b, k) bool: the negative at `slots` (j, m) is no negative for row i != j, by its id or its group."""
    if not (slots >= 0).any():
        return np.zeros((len(rows), *slots.shape), dtype=bool)
    return _shared(source, rows, taken(source.identity, taken(source.negatives, np.maximum(slots, 0))))


def _shared(source: Source, rows: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Return (b, b, k) bool: passage (j, m), of the identities (b, k), is a positive of row i != j."""
    passages, starts = gather(source.positives, source.positive_starts, rows)
    mine = taken(source.identity, passages)  # (all positives of all rows,)
    shared = np.logical_or.reduceat(mine[:, None, None] == identity, starts[:-1], axis=0)
    shared[np.arange(len(rows)), np.arange(len(rows))] = False
    return shared
