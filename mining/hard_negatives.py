"""Hard negatives for (query, positive) pairs in memory: the rows of sentence-transformers' `mine_hard_negatives`.

The order of its steps: number the distinct texts, encode each once, search exactly, filter, take the nearest or sample, and
write one of four formats. `tuplesmith.mine_hard_negatives` documents the arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from curation.core.errors import ModelError, SourceError, UserError, a_kind, did_you_mean, listed
from curation.core.locks import locked
from curation.core.progress import Progress
from curation.core.python_data import Dataset, is_dataset, texts_of_column, texts_of_list
from curation.core.text import forms
from curation.engine.local import Here
from curation.recipe.settings import PRESETS, Mine
from mining import candidates as found_by
from mining.calibrate import COSINE_BINS, count_similarities, limit_for_yield, rules_of
from mining.duplicates import shingles_of
from mining.embeddings import Embeddings
from mining.encoders import ForRole
from mining.gpu import OnGpus, find_gpus
from mining.lists import Ragged, contains
from mining.negatives import Candidates, Rules, choose, eligible_candidates
from mining.search import QUERIES, Exact, nearest

OUTPUT_FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")
STRATEGIES = ("top", "random")
SAMPLED = 1_000  # texts whose vectors are compared with each other


class Pairs(NamedTuple):
    """The distinct texts of a dataset, in order of first appearance."""

    queries: list[str]
    corpus: list[str]  # a given corpus first, then the positives
    positives: Ragged  # per query: rows of `corpus`
    most_rows: int  # rows that the most frequent query has in the dataset


class Mined(NamedTuple):
    """The negatives of q queries, nearest first; rows with fewer than n end in -1 and -inf."""

    ids: np.ndarray  # (q, n) int64, rows of `Pairs.corpus`
    scores: np.ndarray  # (q, n) float64
    positive_scores: np.ndarray  # (len(positives.ids),) float64
    candidates: int  # compared with the filters
    removed: dict[str, int]  # filter -> candidates that it removed


class PairVectors(NamedTuple):
    """Unit vectors, float32."""

    queries: np.ndarray  # (q, dim)
    corpus: np.ndarray  # (n, dim)


@dataclass(frozen=True)
class Window:
    """Which filters apply, and how many negatives are wanted."""

    rules: Rules
    wanted: int
    strategy: str  # top or random
    include_positives: bool
    target_yield: float | None  # calibrate `max_similarity` to keep this share; None: it is not calibrated


def columns_of(dataset: Dataset, anchor: str | None, positive: str | None, say: Callable[[str], None]) -> tuple[str, str]:
    """Return the columns of anchors and positives: those named, else the first two of the dataset.

    Raises:
        SourceError: this is no Dataset, or it is empty or has one column.
        UserError: both are the same column.
    """
    if not is_dataset(dataset):
        origin = type(dataset).__module__.partition(".")[0]
        hint = f"make it with Dataset.from_{origin if origin in ('polars', 'pandas') else 'dict'}"
        if hasattr(dataset, "keys") and hasattr(dataset, "column_names"):
            hint = "give one split, such as dataset['train']"
        elif hasattr(dataset, "column_names"):  # an IterableDataset
            hint = "make it with Dataset.from_list(list(dataset))"
        raise SourceError("dataset", f"is {a_kind(dataset)}, not a datasets.Dataset", hint)
    if not len(dataset):
        raise SourceError("dataset", "is empty", "give at least one pair")
    names, both_named = dataset.column_names, bool(anchor and positive)
    if len(names) < 2 and not both_named:
        raise SourceError("dataset", "has one column", "give a column of anchors and a column of positives")
    anchor, positive = anchor or names[0], positive or names[1]
    if anchor == positive:
        raise UserError("positive_column_name", f"anchors and positives are both column '{anchor}'", "name two columns")
    unused = [name for name in names if name not in (anchor, positive)]
    if unused and not both_named:
        say(f"anchors are column '{anchor}', positives are column '{positive}'; not used: {listed(unused)}")
    return anchor, positive


def pairs_of(dataset: Dataset, columns: tuple[str, str], corpus: Sequence[str] | None, say: Callable[[str], None]) -> Pairs:
    """Number the distinct texts of a dataset and a corpus; equal queries are one query with several positives.

    Raises:
        SourceError: a value is not a text.
        UserError: a column does not exist.
    """
    more = [] if corpus is None else texts_of_list("corpus", corpus).to_list()
    queries, positives = (texts_of_column(dataset, name).to_list() for name in columns)
    for name, texts in zip(columns, (queries, positives), strict=True):
        if blank := sum(not text.strip() for text in texts):
            say(f"{blank:,} of {len(texts):,} texts in column '{name}' are empty, and are used like others")
    rows = dict[str, dict[int, None]]()  # query -> the distinct positives, in order
    number = {text: at for at, text in enumerate(dict.fromkeys([*more, *positives]))}
    counts = dict[str, int]()
    for query, positive in zip(queries, positives, strict=True):
        rows.setdefault(query, {})[number[positive]] = None
        counts[query] = counts.get(query, 0) + 1
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in rows.values()])]).astype(np.int64)
    ids = np.array([id for ids in rows.values() for id in ids], np.int64)
    return Pairs(list(rows), list(number), Ragged(starts, ids), max(counts.values()))


def window_of(
    given: Mapping[str, Any], most_rows: int, preset: str | None, strategy: str, include_positives: bool, reranked: bool
) -> Window:
    """Return the filters: those `given` (None: not given), else the preset's, else sentence-transformers' defaults.

    Raises:
        UserError: a value is impossible, or the window of ranks holds fewer candidates than negatives are wanted.
    """
    if strategy not in STRATEGIES:
        raise UserError("sampling_strategy", f"'{strategy}' is unknown", f"choose {' or '.join(STRATEGIES)}")
    if preset is not None and preset not in PRESETS:
        raise UserError("preset", f"'{preset}' is unknown{did_you_mean(preset, PRESETS)}", f"choose one of {listed(PRESETS)}")
    wanted, target = 3, None
    rules = Rules(range_min=0, max_score=None, relative_margin=None)
    set_values = {key: value for key, value in given.items() if value is not None}
    if preset is not None:
        settings = Mine(model="given", preset=preset)
        wanted, rules = settings.negatives, rules_of(settings)
        target = settings.target_yield if settings.max_similarity == "auto" else None
    for name, value in set_values.items():
        whole = name in ("num_negatives", "range_min", "range_max")
        is_number = isinstance(value, int | float | np.number) and not np.isnan(value)
        if not is_number or (whole and not float(value).is_integer()):
            raise UserError(name, f"must be a {'whole ' if whole else ''}number, and is {value!r}")
        set_values[name] = int(value) if whole else value
    wanted = int(set_values.pop("num_negatives", wanted))
    if wanted < 1:
        raise UserError("num_negatives", f"must be at least 1, and is {wanted}")
    low = int(set_values.get("range_min", rules.range_min))
    if low < 0:
        raise UserError("range_min", f"must not be negative, and is {low}")
    if preset is None and "range_max" not in set_values:  # as sentence-transformers derives it
        limits = {"absolute_margin", "relative_margin", "max_score"} | ({"min_score"} if reranked else set())
        set_values["range_max"] = low + wanted * (10 if limits & set_values.keys() else 1) + most_rows
    rules = replace(rules, **set_values)
    if rules.range_max - rules.range_min < wanted:
        what = f"{wanted} negatives do not fit between range_min {rules.range_min} and range_max {rules.range_max}"
        raise UserError("num_negatives", what, "lower num_negatives or range_min, or raise range_max")
    return Window(rules, wanted, strategy, include_positives, target)


def encode(pairs: Pairs, encoders: Mapping[str, ForRole], progress: Progress, cache_folder: Path | None) -> PairVectors:
    """Encode the distinct texts; with a folder, their vectors are kept there and only new texts are encoded.

    Raises:
        ModelError: the model does not return one vector per text, or the same vector for all texts.
    """
    found = []
    for role, texts in (("query", pairs.queries), ("corpus", pairs.corpus)):
        encoder, prompt = encoders[role]
        rendered = [prompt + text for text in texts] if prompt else texts
        with progress(f"encode {'queries' if role == 'query' else 'corpus'}", len(texts), "texts") as advance:
            if cache_folder is None:
                found.append(encoder.encode(rendered, advance))
            else:
                with locked(cache_folder, "mine_hard_negatives"):
                    store = Embeddings(cache_folder, encoder)
                    found.append(store[store.ensure(rendered, advance)])
        some = found[-1][:: max(1, len(texts) // SAMPLED)]
        if len(some) > 2 and np.abs(some - some[0]).max() <= 1e-6:
            what = f"gives {len(some):,} different texts the same vector, such as {texts[0][:60]!r}"
            raise ModelError("model", what, "does it know their language? are its weights whole?")
    return PairVectors(*found)


def find_negatives(
    pairs: Pairs, vectors: PairVectors, window: Window, progress: Progress, device: str = "auto", reranker: Any = None
) -> Mined:
    """Search, filter and pick.

    Args:
        pairs: the texts.
        vectors: a unit vector for each.
        window: the filters.
        progress: reports the queries that have been searched.
        device: cpu, cuda, cuda:N or auto: where it searches.
        reranker: an object with `predict(pairs of texts)`; its scores take the place of cosines in all filters.
    """
    rules = window.rules
    alike = rules.containment is not None or rules.max_similarity is not None or window.target_yield is not None
    gpus = find_gpus(device)
    index = OnGpus(vectors.corpus, gpus) if gpus else Exact(vectors.corpus)
    every = np.arange(len(pairs.corpus))
    shingles = shingles_of(pairs.corpus, every) if alike else Ragged(np.zeros(1, np.int64), np.empty(0, np.int64))
    corpus = found_by.Corpus(vectors.corpus, every, index, shingles)
    same = _same_texts(pairs) if rules.exclude_query or rules.exclude_group or rules.distinct else None
    limits = (rules.absolute_margin, rules.relative_margin, rules.max_score, rules.min_score)
    blocks = list[Candidates]()

    def searched(first: int) -> Candidates:
        rows = slice(first, first + QUERIES)
        return _searched(vectors, pairs.positives.rows(rows), rows, corpus, rules.range_max + pairs.most_rows, alike)

    starts = range(0, len(pairs.queries), QUERIES)
    engine = f" on {listed(gpu.name for gpu in gpus)} with {gpus[0].engine}" if gpus else ""
    with progress(f"search{engine}", len(pairs.queries), "queries") as advance:
        for first, done in Here().run(searched, starts, index.threads):
            rows, block = slice(first, first + QUERIES), done()
            if reranker is not None and any(limit is not None for limit in limits):
                block = _reranked(block, pairs, first, reranker)
            if same is not None:
                block = same.marked(block, rows)
            if window.include_positives:  # no candidate has the number of a positive then
                block = replace(block, positives=Ragged(block.positives.starts, np.full(len(block.positives.ids), len(every))))
            blocks.append(block)
            advance(len(block.ids))
    if window.target_yield is not None:
        counts, open_rules = np.zeros(COSINE_BINS, np.int64), replace(rules, max_similarity=None)
        for block in blocks:
            counts += count_similarities(block, choose(block, np.full(len(block.ids), window.wanted), open_rules), open_rules)
        rules = replace(rules, max_similarity=limit_for_yield(counts, window.target_yield))
    ids, scores, removed = [], [], dict[str, int]()
    for block in blocks:
        eligible, lost = eligible_candidates(block, rules)
        for name, per_query in lost.items():
            removed[name] = removed.get(name, 0) + int(per_query.sum())
        places = _picked(eligible, window)
        picked = np.where(places < 0, -1, np.take_along_axis(block.ids, np.maximum(places, 0), axis=1))
        ids.append(picked)
        scores.append(np.where(places < 0, -np.inf, np.take_along_axis(block.scores, np.maximum(places, 0), axis=1)))
    seen = sum(int((block.ids >= 0).sum()) for block in blocks)
    positive_scores = np.concatenate([block.positive_scores for block in blocks])
    return Mined(np.concatenate(ids), np.concatenate(scores), positive_scores, seen, removed)


def formatted(pairs: Pairs, mined: Mined, columns: tuple[str, str], output_format: str, output_scores: bool) -> pl.DataFrame:
    """Return the rows as a table, in sentence-transformers' four formats.

    Args:
        pairs: the texts.
        mined: what was found for them.
        columns: names of the anchor's and the positive's column.
        output_format: triplet, n-tuple, labeled-pair or labeled-list.
        output_scores: triplet and n-tuple get a column `scores` (the positive's first); the labelled ones have scores in place
            of labels.
    """
    anchor, positive = columns
    queries, corpus = pl.Series(pairs.queries, dtype=pl.String), pl.Series(pairs.corpus, dtype=pl.String)
    row_of = pairs.positives.row_of_each()  # (p,) the query of each (query, positive)
    ids, scores = mined.ids[row_of], mined.scores[row_of]  # (p, n)
    own = mined.positive_scores
    found = ids >= 0
    if output_format == "n-tuple":
        full = found.all(axis=1)
        table = pl.DataFrame({anchor: queries.gather(row_of[full]), positive: corpus.gather(pairs.positives.ids[full])})
        negatives = [corpus.gather(ids[full, at]).alias(f"negative_{at + 1}") for at in range(ids.shape[1])]
        table = table.with_columns(negatives)
        both = np.column_stack([own[full], scores[full]])
        return table.with_columns(_lists("scores", both, np.ones(both.shape, bool))) if output_scores else table
    if output_format == "triplet":
        row, column = np.nonzero(found)
        texts = {anchor: queries.gather(row_of[row]), positive: corpus.gather(pairs.positives.ids[row])}
        table = pl.DataFrame({**texts, "negative": corpus.gather(ids[row, column])})
        both = np.column_stack([own[row], scores[row, column]])
        return table.with_columns(_lists("scores", both, np.ones(both.shape, bool))) if output_scores else table
    if output_format == "labeled-list":
        some = found.any(axis=1)
        documents = np.column_stack([pairs.positives.ids[some], ids[some]])
        there = documents >= 0
        named = queries.gather(row_of[some]).alias(anchor)
        documents_of_row = _grouped(positive, corpus.gather(documents[there]), there.sum(axis=1))
        if output_scores:
            return pl.DataFrame([named, documents_of_row, _lists("scores", np.column_stack([own[some], scores[some]]), there)])
        labels = np.zeros(documents.shape, np.int64)
        labels[:, 0] = 1
        return pl.DataFrame([named, documents_of_row, _lists("labels", labels, there)])
    # labeled-pair: of each query first its positives, then its negatives
    there = mined.ids >= 0
    query = np.concatenate([row_of, np.nonzero(there)[0]])
    order = np.argsort(query, kind="stable")
    document = np.concatenate([pairs.positives.ids, mined.ids[there]])[order]
    table = pl.DataFrame({anchor: queries.gather(query[order]), positive: corpus.gather(document)})
    if output_scores:
        return table.with_columns(_rounded(np.concatenate([own, mined.scores[there]])[order]).alias("score"))
    label = np.concatenate([np.ones(len(own), np.int64), np.zeros(int(there.sum()), np.int64)])
    return table.with_columns(pl.Series("label", label[order]))


def summary(pairs: Pairs, mined: Mined, wanted: int) -> str:
    """Return one line on what was found, and what each filter removed."""
    short = int(((mined.ids >= 0).sum(axis=1) < wanted).sum())
    parts = [f"{len(pairs.queries):,} queries have {int((mined.ids >= 0).sum()):,} negatives"]
    removed = {name: count for name, count in mined.removed.items() if count and name != "positive"}
    if removed:
        words = ", ".join(f"{name} {count:,}" for name, count in removed.items())
        parts.append(f"of {mined.candidates:,} candidates these filters removed: {words}")
    if short:
        parts.append(f"{short:,} queries have fewer than {wanted} (raise range_max, or loosen the filters)")
    return "; ".join(parts)


def _searched(vectors: PairVectors, positives: Ragged, rows: slice, corpus: found_by.Corpus, k: int, alike: bool) -> Candidates:
    """Return the k nearest passages of a block of queries; with `alike`, also how like a positive each one is."""
    queries, nothing = vectors.queries[rows], np.empty(0, np.float64)
    given = Ragged(np.zeros(len(queries) + 1, np.int64), np.empty(0, np.int64))
    if alike:
        found = found_by.search(queries, positives, given, corpus, k, None)
        return Candidates(
            found.ids, found.scores, positives, found.positive_scores, given, nothing, found.similarity, found.overlap
        )
    ids, scores = nearest(queries, corpus.index, k)
    return Candidates(ids, scores, positives, found_by.scores_of_lists(queries, corpus.passages, positives), given, nothing)


def _reranked(block: Candidates, pairs: Pairs, first: int, reranker: Any) -> Candidates:
    """Return the candidates with the reranker's scores, highest first."""
    there = block.ids >= 0
    rows, columns = np.nonzero(there)
    asked = [
        (pairs.queries[first + row], pairs.corpus[block.ids[row, column]]) for row, column in zip(rows, columns, strict=True)
    ]
    positives = [
        (pairs.queries[first + row], pairs.corpus[id])
        for row, id in zip(block.positives.row_of_each(), block.positives.ids, strict=True)
    ]
    if not hasattr(reranker, "predict"):
        raise ModelError("cross_encoder", f"{a_kind(reranker)} has no method 'predict'", "give a CrossEncoder")
    graded = np.asarray(reranker.predict([*asked, *positives]))
    if graded.shape != (len(asked) + len(positives),) or graded.dtype.kind not in "fiub":
        what = f"`predict` returned an array of shape {graded.shape} for {len(asked) + len(positives)} pairs of texts"
        raise ModelError("cross_encoder", what, "give a CrossEncoder with one number for each pair")
    graded = graded.astype(np.float64)
    if len(bad := np.flatnonzero(~np.isfinite(graded))):
        shown = " and ".join(repr(text[:60]) for text in [*asked, *positives][bad[0]])
        raise ModelError("cross_encoder", f"`predict` returned NaN or infinity for {shown}", "are its weights whole? try float32")
    scores = np.full(block.ids.shape, -np.inf)
    scores[there] = graded[: len(asked)]
    order = np.argsort(-scores, axis=1, kind="stable")
    tables = {
        name: np.take_along_axis(table, order, axis=1)
        for name, table in (("ids", block.ids), ("similarity", block.similarity), ("overlap", block.overlap))
        if table is not None
    }
    return replace(
        block,
        scores=np.take_along_axis(scores, order, axis=1),
        positive_scores=graded[len(asked) :],
        **tables,  # type: ignore[arg-type]
    )


class _SameTexts(NamedTuple):
    """Equal numbers for texts of the same normalised form."""

    queries: np.ndarray  # (q,) int64
    corpus: np.ndarray  # (n,) int64
    excluded: Ragged  # per query: the forms of its positives, and of the positives of queries with the same form

    def marked(self, block: Candidates, rows: slice) -> Candidates:
        """Return candidates with a mark at those that are the query's own text, or the text of a positive."""
        codes = np.where(block.ids >= 0, self.corpus[np.maximum(block.ids, 0)], -1)
        return replace(
            block,
            same_query=codes == self.queries[rows, None],
            same_group=contains(self.excluded.rows(rows), codes),
            groups=codes,
        )


def _same_texts(pairs: Pairs) -> _SameTexts:
    codes = forms(pl.Series([*pairs.queries, *pairs.corpus], dtype=pl.String)).rank("dense").cast(pl.Int64).to_numpy() - 1
    queries, corpus = codes[: len(pairs.queries)], codes[len(pairs.queries) :]
    table = pl.DataFrame({"form": queries[pairs.positives.row_of_each()], "excluded": corpus[pairs.positives.ids]})
    lists = table.group_by("form").agg(pl.col("excluded").unique().sort())
    per_query = pl.DataFrame({"form": queries}).join(lists, on="form", how="left", maintain_order="left")["excluded"]
    starts = np.concatenate([[0], per_query.list.len().to_numpy().cumsum()]).astype(np.int64)
    return _SameTexts(queries, corpus, Ragged(starts, per_query.explode().to_numpy()))


def _picked(eligible: np.ndarray, window: Window) -> np.ndarray:
    """Return the columns (q, n) of the negatives, ascending, then -1."""
    wanted = window.wanted
    places = np.full((len(eligible), wanted), -1, np.int64)
    rank = eligible.cumsum(axis=1) - 1
    if window.strategy == "top":
        rows, columns = np.nonzero(eligible & (rank < wanted))
        places[rows, rank[rows, columns]] = columns
        return places
    for row, count in enumerate(eligible.sum(axis=1).tolist()):
        columns = np.flatnonzero(eligible[row])
        # the same calls as in sentence-transformers, so that the same `random.seed` gives the same rows
        sampled = sorted(random.sample(range(max(count, wanted)), k=wanted))
        some = [columns[at] for at in sampled if at < count]
        places[row, : len(some)] = some
    return places


def _rounded(scores: np.ndarray) -> pl.Series:
    return pl.Series(scores.astype(np.float32).astype(np.float64))


def _lists(name: str, values: np.ndarray, there: np.ndarray) -> pl.Series:
    """Return a list column: of each row (r, n) the values that are there."""
    flat = _rounded(values[there]) if values.dtype == np.float64 else pl.Series(values[there])
    return _grouped(name, flat, there.sum(axis=1))


def _grouped(name: str, flat: pl.Series, lengths: np.ndarray) -> pl.Series:
    """Return a list column from its values, one after the other, and the length of each list (each at least 1)."""
    row = pl.Series(np.repeat(np.arange(len(lengths)), lengths))
    if not len(flat):
        return pl.Series(name, [], dtype=pl.List(flat.dtype))
    return pl.DataFrame({"row": row, name: flat}).group_by("row", maintain_order=True).agg(name)[name]
