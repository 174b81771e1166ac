"""The texts of a mined source as tokens: each distinct text once, in flat arrays that are mapped into memory.

ids.bin        (T,)    u16 or u32  the tokens of all texts, concatenated
starts.npy     (n+1,)  i64         text t is ids[starts[t]:starts[t+1]]
rows.npy       (r,)    u64         the start of each row's query key, from which all random draws of the row derive
query.npy      (r,)    u32         the text number of the row's query
positives.npy  (P,)    u32         passages; row i has positives[positive_starts[i]:positive_starts[i+1]]
negatives.npy  (N,)    u32         the same, with negative_starts.npy
positive_score.npy   (r,)  f32     the miner's score of the row's first positive, NaN if unknown
negative_scores.npy  (N,)  f32     the miner's score of each negative, NaN if unknown
text.npy       (p,)    u32         the text number of each passage; ABSENT if no row uses it
identity.npy   (p,)    i64         equal for two passages that must not be each other's negatives: near-duplicates (one group)
                                   or, if a clustering source has labels, passages of one class
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from curation.core import store, tables
from curation.core.builds import checked_stage, outdated_tuple, read_build
from curation.core.errors import BuildError, listed
from curation.core.progress import Progress, silent

if TYPE_CHECKING:
    from training.model.model import Model

ABSENT = np.uint32(0xFFFFFFFF)
TOKENS_FORMAT = 4  # of these arrays
TEXTS_AT_ONCE = 8192
FIRST_UNGROUPED = 1 << 32  # groups are u32, so a passage without one gets an identity that no group has
WINDOW = 1 << 25  # bytes of a large file that may be mapped at a time
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot")
PATH_ENDINGS = ("_file", "name_or_path", "path")  # of the names of settings that say where a tokenizer came from
TOKENIZER_SETTINGS = ("truncation_side", "do_lower_case", "add_prefix_space", "split_special_tokens", "sp_model_kwargs")
TOKENIZER_PACKAGES = (
    "transformers",
    "tokenizers",
    "sentencepiece",
    "fugashi",
    "ipadic",
    "unidic",
    "unidic-lite",
    "sudachipy",
    "rhoknp",
    "jieba",
)
TOKENIZER_SAMPLE = (
    "",
    "one",
    "Größe, naïve CAFÉ, 東京都に行く, Здравствуйте, xin chào các bạn, 🦙🦙 x1969-07-20",
    "which side is cut? " * 2000,
)
SCORE_COLUMNS = ("positive_score", "negative_scores")
ARRAYS = (
    *("starts", "rows", "query", "positives", "positive_starts", "negatives", "negative_starts", "text", "identity"),
    *SCORE_COLUMNS,
)


@dataclass(frozen=True)
class Source:
    """One source to train on; the arrays are as in the module's docstring, mapped into memory, not read."""

    name: str
    task: str
    folder: Path  # of the mined pairs, which have the ids of the rows
    digest: str
    ids: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    query: np.ndarray
    positives: np.ndarray
    positive_starts: np.ndarray
    negatives: np.ndarray
    negative_starts: np.ndarray
    text: np.ndarray
    identity: np.ndarray
    positive_score: np.ndarray
    negative_scores: np.ndarray
    tables: str = ""  # the digest of the tables that the tokens were made from

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def further_positives(self) -> int:
        """The number of positives besides the first of each row."""
        return len(self.positives) - len(self.rows)

    def row_ids(self, rows: np.ndarray) -> list[str]:
        """Return the ids of some rows, such as `squad/87431`."""
        return [str(name) for name in tables.read_table(self.folder, "pairs", ["id"])["id"].gather(rows.astype(np.uint32))]


def take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return values[places], while at most WINDOW bytes of a large mapped file stay in this process's memory.

    The system maps many pages around each place that is read, so a few thousand reads could map gigabytes.
    """
    mapping: Any = getattr(values, "_mmap", None)
    if mapping is None or values.nbytes <= WINDOW:
        return np.asarray(values[places])
    found = np.empty(places.shape, values.dtype)
    window = places * values.itemsize // WINDOW
    for number in np.flatnonzero(np.bincount(window.ravel())):
        here = window == number
        found[here] = values[places[here]]
        mapping.madvise(mmap.MADV_DONTNEED)
    return found


def mined_sources(build: Path, only: Sequence[str] = (), settings: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the entries of build.json for the sources to train on, in the manifest's order.

    Raises:
        BuildError: there is no build, it lacks a source that `only` or the recipe's settings name, or a source has no mined
            negatives.
    """
    known: dict[str, dict[str, Any]] = read_build(build)["sources"]
    if strange := [name for name in (*only, *settings) if name not in known]:
        raise BuildError(build, f"has no source '{strange[0]}'", f"it has {listed(known)}")
    chosen = {name: entry for name, entry in known.items() if not only or name in only}
    if missing := [name for name in chosen if not (build / "mined" / name / store.RECEIPT).exists()]:
        raise BuildError(build, f"no mined negatives for {listed(missing)}", f"run `mine negatives {build}` first")
    return chosen


