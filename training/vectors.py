"""Vectors that mining stored, for training: a teacher's, and those of the queries by which clusters are made.

BUILD/train/vectors/<digest>/<source>/places.npy   (texts,) i64   the place of each text's vector in the store, -1 for texts
                                                                  that were not asked for

Texts are numbered as in `tokens.py`. The student and the model that made the vectors may have other prompts. A text that is a
query and a passage gets the query's vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curation.core import store, tables
from curation.core.errors import BuildError
from curation.core.progress import Progress, silent
from curation.core.record import keys_of
from curation.core.vectors import ENDINGS, KEY, Known, Stored, encoders_of
from training.model.prompts import Prompts
from training.tokens import ABSENT, Source

CHARACTERS_SHOWN = 40  # characters of a text in an error


class Places(NamedTuple):
    """The vectors of some sources' texts."""

    stored: Stored
    of: dict[str, np.ndarray]  # source -> (texts,) i64
    digests: dict[str, str]  # source -> digest of all that its vectors depend on, for the description of a run

    def vectors(self, source: Source, texts: np.ndarray) -> np.ndarray:
        """Return the vectors of some texts of a source, given by their numbers, (n, dim) float32."""
        return self.stored[self.of[source.name][texts]]


def places_of(
    build: Path,
    model: str,
    sources: Sequence[Source],
    instructions: Mapping[str, str],
    queries_only: bool = False,
    progress: Progress = silent,
) -> Places:
    """Return the places of the vectors that a model made of the sources' texts.

    If the model was used with several settings (dtype, prompts), the first whose vectors are complete are taken.

    Args:
        build: the build folder.
        model: the name of the model, as it was given when the vectors were made.
        sources: the sources.
        instructions: by source, as the model read them before queries.
        queries_only: passages need no vectors.
        progress: reports how far the work is.

    Raises:
        BuildError: there are no vectors of this model, or some are missing.
    """
    missing = BuildError(build / "embeddings", f"has no vectors of {model}", make(build, model))
    for known in encoders_of(build, model):
        for kind in ENDINGS:
            folder = build / "embeddings" / (known.fingerprint + ("" if kind == "float32" else f"-{ENDINGS[kind]}"))
            if folder.is_dir():
                try:
                    stored = Stored(folder, known.dim, kind)
                    return _read(build, model, known, stored, sources, instructions, queries_only, progress)
                except BuildError as error:
                    missing = error
    raise missing


def make(build: Path, model: str) -> str:
    """Return the command that makes vectors, as the hint of an error."""
    return f"run `mine embed {build} --model {model}`"


def _read(
    build: Path,
    model: str,
    known: Known,
    stored: Stored,
    sources: Sequence[Source],
    instructions: Mapping[str, str],
    queries_only: bool,
    progress: Progress,
) -> Places:
    """Return the places of the vectors in one folder; find them and write them down if that was not done yet."""
    prompts, places, digests = Prompts(**known.prompts), {}, {}
    shards = [store.file_digest(path) for path in sorted(stored.folder.glob("shard-*.json"))]

    def find(source: Source, part: Path) -> dict[str, Any]:
        if not len(stored):
            stored.load()
        rows = tables.read_table(source.folder, "pairs", ["query"])["query"]
        texts = [(np.asarray(source.query), [prompts.of_query(instructions[source.name], text) for text in rows])]
        if not queries_only:
            used = np.flatnonzero(np.asarray(source.text) != ABSENT).astype(np.uint32)
            passages = tables.read_table(build / "curated" / source.name, "passages", ["text"])["text"].gather(used)
            texts.append((np.asarray(source.text)[used], [prompts.of_passage(text) for text in passages]))
        found, lost = np.full(len(source.starts) - 1, -1, np.int64), list[str]()
        with progress(f"find vectors of {source.name}", sum(len(rendered) for _, rendered in texts), "texts") as advance:
            for numbers, rendered in reversed(texts):  # queries last, so that a text that is both gets theirs
                found[numbers] = at = stored.find(np.array(keys_of(rendered).to_list(), KEY))
                lost += [rendered[row] for row in np.flatnonzero(at < 0)]
                advance(len(rendered))
        if lost:
            what = f"lacks {model}'s vectors of {len(lost):,} of {sum(len(rendered) for _, rendered in texts):,} texts of"
            raise BuildError(stored.folder, f"{what} '{source.name}', such as {lost[0][:CHARACTERS_SHOWN]!r}", make(build, model))
        with store.atomic(part / "places.npy") as file:
            np.save(file, found)
        return {"texts": len(found)}

    for source in sources:
        digest = store.digest_of([source.digest, stored.folder.name, known.prompts, instructions[source.name], queries_only])
        folder = build / "train" / "vectors" / store.digest_of([digest, shards])[:12] / source.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        store.run_stage(folder, digest, partial(find, source))
        places[source.name], digests[source.name] = np.load(folder / "places.npy", mmap_mode="r"), digest
    return Places(stored, places, digests)
