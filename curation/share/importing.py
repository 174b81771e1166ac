"""`curate import`: a manifest that reads another tool's training data.

The columns decide the format. Task and instruction come from a receipt of `curate export` next to the files, or from
FlagEmbedding's `prompt` and `type`, if there are any. The build reads the data then; an instruction that queries contain is
removed from them (`split_query` in `core/record.py`).
"""

from __future__ import annotations

import codecs
import glob
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml

from curation.core import store
from curation.core.errors import ManifestError, SourceError, listed
from curation.read import hub
from curation.read.blocks import suggest_encoding
from curation.read.dataset import config_splits
from curation.read.lock import hub_facts
from curation.read.mapping import add_missing_columns, matching_columns
from curation.read.rows import ROW
from curation.read.sources import table_rows
from curation.recipe.manifest import load_manifest
from curation.recipe.source import Table, expand_beir
from curation.shape.columns import as_texts
from curation.share.export import TYPES

Keys = dict[str, Any]
IMPORTED = (".parquet", ".jsonl")
ID_TABLES = {  # of `curate export --format ids`: the columns that each must have
    "train": ("query_id", "document_ids"), "queries": ("query_id",), "documents": ("document_id",)
}  # fmt: skip
METADATA = "merlin_metadata.json"  # in a folder `corpus` of NeMo
BY_ID = {  # fields of tuples of ids, other than LightOn's, and of their corpus
    "tevatron-ids": (
        {"id": "query_id", "query": "query_text", "positive": "positive_document_ids", "negatives": "negative_document_ids"},
        {"positive_score": "positive_scores", "negative_scores": "negative_scores"},
        {"id": "docid", "text": "text"},
    ),
    "nemo": (
        {"id": "question_id", "query": "question", "positive": "pos_doc.id", "negatives": "neg_doc.id"},
        {"positive_score": "pos_doc.score", "negative_scores": "neg_doc.score"},
        {"id": "id", "text": "text"},
    ),
}
TAKEN_OVER = ("task", "instruction", "language", "license")
EDGE = r"(^|[^a-z0-9])(?:%s)[0-9]*(?![a-z0-9])"
SET = "(?:[-_ ]?(?:set|split|data))?"
HELD_OUT = re.compile(
    EDGE % f"(?:dev(?:el|elopment|test)?|val(?:id|idate|idation)?|eval(?:s|uation)?|tests?|testing|tst|h[eo]ld.?out){SET}"
)
TRAIN = re.compile(EDGE % f"(?:train(?:ing)?|trn){SET}")
OTHER_DATA = (  # endings of data that is not imported, and which a manifest can name
    ".csv", ".tsv", ".json", ".ndjson", ".txt", ".xml", ".arrow", ".feather", ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar",
    ".tgz",
)  # fmt: skip
NO_HUB_ID = (*OTHER_DATA, *IMPORTED, ".xls", ".xlsx", ".ods", ".docx", ".pdf", ".md", ".html")
TABLES = (".csv", ".tsv")  # their columns are guessed by name, their encoding and delimiter by their beginning
TABLE_HEAD = 1 << 20  # bytes of that
ROWS_SHOWN = 200  # whose letters show the language
SCRIPTS = {  # names of letters in Unicode -> the language that most texts in them have
    "ARABIC": "ar", "CJK": "zh", "CYRILLIC": "ru", "DEVANAGARI": "hi", "GREEK": "el", "HANGUL": "ko", "HEBREW": "he",
    "HIRAGANA": "ja", "KATAKANA": "ja", "THAI": "th",
}  # fmt: skip
DOCUMENT_ENDINGS = (".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".docx")
NEXT_SECTIONS = """\
# For `mine negatives` and `train`: remove the # and choose a model. `holdout: 200` in a source holds out queries to evaluate on.
# mine: {model: sentence-transformers/all-MiniLM-L6-v2}
# train: {model: sentence-transformers/all-MiniLM-L6-v2, batch: 64, epochs: 1, lr: 2.0e-5, warmup: 20, max_tokens: 256}
"""
GUESSES = {  # columns of a csv or tsv file by their names, likeliest first; then question and answer in other languages
    "query": ("query", "question", "anchor", "subject", "title", "sentence1", "premise", "prompt", "utterance", "input", "text",
              "message", "description", "frage", "pregunta", "pergunta", "domanda", "pertanyaan", "soru", "câu hỏi", "вопрос",
              "คำถาม", "سؤال", "السؤال", "प्रश्न", "सवाल", "問題", "问题", "質問", "질문"),
    "positive": ("positive", "answer", "response", "reply", "resolution", "solution", "passage", "document", "context",
                 "sentence2", "hypothesis", "output", "body", "content", "antwort", "réponse", "respuesta", "resposta",
                 "risposta", "jawaban", "cevap", "trả lời", "ответ", "คำตอบ", "جواب", "الجواب", "إجابة", "الإجابة", "उत्तर",
                 "जवाब", "答案", "回答", "答え", "답변"),
    "label": ("label", "category", "class", "intent", "topic", "queue", "department"),
}  # fmt: skip
NOT_TEXT = {"id", "type", "date", "time", "score", "label", "class", "category"}  # words of names of columns
LONGEST_COLUMN = 40  # characters of a column's name; what is longer is a text in a file without a header
GRADED = ("label", "labels", "score", "scores")  # what losses of sentence-transformers learn from, in addition to texts
FLAGEMBEDDING_SCORES = {"positive_score": "pos_scores", "negative_scores": "neg_scores"}


class Layout(NamedTuple):
    """A format, known by its columns."""

    name: str
    fields: dict[str, str]  # the columns that it has
    negatives: str = ""  # the column of negatives, or the pattern of several, that it may have
    reader: str | None = None  # of JSON Lines
    more: Mapping[str, str] = {}  # further columns that it may have


OURS = {"id": "id", "positive_score": "positive_score", "negative_scores": "negative_scores"}  # `curate publish --columns`
LAYOUTS = (  # the first is used whose columns are all present
    Layout("f2llm", {"query": "query", "positive": "positives"}, "negative_[0-9]*", more=OURS),  # positive_score: of the first
    Layout("f2llm", {"query": "query", "positive": "passage"}, "negative_[0-9]*", more=OURS),
    Layout("labeled-list", {"query": "query", "documents": "documents", "label": "labels"}),
    Layout("scored-list", {"query": "query", "documents": "documents", "score": "scores"}),
    Layout("sentence-transformers", {"query": "anchor", "positive": "positive"}, "negative*"),
    Layout("flagembedding", {"query": "query", "positive": "pos"}, "neg", "flagembedding", FLAGEMBEDDING_SCORES),
    Layout("tevatron", {"query": "query", "positive": "positive_passages"}, "negative_passages", "tevatron", {"id": "query_id"}),
    Layout("sentence-transformers", {"query": "query", "positive": "positive"}, "negative*"),
    Layout("sentence-transformers", {"query": "query", "positive": "answer"}, "negative*"),
    Layout("sentence-transformers", {"query": "question", "positive": "answer"}, "negative*"),
)


class Candidate(NamedTuple):
    """Training data or an evaluation set that was found."""

    form: str
    keys: Keys
    held_out: bool = False  # its name says that it is for development or tests
    note: str = ""  # what a person should know about it


class Imported(NamedTuple):
    """What is in a manifest that was written."""

    sources: dict[str, str]  # name -> format
    against: dict[str, str]  # of evaluation sets: name -> format
    notes: list[str]  # what a person should know


def write_manifest(what: str, out: Path) -> Imported:
    """Write the manifest at `out` that reads `what`: a file, a folder of files, or a Hub id.

    Data that is for development or tests, by the names of files, folders, splits and configs, becomes an evaluation set of
    `decontaminate:`, not a source, unless there is no other data.

    Raises:
        SourceError: there is no such data, or its columns are those of no known format.
        ManifestError: `out` exists already.
    """
    if out.exists():
        raise ManifestError(out, "exists already", "name another file")
    base, path = out.resolve().parent, Path(what).expanduser()
    if not path.exists() and (path.is_absolute() or what.startswith((".", "~")) or path.suffix.lower() in NO_HUB_ID):
        raise SourceError(what, "no such file or folder", "name a file, a folder, or a dataset of the Hub")
    base.mkdir(parents=True, exist_ok=True)  # paths in the manifest start there, so it must exist
    found = list(_here(path, base) if path.exists() else _on_the_hub(what))
    known = [one for one in found if one.form]
    if not known:
        raise SourceError(what, found[0].note, "write a source by hand, with `fields:`")
    if all(one.held_out for one in known) and len(known) > 1:
        names = listed(one.keys["name"] for one in known)
        raise SourceError(what, f"holds development or test data only ({names})", "name one file itself to train on it")
    notes = [f"{one.keys['name']}: {one.note}" for one in found if one.note]
    found = [one for one in found if one.form]
    if len(found) == 1 and found[0].held_out:
        found = [found[0]._replace(held_out=False)]
        notes.append(f"{found[0].keys['name']}: for development or tests by its name; it is a source as there is no other data")
    taken: set[str] = set()
    for one in found:  # names that occur twice get numbers
        name, n = one.keys["name"], 1
        while one.keys["name"] in taken:
            n += 1
            one.keys["name"] = f"{name[: 62 - len(str(n))]}-{n}"
        taken.add(one.keys["name"])
    sources, sets = [one for one in found if not one.held_out], [one for one in found if one.held_out]
    notes += [
        f"{one.keys['name']}: for development or tests by its name, so not trained on; its texts are removed from the sources"
        for one in sets
    ]
    document: Keys = {"name": _named(path.stem if path.is_file() else path.resolve().name if path.exists() else path.name)}
    if sets:
        document["decontaminate"] = {"against": [_evaluation(one) for one in sets]}
    document["sources"] = [one.keys for one in sources]
    if all({"negatives", "documents"} & set(one.keys.get("fields", {})) for one in sources):
        keep = (
            {"shortage": "keep"} if any(one.form == "ids" for one in sources) else {}
        )  # those may have tuples without negatives
        document["mine"] = {"candidates": "given", **keep}  # to mine again, name a model and another value
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120).encode()
    if "mine" not in document:
        text += b"\n" + NEXT_SECTIONS.encode()
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / out.name
        tried.write_bytes(text)
        load_manifest(tried)  # a manifest that cannot be read is not written
    with store.atomic(out) as file:
        file.write(text)
    return Imported({one.keys["name"]: one.form for one in sources}, {one.keys["name"]: one.form for one in sets}, notes)