def load_sources(build: Path, model: Model, prompt: str, only: Sequence[str] = (), progress: Progress = silent) -> list[Source]:
    """Return the sources of a build as tokens; tokenise those that are missing or out of date.

    They are in `train/tokens/<tokenizer>/<source>`, so runs with different models do not overwrite each other's tokens.

    Raises:
        BuildError: no mined negatives, files changed by hand, or no row to train on.
    """
    reader = reader_digest(model)
    sources = []
    for name, entry in mined_sources(build, only).items():
        folder = build / "train" / "tokens" / reader[:12] / name
        curated = checked_stage(build, f"curated/{name}")
        mined = checked_stage(build, f"mined/{name}", "run `mine negatives` first")
        if mined.get("curated", curated["digest"]) != curated["digest"]:
            raise BuildError(build / "mined" / name, f"was mined before curated/{name} was rebuilt", "run `mine negatives` again")
        made_of = store.digest_of([curated["files"], mined["files"]])
        digest = _source_digest([curated["digest"], mined["digest"], made_of], entry, model, prompt, reader)
        receipt = store.read_receipt(folder)
        if receipt is None or receipt["digest"] != digest:
            receipt = _write_source(build, name, entry, model, prompt, folder, digest, progress)
        else:
            store.check_files(folder, receipt)
        if receipt["rows"]:
            arrays = {label: np.load(folder / f"{label}.npy", mmap_mode="r") for label in ARRAYS}
            ids = np.memmap(folder / "ids.bin", dtype=np.uint16 if receipt["wide"] == 2 else np.uint32, mode="r")
            task, place = entry["task"], build / "mined" / name
            sources.append(Source(name, task, place, receipt["digest"], ids, **arrays, tables=made_of))
    if not sources:
        raise nothing_to_train_on(build, only)
    return sources


def nothing_to_train_on(build: Path, only: Sequence[str] = ()) -> BuildError:
    """Return the error for a build without mined tuples: which stage dropped them, and the command that shows them."""
    whole, what = store.read_json(build / "build.json"), "has no mined tuple to train on"
    names = [name for name in whole["sources"] if not only or name in only]
    if not names and (failed := whole.get("failed", {})):
        name, why = next(iter(failed.items()))
        return BuildError(build, f"{what}: {why}", f"fix source '{name}' and run `curate build` again")
    lost = [(name, store.read_json(build / "mined" / name / store.RECEIPT).get("dropped", {})) for name in names]
    dropped = [f"{sum(counts.values())} of '{name}' ({listed(counts)})" for name, counts in lost if counts]
    why = f": `mine negatives` dropped all {listed(dropped, 3)}" if dropped else ""
    show = " ".join(["curate show --dropped", *(f"--only {name}" for name in names[:1]), str(build)])
    return BuildError(build, what + why, f"`{show}` shows them; relax `mine:`")


def reader_digest(model: Model) -> str:
    """Return the digest of everything that decides how a model cuts texts into tokens.

    That is every file of its folder except the weights, the tokenizer's state and settings in memory, the versions of the
    packages involved, and the tokens of a sample, which reveal anything else, such as a dictionary in another place.
    """
    tokenizer, files = model.tokenizer, sorted(model.files.transformer.iterdir())
    state: dict[str, Any] = {}
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("padding"), state.pop("truncation")  # the state of the last call
    return store.digest_of(
        {
            "files": {
                path.name: store.file_digest(path) for path in files if path.is_file() and path.suffix not in WEIGHT_ENDINGS
            },
            "state": state,
            "class": type(tokenizer).__name__,
            "settings": {name: repr(getattr(tokenizer, name, None)) for name in TOKENIZER_SETTINGS},
            "made with": {name: repr(value) for name, value in tokenizer.init_kwargs.items() if not name.endswith(PATH_ENDINGS)},
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "versions": [version_of(package) for package in TOKENIZER_PACKAGES],
            "limits": [model.max_tokens, model.appends_eos],
            "sample": model.tokenize(TOKENIZER_SAMPLE).ids.tolist(),
        }
    )


def version_of(package: str) -> str:
    """Return the version of an installed package, or an empty text."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _source_digest(tables: Sequence[str], entry: Mapping[str, Any], model: Model, prompt: str, reader: str) -> str:
    """Return the digest of everything that a source's tokens depend on; the prompts are represented by a rendered word."""
    prompts = model.choose(prompt)
    rendered = [prompts.of_query(entry["instruction"], "word"), prompts.of_passage("word")]
    return store.digest_of([TOKENS_FORMAT, reader, rendered, list(tables), entry["task"]])


