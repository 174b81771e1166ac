"""Other tools' training data as a manifest that reads it: which format it is, its columns, task and instruction.

The build does the work then, and takes an instruction that is rendered into queries off again (`schema.split_query`). What a
receipt of `curate export` beside the files, or FlagEmbedding's `prompt` and `type`, says of a source is taken over.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml

from curation.core import store
from curation.core.errors import ManifestError, SourceError, listed
from curation.read.dataset import config_splits
from curation.read.lock import hub_facts
from curation.read.mapping import add_missing_columns, matching_columns
from curation.read.rows import ROW
from curation.read.sources import read_rows
from curation.recipe.manifest import load_manifest
from curation.recipe.source import Table, expand_beir
from curation.shape.columns import as_texts
from curation.share.export import TYPES

Entry = dict[str, Any]
ENDINGS = (".parquet", ".jsonl")
ABOUT = ("task", "instruction", "language", "license")
EDGE = r"(^|[^a-z0-9])(?:%s)[0-9]*(?![a-z0-9])"
SET = "(?:[-_ ]?(?:set|split|data))?"
HELD_OUT = re.compile(
    EDGE % f"(?:dev(?:el|elopment|test)?|val(?:id|idate|idation)?|eval(?:s|uation)?|tests?|testing|tst|h[eo]ld.?out){SET}"
)
TRAIN = re.compile(EDGE % f"(?:train(?:ing)?|trn){SET}")
DATA = (  # endings of data that is not imported, and which a manifest can name
    ".csv", ".tsv", ".json", ".ndjson", ".txt", ".xml", ".arrow", ".feather", ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar",
    ".tgz",
)  # fmt: skip
TABLES = (".csv", ".tsv")  # their columns are guessed by name
GUESSES = {  # columns of a csv or tsv file by their names, likeliest first
    "query": ("query", "question", "anchor", "subject", "title", "sentence1", "premise", "prompt", "utterance", "input", "text",
              "message", "description"),
    "positive": ("positive", "answer", "response", "reply", "resolution", "solution", "passage", "document", "context",
                 "sentence2", "hypothesis", "output", "body", "content"),
    "label": ("label", "category", "class", "intent", "topic", "queue", "department"),
}  # fmt: skip
TRAINING = "train"
GRADED = ("label", "labels", "score", "scores")  # what sentence-transformers' losses learn from beside texts
SCORES = {"positive_score": "pos_scores", "negative_scores": "neg_scores"}


class Layout(NamedTuple):
    """A format by its columns: what it maps, which column, or pattern, of negatives it may have, and what else."""

    name: str
    fields: dict[str, str]
    negatives: str = ""
    reader: str | None = None  # of JSON Lines
    more: Mapping[str, str] = {}


OURS = {"id": "id", "positive_score": "positive_score", "negative_scores": "negative_scores"}  # `curate publish --columns`
LAYOUTS = (  # the first whose columns are all there
    Layout("f2llm", {"query": "query", "positive": "positives"}, "negative_[0-9]*", more=OURS),  # positive_score: of the first
    Layout("f2llm", {"query": "query", "positive": "passage"}, "negative_[0-9]*", more=OURS),
    Layout("labeled-list", {"query": "query", "documents": "documents", "label": "labels"}),
    Layout("scored-list", {"query": "query", "documents": "documents", "score": "scores"}),
    Layout("sentence-transformers", {"query": "anchor", "positive": "positive"}, "negative*"),
    Layout("flagembedding", {"query": "query", "positive": "pos"}, "neg", "flagembedding", SCORES),
    Layout("tevatron", {"query": "query", "positive": "positive_passages"}, "negative_passages", "tevatron", {"id": "query_id"}),
    Layout("sentence-transformers", {"query": "query", "positive": "positive"}, "negative*"),
    Layout("sentence-transformers", {"query": "query", "positive": "answer"}, "negative*"),
    Layout("sentence-transformers", {"query": "question", "positive": "answer"}, "negative*"),
)


class Found(NamedTuple):
    """Training data or an evaluation set that was found."""

    form: str
    keys: Entry
    held_out: bool = False  # its name says that it is for development or tests
    told: str = ""  # what a person should know of it


class Imported(NamedTuple):
    """What a manifest was written of: formats by the names of its sources and evaluation sets, and what to tell."""

    sources: dict[str, str]
    against: dict[str, str]
    told: list[str]


def write_manifest(what: str, out: Path) -> Imported:
    """Write the manifest at `out` that reads `what`: a file, a folder of them, or a Hub id.

    What is for development or tests, by the names of files, folders, splits and configs, is an evaluation set of
    `decontaminate:` and no source, unless there is nothing else.

    Raises:
        SourceError: there is nothing there, or no format is known that has its columns.
        ManifestError: `out` is there already.
    """
    if out.exists():
        raise ManifestError(out, "is there already", "name another file")
    base, path = out.resolve().parent, Path(what).expanduser()
    if not path.exists() and (path.is_absolute() or what.startswith((".", "~")) or path.suffix in (*DATA, *ENDINGS)):
        raise SourceError(what, "no such file or folder", "name a file, a folder, or a dataset of the Hub")
    base.mkdir(parents=True, exist_ok=True)  # paths lead out of it, and so it must be there
    found = list(_here(path, base) if path.exists() else _on_the_hub(what))
    known = [one for one in found if one.form]
    if not known:
        raise SourceError(what, found[0].told, "write a source by hand, with `fields:`")
    if all(one.held_out for one in known) and len(known) > 1:
        names = listed(one.keys["name"] for one in known)
        raise SourceError(what, f"holds development or test data alone ({names})", "name one file itself to train on it")
    told = [f"{one.keys['name']}: {one.told}" for one in found if one.told]
    found = [one for one in found if one.form]
    if len(found) == 1 and found[0].held_out:
        found = [found[0]._replace(held_out=False)]
        told.append(
            f"{found[0].keys['name']}: by its name for development or tests, and a source all the same: nothing else is there"
        )
    _name_apart(found)
    sources, sets = [one for one in found if not one.held_out], [one for one in found if one.held_out]
    told += [f"{one.keys['name']}: by its name for development or tests, so not trained on but kept clear of" for one in sets]
    document: Entry = {"name": _named(path.stem if path.is_file() else path.resolve().name if path.exists() else path.name)}
    if sets:
        document["decontaminate"] = {"against": [_evaluation(one) for one in sets]}
    document["sources"] = [one.keys for one in sources]
    if all({"negatives", "documents"} & set(one.keys.get("fields", {})) for one in sources):
        document["mine"] = {"candidates": "given"}  # a model, and another word here, mines anew
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120).encode()
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / out.name
        tried.write_bytes(text)
        load_manifest(tried)  # what cannot be read again is not written
    with store.atomic(out) as file:
        file.write(text)
    return Imported({one.keys["name"]: one.form for one in sources}, {one.keys["name"]: one.form for one in sets}, told)


def _name_apart(found: list[Found]) -> None:
    """Number the names that another one has already."""
    taken: set[str] = set()
    for one in found:
        name, n = one.keys["name"], 1
        while one.keys["name"] in taken:
            n += 1
            one.keys["name"] = f"{name[: 62 - len(str(n))]}-{n}"
        taken.add(one.keys["name"])


def _evaluation(one: Found) -> Entry:
    """Return the keys of an evaluation set: where it is, how it is read, and which columns are texts."""
    keys = expand_beir(one.keys) if one.keys.get("reader") == "beir" else dict(one.keys)
    fields = dict(keys["fields"])
    if "documents" in fields:
        fields = {"query": fields["query"], "positive": fields["documents"]}
    wanted = ("query", "positive", "query_id", "positive_id", "score" if "query_id" in fields else "query")
    kept = {
        key: keys[key]
        for key in ("name", "path", "config", "revision", "split", "files", "reader", "corpus", "queries")
        if key in keys
    }
    return kept | {"fields": {key: fields[key] for key in wanted if key in fields}}


def _kind(text: str) -> str:
    """Return what a name says that data is for: the word for development or tests, `train`, or nothing."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", text).lower()
    if found := HELD_OUT.search(text):
        return found[0].strip("-_. ")
    return TRAINING if TRAIN.search(text) else ""


