"""The recipe: what a manifest may say. Every key is described here, and `manifests/README.md` is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.complaints import checked
from curation.errors import ManifestError
from curation.yaml_lines import read_yaml

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
Reader = Literal["json", "jsonl", "csv", "tsv", "parquet", "squad", "flagembedding", "tevatron", "python"]
Task = Literal["retrieval", "classification", "clustering"]
Prompt = Literal["auto", "instruct", "none"]
Dtype = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    """A part of a manifest; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Filters(Section):
    """Which texts are too poor to train on. A text that fails is dropped, and its tuple with it where none is left."""

    min_chars: int = Field(3, ge=0, description="fewer characters than this: dropped")
    max_chars: int | None = Field(
        None, ge=1, description="more characters than this: dropped; off by default, as the tokenizer truncates"
    )
    no_echo: bool = Field(True, description="drop a positive or negative whose normalised text is the query's")


class Dedup(Section):
    """Near-duplicates within a source. A query that asks the same for the same positive is dropped; other twins share a group."""

    threshold: float = Field(
        0.8, ge=0.5, le=1, description="lowest Jaccard of two texts' shingles that makes them near-duplicates"
    )
    max_loss_per_source: float = Field(0.5, ge=0, le=1, description="share of near-duplicate tuples above which the source fails")


class Table(Section):
    """Where rows come from, and how their file is read."""

    path: str | None = Field(
        None, description="a Hub dataset id, a local folder in Hub layout, `python:stdlib` or `python:PACKAGE`"
    )
    config: str | None = Field(None, description="configuration of the Hub dataset")
    split: str = Field("train", description="split of the Hub dataset")
    revision: str | None = Field(None, description="commit, tag or branch of the Hub dataset; publishing needs a commit")
    files: list[str] = Field(default_factory=list, description="file or glob, or a list of them, from the manifest's folder")
    reader: Reader | None = Field(None, description="file format; by default from the file's ending")
    encoding: str = Field("utf-8", description="encoding of text files; a byte-order mark is skipped")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="csv, tsv: one character; `,` and tab by default")
    quoting: bool | None = Field(None, description='csv, tsv: whether `"` quotes fields; yes for csv, no for tsv by default')
    header: bool | list[str] = Field(
        True, description="csv, tsv: whether the first line names the columns, or the names themselves"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_file(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("files"), str):
            return {**data, "files": [data["files"]]}
        return data

    @model_validator(mode="after")
    def _one_origin(self) -> Table:
        if self.delimiter in ("\n", "\r", '"'):
            raise ValueError("'delimiter' cannot be a line end or a quote")
        if self.header == []:
            raise ValueError("'header' is yes, no, or the list of names")
        if bool(self.path) == bool(self.files):
            raise ValueError("needs either 'path' (a Hub id or folder) or 'files', and not both")
        return self


class TextFields(Section):
    """Columns of a corpus or of a table of queries."""

    id: str = Field("_id", description="column of the id that qrels name")
    text: str = Field("text", description="column of the text")
    title: str | None = Field(None, description="column of a title that is put before the text")


class TextTable(Table):
    """A table of texts with ids: a corpus, or queries."""

    fields: TextFields = Field(TextFields(), description="which column is what")


class Fields(Section):
    """Which column is what. The mapped columns decide the shape of the source."""

    query: str | None = Field(
        None,
        description="column of the query, premise, first sentence, or text to classify; an instruction rendered into it (`Instruct: ...`, a new line, `Query: ...`) is taken off again",
    )
    positive: str | None = Field(None, description="column of the positive; a list gives several")
    negatives: list[str] = Field(
        [],
        description="column or columns of given negatives, or a pattern such as `negative_*`; lists are taken apart",
    )
    label: str | None = Field(None, description="column of the label (NLI, classification, clustering)")
    score: str | None = Field(None, description="column of the score (STS, paraphrase, graded qrels)")
    query_id: str | None = Field(None, description="qrels: column of the query's id")
    positive_id: str | None = Field(None, description="qrels: column of the passage's id")

    @model_validator(mode="before")
    @classmethod
    def _one_negative(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("negatives"), str):
            return {**data, "negatives": [data["negatives"]]}
        return data


class Source(Table):
    """One open dataset, and how its rows become tuples."""

    name: Name = Field(description="short name; ids are `name/row`")
    task: Task = Field(description="retrieval, classification or clustering: decides loss and number of negatives")
    instruction: str = Field(
        "", description="what a decoder is told before the query; by default the one that is rendered into the queries, if any"
    )
    license: str | None = Field(None, description="licence as claimed; publishing needs it")
    language: str = Field("en", description="language of the texts")
    fields: Fields = Field(description="which column is what")
    corpus: TextTable | None = Field(None, description="qrels: the passages")
    queries: TextTable | None = Field(None, description="qrels: the queries")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="label value: its text; for NLI, label value: positive or negative",
    )
    threshold: float | None = Field(None, description="lowest score that makes a positive; 1 by default for qrels")
    both_ways: bool = Field(False, description="each pair also the other way round (symmetric sources)")
    limit: int | None = Field(None, ge=1, description="rows to take")
    sample: Literal["random", "first"] = Field("random", description="which rows a limit takes; `first` streams from the Hub")
    holdout: int = Field(0, ge=0, description="queries to set apart for evaluation (retrieval)")
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unreadable rows above which the source fails")
    filters: Filters | None = Field(None, description="filters of this source, instead of the manifest's")

    @model_validator(mode="after")
    def _known_shape(self) -> Source:
        if self.holdout and self.task != "retrieval":
            raise ValueError(f"'holdout' sets retrieval queries apart, and this source's task is {self.task}")
        shape = shape_of(self)
        useless = {
            "both_ways": self.both_ways and shape not in ("pairs", "scored"),
            "labels": self.labels and shape not in ("nli", "labelled"),
            "threshold": self.threshold is not None and shape not in ("scored", "qrels"),
            "corpus": self.corpus and shape != "qrels",
            "queries": self.queries and shape != "qrels",
            "negatives": self.fields.negatives and shape not in ("pairs", "scored"),
        }
        if wrong := [name for name, said in useless.items() if said]:
            raise ValueError(f"'{wrong[0]}' means nothing here: the mapped columns make shape '{shape}'")
        return self