def _evaluation(one: Candidate) -> Keys:
    """Return the keys of an evaluation set: where its data is, how it is read, and which columns are texts."""
    keys = expand_beir(one.keys) if one.keys.get("reader") == "beir" else dict(one.keys)
    fields = dict(keys["fields"])
    if "documents" in fields:
        fields = {"query": fields["query"], "positive": fields["documents"]}
    wanted = ("query", "positive", "query_id", "positive_id", "score" if "query_id" in fields else "query")
    kept = {
        key: keys[key]
        for key in (
            "name",
            "path",
            "config",
            "revision",
            "split",
            "files",
            "reader",
            "encoding",
            "delimiter",
            "corpus",
            "queries",
        )
        if key in keys
    }
    return kept | {"fields": {key: fields[key] for key in wanted if key in fields}}


def _split_kind(text: str) -> str:
    """Return the purpose of data by its name: the word for development or tests, `train`, or nothing."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", text).lower()
    if found := HELD_OUT.search(text):
        return found[0].strip("-_. ")
    return "train" if TRAIN.search(text) else ""


def _bare(text: str) -> str:
    """Return a file's name without its split and its shard number."""
    text = re.sub(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$", "", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", text))
    return TRAIN.sub(r"\1", HELD_OUT.sub(r"\1", text.lower())).strip("-_. ")