def _bare(text: str) -> str:
    """Return a file's name without its split, and without its number among shards."""
    text = re.sub(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$", "", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", text))
    return TRAIN.sub(r"\1", HELD_OUT.sub(r"\1", text.lower())).strip("-_. ")


def _here(path: Path, base: Path) -> Iterator[Found]:
    """Yield what a file, a BEIR folder, or a folder with these at any depth holds; an export's `data/` too."""
    if path.is_file():
        yield _of_files(path, [path], _named(path.stem), _kind(path.stem) not in ("", TRAINING), base)
        return
    receipt = store.read_receipt(path)
    if receipt and "export" in receipt:
        store.check_files(path, receipt, f"delete {path} and run `curate export` again")
    inner = path / "data" if (path / "data").is_dir() and receipt else path
    every = sorted(one for one in inner.rglob("*") if not any(part.startswith(".") for part in one.relative_to(inner).parts))
    folders = [one for one in (inner, *every) if (one / "qrels").is_dir()]
    files = [
        one for one in every if one.suffix in ENDINGS and one.is_file() and not any(one.is_relative_to(beir) for beir in folders)
    ]
    others = [one for one in every if one.suffix.lower() in (*DATA, *ENDINGS) and one.is_file() and one not in files]
    others = [one for one in others if not any(one.is_relative_to(beir) for beir in folders)]
    if (files or folders) and others:
        names = listed((os.path.relpath(one, inner) for one in others), 4)
        yield Found(
            "", {"name": _named(path.resolve().name)}, True, f"left out, as only .parquet and .jsonl are imported: {names}"
        )
    if not files and not folders:
        raise SourceError(path, "holds neither parquet, JSON Lines nor a BEIR folder", "name a file, such as data/train.parquet")
    for one in folders:
        yield from _beir(one, base)
    groups: dict[tuple[str, ...], list[Path]] = {}
    for one in files:
        groups.setdefault(_group(one, inner), []).append(one)
    for (name, kind, *_), paths in groups.items():
        held_out = kind not in ("", TRAINING)
        called = f"{name or _named(path.resolve().name)}{f'-{kind}' if held_out else ''}"
        try:
            yield _of_files(paths[0], paths, _named(called), held_out, base)
        except SourceError as error:
            if not held_out:
                raise
            yield Found("", {"name": _named(called)}, True, f"left out, by its name for development or tests: {error}")


