"""A source in a manifest: where its rows come from, how they are read, and how they become tuples."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Discriminator, Field, PrivateAttr, Tag, model_validator

from curation.recipe.addresses import is_url, portable, public_names, public_url
from curation.recipe.yaml import TAG, Name, Section

Reader = Literal[
    "json", "jsonl", "csv", "tsv", "parquet", "arrow", "squad", "xml", "aligned", "lines", "folders",
    "beir", "embedding-training-data", "flagembedding", "tevatron",
]  # fmt: skip
Task = Literal["retrieval", "classification", "clustering"]
# Keys that describe a source but change none of its rows: an edit of them rebuilds nothing.
ABOUT: Any = {
    **dict.fromkeys(
        ("license_url", "license_checked", "verified", "notes", "substitute_for", "citation", "mteb", "expected_tuples"), True
    ),
    **{"expected_rows": True, "corpus": {"expected_rows"}, "queries": {"expected_rows", "url", "timeout", "concurrency"}},
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
    """Which texts are dropped. A tuple is dropped with its query, or with its last positive."""

    min_chars: int | None = Field(
        None,
        ge=0,
        description="drop texts with fewer characters. If empty, texts of one or two characters that say nothing are dropped. Two letters (`no`), a digit, a sign (`<`) or one Chinese, Japanese or Korean character (`京`) do say something and are kept",
    )
    max_chars: int | None = Field(
        None, ge=1, description="drop texts with more characters. Off if empty, because the tokenizer cuts long texts"
    )
    no_echo: bool = Field(
        True,
        description="drop a positive or negative that equals the query, and a negative that equals a positive, after normalisation (case, width, punctuation and spaces do not count)",
    )


class Table(Section):
    """Where rows come from and how their files are read."""

    path: str | None = Field(
        None,
        description="a dataset on the Hub (`ORG/NAME`), or a local folder in the layout of a Hub dataset",
    )
    config: str | None = Field(None, description="configuration (subset) of the dataset in `path`")
    split: str = Field("train", description="split of the dataset in `path`; also `train+test` or `train[:10%]`")
    revision: str | None = Field(
        None, description="commit, tag or branch of the Hub dataset. Publishing requires a commit, here or in the lock file"
    )
    files: list[str] = Field(
        default_factory=list,
        description="a file, a glob such as `data/*.csv`, or a list of them, relative to the manifest's folder; or URLs, such as `s3://bucket/data/*.csv`, `https://host/a.csv` or `hf://datasets/ORG/NAME/a.csv`. With `path`: files inside that dataset",
    )
    member: list[str] = Field(
        [],
        description="file inside a zip or tar archive: a name, a glob, or a list of them. Not needed if the archive has only one data file",
    )
    max_unpacked: float = Field(
        20, gt=0, description="limit for unpacking compressed files and archives, in gigabytes, over all files of the source"
    )
    max_record: float = Field(
        64,
        gt=0,
        description="limit for one record of a text file, in megabytes: a line, a csv row, an item of a JSON list, an XML element, a file of `reader: folders`",
    )
    reader: Reader | None = Field(
        None,
        description="file format. If empty, the file's ending decides. `squad`: SQuAD's JSON. `aligned`: line i of several files makes one row. `lines`: one label and text per line. `folders`: each file is a text and its folder's name the label. `beir`: a folder or Hub dataset in BEIR layout; `split` chooses the qrels. `embedding-training-data`, `flagembedding`, `tevatron`: JSON Lines of these projects",
    )
    records: str | None = Field(
        None,
        description="where the rows are. xml: path of the elements, such as `QAPairs/QAPair`. json, jsonl: path of the list, such as `data/items`; `*` takes each value of an object, with its key in the column `key`",
    )
    pattern: str | None = Field(
        None,
        description="`reader: lines`: a regular expression for one line; its named groups become columns. If empty: `(?P<label>\\S+)\\s+(?P<text>.*)`",
    )
    encoding: str = Field("utf-8", description="encoding of text files; a byte-order mark is skipped")
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="csv, tsv: the character between fields. If empty: a comma for csv, a tab for tsv",
    )
    quoting: bool | None = Field(None, description='csv, tsv: whether `"` quotes a field. If empty: yes for csv, no for tsv')
    header: bool | list[str] = Field(
        True,
        description="csv, tsv: whether the first line has the column names; or a list of names for files without such a line. `reader: aligned`: one name per file. json: names for rows that are lists",
    )
    join: dict[str, str] = Field(
        default_factory=dict,
        description='columns whose lists are parts of one text, each with the text to put between the parts: `{sentences: " "}`',
    )
    file_column: str | None = Field(
        None,
        min_length=1,
        description="name of a column to add that holds the file's name without its ending, for example as a label; requires `files`",
    )
    expected_rows: int | None = Field(
        None,
        ge=1,
        description="number of rows, if known. `curate check` adds these up, and a build that reads another number reports it",
    )

    guesses: ClassVar[dict[str, str]] = {}  # columns that are also read if they exist, besides those in `fields`
    # For URLs in `files`; private, so in no digest, lock file or build. curation/read/remote.py uses them.
    _addresses: dict[str, str] = PrivateAttr(default_factory=dict)  # of a URL in `files`: the URL with its credentials
    _objects: dict[str, Any] = PrivateAttr(default_factory=dict)  # of a URL in `files`: the objects that it names in this build
    _locked: Any = PrivateAttr(None)  # the objects in the lock file

    @property
    def places(self) -> list[str]:
        """Where the rows come from, in a form that may be published: without folders of this machine."""
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
    def _without_credentials(self) -> Table:
        """Keep credentials of URLs out of `files`, which is copied into lock files, digests, builds and reports."""
        shown = public_names(self.files)
        self._addresses.update((one, name) for one, name in zip(shown, self.files, strict=True) if one != name)
        self.__dict__["files"] = shown  # the section is frozen
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> Table:
        if self.path and self.path.startswith("python:"):
            what = f"'path: {self.path}': Python code is no longer read directly; write its functions to a JSON Lines file"
            raise ValueError(f"{what}, as manifests/quickstart.py does, and name that in 'files'")
        if self.delimiter in ("\n", "\r", '"'):
            raise ValueError("'delimiter' cannot be a line end or a quotation mark")
        if self.header == []:
            raise ValueError("'header' must be yes, no or a list of column names")
        if not self.path and not self.files:
            raise ValueError("needs 'path' (a Hub id or a folder), 'files', or both")
        if self.revision and not self.path:
            raise ValueError("'revision' is only for a dataset of the Hub, and these rows are on this machine")
        if self.reader == "beir":
            raise ValueError("'reader: beir' is for a whole source, not for its corpus or queries alone")
        if self.reader == "aligned" and (not isinstance(self.header, list) or len(self.header) != len(self.files)):
            raise ValueError("'reader: aligned' needs 'header', a list with one name for each of 'files'")
        return self

    @model_validator(mode="after")
    def _effective_keys(self) -> Table:
        """Refuse keys that would be silently ignored for this kind of input, and files outside of a dataset."""
        if self.path and self.files:
            if urls := [name for name in self.files if is_url(name)]:
                raise ValueError(f"'{urls[0]}' is a URL, so 'path' has no effect; remove it")
            outside = [name for name in self.files if PurePath(name).is_absolute() or {"..", "~"} & set(PurePath(name).parts)]
            if outside:
                raise ValueError(f"'{outside[0]}' is outside of '{self.path}'")
        if self.pattern is not None and self.reader != "lines":
            raise ValueError("'pattern' is only for 'reader: lines'")
        if self.reader == "xml" and not self.records:
            raise ValueError("'reader: xml' needs 'records', the path of the elements that become rows")
        for key in ("config", "split"):
            if key in self.model_fields_set and self.files:
                raise ValueError(f"'{key}' has no effect with 'files'; remove it")
        for key in () if self.files else OF_FILES:
            if key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"'{key}' only works with 'files'; a 'path' alone is read as its dataset says")
        return self


class TextFields(Section):
    """Columns of a table of passages or queries."""

    id: str = Field("_id", description="column of the id that the qrels use")
    text: str = Field("text", description="column of the text")
    title: str | None = Field(None, description="column of a title to put before the text; `title?` if the column may be missing")


class TextTable(Table):
    """A table of texts with ids: a corpus or queries."""

    fields: TextFields = Field(TextFields(), description="which column holds what")


class Chunk(Section):
    """How documents that are longer than a model reads are cut."""

    tokens: int = Field(
        ge=8,
        description="largest number of tokens of a chunk. A token is at most four letters or digits of a word, one sign, or one character of a script without spaces; a model's tokenizer mostly makes fewer",
    )
    overlap: int = Field(0, ge=0, description="largest number of tokens at the end of a chunk with which the next one begins")
    most: int = Field(10_000_000, ge=1, description="largest number of chunks; a corpus that gives more fails")

    @model_validator(mode="after")
    def _advances(self) -> Chunk:
        if self.overlap >= self.tokens:
            raise ValueError(f"'overlap: {self.overlap}' must be below 'tokens: {self.tokens}'")
        return self


class Corpus(TextTable):
    """A table of documents."""

    chunk: Chunk | None = Field(
        None,
        description="cut longer documents: `{tokens: 256, overlap: 32}`. Each chunk is a passage and keeps its document's id: with qrels, all chunks of a relevant document are positives, the first is trained on. Off if empty",
    )
    all: bool = Field(
        False,
        description="with `by_id`: whether documents that no row names are passages too, which `mine: {corpus: all}` searches",
    )


class Questions(Section):
    """How a language model writes queries for documents that have none."""

    model: str = Field(
        min_length=1,
        description="documents without queries: the language model that writes questions about each; a folder, a Hub id or `package:NAME`, or with `url` its name at the server. Only `positive`, `title` and `id` are mapped",
    )
    url: str | None = Field(
        None,
        description="address of a server with OpenAI's routes, such as `http://localhost:8000/v1`; its key is read from OPENAI_API_KEY. If empty, the model runs on this machine",
    )
    prompt: str = Field(
        "Write {per_document} questions that the document below answers, each of which can be understood without it. "
        "Answer with the questions alone, one per line.\n\n{document}",
        description="what the model is asked; `{document}` and `{per_document}` are filled in. Each line of an answer is a question",
    )
    per_document: int = Field(2, ge=1, le=100, description="number of questions that are asked for, and the most that are taken")
    max_chars: int = Field(6000, ge=1, description="characters of a document that the model is shown")
    max_tokens: int = Field(
        256, ge=1, description="largest number of tokens of an answer; the last line of a longer one is dropped"
    )
    timeout: float = Field(60, gt=0, description="seconds that the server may take for an answer")
    concurrency: int = Field(8, ge=1, le=1000, description="number of documents that the server is asked about at the same time")

    @property
    def place(self) -> str:
        """The model, and where it runs, for messages."""
        return f"{self.model} at {self.url}" if self.url else f"{self.model} on this machine"

    @model_validator(mode="after")
    def _can_be_asked(self) -> Questions:
        if "{document}" not in self.prompt:
            raise ValueError("'prompt' needs {document}, the place of the document")
        if self.url and (public_url(self.url) != self.url or not self.url.startswith(("http://", "https://"))):
            raise ValueError("'url' must begin with http:// or https:// and hold no password; a key belongs into OPENAI_API_KEY")
        return self


def _kind_of_queries(value: Any) -> str:
    """Return which section a value of `queries` is meant to be: a table, or how questions are made."""
    asks = isinstance(value, dict) and value.keys() & Questions.model_fields.keys() and not value.keys() & {"path", "files"}
    return TAG + ("Questions" if asks or isinstance(value, Questions) else "TextTable")


class Fields(Section):
    """Which column holds what. The mapped columns decide the shape of the source, see `shape_of`."""

    query: str | None = Field(
        None,
        description="column of the query, the first sentence, or the text to classify. If queries begin with `Instruct: ...`, new line, `Query: ...`, the instruction is separated from them",
    )
    title: str | None = Field(
        None, description="column of a title to put before the query; before the document, if a model makes the queries"
    )
    id: str | None = Field(
        None, description="column of a row's id; ids of tuples become `SOURCE/ID`. If empty, the row's number is used"
    )
    positive: str | None = Field(
        None,
        description="column of the positive text or of a list of positives. `a.b` means part b of record a, also in lists of records. With scores, the highest-scored positive comes first",
    )
    negatives: list[str] = Field(
        [],
        description="column of given negatives, a list of columns, or a pattern such as `negative_*` (which skips columns whose names contain score, id, rank, label and the like). Columns may hold lists",
    )
    documents: str | None = Field(
        None,
        description="column of a list of candidate texts, positives and negatives together. With `label`, those with a label above 0 are positives; with `positive`, those in that column; else with `score` and `threshold`, those that reach the threshold; else the one with the highest score",
    )
    label: str | None = Field(None, description="column of the label (NLI, classification, clustering); with `documents`, a list")
    score: str | None = Field(
        None, description="column of the score (similarity or paraphrase scores, grades in qrels); with `documents`, a list"
    )
    positive_score: str | None = Field(
        None,
        description="column of a teacher model's score of the first positive, or a list of scores of all; stored with the tuple",
    )
    negative_scores: str | None = Field(
        None, description="column of a teacher model's scores of the negatives, a list of the same length; stored with the tuple"
    )
    answer: str | None = Field(
        None, description="column of a short answer or a list of answers to the query; `mine: {exclude_answer: yes}` uses them"
    )
    query_id: str | None = Field(None, description="qrels: column of the query's id")
    positive_id: str | None = Field(
        None,
        description="qrels: column of the passage's id. Pairs with a `corpus`: column of the id of the document that the positive is from; passages of that document are never negatives of the row (`mine: exclude_document`)",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_negative(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("negatives"), str):
            return {**data, "negatives": [data["negatives"]]}
        return data


class Source(Table):
    """One dataset and how its rows become tuples."""

    name: Name = Field(description="short name; ids of its tuples begin with it")
    task: Task = Field(description="`retrieval`, `classification` or `clustering`; decides the loss and the number of negatives")
    instruction: str = Field(
        "",
        description="task description to put before queries of decoder models. If empty, the one that the queries begin with, if any",
    )
    license: str | None = Field(None, description="licence as stated by the source; several with commas. Publishing requires it")
    license_url: str | None = Field(None, description="page that states the licence")
    license_checked: str | None = Field(
        None, pattern=r"^\d{4}-\d\d(-\d\d)?$", description="day (2026-11-22) or month (2026-11) when somebody last read that page"
    )
    verified: bool = Field(
        True,
        description="`no` marks a source about which a fact is uncertain; `notes` must say which. It is built, but not published",
    )
    notes: str | None = Field(None, description="what a user of this source should know")
    substitute_for: str | None = Field(None, description="dataset that this source replaces, and why")
    citation: str | None = Field(None, description="how to cite it; printed in ATTRIBUTION.md")
    expected_tuples: int | None = Field(
        None,
        ge=1,
        description="tuples that this source should give, for `curate check`. If empty: its limit or its number of rows",
    )
    mteb: list[str] = Field(
        default_factory=list,
        description="MTEB tasks that this data belongs to, such as HotpotQA; written into mteb_training_datasets.json when a model is published",
    )
    language: str = Field("en", description="language of the texts, as an ISO 639 code")
    fields: Fields = Field(description="which column holds what")
    corpus: Corpus | None = Field(
        None,
        description="qrels: the table of passages. Pairs of query and positive: documents that are nobody's positive, each with an id; `mine: {corpus: all}` searches them too. The name of another source means that one's `corpus`",
        json_schema_extra=lambda schema: cast(list[Any], schema["anyOf"]).append({"type": "string"}),
    )
    queries: (
        Annotated[
            Annotated[TextTable, Tag(TAG + "TextTable")] | Annotated[Questions, Tag(TAG + "Questions")],
            Discriminator(_kind_of_queries),
        ]
        | None
    ) = Field(
        None,
        description="qrels: the table of queries. Documents without queries: which model makes some, `{model: NAME, url: ADDRESS}`",
    )
    by_id: bool = Field(
        False,
        description="whether rows name texts by id: the columns of positives, negatives or documents hold ids of `corpus`, and that of the query holds ids of `queries`, where the source has these",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="texts for label values, such as `{0: negative review}`. For NLI: which values are `positive` and which are `negative`",
    )
    skip_labels: list[str] = Field([], description="label values whose rows are left out, such as `out of scope`")
    threshold: float | None = Field(None, description="lowest score that makes a positive. If empty: 1 for qrels")
    both_ways: bool = Field(
        False, description="add each pair in the other direction too, for symmetric sources such as paraphrases"
    )
    skip: int = Field(
        0, ge=0, description="number of rows to leave out at the beginning, for example because another source takes them"
    )
    limit: int | None = Field(None, ge=1, description="largest number of rows to take; for qrels, of queries")
    sample: Literal["random", "first"] = Field(
        "random", description="which rows `limit` takes: a random sample, or the first (from the Hub, only these are downloaded)"
    )
    holdout: int = Field(
        0, ge=0, description="number of queries to hold out for evaluation, with their passages (retrieval only)"
    )
    max_bad: float = Field(0.01, ge=0, le=1, description="largest fraction of unreadable rows; with more, the source fails")
    filters: Filters | None = Field(None, description="filters of this source, instead of the manifest's")

    @model_validator(mode="before")
    @classmethod
    def _beir(cls, data: Any) -> Any:
        return expand_beir(data) if isinstance(data, dict) and data.get("reader") == "beir" else data

    @model_validator(mode="after")
    def _notes_explain_doubt(self) -> Source:
        if not self.verified and not self.notes:
            raise ValueError("'verified: no' needs 'notes' that say what is uncertain")
        return self

    @model_validator(mode="after")
    def _known_shape(self) -> Source:
        if self.holdout and self.task != "retrieval":
            raise ValueError(f"'holdout' is only for retrieval, and this source's task is {self.task}")
        shape, f = shape_of(self), self.fields
        if shape == "documents" and self.task != "retrieval":
            raise ValueError(f"'queries' makes questions for retrieval only, and this source's task is {self.task}")
        pairs = shape in ("pairs", "scored")
        useless = {
            "id": f.id and shape == "qrels",
            "documents": f.documents and shape != "listed",
            "positive_score": f.positive_score and not pairs,
            "negative_scores": f.negative_scores and not (pairs and f.negatives),
            "both_ways": self.both_ways and not pairs,
            "labels": self.labels and shape not in ("nli", "labelled"),
            "skip_labels": self.skip_labels and shape != "labelled",
            "threshold": self.threshold is not None
            and (shape not in ("scored", "qrels", "listed") or (shape == "listed" and f.positive)),
            "corpus": self.corpus and shape not in (("listed", "pairs", "scored") if self.by_id else ("qrels", "pairs")),
            "queries": self.queries
            and shape not in (("listed", "pairs", "scored", "documents") if self.by_id else ("qrels", "documents")),
            "by_id": self.by_id and (shape == "documents" or not (self.corpus or self.queries)),
            "title": f.title and shape == "qrels",
            "skip": self.skip and shape == "qrels",
            "negatives": f.negatives and not pairs,
            "answer": f.answer and not pairs,
            "query": f.query and shape == "qrels",
            "positive": f.positive and shape == "qrels",
            "label": f.label and shape in ("qrels", "documents"),
            "score": f.score and shape in ("labelled", "documents"),
            "query_id": f.query_id and shape != "qrels",
            "positive_id": f.positive_id and not (shape == "qrels" or (shape == "pairs" and self.corpus and not self.by_id)),
            "chunk": self.corpus and self.corpus.chunk and self.by_id,
            "all": self.corpus and self.corpus.all and not self.by_id,
        }
        mapped = [name for name in f.model_dump().values() if isinstance(name, str)]
        if unmapped := [name for name in self.join if name not in (*mapped, *f.negatives)]:
            raise ValueError(f"'join' names the column '{unmapped[0]}', which 'fields' does not use")
        if wrong := [name for name, is_given in useless.items() if is_given]:
            raise ValueError(f"'{wrong[0]}' has no effect: the columns in 'fields' make this a source of shape '{shape}'")
        return self


def shape_of(source: Source) -> str:
    """Return the shape that the mapped columns make: pairs, listed, nli, scored, labelled, qrels or documents.

    Raises:
        ValueError: the columns fit no shape.
    """
    f, made = source.fields, isinstance(source.queries, Questions)
    if made and (f.query or not f.positive):
        raise ValueError("'queries' with a 'model' is for documents without queries: map 'positive', the text, and no 'query'")
    if made:
        return "documents"
    if f.query_id and f.positive_id and source.corpus and source.queries:
        return "qrels"
    if f.query and f.documents and (f.label or f.score or f.positive) and not (f.positive and f.label):
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
        "these 'fields' fit no known shape; map query+positive, query+positive+label (NLI), query+positive+score, "
        "query+label (classification, clustering), query+documents with their label, score or positive, query_id+positive_id with 'corpus' and 'queries', "
        "or positive alone with a model under 'queries' that makes questions"
    )


def expand_beir(data: dict[str, Any]) -> dict[str, Any]:
    """Write out `reader: beir`: qrels of a split, corpus and queries, in a folder or on the Hub."""
    split, rest = data.get("split", "train"), {key: value for key, value in data.items() if key != "reader"}
    if data.get("path"):
        hub = {key: data[key] for key in ("path", "revision") if key in data}
        tables = [{}, *({**hub, "config": part, "split": part} for part in ("corpus", "queries"))]
    else:
        files = data.get("files")
        folder = str(files[0] if isinstance(files, list) and files else files).rstrip("/")
        tables = [{"files": f"{folder}/{name}"} for name in (f"qrels/{split}.tsv", "corpus.jsonl", "queries.jsonl")]
        rest = {key: value for key, value in rest.items() if key not in ("files", "split")}
    qrels, corpus, queries = tables
    fields = {"query_id": "query-id", "positive_id": "corpus-id", "score": "score"}
    more = {"corpus": {"fields": {"title": "title?"}}, "queries": {}}
    whole = {part: table | more[part] | dict(data.get(part) or {}) for part, table in (("corpus", corpus), ("queries", queries))}
    return {"fields": fields, **qrels, **rest, **whole}