def _here(path: Path, base: Path) -> Iterator[Candidate]:
    """Yield the data of a file, a BEIR folder, a folder of tuples by id, an export, or a folder with these at any depth."""
    if path.is_file():
        yield _of_files(path, [path], _named(path.stem), _split_kind(path.stem) not in ("", "train"), base)
        return
    if (path / store.BUILD).is_file() and (path / "curated").is_dir():
        raise SourceError(path, "is a build", f"import what `curate export {path} --format ids -o DIR` writes")
    receipt = store.read_receipt(path)
    if receipt and "export" in receipt:
        store.check_files(path, receipt, f"delete {path} and run `curate export` again")
    inner = path / "data" if (path / "data").is_dir() and receipt else path
    every = _listing(inner)
    beir = {one: _beir for one in (inner, *every) if (one / "qrels").is_dir()}
    of_ids = {one: _ids for one in (inner, *every) if all((one / f"{name}.parquet").is_file() for name in ID_TABLES)}
    two = [one for one in (inner, *every) if (one / "corpus" / METADATA).is_file() or _tevatron_tables(one)]
    folders = of_ids | dict.fromkeys(two, _with_a_corpus) | beir  # that are read as a whole
    loose = [one for one in every if one.is_file() and not folders.keys() & {one, *one.parents}]
    files, kinds = [one for one in loose if one.suffix in IMPORTED], ".parquet and .jsonl"
    if not files and not folders:  # tables of a person's own
        files, kinds = [one for one in loose if one.suffix.lower() in TABLES], ".csv and .tsv"
    others = [one for one in loose if one.suffix.lower() in (*OTHER_DATA, *IMPORTED) and one not in files]
    if (files or folders) and others:
        names = listed((os.path.relpath(one, inner) for one in others), 4)
        yield Candidate("", {"name": _named(path.resolve().name)}, True, f"left out, because only {kinds} are imported: {names}")
    if not files and not folders:
        raise SourceError(path, "holds no parquet, no JSON Lines, no csv and no BEIR folder", _hint(every))
    for folder, of_folder in folders.items():
        yield from of_folder(folder, base)
    groups: dict[tuple[str, ...], list[Path]] = {}
    for one in files:
        key = (one.stem, "", one.suffix, str(one)) if _receipt(one) else _group(one.relative_to(inner))
        groups.setdefault(key, []).append(one)
    for (name, kind, *_), paths in groups.items():
        held_out = kind not in ("", "train")
        called = f"{name or _named(path.resolve().name)}{f'-{kind}' if held_out else ''}"
        try:
            yield _of_files(paths[0], paths, _named(called), held_out, base)
        except SourceError as error:
            if not held_out:
                raise
            yield Candidate("", {"name": _named(called)}, True, f"left out, for development or tests by its name: {error}")


