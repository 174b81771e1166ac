"""The texts of a mined source as tokens: each distinct text once, in flat arrays that are mapped into memory.

ids.bin        (T,)    u16 or u32  the tokens of all texts, one after the other
starts.npy     (n+1,)  i64         text t is ids[starts[t]:starts[t+1]]
rows.npy       (r,)    u64         what each row's draws are a function of: the head of its query's key
query.npy      (r,)    u32         text of the row's query
positives.npy  (P,)    u32         passages; row i has positives[positive_starts[i]:positive_starts[i+1]]
negatives.npy  (N,)    u32         likewise, with negative_starts.npy
positive_score.npy   (r,)  f32     the miner's score of the positive that is trained on, NaN where there is none
negative_scores.npy  (N,)  f32     likewise of each negative
text.npy       (p,)    u32         text of each passage; ABSENT where no row names it
identity.npy   (p,)    i64         equal for two passages exactly if they may not serve as each other's negatives: they are of one
                                   group or, where a clustering has labels, of one class
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import polars as pl

from curation.core import store, tables
from curation.core.builds import checked_stage, read_build
from curation.core.errors import BuildError, listed
from curation.core.progress import Progress, silent

if TYPE_CHECKING:
    from training.model.model import Model

ABSENT = np.uint32(0xFFFFFFFF)
FORMAT = 4  # of these arrays
TEXTS_AT_ONCE = 8192
FIRST_UNGROUPED = 1 << 32  # groups are u32, so a passage without one gets an identity that no group has
WINDOW = 1 << 25  # bytes of a large file that may be mapped at a time
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot")
PATHS = ("_file", "name_or_path", "path")  # ends of names of settings that say where a tokenizer came from
SETTINGS = ("truncation_side", "do_lower_case", "add_prefix_space", "split_special_tokens", "sp_model_kwargs")
CUTTERS = (
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
SAMPLE = (
    "",
    "one",
    "Größe, naïve CAFÉ, 東京都に行く, Здравствуйте, xin chào các bạn, 🦙🦙 x1969-07-20",
    "which side is cut? " * 2000,
)
SCORES = ("positive_score", "negative_scores")
ARRAYS = ("starts", "rows", "query", "positives", "positive_starts", "negatives", "negative_starts", "text", "identity", *SCORES)


@dataclass(frozen=True)
class Source:
    """One source to train on; the arrays are as in the module's picture, mapped and not read."""

    name: str
    task: str
    folder: Path  # of the mined pairs, where the ids of the rows are
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
    tables: str = ""  # the digest of the tables of tuples and passages that the tokens were made of

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def further_positives(self) -> int:
        """How many positives there are besides the first of each row."""
        return len(self.positives) - len(self.rows)

    def row_ids(self, rows: np.ndarray) -> list[str]:
        """Return the ids of some rows, such as `squad/87431`."""
        return [str(name) for name in tables.read_table(self.folder, "pairs", ["id"])["id"].gather(rows.astype(np.uint32))]


