"""What a manifest may say of a source: where its rows come from, how they are read, and how they become tuples."""

from __future__ import annotations

import glob
from collections.abc import Collection
from itertools import takewhile
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from curation.recipe.yaml import Name, Section

Reader = Literal[
    "json", "jsonl", "csv", "tsv", "parquet", "arrow", "squad", "xml", "aligned", "lines", "folders",
    "beir", "embedding-training-data", "flagembedding", "tevatron",
]  # fmt: skip
Task = Literal["retrieval", "classification", "clustering"]
# Keys that tell of a source and change no row of it: another word in them builds nothing again.
ABOUT: Any = {
    **dict.fromkeys(
        ("license_url", "license_checked", "verified", "notes", "substitute_for", "citation", "mteb", "expected_tuples"), True
    ),
    **{"expected_rows": True, "corpus": {"expected_rows"}, "queries": {"expected_rows"}},
}

OF_FILES = (
    "member",
    "reader",
    "records",
    "encoding",
    "delimiter",
    "quoting",
    "header",
    "file_column",
    "max_record",
)  # they say how to read them


UNITS = {"max_unpacked": "GB", "max_record": "MB"}  # which a manifest may write behind the number


class Filters(Section):
    """Which texts are too poor to train on. A text that fails is dropped, and its tuple with it where none is left."""

    min_chars: int | None = Field(
        None,
        ge=0,
        description="fewer characters than this: dropped; by default, a text of one or two characters is dropped unless it says "
        "something: two letters (`no`), a digit, a sign (`<`), or a Chinese, Japanese or Korean character (`京`)",
    )
    max_chars: int | None = Field(
        None, ge=1, description="more characters than this: dropped; off by default, as the tokenizer truncates"
    )
    no_echo: bool = Field(
        True,
        description="drop a positive or negative whose normalised text is the query's, and a negative whose normalised text is a positive's",
    )


