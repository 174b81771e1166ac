"""tuplesmith from Python: what the commands `curate`, `mine` and `train` do, and three functions for data in memory.

    import tuplesmith

    build = tuplesmith.build("tickets.yaml")       # open datasets to (query, positive) tuples
    tuplesmith.mine(build)                         # hard negatives
    model = tuplesmith.train(build)                # a folder that sentence-transformers loads

    tuplesmith.mine_hard_negatives(dataset, model) # the rows of sentence-transformers' function, with fewer seconds
    tuplesmith.deduplicate(texts)                  # near-duplicates, each with the text that it matches
    tuplesmith.decontaminate(dataset, against)     # rows that an evaluation set also holds

Errors that you can fix are one line each: `tuplesmith.UserError`, whose kinds are in `curation.core.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tuplesmith_command import hidden_package

if _line := hidden_package():
    raise ImportError(_line)

from curation.core.errors import BuildError, ManifestError, UserError, a_kind, did_you_mean, listed
from curation.core.progress import for_python

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Build",
    "Decontaminated",
    "Deduplicated",
    "UserError",
    "build",
    "decontaminate",
    "deduplicate",
    "evaluate",
    "export",
    "load_build",
    "mine",
    "mine_hard_negatives",
    "publish",
    "train",
]

Dataset: TypeAlias = Any  # datasets.Dataset, which is imported only where one is made
Where: TypeAlias = "str | Path | Build"


class Build:
    """A finished build folder: its tuples, and where each of them came from.

    >>> build = load_build("builds/tickets")
    >>> build.sources
    ['tickets']
    """

    def __init__(self, path: str | Path) -> None:
        """Open the folder that `curate build` wrote; its files are checked as they are read.

        Raises:
            BuildError: it holds no build, or was changed by hand.
        """
        from curation.core.builds import read_summary

        self.path = _path(path)
        if not (self.path / "build.json").exists():
            raise BuildError(self.path, "holds no build", "run `curate build MANIFEST` first, or name a build folder")
        summary = read_summary(self.path)
        self.name = str(summary.get("name", self.path.name))
        self.sources: list[str] = list(summary["sources"])  # in the manifest's order
        self.failed: dict[str, str] = {name: str(why) for name, why in summary["failed"].items()}  # source -> one line

    def __repr__(self) -> str:
        failed = f", failed: {listed(self.failed)}" if self.failed else ""
        return f"<Build {self.path}: {listed(self.sources)}{failed}>"

    def receipts(self) -> dict[str, dict[str, Any]]:
        """Return what each source was made of and how: counts, settings, revision, digests; `mined` has the miner's receipt.

        >>> load_build("builds/tickets").receipts()["tickets"]["license"]
        'cc-by-4.0'
        """
        from curation.core.builds import receipts
        from curation.core.store import read_receipt

        return {
            name: {**receipt, "mined": read_receipt(self.path / "mined" / name)} for name, receipt in receipts(self.path).items()
        }

    def counts(self) -> pl.DataFrame:
        """Return one row per source: rows read, tuples made, merged, dropped, held out and kept, passages, mined tuples.

        >>> load_build("builds/tickets").counts().columns
        ['source', 'rows_in', 'tuples_made', 'merged', 'dropped', 'heldout', 'kept', 'passages', 'mined']
        """
        import polars as pl

        rows = []
        for name, receipt in self.receipts().items():
            counts = {key: receipt[key] for key in ("rows_in", "tuples_made", "merged")}
            counts |= {"dropped": sum(receipt["dropped"].values())}
            counts |= {key: receipt[key] for key in ("heldout", "kept", "passages")}
            rows.append({"source": name, **counts, "mined": (receipt["mined"] or {}).get("kept")})
        return pl.DataFrame(rows)

    def tuples(self, source: str | None = None) -> pl.DataFrame:
        """Return the tuples of a source with their texts; a build with one source needs no name.

        Columns: id, query (without its instruction), positives and negatives (lists of texts; the first positive is trained
        on), label. After mining also positive_score, positive_rank, positive_origin, positive_reranked, negative_scores,
        negative_ranks and negative_origin; a tuple with too few negatives is in `drops` then.

        >>> tuples = load_build("builds/tickets").tuples()
        >>> tuples.select("query", "positives").row(0)
        ('My router hums at the office', ['At the office, unplug the router and wait: one that hums needs a rest.'])
        """
        import polars as pl

        from curation.core.builds import checked_stage
        from curation.core.tables import read_table

        name = self._source(source)
        checked_stage(self.path, f"curated/{name}")
        stage = "mined" if (self.path / "mined" / name / "done.json").exists() else "curated"
        if stage == "mined":
            checked_stage(self.path, f"mined/{name}", "run `mine negatives` again")
        texts = read_table(self.path / "curated" / name, "passages", ["text"])["text"]
        pairs = read_table(self.path / stage / name, "pairs").drop("key", "group")
        for column in ("positives", "negatives"):
            ids = pairs.select(pl.col(column)).with_row_index("row").explode(column, empty_as_null=False)
            lists = ids.with_columns(texts.gather(ids[column]).alias(column)).group_by("row", maintain_order=True).agg(column)
            rows = pairs.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"))
            found = rows.join(lists, on="row", how="left", maintain_order="left")[column].fill_null([])
            pairs = pairs.with_columns(found)
        return pairs

    def dataset(self, source: str | None = None, negatives: int | None = None) -> Dataset:
        """Return the tuples of a source as a `datasets.Dataset`.

        With `negatives`, one row per query with the columns query, positive, negative_1, ... that losses of
        sentence-transformers take; tuples with fewer negatives are left out. The query starts with the source's instruction
        only if you put it there: it is in `receipts()[source]["instruction"]`.

        >>> load_build("builds/tickets").dataset(negatives=2).column_names
        ['query', 'positive', 'negative_1', 'negative_2']
        """
        import polars as pl

        from curation.core.python_data import to_dataset

        _check_whole(0, negatives=negatives)
        tuples = self.tuples(source)
        if negatives is None:
            return to_dataset(tuples)
        most = max(tuples["negatives"].list.len(), default=0)
        if len(tuples) and most < negatives:
            hint = f"ask for at most {most}, or mine more" if most else "call `mine` first"
            raise UserError("negatives", f"no tuple has {negatives}", hint)
        tuples = tuples.filter(pl.col("negatives").list.len() >= negatives)
        columns = [pl.col("negatives").list.get(at).alias(f"negative_{at + 1}") for at in range(negatives)]
        return to_dataset(tuples.select("query", pl.col("positives").list.first().alias("positive"), *columns))

    def drops(self, source: str | None = None) -> pl.DataFrame:
        """Return the rows and tuples that were left out, of one source or all, each with its reason and evidence.

        A near-duplicate also has matched_id and matched_source, the tuple that was kept instead, and their score.

        >>> load_build("builds/tickets").drops().columns[:5]
        ['id', 'source', 'stage', 'reason', 'evidence']
        """
        import polars as pl

        from curation.core.builds import checked_stage
        from curation.core.record import DROPPED
        from curation.core.tables import read_parquet

        tables = [pl.DataFrame(schema=DROPPED)]
        for name in self.sources if source is None else [self._source(source)]:
            checked_stage(self.path, f"curated/{name}")
            paths = [self.path / stage / name / "dropped.parquet" for stage in ("curated", "mined")]
            tables += [read_parquet(path).cast(DROPPED) for path in paths if path.exists()]
        return pl.concat(tables)

    def _source(self, name: str | None) -> str:
        if name is None and len(self.sources) == 1:
            return self.sources[0]
        if name is None:
            raise BuildError(self.path, "has several sources", f"name one: {listed(self.sources)}")
        if name not in self.sources:
            raise BuildError(
                self.path, f"no source '{name}'{did_you_mean(name, self.sources)}", f"sources: {listed(self.sources)}"
            )
        return name


class Deduplicated:
    """What `deduplicate` kept, and the evidence for what it dropped."""

    def __init__(self, kept: Any, dropped: pl.DataFrame) -> None:
        self.kept = kept  # of the type that was given: a list of texts, or a Dataset
        self.dropped = dropped  # row, text, kept_row, kept_text, score

    def __repr__(self) -> str:
        return f"<Deduplicated: {len(self.kept):,} kept, {len(self.dropped):,} dropped>"


class Decontaminated:
    """What `decontaminate` kept, and the evidence for what it dropped."""

    def __init__(self, kept: Any, dropped: pl.DataFrame) -> None:
        self.kept = kept  # of the type that was given: a list of texts, or a Dataset
        self.dropped = dropped  # row, column, text, found_in, found_id, rule, score, evidence; one line per match

    def __repr__(self) -> str:
        return f"<Decontaminated: {len(self.kept):,} kept, {self.dropped['row'].n_unique():,} dropped>"


def build(
    manifest: str | Path,
    *,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    limit: int | None = None,
    workers: int | None = 1,
    ray: str | None = None,
    quiet: bool = False,
) -> Build:
    """Build the sources of a manifest into tuples, as `curate build` does; what is up to date does not run again.

    Args:
        manifest: a YAML file; every key is in manifests/README.md.
        out: the build folder; by default builds/NAME.
        only: build these sources only.
        limit: at most so many rows per source, for a first look.
        workers: processes; None: as many as are worth their start-up.
        ray: address of a Ray cluster that does the work: local, auto or HOST:PORT.
        quiet: show no progress.

    Raises:
        ManifestError: the manifest is wrong.
        UserError: no source could be built: the first one's error. Other failures are in `Build.failed`.

    >>> build("tickets.yaml", quiet=True)
    <Build builds/tickets: tickets>
    """
    from curation.build.build import build as build_sources

    _check_whole(1, limit=limit, workers=workers)
    folder = None if out is None else Path(out)
    outcome = build_sources(Path(manifest), folder, _names(only), limit, workers, for_python(quiet), ray=ray)
    if outcome.failed and not outcome.receipts:
        raise next(iter(outcome.failed.values()))
    return Build(outcome.folder)


def load_build(path: str | Path | None = None) -> Build:
    """Open a build folder; without a path, the newest one below ./builds.

    Raises:
        BuildError: it holds no build, or was changed by hand.

    >>> load_build()
    <Build builds/tickets: tickets>
    """
    from curation.core.builds import newest_build

    return Build(newest_build(Path("builds")) if path is None else path)


def mine(
    build: Where,
    *,
    only: Sequence[str] = (),
    device: str = "auto",
    workers: int | None = 1,
    ray: str | None = None,
    quiet: bool = False,
) -> Build:
    """Mine hard negatives for a build, as `mine negatives` does; the settings are its manifest's `mine:` section.

    Args:
        build: a Build, or its folder.
        only: mine these sources only.
        device: where to encode and search: auto, cpu, cuda or cuda:N.
        workers: processes; None: one per GPU.
        ray: address of a Ray cluster that does the work: local, auto or HOST:PORT.
        quiet: show no progress.

    Raises:
        BuildError: no whole build, or no tuple has enough negatives.
        ManifestError: no usable `mine:` section.
        ModelError: the model cannot be used.

    >>> mined = mine("builds/tickets", quiet=True)
    >>> len(mined.tuples()["negatives"][0])
    4
    """
    from mining.mine import mine_build

    _check_whole(1, workers=workers)
    path = _path(build)
    receipts = mine_build(path, _names(only), device, for_python(quiet), processes=workers, ray=ray)
    if not any(receipt["kept"] for receipt in receipts.values()):
        raise BuildError(path, "no tuple has enough negatives", "see `Build.drops()`, and loosen `mine:` in the manifest")
    return Build(path)


def train(
    build: Where,
    *,
    recipe: str | Path | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    start: str | Path | None = None,
    only: Sequence[str] = (),
    steps: int | None = None,
    device: str = "auto",
    restart: bool = False,
    quiet: bool = False,
) -> Path:
    """Train an embedding model on a mined build, as `train` does; return the folder of the model.

    sentence-transformers and transformers load that folder. An interrupted run continues where it was.

    Args:
        build: a Build, or its folder.
        recipe: the keys of a `train:` section, as a mapping or a YAML file; by default those of the build's manifest.
        out: folder of the run; by default BUILD/train.
        start: folder of another run whose model's weights this one starts from, as a second stage.
        only: train on these sources only.
        steps: stop after so many steps; the learning rate's schedule ends there.
        device: auto, cpu, cuda or cuda:N.
        restart: delete an earlier run in `out` first.
        quiet: show no progress.

    Raises:
        BuildError: no mined negatives, or checkpoints of another run.
        ManifestError: no `train:` section, or a wrong key.
        ModelError: the model cannot be trained.

    >>> train("builds/tickets", steps=2, quiet=True).as_posix()
    'builds/tickets/train/model'
    """
    from curation.core.builds import check_beside
    from curation.recipe.manifest import load_manifest, load_recipe
    from curation.recipe.settings import Train
    from curation.recipe.yaml import Document, checked
    from training.train import train as run_training

    _check_whole(1, steps=steps)
    path = Build(_path(build)).path
    if isinstance(recipe, Mapping):
        settings = checked(Train, Document(Path("recipe"), dict(recipe)))
    elif isinstance(recipe, str | Path):
        settings = load_recipe(Path(recipe))
    elif recipe is not None:
        raise UserError("recipe", f"is {a_kind(recipe)}", "give a YAML file, or a mapping of the keys of `train:`")
    else:
        check_beside(path, "manifest.yaml")
        found = load_manifest(path / "manifest.yaml").train
        if found is None:
            raise ManifestError(path / "manifest.yaml", "has no `train:` section", "add one, or give a recipe")
        settings = found
    settings = settings.model_copy(update={"steps": steps or settings.steps})
    folder = path / "train" if out is None else Path(out)
    run_training(
        path,
        settings,
        out=folder,
        start=None if start is None else Path(start),
        device=device,
        only=_names(only),
        restart=restart,
        say=_say(quiet),
        progress=for_python(quiet),
    )
    return folder / "model"


def evaluate(
    model: str | Path,
    data: Where | Sequence[Where],
    *,
    instruction: str = "",
    split: str = "test",
    prompt: Literal["auto", "instruct", "none"] = "auto",
    dtype: str = "float32",
    device: str = "auto",
    max_tokens: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure how well a model retrieves, as `train evaluate` does: {"ndcg@10", "recall@10", "mrr@10", "queries"}.

    Of a Build, a list or several sets the result has such a dict for each set, by its name, and for several `mean`, the mean
    over them; each has also {"intervals": {"ndcg@10": [low, high], ...}}: 95 %, of 2,000 bootstrap resamples of the queries.

    Args:
        model: a Hub id, a folder, or `package:NAME` of an installed package that carries a model.
        data: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (BEIR's layout), such as BUILD/heldout/SOURCE; or
            several sets: a Build (all its held-out queries), a folder of such folders, `NanoBEIR`, or a list of these.
        instruction: put before each query; by default what training puts there.
        split: the split of the qrels.
        prompt: auto: the model's own prompts; instruct: the instruction; none: nothing.
        dtype: float32, bfloat16 or auto.
        device: auto, cpu, cuda or cuda:N.
        max_tokens: longer texts are cut; by default at the model's own limit.
        quiet: show no progress.

    Raises:
        BuildError: the Build has no held-out queries.
        ModelError: the model cannot be loaded.
        SourceError: a folder cannot be read.

    >>> sorted(evaluate("sentence-transformers/all-MiniLM-L6-v2", "builds/tickets/heldout/tickets", quiet=True))
    ['mrr@10', 'ndcg@10', 'queries', 'recall@10']
    """
    from training.collection import evaluation_sets
    from training.evaluate import compared, evaluation_prompts, means, measure_each
    from training.model.encode import load_encoder

    _check_whole(4, max_tokens=max_tokens)
    if not isinstance(model, str | Path):
        what = f"is {a_kind(model)}, not a folder or a Hub id"
        raise UserError("model", what, "save it, for instance with `model.save(DIR)`, and give the folder")
    given = [data] if isinstance(data, str | Path | Build) else data
    for one in given:
        if isinstance(one, Build) and not (one.path / "heldout").is_dir():
            raise BuildError(one.path, "has no held-out queries", "give a source `holdout: N` and build again")
    sets = evaluation_sets([one.path / "heldout" if isinstance(one, Build) else one for one in given], split)
    if not sets:
        raise UserError("data", "names no evaluation set", "give a Build or folders in BEIR's layout")
    collections = {one.name: one.read() for one in sets}
    encoder = load_encoder(str(model), device=device, dtype=dtype, max_tokens=max_tokens, prompt=prompt)
    each = {
        one.name: measure_each(
            encoder,
            collections[one.name],
            evaluation_prompts(encoder, one.folder, instruction, one.name),
            for_python(quiet),
        )
        for one in sets
    }
    several = len(sets) > 1 or not isinstance(data, str | Path)
    return compared({"model": each})["model"] if several else means(each[sets[0].name])