def shape_of(source: Source) -> str:
    """Return which of the five shapes the mapped columns make: pairs, nli, scored, labelled or qrels.

    Raises:
        ValueError: they make none.
    """
    f = source.fields
    if f.query_id and f.positive_id and source.corpus and source.queries:
        return "qrels"
    if f.query and f.positive and f.label and not f.score:
        return "nli"
    if f.query and f.positive and f.score and not f.label:
        if source.threshold is None:
            raise ValueError("a 'score' column needs 'threshold', the lowest score that makes a positive")
        return "scored"
    if f.query and f.positive and not f.label:
        return "pairs"
    if f.query and f.label and not f.positive and source.task != "retrieval":
        return "labelled"
    raise ValueError(
        "fields make no known shape; map query+positive, query+positive+label (NLI), query+positive+score, "
        "query+label (classification, clustering), or query_id+positive_id with 'corpus' and 'queries'"
    )


class Mine(Section):
    """How hard negatives are found."""

    model: str = Field(description="Hub id, folder, or `package:NAME` of an installed package that carries a model")
    preset: Literal["f2llm"] = Field(
        "f2llm", description="f2llm: the filters of sentence-transformers' miner with F2LLM's settings"
    )
    negatives: int = Field(24, ge=1, le=1000, description="negatives a query")
    range_min: int = Field(5, ge=0, description="nearest candidates to skip; counted after the other filters")
    range_max: int = Field(100, ge=1, description="nearest candidates to look at")
    max_score: float | None = Field(0.8, description="candidates scoring higher are dropped")
    min_score: float | None = Field(None, description="candidates scoring lower are dropped")
    absolute_margin: float | None = Field(None, ge=0, description="candidates scoring above positive - margin are dropped")
    relative_margin: float | None = Field(
        0.05, ge=0, le=1, description="candidates scoring above positive * (1 - margin) are dropped"
    )
    shortage: Literal["drop", "keep"] = Field("drop", description="a tuple with fewer negatives: dropped, or kept short")
    prompt: Prompt = Field("auto", description="auto: the model's own prompts, else instruct for decoders, none for encoders")
    dtype: Dtype = Field("float32", description="float32, bfloat16, or auto: bfloat16 where the processor has it")
    max_tokens: int | None = Field(None, ge=4, description="longer texts are cut; the model's own limit by default")

    @model_validator(mode="after")
    def _window(self) -> Mine:
        if self.range_min >= self.range_max:
            raise ValueError(f"'range_min' ({self.range_min}) must be below 'range_max' ({self.range_max})")
        return self


