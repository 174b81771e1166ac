"""Clusters of a source's queries, from whose rows `cluster_batches` makes batches (arXiv 2407.18887).

BUILD/train/clusters/<digest>/<source>/clusters.npy   (r,) i64   the cluster of each row, from 0

Rows of a batch then ask about similar things, so that their passages are harder in-batch negatives of each other. Clusters are
made by k-means of the queries' vectors, which mining stored, and written once: all epochs and all processes use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from curation.core import store
from curation.core.errors import BuildError, SetupError, first_line
from curation.core.progress import Progress, silent
from curation.core.record import draws
from curation.core.vectors import read_encoders
from curation.recipe.settings import Train
from training.data import in_batch_of
from training.tokens import Source
from training.vectors import Places, make, places_of

ITERATIONS = 20
POINTS_OF_A_CLUSTER = 256  # rows per cluster that k-means looks at; all rows are assigned then
ASSIGNED_AT_A_TIME = 1 << 16  # rows whose vectors are in memory at a time


def clusters_of(
    build: Path,
    recipe: Train,
    sources: Sequence[Source],
    instructions: Mapping[str, str],
    seed: int,
    progress: Progress = silent,
) -> dict[str, np.ndarray]:
    """Return the cluster of each row, (r,) i64, for each source with in-batch negatives that the recipe makes clusters of.

    The vectors are those of the model that mined the source. A source that was not searched takes those of the first model, by
    name, that has a vector of each of its queries.

    Raises:
        BuildError: a source has fewer rows than clusters, or its queries have no vectors.
        SetupError: faiss is not installed.
    """
    found = {}
    for source in sources:
        count = recipe.clusters_in(source.name)
        if not count or not in_batch_of(recipe, source):
            continue
        if count > len(source):
            what = f"has {len(source):,} tuples, fewer than its {count:,} clusters (`cluster_batches`)"
            hint = f"give it fewer, or none: `sources: {{{source.name}: {{cluster_batches: 0}}}}`"
            raise BuildError(f"source '{source.name}'", what, hint)
        encoder = store.read_json(build / "mined" / source.name / store.RECEIPT).get("encoder", {})
        models = [encoder["model"]] if encoder else sorted({str(one.described["model"]) for one in read_encoders(build)})
        missing = BuildError(build / "embeddings", f"has no vectors of the queries of '{source.name}'", make(build, "NAME"))
        places = None
        for model in models:
            try:
                places = places_of(build, model, [source], instructions, queries_only=True, progress=progress)
                break
            except BuildError as error:
                missing = error
        if places is None:
            raise missing
        digest = store.digest_of([places.digests, count, seed])
        folder = build / "train" / "clusters" / digest[:12] / source.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        store.run_stage(folder, digest, partial(write_clusters, source, places, count, seed))
        found[source.name] = np.load(folder / "clusters.npy")
    return found


def write_clusters(source: Source, places: Places, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Make `count` clusters of a source's queries by their cosines, and write them; return what the receipt says.

    Raises:
        SetupError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise SetupError("faiss", f"cannot be used ({first_line(error)})", "pip install 'tuplesmith[cpu]'") from None

    drawn = np.sort(
        np.argsort(draws(seed, f"{source.name}/clusters", np.asarray(source.rows)), kind="stable")[: POINTS_OF_A_CLUSTER * count]
    )
    options = {"niter": ITERATIONS, "seed": seed % 2**31, "spherical": True, "min_points_per_centroid": 1}
    kmeans = faiss.Kmeans(places.stored.dim, count, max_points_per_centroid=POINTS_OF_A_CLUSTER, **options)
    kmeans.train(places.vectors(source, np.asarray(source.query)[drawn]))
    nearest = [
        kmeans.index.search(places.vectors(source, np.asarray(source.query)[first : first + ASSIGNED_AT_A_TIME]), 1)[1][:, 0]
        for first in range(0, len(source), ASSIGNED_AT_A_TIME)
    ]
    clusters = np.concatenate(nearest).astype(np.int64)
    with store.atomic(folder / "clusters.npy") as file:
        np.save(file, clusters)
    return {"rows": len(clusters), "clusters": count, "largest": int(np.bincount(clusters).max())}