def export(
    build: Where,
    format: str,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    negatives: int | None = None,
    quiet: bool = False,
) -> Path:
    """Write a build as another tool's training data, as `curate export` does; return the folder with the files.

    Args:
        build: a Build, or its folder.
        format: f2llm, pair, triplet, n-tuple, labeled-list, scored-list, ids, flagembedding, tevatron,
            tevatron-ids, nemo or beir.
        out: a new folder; the files are in its data/.
        only: export these sources only.
        negatives: negatives per tuple; see `curate export -h` for each format's rule.
        quiet: show no progress.

    Raises:
        BuildError: no mined negatives where the format needs them, no tuple that fits, or `out` holds other files.
        UserError: an unknown format.

    >>> [path.name for path in export("builds/tickets", "pair", "as-pairs", quiet=True).iterdir()]
    ['tickets.parquet']
    """

    from curation.share.export import FORMATS
    from curation.share.export import export as write_export

    if format not in FORMATS:
        raise UserError("format", f"'{format}' is unknown{did_you_mean(format, FORMATS)}", f"choose one of {listed(FORMATS)}")
    _check_whole(1, negatives=negatives)
    write_export(_path(build), Path(out), format, _names(only), negatives, for_python(quiet))
    return Path(out) / "data"


def publish(
    build: Where,
    repo: str,
    *,
    lock: str | Path | None = None,
    allow: Sequence[str] = (),
    negatives: int | None = None,
    columns: Sequence[str] = (),
    private: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> str:
    """Publish a build on the Hub in one commit, as `curate publish` does; return its URL, or with `dry_run` the dataset card.

    Args:
        build: a Build, or its folder.
        repo: ORG/NAME.
        lock: the lock file that `curate lock` wrote; by default BUILD/manifest.lock.
        allow: sources to publish although their licence is unknown or they are not verified.
        negatives: columns of negatives; by default as many as were mined.
        columns: further columns: positives, ids, scores, provenance.
        private: make the repository private.
        tag: name this version, such as v1.0.
        dry_run: send nothing.
        quiet: show no progress.

    Raises:
        BuildError: nothing may be published, or no lock names the revisions.
        HubError: the Hub refuses.

    >>> card = publish("builds/tickets", "my-org/tickets", dry_run=True, quiet=True)
    >>> card.splitlines()[0]
    '---'
    """
    from curation.share import publish as publishing

    _check_whole(1, negatives=negatives)
    made = publishing.plan(
        _path(build), repo, None if lock is None else Path(lock), _names(allow), negatives, _names(columns), for_python(quiet)
    )
    for name, why in made.left_out.items():
        _say(quiet)(f"left out: {name}: {why}")
    if dry_run:
        return made.card
    return str(publishing.publish(made, private, tag, _say(quiet)).url)


def deduplicate(data: Any, threshold: float = 0.8, *, column: str | None = None) -> Deduplicated:
    """Drop near-duplicate texts, and name for each the kept row that it matches.

    MinHash finds candidates, and the exact Jaccard similarity of the texts' shingles decides. A row is dropped only if it
    matches an earlier row that is kept, so nothing chains. Shingles are 3 words for texts of 25 words or more, 5 characters
    for 8 to 24 words; shorter texts must be equal up to case, punctuation and spaces. Short texts that differ by a number or
    a name are no duplicates.

    Args:
        data: texts, or a `datasets.Dataset`.
        threshold: the lowest similarity of duplicates, above 0 and at most 1.
        column: the Dataset's column to compare; by default its first column of texts.

    Returns:
        `kept`, of the type that was given, and `dropped`, a polars table: row, text, kept_row, kept_text, score.

    Raises:
        UserError: a threshold out of range, or a column that does not exist.
        SourceError: a value that is not a text.

    >>> texts = [
    ...     "How do I reset the password of my account when I no longer have the phone?",
    ...     "Where is the invoice of the last month?",
    ...     "How do I reset the password of my account, when I no longer have that phone?",
    ... ]
    >>> result = deduplicate(texts, threshold=0.7)
    >>> result
    <Deduplicated: 2 kept, 1 dropped>
    >>> result.dropped.select("row", "kept_row", "score").row(0, named=True)
    {'row': 2, 'kept_row': 0, 'score': 0.8767123287671232}
    """

    from curation.clean.in_memory import near_duplicates
    from curation.core.python_data import without_rows

    dropped = near_duplicates(data, threshold, column)
    return Deduplicated(without_rows(data, set(dropped["row"].to_list())), dropped)


def decontaminate(
    data: Any,
    against: str | Path | Dataset | Sequence[str | Path | Sequence[str] | Dataset],
    *,
    columns: Sequence[str] | None = None,
) -> Decontaminated:
    """Drop rows with a text that an evaluation set also holds, exactly or in large part, and name what it matches.

    A text matches if its normalised form is equal, if a short evaluation text (up to 24 words) is in it by seven tenths of its
    character 8-grams, or if 13 consecutive words of a longer one are in it.

    Args:
        data: a `datasets.Dataset`, or texts.
        against: one evaluation set or a list of them: folders in BEIR's layout (their queries and the documents that these
            need), Datasets (all their texts), or lists of texts. A plain list of texts is one set.
        columns: the Dataset's columns to look at; by default all columns of texts or lists of texts.

    Returns:
        `kept`, of the type that was given, and `dropped`, a polars table with one line per match: row, column, text, found_in,
        found_id, rule (equal, chars or words), score (share of the evaluation text), evidence (what both have in common).

    Raises:
        SourceError: an evaluation set cannot be read or holds no text, or a value is not a text.
        UserError: a column that does not exist.

    >>> questions = ["Which vitamin do carrots contain?", "How do I reset the password of my account?"]
    >>> result = decontaminate(questions, against=[["how do I reset the password of my account"]])
    >>> result.kept
    ['Which vitamin do carrots contain?']
    >>> result.dropped.select("row", "rule", "found_in", "found_id").row(0)
    (1, 'equal', 'against[0]', '0')
    """
    from curation.clean.in_memory import overlaps
    from curation.core.python_data import without_rows

    found = overlaps(data, against, columns)
    return Decontaminated(without_rows(data, set(found["row"].to_list())), found)


def mine_hard_negatives(
    dataset: Dataset,
    model: Any,
    anchor_column_name: str | None = None,
    positive_column_name: str | None = None,
    corpus: Sequence[str] | None = None,
    cross_encoder: Any = None,
    range_min: int | None = None,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    num_negatives: int | None = None,
    sampling_strategy: Literal["random", "top"] = "top",
    query_prompt_name: str | None = None,
    query_prompt: str | None = None,
    corpus_prompt_name: str | None = None,
    corpus_prompt: str | None = None,
    include_positives: bool = False,
    output_format: Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"] = "triplet",
    output_scores: bool = False,
    batch_size: int = 32,
    faiss_batch_size: int = 16384,
    use_faiss: bool = True,
    use_multi_process: bool = False,
    verbose: bool = True,
    cache_folder: str | Path | None = None,
    *,
    preset: Literal["f2llm", "nv-retriever", "clean"] | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Dataset:
    """Add hard negatives to (anchor, positive) pairs: sentence-transformers' `mine_hard_negatives`, with its arguments and rows.

    Equal settings give equal rows, except where two scores agree to within float32's rounding (about 1e-7): then their order may
    differ, as it does between sentence-transformers' own two searches. With sampling_strategy="random" set `random.seed` (of
    the standard library, which both use) before each call. The search is always exact.

    Args:
        dataset: a `datasets.Dataset` with a column of anchors and a column of positives; further columns are not kept. Equal
            anchors are one query with several positives.
        model: a path or Hub id, which tuplesmith's own encoder loads (the fastest way); a SentenceTransformer; or any object
            whose `encode(texts)` returns one vector per text.
        anchor_column_name: by default the first column.
        positive_column_name: by default the second column.
        corpus: further passages to find negatives in, besides the positives.
        cross_encoder: an object with `predict(pairs)`, whose scores replace the cosines where a margin or a limit is set.
        range_min: nearest candidates to skip; default 0.
        range_max: ranks to look at; by default enough for num_negatives, and ten times as many with a margin or max_score.
        max_score: candidates that score higher are removed.
        min_score: candidates that score lower are removed.
        absolute_margin: candidates above the lowest positive score less this are removed.
        relative_margin: candidates above the lowest positive score less this share of it are removed.
        num_negatives: negatives per query; default 3.
        sampling_strategy: top: the nearest; random: any of the window.
        query_prompt_name: the model's prompt to put before anchors; by default its own prompt for queries.
        query_prompt: a text to put before anchors.
        corpus_prompt_name: as query_prompt_name, for passages.
        corpus_prompt: as query_prompt, for passages.
        include_positives: keep positives among the candidates, for evaluation sets of rerankers; implies n-tuple.
        output_format: triplet: one row per negative; n-tuple: one row per positive with num_negatives columns, only where all
            were found; labeled-pair: one row per document with a label of 1 or 0; labeled-list: one row per positive with
            lists of documents and labels.
        output_scores: add `scores` to triplets and n-tuples; put `score`, `scores` in the place of labels otherwise.
        batch_size: passed to a SentenceTransformer.
        faiss_batch_size: no effect: memory is bounded by blocks.
        use_faiss: no effect: the search is exact, with faiss.
        use_multi_process: not supported: all cores are used by one process.
        verbose: show progress, and one line on what was found.
        cache_folder: keep vectors here by model, prompt and text; a later call encodes only new texts.
        preset: filters of tuplesmith for what you do not set yourself. f2llm: F2LLM's (24 negatives of ranks 5 to 100,
            max_score 0.8, relative_margin 0.05); nv-retriever: relative_margin 0.05, without copies of the query or a positive;
            clean: also without texts too similar to a positive, by a limit that is calibrated on the data.
        device: of a model given by its path, and of the search: auto, cpu, cuda or cuda:N.
        dtype: of a model given by its path: float32, bfloat16 or auto. Only float32 gives the same rows.

    Returns:
        A `datasets.Dataset` with the columns that sentence-transformers gives.

    Raises:
        SourceError: the dataset is empty, or a value is not a text.
        ModelError: the model cannot be used, or has no such prompt.
        UserError: an argument is wrong.

    >>> from datasets import Dataset
    >>> pairs = Dataset.from_csv("tickets/2026.csv")
    >>> mined = mine_hard_negatives(
    ...     pairs, "sentence-transformers/all-MiniLM-L6-v2", num_negatives=2, relative_margin=0.05, verbose=False
    ... )
    >>> mined.column_names
    ['question', 'answer', 'negative']
    """
    from curation.core.python_data import to_dataset
    from mining import hard_negatives
    from mining.encoders import encoders_of

    if output_format not in hard_negatives.OUTPUT_FORMATS:
        known = hard_negatives.OUTPUT_FORMATS
        hint = f"choose one of {listed(known)}"
        raise UserError("output_format", f"'{output_format}' is unknown{did_you_mean(output_format, known)}", hint)
    if use_multi_process:
        raise UserError("use_multi_process", "is not supported", "leave it out: one process uses all cores")
    say, progress = _say(not verbose), for_python(not verbose)
    columns = hard_negatives.columns_of(dataset, anchor_column_name, positive_column_name, say)
    pairs = hard_negatives.pairs_of(dataset, columns, corpus, say)
    rules = {
        "range_min": range_min,
        "range_max": range_max,
        "max_score": max_score,
        "min_score": min_score,
        "absolute_margin": absolute_margin,
        "relative_margin": relative_margin,
        "num_negatives": num_negatives,
    }
    reranked = cross_encoder is not None
    window = hard_negatives.window_of(rules, pairs.most_rows, preset, sampling_strategy, include_positives, reranked)
    prompts = {
        "query_prompt": query_prompt,
        "query_prompt_name": query_prompt_name,
        "corpus_prompt": corpus_prompt,
        "corpus_prompt_name": corpus_prompt_name,
    }
    for name, text in prompts.items():
        if text is not None and not isinstance(text, str):
            raise UserError(name, f"must be a text, and is {text!r}")
    cache = None if cache_folder is None else Path(cache_folder)
    encoders = encoders_of(model, prompts, device, dtype, batch_size, verbose, cache is not None)
    vectors = hard_negatives.encode(pairs, encoders, progress, cache)
    mined = hard_negatives.find_negatives(pairs, vectors, window, progress, device, cross_encoder)
    say(hard_negatives.summary(pairs, mined, window.wanted))
    shape = "n-tuple" if include_positives else output_format
    return to_dataset(hard_negatives.formatted(pairs, mined, columns, shape, output_scores))


def _path(build: Where) -> Path:
    if not isinstance(build, Build | str | Path):
        raise UserError("build", f"is {a_kind(build)}", "give a Build, or its folder")
    return build.path if isinstance(build, Build) else Path(build)


def _names(names: Sequence[str]) -> list[str]:
    found = [names] if isinstance(names, str) else list(names or ())
    for name in found:
        if not isinstance(name, str):
            raise UserError(repr(name), f"is {a_kind(name)}, not a name", "give a name, or a list of names")
    return found


def _check_whole(lowest: int, **numbers: object) -> None:
    """Refuse arguments that are no whole numbers, or below the lowest that makes sense; None is not given."""
    for name, value in numbers.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and value >= lowest):  # type: ignore[operator]
            raise UserError(name, f"must be a whole number of at least {lowest}, and is {value!r}")


def _say(quiet: bool) -> Callable[[str], None]:
    from curation.core.console import say

    return (lambda line: None) if quiet else say