class Table(Section):
    """Where rows come from, and how their file is read."""

    path: str | None = Field(
        None,
        description="a Hub dataset id, or a local folder in Hub layout; texts stay as they are in the files",
    )
    config: str | None = Field(None, description="configuration of the dataset that `path` names")
    split: str = Field("train", description="split of the dataset that `path` names; also `train+test`, `train[:10%]`")
    revision: str | None = Field(None, description="commit, tag or branch of the Hub dataset; publishing needs a commit")
    files: list[str] = Field(
        default_factory=list,
        description="file or glob, or a list of them, from the manifest's folder; with `path`, files of that dataset, read by `reader`",
    )
    member: list[str] = Field(
        [],
        description="member or glob, or a list of them, of a zip or tar, packed or not; needless where it holds one data file",
    )
    max_unpacked: float = Field(
        20, gt=0, description="gigabytes that packed files and archives may unpack to, all files together"
    )
    max_record: float = Field(
        64,
        gt=0,
        description="megabytes that one record of a text file may take: a line, a csv row, an item of a JSON list, an XML element, "
        "a file of `folders`",
    )
    reader: Reader | None = Field(
        None,
        description="file format; by default from the file's ending. aligned: line i of several files makes a row; "
        "lines: a label and a text a line; folders: a file is a text and its folder the label; "
        "beir: the folder or Hub dataset of a whole source, `split` its qrels",
    )
    records: str | None = Field(
        None,
        description="xml: path of the elements that are rows, such as `QAPairs/QAPair`; json, jsonl: path to the rows, such as "
        "`data/items`; `*` is each value of an object, its key the column `key`",
    )
    pattern: str | None = Field(
        None, description="lines: regular expression of a line, its named groups the columns; `(?P<label>\\S+)\\s+(?P<text>.*)`"
    )
    encoding: str = Field("utf-8", description="encoding of text files; a byte-order mark is skipped")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="csv, tsv: one character; `,` and tab by default")
    quoting: bool | None = Field(None, description='csv, tsv: whether `"` quotes fields; yes for csv, no for tsv by default')
    header: bool | list[str] = Field(
        True,
        description="csv, tsv: whether the first line names the columns, or the names themselves; aligned: a name a file; json: names for rows that are lists",
    )
    join: dict[str, str] = Field(
        default_factory=dict, description="column whose lists are one text each: what to put between the parts"
    )
    file_column: str | None = Field(
        None, min_length=1, description="column to add: the file's name without its ending, such as a label; needs `files`"
    )
    expected_rows: int | None = Field(
        None,
        ge=1,
        description="rows there are, where known; `curate check` adds them up, and a build that finds another number says so",
    )

    guesses: ClassVar[dict[str, str]] = {}  # columns read besides those in `fields`, as far as there are any

    @property
    def places(self) -> list[str]:
        """Where the rows come from, for those who read of it elsewhere: without the folders of one machine."""
        return [portable(self.path, folder=True)] if self.path else [portable(name) for name in self.files]

    @model_validator(mode="before")
    @classmethod
    def _one_file(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {
                name: [value]
                if name in ("files", "member") and isinstance(value, str)
                else value.removesuffix(UNITS[name]).strip()
                if name in UNITS and isinstance(value, str)
                else value
                for name, value in data.items()
            }
        return data

    @model_validator(mode="after")
    def _one_origin(self) -> Table:
        if self.path and self.path.startswith("python:"):
            what = f"'path: {self.path}': Python code is no longer read directly; write its functions to a JSON Lines file"
            raise ValueError(f"{what}, as manifests/quickstart.py does, and name that in 'files'")
        if self.delimiter in ("\n", "\r", '"'):
            raise ValueError("'delimiter' cannot be a line end or a quote")
        if self.header == []:
            raise ValueError("'header' is yes, no, or the list of names")
        if not self.path and not self.files:
            raise ValueError("needs 'path' (a Hub id or folder), or 'files', or files of a 'path'")
        if self.path and self.files:
            self._files_of_path(self.path)
        if self.revision and not self.path:
            raise ValueError("'revision' is of a dataset of the Hub, and these rows are of this machine")
        if self.reader == "beir":
            raise ValueError("'reader: beir' reads a whole source: qrels, corpus and queries")
        if self.reader == "aligned" and (not isinstance(self.header, list) or len(self.header) != len(self.files)):
            raise ValueError("'reader: aligned' needs 'header' with a name for each of 'files'")
        self._reader_keys()
        self._keys_of_origin()
        return self

    def _reader_keys(self) -> None:
        if self.pattern is not None and self.reader != "lines":
            raise ValueError("'pattern' is for 'reader: lines'")
        if self.reader == "xml" and not self.records:
            raise ValueError("'reader: xml' needs 'records', the path of the elements that are rows")

    def _keys_of_origin(self) -> None:
        """Refuse keys that mean nothing for where the rows come from, and would be ignored in silence."""
        for key in ("config", "split"):
            if key in self.model_fields_set and self.files:
                raise ValueError(f"'{key}' means nothing beside 'files', which name what is read; leave it out")
        for key in () if self.files else OF_FILES:
            if key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"'{key}' needs 'files': without them, 'path' says how its rows are read")

    def _files_of_path(self, path: str) -> None:
        outside = [name for name in self.files if PurePath(name).is_absolute() or {"..", "~"} & set(PurePath(name).parts)]
        if outside:
            raise ValueError(f"'{outside[0]}' lies outside of '{path}'")


class TextFields(Section):
    """Columns of a corpus or of a table of queries."""

    id: str = Field("_id", description="column of the id that qrels name")
    text: str = Field("text", description="column of the text")
    title: str | None = Field(None, description="column of a title that is put before the text; `title?` where there may be none")

    def title_of(self, columns: Collection[str]) -> str | None:
        """Return the title's column; None where it ends in `?`, and is not among the columns there are."""
        if self.title is None or not self.title.endswith("?") or self.title in columns:
            return self.title
        return self.title[:-1] if self.title[:-1] in columns else None


class TextTable(Table):
    """A table of texts with ids: a corpus, or queries."""

    fields: TextFields = Field(TextFields(), description="which column is what")