def _group(file: Path, top: Path) -> tuple[str, ...]:
    """Return the dataset that a file is of, what it is for, its ending and its name without shards: equal ones are one source."""
    parts = [*file.relative_to(top).parent.parts, file.stem]
    if _receipt(file):
        return (file.stem, "", file.suffix, str(file))
    kind = next((found for part in reversed(parts) if (found := _kind(part))), "")
    name = "-".join(bare for part in parts if part != "data" and (bare := _bare(part)))
    return (name, kind, file.suffix, re.sub(r"-\d{5}-of-\d{5}.*", "", str(file.relative_to(top))))


def _beir(folder: Path, base: Path) -> Iterator[Found]:
    name, said = _named(folder.resolve().name), _said(folder)
    files = os.path.relpath(folder.resolve(), base)
    splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
    train = [split for split in splits if _kind(split) in ("", TRAINING)]
    # without a receipt's `language` its texts have titles; with one they have none, and stay as they are
    bare = {"corpus": {"fields": {"text": "text"}}} if "language" in said else {}
    for split in splits or ["train"]:
        held_out = bool(train) and split not in train
        told = {} if split == "train" else {"split": split}
        called = {"name": name if split in ("train", (train or splits)[0] if splits else "train") else _named(f"{name}-{split}")}
        yield Found(
            "beir", {**called, **said, "files": files, "reader": "beir", **told, **bare}, held_out or not (train or not splits)
        )


def _of_files(first: Path, paths: list[Path], name: str, held_out: bool, base: Path) -> Found:
    """Return what files of one format hold; each is looked at, and all lines of FlagEmbedding's, whose prompts may differ."""
    files = [os.path.relpath(one.resolve(), base) for one in paths]
    listed_files = files[0] if len(files) == 1 else files
    said = _said(first)
    columns: dict[str, None] = {}
    for one in files:
        with closing(_rows(glob.escape(one), base)) as rows:
            columns |= dict.fromkeys(next(rows).frame.columns)
    form, entry, told = _source(name, files[0], list(columns), first.suffix == ".jsonl")
    if form == "flagembedding" and not said.get("instruction") and not held_out:
        said |= _flagembedding(files, base)
    return Found(form, {"name": name, **said, "files": listed_files, **entry}, held_out, told)


def _rows(files: str, base: Path) -> Any:
    return read_rows(Table.model_validate({"files": [files]}), base)


def _receipt(path: Path) -> Entry:
    """Return what `curate export` said of a source, where it wrote this one."""
    receipt = (store.read_receipt(path.parent.parent) if path.parent.name == "data" else None) or {}
    sources = receipt.get("sources", {}) if "export" in receipt else {}
    return dict(sources.get(path.stem if path.is_file() else path.name, {}))


def _said(path: Path) -> Entry:
    said = _receipt(path)
    return {"task": "retrieval"} | {key: said[key] for key in ABOUT if said.get(key)}