def _listing(folder: Path) -> list[Path]:
    """Return all in a folder that is not hidden, and not in a build of ours."""
    found = sorted(one for one in folder.rglob("*") if not any(part.startswith(".") for part in one.relative_to(folder).parts))
    builds = {one.parent for one in found if one.name == "build.json"} - {folder}
    return [one for one in found if not builds & {one, *one.parents}]


def _hint(files: list[Path]) -> str:
    """Return what to do with a folder in which nothing can be imported as it is."""
    if any(one.suffix.lower() in DOCUMENT_ENDINGS for one in files):
        keys = "`reader: folders` reads text files, as the corpus of your questions, or for a model that writes questions"
        return f"name the file of questions and answers; {keys} (docs/your-data.md, 'A folder of documents')"
    return "name a file, such as data/train.parquet"


def _group(file: Path) -> tuple[str, ...]:
    """Return a file's dataset, purpose, ending and name without shard numbers: files with equal ones are one source."""
    parts = [*file.parent.parts, file.stem]
    kind = next((found for part in reversed(parts) if (found := _split_kind(part))), "")
    name = "-".join(bare for part in parts if part != "data" and (bare := _bare(part)))
    return (name, kind, file.suffix, re.sub(r"-\d{5}-of-\d{5}.*", "", str(file)))


def _beir(folder: Path, base: Path) -> Iterator[Candidate]:
    name, constants = _named(folder.resolve().name), _from_receipt(folder)
    files = os.path.relpath(folder.resolve(), base)
    splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
    train = [split for split in splits if _split_kind(split) in ("", "train")]
    # if a receipt names a language, `curate export` wrote the folder: its texts have no titles, and stay as they are
    bare = {"corpus": {"fields": {"text": "text"}}} if "language" in constants else {}
    for split in splits or ["train"]:
        held_out = bool(train) and split not in train
        at_split = {} if split == "train" else {"split": split}
        called = {"name": name if split in ("train", (train or splits)[0] if splits else "train") else _named(f"{name}-{split}")}
        yield Candidate(
            "beir",
            {**called, **constants, "files": files, "reader": "beir", **at_split, **bare},
            held_out or not (train or not splits),
        )


def _ids(folder: Path, base: Path) -> Iterator[Candidate]:
    """Yield the data of a folder with tuples of ids, and the texts of queries and documents."""
    tables: dict[str, Keys] = {}
    columns = {}
    for name in ID_TABLES:
        file = os.path.relpath(folder.resolve() / f"{name}.parquet", base)
        with closing(_rows(glob.escape(file), base)) as rows:
            columns[name] = [one for one in next(rows).frame.columns if not one.startswith("__")]
        tables[name] = {"files": file}
    constants, keys = _from_receipt(folder), _id_keys(tables, columns)
    if _receipt(folder) and constants["task"] == "retrieval":  # the documents of our own exports are all passages of a build
        keys["corpus"]["all"] = True
    yield Candidate("ids", {"name": _named(folder.resolve().name), **constants, **keys})