class Train(Section):
    """How the model is trained. Where the paper (arXiv 2510.02294) is silent, its released configuration speaks."""

    model: str = Field(description="Hub id, folder, or `package:NAME`: the foundation model or encoder to train")
    max_tokens: int = Field(1024, ge=4, description="longer texts are cut")
    batch: int = Field(512, ge=1, description="tuples a step, over all processes")
    negatives: int = Field(7, ge=0, description="hard negatives a tuple, redrawn each epoch")
    loss: Literal["f2llm", "infonce"] = Field(
        "f2llm",
        description="f2llm: hard negatives, and for retrieval other rows' positives, apart; infonce: all of them together",
    )
    temperature: float = Field(0.05, gt=0, description="divides cosine similarities in the loss")
    lr: float = Field(1e-5, gt=0, description="highest learning rate")
    min_lr: float = Field(1e-7, ge=0, description="learning rate at the last step")
    warmup: int = Field(500, ge=0, description="steps of linear warm-up")
    epochs: int = Field(2, ge=1, description="times each tuple is seen")
    steps: int | None = Field(None, ge=1, description="stop after this many steps; the schedule ends there")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, on matrices only")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto", description="auto: the model's own, else last for decoders, mean for encoders"
    )
    prompt: Prompt = Field("auto", description="as in `mine`")
    dtype: Dtype = Field("auto", description="of the matrix products; weights stay float32")
    mask_false_negatives: bool = Field(True, description="a passage that is a query's positive is no in-batch negative of it")
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens a forward may hold: a batch with more takes two passes (GradCache); by default all at once",
    )
    checkpointing: bool = Field(False, description="keep only the layers' inputs and compute the rest again: less memory, slower")
    save_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints to keep")
    log_every: int = Field(10, ge=1, description="steps between lines on the screen; the log has every step")


class Manifest(Section):
    """One recipe: sources in, a dataset and a model out."""

    name: Name = Field(description="the build folder is `builds/<name>`")
    seed: int = Field(42, ge=0, description="every random choice is a function of it")
    filters: Filters = Field(Filters(), description="filters of all sources")
    dedup: Dedup | None = Field(None, description="near-duplicates; absent, only texts of equal normalised form share a group")
    sources: list[Source] = Field(min_length=1, description="the datasets, in order of priority")
    mine: Mine | None = Field(None, description="how hard negatives are found")
    train: Train | None = Field(None, description="how the model is trained")

    @model_validator(mode="after")
    def _names_differ(self) -> Manifest:
        names = [source.name for source in self.sources]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two sources are named '{min(twice)}'")
        return self


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: `file:line: what`, for the first thing that is wrong.
    """
    document = read_yaml(path)
    if not isinstance(document.value, dict) or not document.value:
        raise ManifestError(path, "holds no keys", "a manifest begins with `name:` and `sources:`")
    return checked(Manifest, path, document)


def load_recipe(path: Path) -> Train:
    """Read a training recipe: the keys of `train:` in a file of its own.

    Raises:
        ManifestError: `file:line: what`.
    """
    return checked(Train, path, read_yaml(path))