def _flagembedding(files: list[str], base: Path) -> Entry:
    """Return the task and instruction that all lines name.

    Raises:
        SourceError: lines name several.
    """
    said: dict[tuple[str, str], str] = {}
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
                    said.setdefault((prompt, type_), f"{name}, row {row}")
    if len(said) > 1:
        shown = "; ".join(f"prompt '{prompt[:60]}', type '{kind}' ({where})" for (prompt, kind), where in list(said.items())[:3])
        raise SourceError(
            files[0], f"has lines of {len(said)} prompts or types: {shown}", "put those of each into a file of their own"
        )
    ((prompt, kind),) = said
    tasks = {word: task for task, word in TYPES.items()}
    return {"task": tasks.get(kind, "retrieval")} | ({"instruction": prompt} if prompt else {})


def _source(where: str, called: str, columns: list[str], lines: bool) -> tuple[str, Entry, str]:
    """Return the format that has these columns, the keys of a source that read it, and which columns are no negatives."""
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
            told = [f"not taken for negatives, by their names: {listed(rest)}"] if rest else []
            graded = [name for name in GRADED if name in columns and name not in fields.values()]
            if graded and layout.name == "sentence-transformers":
                told.append(f"each row is taken for a positive pair, whatever its {listed(graded)} says; map that if it counts")
            return layout.name, {**reader, "fields": fields}, "; ".join(told)
    there = [name for name in columns if not name.startswith("__")]
    if Path(called).suffix in TABLES and (fields := _guess(there)):
        rest = [name for name in there if name not in fields.values()]
        shown = ", ".join(f"{key} '{name}'" for key, name in fields.items())
        guessed = f"columns guessed by their names: {shown}" + (f"; not used: {listed(rest)}" if rest else "")
        return Path(called).suffix[1:], {"fields": fields} | ({"task": "classification"} if "label" in fields else {}), guessed
    raise SourceError(
        called, f"has columns of no known format: {listed(there, 20)}", f"write a source '{where}' by hand, with `fields:`"
    )


def _guess(columns: list[str]) -> dict[str, str]:
    """Return the columns of query and positive, or of query and label, as their names suggest; empty if they suggest nothing."""
    fields: dict[str, str] = {}
    for key, words in GUESSES.items():
        left = [name for name in columns if name not in fields.values()]
        parts = {name: re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in left}
        parts = {
            name: words_of for name, words_of in parts.items() if not {"id", "type", "date", "time", "score"} & set(words_of)
        }
        # a name that is the word goes before a name that contains it
        fits = [(words.index(word), len(parts[name]), name) for word in words for name in parts if word in parts[name]]
        if fits:
            fields[key] = min(fits)[2]
    if "positive" in fields:
        fields.pop("label", "")
    return fields if "query" in fields and len(fields) > 1 else {}


def _scores(columns: list[str], negatives: int) -> dict[str, str]:
    """Return the columns that score positive and negatives: a number is of one negative, a list of all."""
    fields: dict[str, str] = {}
    for key, words in (("positive_score", ("pos", "positive")), ("negative_scores", ("neg", "negative"))):
        called = [f"{word}_score{plural}" for word in words for plural in ("", "s")]
        several = key == "negative_scores" and negatives != 1
        fits = [name for name in called if name in columns and (name.endswith("s") or not several)]
        fields |= {key: fits[0]} if fits else {}
    return fields


def _on_the_hub(id_: str) -> Iterator[Found]:
    """Yield each split of each config of a dataset; qrels with corpus and queries are one source of `reader: beir`."""
    splits = config_splits(Table.model_validate({"path": id_}), Path())
    is_beir = {"corpus", "queries"} <= set(splits)
    configs = [name for name in splits if name not in ("corpus", "queries")]
    for config in configs:
        kinds = {split: _kind(config) or _kind(split) for split in splits[config]}
        train = [split for split, kind in kinds.items() if kind in ("", TRAINING)]
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
            said = {"name": _named(called), "task": "retrieval", **license, **at, "revision": facts.revision}
            held_out = split not in train
            if is_beir:
                yield Found("beir", said | {"reader": "beir"}, held_out)
                continue
            try:
                form, entry, told = _source(said["name"], f"{id_} ({config})", facts.columns or [], lines=False)
            except SourceError as error:
                if not held_out or not train:
                    raise
                yield Found("", said, True, f"left out, by its name for development or tests: {error}")
                continue
            yield Found(form, said | entry, held_out, told)


def _named(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-._")[:63] or "imported"