def _tevatron_tables(folder: Path) -> bool:
    """Return whether a folder has tuples of ids and their corpus, as Tevatron 2 reads them."""
    return all((folder / name).is_file() for name in ("corpus.jsonl", "train.jsonl")) and not (folder / "qrels").is_dir()


def _with_a_corpus(folder: Path, base: Path) -> Iterator[Candidate]:
    """Yield the data of a folder with tuples of ids and one corpus: NeMo's or Tevatron's."""
    form = "nemo" if (folder / "corpus" / METADATA).is_file() else "tevatron-ids"
    name, relative = _named(folder.resolve().name), Path(os.path.relpath(folder.resolve(), base))
    files = [one for one in sorted((folder / "corpus").iterdir()) if one.suffix in IMPORTED] if form == "nemo" else []
    corpus = [str(relative / "corpus" / one.name) for one in files] or [str(relative / "corpus.jsonl")]
    fields, scores, of_corpus = BY_ID[form]
    for file in sorted(folder.glob("*.json")) if form == "nemo" else [folder / "train.jsonl"]:
        kind = _split_kind(file.stem)
        called = name if kind in ("", "train") else _named(f"{name}-{kind}")
        if called != name:
            yield Candidate("", {"name": called}, True, "left out: it names texts by id, and an evaluation set cannot")
            continue
        keys: Keys = {"files": str(relative / file.name), **({"records": "data"} if form == "nemo" else {})}
        with closing(_rows(glob.escape(keys["files"]), base, records=keys.get("records"))) as rows:
            frame = next(rows).frame
        columns = [one for one in frame.columns if not one.startswith("__")]
        for column in [one for one in ("pos_doc", "neg_doc") if one in columns]:  # lists of ids, or of records as JSON
            values = frame[column].cast(pl.List(pl.String)).explode().drop_nulls()
            columns += [f"{column}.{key}" for text in values.head(1) if text.startswith("{") for key in json.loads(text)]
        used = {key: one if one in columns else one.partition(".")[0] for key, one in fields.items()}
        if missing := [one for one in used.values() if one not in columns]:
            raise SourceError(file, f"no column '{missing[0]}'", f"columns there are: {listed(columns, 20)}")
        used |= {key: one for key, one in scores.items() if one in columns}
        with closing(_rows(glob.escape(corpus[0]), base)) as rows:
            named = "document_text" if "document_text" in next(rows).frame.columns else "text"  # Tevatron's README, its loader
        keys |= {"by_id": True, "fields": used, "corpus": {"files": corpus, "fields": {**of_corpus, "text": named}}}
        constants = _from_receipt(folder)
        if _receipt(folder) and constants["task"] == "retrieval":
            keys["corpus"]["all"] = True
        yield Candidate(form, {"name": name, **constants, **keys})


def _ids_on_the_hub(at: Keys, splits: Mapping[str, list[str]]) -> Keys:
    """Return the keys of a source of a dataset whose configs `queries` and `documents` have the texts, as LightOn's do."""
    tables = {"train": at}
    for name in ("queries", "documents"):
        split = {} if "train" in splits[name] else {"split": splits[name][0]}
        tables[name] = {**{key: at[key] for key in ("path", "revision")}, "config": name, **split}
    return _id_keys(tables, {name: hub_facts(Table.model_validate(table)).columns or [] for name, table in tables.items()})


def _id_keys(tables: Mapping[str, Keys], columns: Mapping[str, list[str]]) -> Keys:
    """Return the keys of a source of tuples of ids; `tables` are where train, queries and documents are.

    Raises:
        SourceError: a column is missing.
    """
    where = {name: table.get("files") or f"{table['path']} ({table.get('config', name)})" for name, table in tables.items()}
    for name, needed in ID_TABLES.items():
        if missing := [one for one in needed if one not in columns[name]]:
            raise SourceError(where[name], f"no column '{missing[0]}'", f"columns there are: {listed(columns[name], 20)}")
    fields = {"id": "query_id", "query": "query_id", "documents": "document_ids"}
    fields |= {key: name for key, name in (("positive", "positive_ids"), ("score", "scores")) if name in columns["train"]}
    if len(fields) == 3:
        raise SourceError(where["train"], "has neither 'scores' nor 'positive_ids'", "one of them says which document is right")
    keys = {**tables["train"], "by_id": True, "fields": fields}
    for key, name, id_ in (("corpus", "documents", "document_id"), ("queries", "queries", "query_id")):
        texts = [column for column in ("text", id_.removesuffix("_id")) if column in columns[name]]
        if not texts:
            raise SourceError(where[name], "no column 'text'", f"columns there are: {listed(columns[name], 20)}")
        keys[key] = {**tables[name], "fields": {"id": id_, "text": texts[0]}}
    return keys