class Fields(Section):
    """Which column is what. The mapped columns decide the shape of the source."""

    query: str | None = Field(
        None,
        description="column of the query, premise, first sentence, or text to classify; an instruction rendered into it (`Instruct: ...`, a new line, `Query: ...`) is taken off again",
    )
    title: str | None = Field(None, description="column of a title that is put before the query")
    id: str | None = Field(
        None, description="column of a row's own id, which then is `name/id`; by default its number, `name/row`"
    )
    positive: str | None = Field(
        None,
        description="column of the positive; a list gives several; `a.b` is part b of the record a, or of each record of a list; the one with the highest score, if any, comes first",
    )
    negatives: list[str] = Field(
        [],
        description="column or columns of given negatives, or a pattern such as `negative_*`, which passes over columns whose names say score, id, rank, label and the like; lists are taken apart",
    )
    documents: str | None = Field(
        None,
        description="column of lists of texts, positives and negatives together: those with a `label` above 0 are the positives; "
        "without labels, those whose `score` reaches `threshold`; without that, the one with the highest score",
    )
    label: str | None = Field(None, description="column of the label (NLI, classification, clustering; `documents`: a list)")
    score: str | None = Field(None, description="column of the score (STS, paraphrase, graded qrels; `documents`: a list, kept)")
    positive_score: str | None = Field(
        None, description="column of a teacher's score of the (first) positive, or a list of all; kept"
    )
    negative_scores: str | None = Field(None, description="likewise of the negatives, a list as long as theirs; kept")
    answer: str | None = Field(
        None, description="pairs: column of the answer's words, or a list of several; `mine: {exclude_answer: yes}` reads them"
    )
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

    name: Name = Field(description="short name; ids begin with it")
    task: Task = Field(description="retrieval, classification or clustering: decides loss and number of negatives")
    instruction: str = Field(
        "", description="what a decoder is told before the query; by default the one that is rendered into the queries, if any"
    )
    license: str | None = Field(None, description="licence as claimed, several with commas; publishing needs it")
    license_url: str | None = Field(None, description="where that is claimed")
    license_checked: str | None = Field(
        None, pattern=r"^\d{4}-\d\d(-\d\d)?$", description="day or month in which it was seen there"
    )
    verified: bool = Field(
        True, description="no: a fact of this source is uncertain, `notes` says which, and publishing refuses it"
    )
    notes: str | None = Field(None, description="what a user of this source should know")
    substitute_for: str | None = Field(None, description="the dataset that this one stands in for, and why")
    citation: str | None = Field(None, description="how to cite it; stands in ATTRIBUTION.md")
    expected_tuples: int | None = Field(
        None, ge=1, description="tuples it should give, where that is not the limit, or the rows there are"
    )
    mteb: list[str] = Field(
        default_factory=list,
        description="mteb tasks whose data this is part of, such as HotpotQA: for mteb_training_datasets.json",
    )
    language: str = Field("en", description="language of the texts")
    fields: Fields = Field(description="which column is what")
    corpus: TextTable | None = Field(None, description="qrels: the passages")
    queries: TextTable | None = Field(None, description="qrels: the queries")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="label value: its text; for NLI, label value: positive or negative",
    )
    skip_labels: list[str] = Field([], description="labels that are no class, such as `out of scope`: their rows are left out")
    threshold: float | None = Field(None, description="lowest score that makes a positive; 1 by default for qrels")
    both_ways: bool = Field(False, description="each pair also the other way round (symmetric sources)")
    skip: int = Field(0, ge=0, description="rows to pass over at the beginning, as where another source takes them")
    limit: int | None = Field(None, ge=1, description="rows to take; of qrels, queries")
    sample: Literal["random", "first"] = Field("random", description="which rows a limit takes; `first` streams from the Hub")
    holdout: int = Field(0, ge=0, description="queries to set apart for evaluation (retrieval)")
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unreadable rows above which the source fails")
    filters: Filters | None = Field(None, description="filters of this source, instead of the manifest's")

    @model_validator(mode="before")
    @classmethod
    def _beir(cls, data: Any) -> Any:
        return expand_beir(data) if isinstance(data, dict) and data.get("reader") == "beir" else data

    @model_validator(mode="after")
    def _doubt_is_told(self) -> Source:
        if not self.verified and not self.notes:
            raise ValueError("'verified: no' needs 'notes' that say what is uncertain")
        return self

    @model_validator(mode="after")
    def _known_shape(self) -> Source:
        if self.holdout and self.task != "retrieval":
            raise ValueError(f"'holdout' sets retrieval queries apart, and this source's task is {self.task}")
        shape, f = shape_of(self), self.fields
        pairs = shape in ("pairs", "scored")
        useless = {
            "id": f.id and shape == "qrels",
            "documents": f.documents and shape != "listed",
            "positive_score": f.positive_score and not pairs,
            "negative_scores": f.negative_scores and not (pairs and f.negatives),
            "both_ways": self.both_ways and not pairs,
            "labels": self.labels and shape not in ("nli", "labelled"),
            "skip_labels": self.skip_labels and shape != "labelled",
            "threshold": self.threshold is not None and shape not in ("scored", "qrels", "listed"),
            "corpus": self.corpus and shape != "qrels",
            "queries": self.queries and shape != "qrels",
            "title": f.title and shape == "qrels",
            "skip": self.skip and shape == "qrels",
            "negatives": f.negatives and not pairs,
            "answer": f.answer and not pairs,
            "query": f.query and shape == "qrels",
            "positive": f.positive and shape == "qrels",
            "label": f.label and shape == "qrels",
            "score": f.score and shape == "labelled",
            "query_id": f.query_id and shape != "qrels",
            "positive_id": f.positive_id and shape != "qrels",
        }
        said = [name for name in f.model_dump().values() if isinstance(name, str)]
        if unmapped := [name for name in self.join if name not in (*said, *f.negatives)]:
            raise ValueError(f"'join' names column '{unmapped[0]}', which 'fields' does not")
        if wrong := [name for name, said in useless.items() if said]:
            raise ValueError(f"'{wrong[0]}' means nothing here: the mapped columns make shape '{shape}'")
        return self


