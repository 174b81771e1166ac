"""The 62 sources of F2LLM, their evaluation sets and their models for the Hub of the tests: made-up rows under the real names.

Ids, configs, splits, revisions and columns are those of f2llm_facts.csv, which holds what was seen on the sources' own pages and in
mteb's metadata, and where (`seen` is empty for what was not seen). The rows are those of curation/recipe/f2llm_golden.json, repeated with
other words at their end. manifests/f2llm.yaml says only how many rows a source needs.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from itertools import cycle, islice
from pathlib import Path

import datasets
import yaml

from curation.recipe.source import shape_of
from tests.training.tiny_models import tiny_folder

GOLDEN = json.loads((Path(__file__).parents[1] / "curation" / "recipe" / "f2llm_golden.json").read_text())
FACTS = list(csv.DictReader((Path(__file__).parent / "f2llm_facts.csv").read_text().splitlines()))
COPIES = {"labelled": 25}  # of each golden row; else 50
WORDS = [
    "river", "stone", "apple", "music", "garden", "winter", "engine", "letter", "silver", "market", "doctor", "window",
    "island", "forest", "bridge", "candle", "planet", "summer", "kitchen", "shadow", "ticket", "pocket", "mirror", "hammer",
]  # fmt: skip
CLASSES = {
    "nyu-mll/glue": ("unacceptable", "acceptable"),
    **dict.fromkeys(("stanfordnlp/snli", "nyu-mll/multi_nli", "facebook/anli"), ("entailment", "neutral", "contradiction")),
}
NAMES = {"sentence-transformers/reddit-title-body": "reddit_title_text_2010.jsonl.gz"}  # one file, and no split in its name
OVERLAPPING = "mteb/banking77"  # whose test split has a text of its train split


def varied(value, words: str):
    """Return a text, or all texts in lists and records, with words at the end; an empty one stays empty."""
    if isinstance(value, str):
        return value and f"{value} {words}"
    if isinstance(value, list):
        return [varied(one, words) for one in value]
    return {key: varied(one, words) for key, one in value.items()} if isinstance(value, dict) else value


def words_of(name: str, copy: int) -> str:
    dice = hashlib.sha256(f"{name}/{copy}".encode()).digest()
    return " ".join([*(WORDS[number % len(WORDS)] for number in dice[:8]), str(copy)])


def more(name: str, rows: list, texts: set[str], copies: int) -> list:
    """Return the rows over and over, each time with other words in the columns that hold texts."""
    made = []
    for copy in range(copies):
        words = words_of(name, copy)
        for row in rows:
            if isinstance(row, dict):
                row = {key: varied(value, words) if key in texts else value for key, value in row.items()}
                made.append({key: f"{value}-{copy}" if key.endswith(("_id", "-id")) else value for key, value in row.items()})
            else:
                made.append(varied(row, words))
    return made


def repositories(manifest) -> dict[str, dict]:
    """Return by id: {"revision", "license", "files": {path: bytes}, "tables": {config: {split: rows}}}."""
    repos: dict[str, dict] = {}
    sources = {source.name: source for source in manifest.sources}
    for fact in FACTS:
        repo = repos.setdefault(fact["id"], {"revision": fact["revision"], "license": None, "files": {}, "tables": {}})
        if fact["source"] not in sources:
            _add(repo, fact, _evaluation_rows(fact, repo))
            continue
        source, golden = sources[fact["source"]], GOLDEN[fact["source"]]
        copies = COPIES.get(shape_of(source), 50)
        repo["license"] = source.license
        if "files" in golden:
            assert fact["files"] in ("", *golden["files"])
            for name, rows in golden["files"].items():
                repo["files"][name] = _packed(more(fact["id"], _columns_of(fact, rows), set(fact["texts"].split()), copies))
            continue
        rows = golden[fact["part"] or "rows"]
        if not fact["part"]:  # of the sources that read the same rows, the one that reads most columns
            same = [
                GOLDEN[other["source"]]["rows"] for other in FACTS if _place(other) == _place(fact) and other["source"] in sources
            ]
            rows = max(same, key=lambda rows: len(rows[0]))
        named = _columns_of(fact, rows), set(fact["texts"].split()), copies
        made = more(fact["id"], *named)
        if source.skip and not fact["part"]:  # the rows of another source come first
            made = [*islice(cycle(more(f"{fact['id']}/0", *named)), source.skip), *made]
        _add(repo, fact, made)
    return repos


def _place(fact: dict) -> tuple[str, str, str]:
    return fact["id"], fact["config"], fact["split"]


def _columns_of(fact: dict, rows: list) -> list:
    """Return rows with the columns of a fact alone, all of which they must have."""
    names = f"{fact['texts']} {fact['others']}".split()
    return [{name: row[name] for name in names} if isinstance(row, dict) else row for row in rows]


def _add(repo: dict, fact: dict, rows: list) -> None:
    """Put rows into a config's split; of two sources that read the same one, the longer stays."""
    splits = fact["split"].split("+")
    for number, split in enumerate(splits):
        part = rows[number * len(rows) // len(splits) : (number + 1) * len(rows) // len(splits)]
        known = repo["tables"].setdefault(fact["config"] or "default", {}).setdefault(split, [])
        if fact["part"] and fact["source"] not in GOLDEN:  # an evaluation set shares its corpus with a source
            known.extend(part)
        elif len(part) > len(known):
            known[:] = part


def _evaluation_rows(fact: dict, repo: dict) -> list:
    """Return eight rows of an evaluation set, of texts of its own."""
    name, ids = fact["source"], [f"e{number}" for number in range(8)]
    if fact["part"]:
        key = "" if fact["part"] == "corpus" else "q"
        texts = [f"{name} {fact['part']} {words_of(fact['id'] + '/test', number)}" for number in range(8)]
        rows = [{"_id": key + id_, "title": "", "text": text} for id_, text in zip(ids, texts, strict=True)]
        return _columns_of(fact, rows)
    if not fact["texts"]:
        return [{"query-id": f"q{id_}", "corpus-id": id_, "score": 1} for id_ in ids]
    asked = {column: f"{name} asks or says, in {column}" for column in fact["texts"].split()}
    if "sentences" in asked:  # a list, as its loader reads it
        asked = {"sentences": [name]}
    rows = [{column: varied(text, words_of(fact["id"] + "/test", n)) for column, text in asked.items()} for n in range(8)]
    if fact["id"] == OVERLAPPING:
        rows[0] = {"text": repo["tables"]["default"]["train"][0]["text"]}
    return rows


def _packed(rows: list) -> bytes:
    return gzip.compress(_lines(rows))


def _lines(rows: list) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(id_: str, rows: list) -> bytes:
    """Return rows as the Hub's parquet files are: with names for the numbers of a label."""
    table = datasets.Dataset.from_list(rows)
    if id_ in CLASSES:
        names = datasets.ClassLabel(names=list(CLASSES[id_]))
        rows = [row | {"label": -1 if row["label"] is None else names.str2int(row["label"])} for row in rows]
        table = datasets.Dataset.from_list(rows, features=datasets.Features({**table.features, "label": names}))
    file = io.BytesIO()
    table.to_parquet(file)
    return file.getvalue()


def fill(server, manifest, folder: Path) -> None:
    """Put all of it into a Hub: MTEB's repositories as JSON Lines, the others as parquet, the models under their names."""
    datasets.disable_progress_bars()
    for id_, repo in repositories(manifest).items():
        files, configs = dict(repo["files"]), []
        for config, splits in repo["tables"].items():
            paths = []
            for split, rows in splits.items():
                ending = "jsonl" if id_.startswith("mteb/") else "parquet"
                path = NAMES.get(id_) or f"{config}/{split}/0000.{ending}"
                files[path] = (
                    _parquet(id_, rows) if path.endswith("parquet") else _lines(rows) if path.endswith("jsonl") else _packed(rows)
                )
                paths.append({"split": split, "path": path})
            configs.append({"config_name": config, "data_files": paths})
        revision, named = repo["revision"] or "main", {"license": (repo["license"] or "").split(", ")} if repo["license"] else {}
        if revision == "refs/convert/parquet":
            server.put("datasets", id_, {"loader.py": "raise SystemExit('ran')"})
        elif named or (configs and id_ not in NAMES):
            head = named | ({"configs": configs} if id_ not in NAMES and configs else {})
            files["README.md"] = f"---\n{yaml.safe_dump(head)}---\n"
        server.put("datasets", id_, files, **({"oid": revision} if len(revision) == 40 else {"rev": revision}))
    put_models(server, manifest, folder)


def put_models(server, manifest, folder: Path) -> None:
    """Put tiny random models into a Hub under the names of those that mine and train."""
    for number, id_ in enumerate((manifest.mine.model, manifest.train.model)):
        model = tiny_folder("qwen3", folder / str(number))
        said = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 2048}
        (model / "config.json").write_text(json.dumps(said))
        if number == 0:
            _as_sentence_transformer(model)
        server.put("models", id_, model)


def _as_sentence_transformer(model: Path) -> None:
    """Put the files beside a model that Qwen3-Embedding has: last token, normalised, a prompt for queries."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": n, "name": str(n), "path": "" if n == 0 else f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_lasttoken": True}))
    prompts = {
        "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
        "document": "",
    }
    (model / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