def _of_files(first: Path, paths: list[Path], name: str, held_out: bool, base: Path) -> Candidate:
    """Return the data of files of one format, known by their columns; FlagEmbedding's are read whole, for their prompts."""
    files = [os.path.relpath(one.resolve(), base) for one in paths]
    listed_files = files[0] if len(files) == 1 else files
    constants = _from_receipt(first)
    reading = _reading(first) if first.suffix.lower() in TABLES else {}
    columns, seen = dict[str, None](), pl.DataFrame()
    for one in files:
        with closing(_rows(glob.escape(one), base, **reading)) as rows:
            seen = next(rows).frame
            columns |= dict.fromkeys(seen.columns)
    form, entry, note = _format_of(name, files[0], list(columns), first.suffix == ".jsonl")
    shown = [one for one in entry["fields"].values() if isinstance(one, str) and one in seen.columns]
    values = [value for row in seen.select(shown).head(ROWS_SHOWN).iter_rows() for value in row]
    if "language" not in constants and (language := _language(" ".join(map(str, values)))):
        constants["language"] = language
        note += ("; " if note else "") + f"language '{language}' guessed by the script"
    if form == "flagembedding" and not constants.get("instruction") and not held_out:
        constants |= _flagembedding(files, base)
    return Candidate(form, {"name": name, **constants, "files": listed_files, **reading, **entry}, held_out, note)


def _language(text: str) -> str:
    """Return the likeliest language of a text by its script; empty for Latin letters and for scripts of many languages."""
    letters = [unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha()]
    counts = {script: letters.count(script) for script in SCRIPTS}
    if sum(counts.values()) * 2 < len(letters) or not letters:
        return ""
    if counts["HIRAGANA"] + counts["KATAKANA"] > len(letters) / 20:  # beside Chinese characters
        return "ja"
    return SCRIPTS[max(counts, key=lambda script: counts[script])]


def _reading(path: Path) -> Keys:
    """Return the keys that say how a csv or tsv file is written, as its beginning shows: `encoding` and `delimiter`.

    The delimiter is the sign that gives the header most columns; Python's csv.Sniffer may take a letter for one.
    """
    with path.open("rb") as file:
        sample = file.read(TABLE_HEAD)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(sample)
        encoding = suggest_encoding(sample) if "\0" in text else ""
    except UnicodeDecodeError:
        encoding = suggest_encoding(sample)
    if encoding is None:  # reading it will say so
        return {}
    text = sample.decode(encoding, "ignore") if encoding else text
    usual = "," if path.suffix.lower() == ".csv" else "\t"
    header = re.sub('"[^"]*"', "", next(iter(text.splitlines()), ""))
    sign = max((usual, *",;\t|"), key=header.count)  # the first of equal ones
    return ({"encoding": encoding} if encoding else {}) | ({} if sign == usual else {"delimiter": sign})


def _rows(files: str, base: Path, **reading: Any) -> Any:
    return table_rows(Table.model_validate({"files": [files], **reading}), base)


def _receipt(path: Path) -> Keys:
    """Return the entry of a source in the receipt of `curate export`; empty if no export wrote it."""
    receipt = (store.read_receipt(path.parent.parent) if path.parent.name == "data" else None) or {}
    sources = receipt.get("sources", {}) if "export" in receipt else {}
    return dict(sources.get(path.stem if path.is_file() else path.name, {}))


def _from_receipt(path: Path) -> Keys:
    receipt = _receipt(path)
    return {"task": "retrieval"} | {key: receipt[key] for key in TAKEN_OVER if receipt.get(key)}