def taken(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return values[places]; of a large mapped file no more than a window stays in this process's memory.

    Where a place is read, the system maps many around it: a few thousand reads would map gigabytes.
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
        BuildError: no build stands there, a source of `only` or of the recipe's settings is not in it, or a source has no
            mined negatives.
    """
    known: dict[str, dict[str, Any]] = read_build(build)["sources"]
    if strange := [name for name in (*only, *settings) if name not in known]:
        raise BuildError(build, f"has no source '{strange[0]}'", f"it has {listed(known)}")
    chosen = {name: entry for name, entry in known.items() if not only or name in only}
    if missing := [name for name in chosen if not (build / "mined" / name / store.RECEIPT).exists()]:
        raise BuildError(build, f"no mined negatives for {listed(missing)}", f"run `mine negatives {build}` first")
    return chosen


def load_sources(build: Path, model: Model, prompt: str, only: Sequence[str] = (), progress: Progress = silent) -> list[Source]:
    """Return the sources of a build as tokens, making those that are not there yet or no longer right.

    They stand in `train/tokens/<tokenizer>/<source>`, so runs with different models do not undo each other's work.

    Raises:
        BuildError: no mined negatives, files changed by hand, or not one row to train on.
    """
    reader = reader_digest(model)
    sources = []
    for name, entry in mined_sources(build, only).items():
        folder = build / "train" / "tokens" / reader[:12] / name
        curated = checked_stage(build, f"curated/{name}")
        mined = checked_stage(build, f"mined/{name}", "run `mine negatives` first")
        if mined.get("curated", curated["digest"]) != curated["digest"]:
            raise BuildError(
                build / "mined" / name, f"was mined before curated/{name} was built anew", "run `mine negatives` again"
            )
        made_of = store.digest_of([curated["files"], mined["files"]])
        digest = _source_digest([curated["digest"], mined["digest"], made_of], entry, model, prompt, reader)
        receipt = store.read_receipt(folder)
        if receipt is None or receipt["digest"] != digest:
            receipt = _write_source(build, name, entry, model, prompt, folder, digest, progress)
        else:
            store.check_files(folder, receipt)
        if receipt["rows"]:
            sources.append(_open(build, name, entry["task"], folder, receipt, made_of))
    if not sources:
        raise nothing_to_train_on(build, only)
    return sources


def nothing_to_train_on(build: Path, only: Sequence[str] = ()) -> BuildError:
    """Return the error of a build without one mined tuple: the stage that took them, and where they are shown."""
    whole, what = store.read_json(build / "build.json"), "has not one mined tuple to train on"
    names = [name for name in whole["sources"] if not only or name in only]
    if not names and (failed := whole.get("failed", {})):
        name, why = next(iter(failed.items()))
        return BuildError(build, f"{what}: {why}", f"mend source '{name}' and run `curate build` again")
    lost = [(name, store.read_json(build / "mined" / name / store.RECEIPT).get("dropped", {})) for name in names]
    said = [f"{sum(counts.values())} of '{name}' ({listed(counts)})" for name, counts in lost if counts]
    took = f": `mine negatives` dropped all {listed(said, 3)}" if said else ""
    show = " ".join(["curate show --dropped", *(f"--only {name}" for name in names[:1]), str(build)])
    return BuildError(build, what + took, f"see `{show}` for them, and loosen `mine:`")


def reader_digest(model: Model) -> str:
    """Return the digest of all that decides how a model cuts texts into tokens.

    That is every file of its folder but the weights, what the tokenizer was made of them and set to in memory, the versions
    of the packages that do the work, and, for what none of these tells, such as a dictionary elsewhere, the tokens of a sample.
    """
    tokenizer, files = model.tokenizer, sorted(model.files.transformer.iterdir())
    state: dict[str, Any] = {}
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("padding"), state.pop("truncation")  # of the last call, and not what the tokenizer is
    return store.digest_of(
        {
            "files": {path.name: store.file_digest(path) for path in files if path.is_file() and path.suffix not in WEIGHTS},
            "state": state,
            "class": type(tokenizer).__name__,
            "settings": {name: repr(getattr(tokenizer, name, None)) for name in SETTINGS},
            "made with": {name: repr(value) for name, value in tokenizer.init_kwargs.items() if not name.endswith(PATHS)},
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "versions": [version_of(package) for package in CUTTERS],
            "limits": [model.max_tokens, model.appends_eos],
            "sample": model.tokenize(SAMPLE).ids.tolist(),
        }
    )


def version_of(package: str) -> str:
    """Return the version of a package that is installed, or an empty text."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _source_digest(tables: Sequence[str], entry: Mapping[str, Any], model: Model, prompt: str, reader: str) -> str:
    """Return the digest of all that a source's tokens depend on; the prompts are told by what they make of a word."""
    rendered = [model.render_query(entry["instruction"], "word", prompt), model.render_passage("word", prompt)]
    return store.digest_of([FORMAT, reader, rendered, list(tables), entry["task"]])


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
    pairs = tables.read_table(mined, "pairs", ["id", "key", "query", "positives", "negatives", *SCORES])
    before = tables.read_table(curated, "pairs", ["id", "key", "positives", "label"])
    _same_tuples(pairs, before, mined)
    passages = tables.read_table(curated, "passages", ["pid", "key", "text", "group"])
    kinds = _classes(before, passages) if entry["task"] == "clustering" else passages["group"]

    def work(part: Path) -> dict[str, Any]:
        arrays = _arrays(pairs, passages, kinds, mined)
        named = passages["text"].gather(np.flatnonzero(arrays["text"] != ABSENT).astype(np.uint32))
        texts = [model.render_query(entry["instruction"], query, prompt) for query in pairs["query"]]
        texts += [model.render_passage(text, prompt) for text in named]
        number, distinct = _distinct(texts)
        arrays["query"] = number[: len(pairs)]
        arrays["text"][arrays["text"] != ABSENT] = number[len(pairs) :]
        with progress(f"tokenise {name}", len(distinct), "texts") as advance, store.atomic(part / "ids.bin") as file:
            arrays["starts"] = _tokenise(model, distinct, file, advance)
        for label, array in arrays.items():
            with store.atomic(part / f"{label}.npy") as file:
                np.save(file, array)
        return {"rows": len(pairs), "texts": len(distinct), "wide": _width(model).itemsize}

    folder.parent.mkdir(parents=True, exist_ok=True)
    return store.run_stage(folder, digest, work)[0]


def _same_tuples(pairs: pl.DataFrame, before: pl.DataFrame, mined: Path) -> None:
    """Refuse negatives that were mined before the source was built anew: their passage ids would name other texts."""
    first = pl.col("positives").list.first().alias("first")
    known = before.select("id", "key", first, pl.col("positives").list.len().alias("count"))
    found = pairs.select("id", "key", first, pl.col("positives").list.len().alias("count"))
    if len(strange := found.join(known, on=["id", "key", "first", "count"], how="anti", nulls_equal=True)):
        told = f"was mined from other tuples than curated/{mined.name} now holds ({strange['id'][0]} is one)"
        raise BuildError(mined, told, "run `mine negatives` again")


def _classes(pairs: pl.DataFrame, passages: pl.DataFrame) -> pl.Series:
    """Return what passages of a clustering must not be negatives of: their class, or their group if no row has a label."""
    if not pairs["label"].count():
        return passages["group"]
    of_text = pairs.unique("key", keep="first").select("key", pl.col("label").rank("dense").alias("class"))
    return passages.join(of_text, on="key", how="left", maintain_order="left")["class"]  # each passage is some row's query


def _arrays(pairs: pl.DataFrame, passages: pl.DataFrame, kinds: pl.Series, mined: Path) -> dict[str, np.ndarray]:
    """Return the arrays that need no tokenizer; `text` is 0 for now where a row names the passage."""
    positives, positive_starts = _flat(pairs["positives"])
    negatives, negative_starts = _flat(pairs["negatives"])
    named = np.unique(np.concatenate([positives, negatives]))
    if len(named) and named[-1] >= len(passages):
        raise BuildError(mined, f"names passage {named[-1]} of {len(passages)}", "run `mine negatives` again")
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


def _distinct(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return (number of each text u32, distinct texts in order of first appearance)."""
    column = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    once = column.unique(maintain_order=True).with_row_index("number")
    number = column.join(once, on="text", how="left", maintain_order="left")["number"].to_numpy()
    return number.astype(np.uint32), once["text"].to_list()


def _width(model: Model) -> np.dtype[Any]:
    # Of the embeddings, which `tokenize` has compared each token with: a vocabulary with gaps has tokens beyond its length.
    return np.dtype(np.uint16 if model.backbone.get_input_embeddings().num_embeddings <= 1 << 16 else np.uint32)


def _tokenise(model: Model, texts: list[str], file: IO[bytes], advance: Any) -> np.ndarray:
    """Write the tokens of all texts to a file and return where each begins, (n+1,) i64."""
    width, lengths = _width(model), [np.zeros(1, dtype=np.int64)]
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        tokens = model.tokenize(texts[first : first + TEXTS_AT_ONCE])
        file.write(tokens.ids.astype(width).tobytes())
        lengths.append(np.diff(tokens.starts))
        advance(len(tokens.starts) - 1)
    return np.cumsum(np.concatenate(lengths))


def _open(build: Path, name: str, task: str, folder: Path, receipt: Mapping[str, Any], made_of: str) -> Source:
    arrays = {label: np.load(folder / f"{label}.npy", mmap_mode="r") for label in ARRAYS}
    ids = np.memmap(folder / "ids.bin", dtype=np.uint16 if receipt["wide"] == 2 else np.uint32, mode="r")
    return Source(name, task, build / "mined" / name, receipt["digest"], ids, **arrays, tables=made_of)