def _write_source(
    build: Path,
    name: str,
    entry: Mapping[str, Any],
    model: Model,
    prompt: str,
    folder: Path,
    digest: str,
    progress: Progress,
) -> dict[str, Any]:
    """Read and tokenise a source; return its receipt."""
    curated, mined = build / "curated" / name, build / "mined" / name
    pairs = tables.read_table(mined, "pairs", ["id", "key", "query", "positives", "negatives", *SCORE_COLUMNS])
    before = tables.read_table(curated, "pairs", ["key", "label"])
    passages = tables.read_table(curated, "passages", ["pid", "key", "text", "group"])

    # Refuse negatives that were mined before the source was rebuilt: their passage ids would name other texts.
    if strange := outdated_tuple(build, name):
        what = f"was mined from other tuples than curated/{name} has now ({strange} is one)"
        raise BuildError(mined, what, "run `mine negatives` again")

    # Passages of one kind must not be each other's negatives: of one class if a clustering source has labels, else of one group.
    kinds = passages["group"]
    if entry["task"] == "clustering" and before["label"].count():
        classes = before.unique("key", keep="first").select("key", pl.col("label").rank("dense").alias("class"))
        kinds = passages.join(classes, on="key", how="left", maintain_order="left")["class"]  # each passage is some row's query

    def work(part: Path) -> dict[str, Any]:
        arrays = _arrays(pairs, passages, kinds, mined)
        used = arrays["text"] != ABSENT
        prompts = model.choose(prompt)
        texts = [prompts.of_query(entry["instruction"], query) for query in pairs["query"]]
        texts += map(prompts.of_passage, passages["text"].gather(np.flatnonzero(used).astype(np.uint32)))

        # Number the distinct texts in order of first appearance.
        column = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
        once = column.unique(maintain_order=True).with_row_index("number")
        number = column.join(once, on="text", how="left", maintain_order="left")["number"].to_numpy().astype(np.uint32)
        distinct = once["text"].to_list()
        arrays["query"] = number[: len(pairs)]
        arrays["text"][used] = number[len(pairs) :]

        # Tokenise them. `tokenize` has compared each token with the size of the embeddings, which may exceed the vocabulary.
        embeddings = model.backbone.get_input_embeddings().num_embeddings
        width, lengths = np.dtype(np.uint16 if embeddings <= 1 << 16 else np.uint32), [np.zeros(1, dtype=np.int64)]
        with progress(f"tokenise {name}", len(distinct), "texts") as advance, store.atomic(part / "ids.bin") as file:
            for first in range(0, len(distinct), TEXTS_AT_ONCE):
                tokens = model.tokenize(distinct[first : first + TEXTS_AT_ONCE])
                file.write(tokens.ids.astype(width).tobytes())
                lengths.append(np.diff(tokens.starts))
                advance(len(tokens.starts) - 1)
        arrays["starts"] = np.cumsum(np.concatenate(lengths))
        for label, array in arrays.items():
            with store.atomic(part / f"{label}.npy") as file:
                np.save(file, array)
        return {"rows": len(pairs), "texts": len(distinct), "wide": width.itemsize}

    folder.parent.mkdir(parents=True, exist_ok=True)
    return store.run_stage(folder, digest, work)[0]


def _arrays(pairs: pl.DataFrame, passages: pl.DataFrame, kinds: pl.Series, mined: Path) -> dict[str, np.ndarray]:
    """Return the arrays that need no tokenizer; `text` is 0 for now if a row uses the passage."""
    positives, positive_starts = _flat(pairs["positives"])
    negatives, negative_starts = _flat(pairs["negatives"])
    named = np.unique(np.concatenate([positives, negatives]))
    if len(named) and named[-1] >= len(passages):
        raise BuildError(mined, f"names passage {named[-1]}, but there are {len(passages)}", "run `mine negatives` again")
    if (np.diff(positive_starts) == 0).any():
        raise BuildError(mined, "has a tuple without a positive", "run `mine negatives` again")
    text = np.full(len(passages), ABSENT, dtype=np.uint32)
    text[named] = 0
    alone = np.arange(len(passages), dtype=np.int64) + FIRST_UNGROUPED
    kind = kinds.cast(pl.Int64).fill_null(-1).to_numpy()
    return {
        "rows": np.frombuffer(b"".join(key[:8] for key in pairs["key"]), dtype="<u8"),
        "positives": positives,
        "positive_starts": positive_starts,
        "negatives": negatives,
        "negative_starts": negative_starts,
        "text": text,
        "identity": np.where(kind >= 0, kind, alone),
        "positive_score": pairs["positive_score"].fill_null(np.nan).to_numpy(),
        "negative_scores": pairs["negative_scores"].explode(empty_as_null=False).fill_null(np.nan).to_numpy(),
    }


def _flat(lists: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return a list column as (values u32, starts i64)."""
    starts = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum(lists.list.len().fill_null(0).to_numpy(), out=starts[1:])
    return lists.explode().drop_nulls().cast(pl.UInt32).to_numpy(), starts