def _flagembedding(files: list[str], base: Path) -> Keys:
    """Return the task and instruction of FlagEmbedding's files.

    Raises:
        SourceError: lines name different ones.
    """
    places: dict[tuple[str, str], str] = {}
    for name in files:
        with closing(_rows(glob.escape(name), base)) as batches:
            for rows in batches:
                frame = add_missing_columns(rows.frame, ("prompt", "type"))
                for key in ("prompt", "type"):
                    as_texts(name, key, frame[key])
                pairs = (
                    frame.select(pl.col("prompt", "type").cast(pl.String).fill_null(""), ROW)
                    .unique(["prompt", "type"], keep="first")
                    .sort(ROW)
                )
                for prompt, type_, row in pairs.iter_rows():
                    places.setdefault((prompt, type_), f"{name}, row {row}")
    if len(places) > 1:
        shown = "; ".join(f"prompt '{prompt[:60]}', type '{kind}' ({where})" for (prompt, kind), where in [*places.items()][:3])
        raise SourceError(
            files[0], f"has lines of {len(places)} prompts or types: {shown}", "put the lines of each into a file of their own"
        )
    ((prompt, kind),) = places
    tasks = {word: task for task, word in TYPES.items()}
    return {"task": tasks.get(kind, "retrieval")} | ({"instruction": prompt} if prompt else {})


def _format_of(where: str, called: str, columns: list[str], lines: bool) -> tuple[str, Keys, str]:
    """Return the format that has these columns, the keys of a source that reads it, and a note on columns that are not used."""
    for layout in LAYOUTS:
        if set(layout.fields.values()) <= set(columns):
            fields, reader = dict(layout.fields), {"reader": layout.reader} if lines and layout.reader else {}
            negatives, others = matching_columns(layout.negatives, columns, ())
            if negatives:
                fields["negatives"] = layout.negatives
            if reader.get("reader") == "tevatron":
                fields = {"query": "query", "positive": "positives", "negatives": "negatives"}
            fields |= {key: name for key, name in layout.more.items() if name in columns}
            if "positive" in fields and layout.negatives == "negative*":
                fields |= _scores(columns, len(negatives))
            if "negatives" not in fields:
                fields.pop("negative_scores", "")
            rest = [name for name in others if name not in fields.values()]
            notes = [f"not used as negatives because of their names: {listed(rest)}"] if rest else []
            graded = [name for name in GRADED if name in columns and name not in fields.values()]
            if graded and layout.name == "sentence-transformers":
                notes.append(
                    f"each row is used as a positive pair, whatever its {listed(graded)} says; map that column if it matters"
                )
            if layout.name == "scored-list":
                notes.append("the document with the highest score of a list is its positive; `threshold` makes all that reach it")
            return layout.name, {**reader, "fields": fields}, "; ".join(notes)
    there = [name for name in columns if not name.startswith("__")]
    table, ending = Path(called).suffix.lower() in TABLES, Path(called).suffix[1:].lower()
    if table and (fields := _guess(there)):
        rest = [name for name in there if name not in fields.values()]
        shown = ", ".join(f"{key} '{name}'" for key, name in fields.items())
        by = "names" if _guess(there, by_order=False) else "order"
        guessed = f"columns guessed by their {by}: {shown}" + (f"; not used: {listed(rest)}" if rest else "")
        return ending, {"fields": fields} | ({"task": "classification"} if "label" in fields else {}), guessed
    hint = f"write a source '{where}' by hand, with `fields:`"
    hint += ", and with `header: [...]` if the first line holds no names" if table else ""
    raise SourceError(called, f"has columns of no known format: {listed(there, 20)}", hint)


def _guess(columns: list[str], by_order: bool = True) -> dict[str, str]:
    """Return the columns of query and positive, or of query and label, as their names suggest; empty if they suggest nothing.

    With `by_order`, two columns whose names suggest nothing are query and positive.
    """
    fields: dict[str, str] = {}
    for key, words in GUESSES.items():
        left = [name for name in columns if name not in fields.values()]
        parts = {name: re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in left}
        parts = {name: [*words_of, name.strip().lower()] for name, words_of in parts.items()}  # marks part Thai and Hindi words
        parts = {name: words_of for name, words_of in parts.items() if not NOT_TEXT & set(words_of)}
        # a name that is the word goes before a name that contains it
        fits = [(words.index(word), len(parts[name]), name) for word in words for name in parts if word in parts[name]]
        if fits:
            fields[key] = min(fits)[2]
    if "positive" in fields:
        fields.pop("label", "")
    if "query" in fields and len(fields) > 1:
        return fields
    texts = [name for name in columns if len(name) <= LONGEST_COLUMN and not NOT_TEXT & set(re.findall(r"[a-z]+", name.lower()))]
    texts = [name for name in texts if not re.fullmatch(r"column_\d+", name)]  # a column without a name
    return dict(zip(("query", "positive"), columns, strict=True)) if by_order and len(texts) == len(columns) == 2 else {}