def shape_of(source: Source) -> str:
    """Return which of the six shapes the mapped columns make: pairs, listed, nli, scored, labelled or qrels.

    Raises:
        ValueError: they make none.
    """
    f = source.fields
    if f.query_id and f.positive_id and source.corpus and source.queries:
        return "qrels"
    if f.query and f.documents and (f.label or f.score) and not f.positive:
        return "listed"
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
        "query+label (classification, clustering), query+documents with their label or score, or query_id+positive_id with 'corpus' and 'queries'"
    )


def expand_beir(data: dict[str, Any]) -> dict[str, Any]:
    """Write out what `reader: beir` says in a word: qrels of a split, corpus and queries, of a folder or of the Hub."""
    split, said = data.get("split", "train"), {key: value for key, value in data.items() if key != "reader"}
    if data.get("path"):
        hub = {key: data[key] for key in ("path", "revision") if key in data}
        tables = [{}, *({**hub, "config": part, "split": part} for part in ("corpus", "queries"))]
    else:
        files = data.get("files")
        folder = str(files[0] if isinstance(files, list) and files else files).rstrip("/")
        tables = [{"files": f"{folder}/{name}"} for name in (f"qrels/{split}.tsv", "corpus.jsonl", "queries.jsonl")]
        said = {key: value for key, value in said.items() if key not in ("files", "split")}
    qrels, corpus, queries = tables
    fields = {"query_id": "query-id", "positive_id": "corpus-id", "score": "score"}
    more = {"corpus": {"fields": {"title": "title?"}}, "queries": {}}
    whole = {part: table | more[part] | dict(data.get(part) or {}) for part, table in (("corpus", corpus), ("queries", queries))}
    return {"fields": fields, **qrels, **said, **whole}


def is_of_this_machine(name: str) -> bool:
    """Tell whether a path of a manifest means something on this machine alone."""
    return name.startswith("~") or PurePath(name).is_absolute()


def portable(name: str, folder: bool = False) -> str:
    """Return a path or pattern of a manifest without the folders of this machine: `/home/me/data/*.csv` is `*.csv`.

    A relative one stays as it is; a `folder` is written `./name`, so that it is taken for no Hub id.
    """
    if not is_of_this_machine(name):
        return name
    parts = PurePath(name).parts
    plain = len(list(takewhile(lambda part: not glob.has_magic(part), parts)))
    rest = "/".join(parts[min(plain, len(parts) - 1) :]).strip("/~") or "folder"
    return f"./{rest}" if folder else rest