def _scores(columns: list[str], negatives: int) -> dict[str, str]:
    """Return the columns with the scores of positive and negatives: a number for a single negative, a list for several."""
    fields: dict[str, str] = {}
    for key, words in (("positive_score", ("pos", "positive")), ("negative_scores", ("neg", "negative"))):
        called = [f"{word}_score{plural}" for word in words for plural in ("", "s")]
        several = key == "negative_scores" and negatives != 1
        fits = [name for name in called if name in columns and (name.endswith("s") or not several)]
        fields |= {key: fits[0]} if fits else {}
    return fields


def _on_the_hub(id_: str) -> Iterator[Candidate]:
    """Yield each split of each config of a dataset; configs of queries and of documents or a corpus belong to the others."""
    splits = config_splits(Table.model_validate({"path": id_}), Path())
    is_beir = {"corpus", "queries"} <= set(splits)
    is_ids = {"documents", "queries"} <= set(splits)
    configs = [name for name in splits if name not in ("corpus", "queries", "documents" if is_ids else "corpus")]
    if configs == ["default"]:
        table = Table.model_validate({"path": id_})
        table = table.model_copy(update={"revision": hub.dataset_commit(table)})
        names = [] if hub.names_its_data(table) else hub.file_names(table, str(table.revision))
        if len({_group(Path(name))[0] for name in names if name.endswith(".parquet")}) > 1:
            yield from _by_file(table, names)
            return
    for config in configs:
        of_config = _split_kind(config).replace("train", "")  # a config `train` may have a test split
        kinds = {split: of_config or _split_kind(split) for split in splits[config]}
        train = [split for split, kind in kinds.items() if kind in ("", "train")]
        for split in splits[config]:
            at = {
                "path": id_,
                **({} if config == "default" else {"config": config}),
                **({} if split == "train" else {"split": split}),
            }
            facts = hub_facts(Table.model_validate(at))
            name = id_.rpartition("/")[2] if len(configs) == 1 else config
            called = name if split == (train or splits[config])[0] else f"{name}-{split}"
            license = {"license": facts.license} if facts.license else {}
            common = {"name": _named(called), "task": "retrieval", **license, **at, "revision": facts.revision}
            held_out = split not in train
            if is_beir:
                yield Candidate("beir", common | {"reader": "beir"}, held_out)
                continue
            try:
                if is_ids and held_out:
                    raise SourceError(common["name"], "names texts by id, and an evaluation set cannot")
                if is_ids:
                    yield Candidate("ids", common | _ids_on_the_hub({**at, "revision": facts.revision}, splits))
                    continue
                form, entry, note = _format_of(common["name"], f"{id_} ({config})", facts.columns or [], lines=False)
            except SourceError as error:
                if not held_out or not train:
                    raise
                yield Candidate("", common, True, f"left out, for development or tests by its name: {error}")
                continue
            yield Candidate(form, common | entry, held_out, note)


def _by_file(table: Table, names: list[str]) -> Iterator[Candidate]:
    """Yield each dataset of a repository that holds several, each in files of its own, as F2LLM-v2's trainer reads them.

    Such a repository has no configs, and the library `datasets` would put all files together, or take those alone that are
    named for a split.
    """
    id_, commit, groups = str(table.path), str(table.revision), dict[tuple[str, ...], list[str]]()
    for name in names:
        if name.endswith(".parquet"):
            groups.setdefault(_group(Path(name)), []).append(name)
    license = hub_facts(table.model_copy(update={"files": next(iter(groups.values()))})).license
    for (name, kind, *_), files in groups.items():
        held_out = kind not in ("", "train")
        called = _named((name or id_.rpartition("/")[2]) + (f"-{kind}" if held_out else ""))
        keys: Keys = {"name": called, "task": "retrieval", **({"license": license} if license else {}), "path": id_}
        keys |= {"revision": commit, "files": files}
        try:
            form, entry, note = _format_of(called, f"{id_}/{files[0]}", hub.columns_of(table, commit, files[0]), lines=False)
            yield Candidate(form, keys | entry, held_out, note)
        except SourceError as error:  # such as tokens in place of texts
            yield Candidate("", keys, True, f"left out: {error}")
    if others := [name for name in names if name.endswith((*OTHER_DATA, ".jsonl"))]:
        yield Candidate(
            "", {"name": _named(id_.rpartition("/")[2])}, True, f"left out, as the data is parquet: {listed(others, 4)}"
        )


def _named(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-._")[:63] or "imported"
