"""README.md of a published build, its card: what is in it, from where, under which licence, what was left out, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from curation.core.builds import Receipt, query_origin
from curation.core.card import LICENSE_NAME, LICENSES, size_of, with_yaml
from curation.core.escape import Markdown, as_code, as_link, as_markdown, markdown_table
from curation.recipe.licenses import claim
from curation.recipe.mteb_boards import BOARD_HEAD, Board, board_lines
from curation.recipe.source import Source

VALUE_CHARS = 300  # characters of a text in the example
PICKS = {"top": "", "random": "; chosen at random", "stratified": "; chosen evenly over the ranks"}
LOAD_EXAMPLE = """\
```python
from datasets import load_dataset

rows = load_dataset("{repo}", "{config}", split="train")
print(rows[0]["query"], rows[0]["passage"])
```
"""
TRAIN_EXAMPLE = """\
With sentence-transformers the columns are anchor, positive and negatives as they are{only}:

```python
from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.losses import MultipleNegativesRankingLoss

model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
rows = load_dataset("{repo}", "{config}", split="train"){select}
SentenceTransformerTrainer(model, train_dataset=rows, loss=MultipleNegativesRankingLoss(model)).train()
```
"""


def dataset_card(
    repo: str,
    build: str,
    sources: Mapping[str, Source],
    entries: Mapping[str, Receipt],
    made: Mapping[str, Receipt],
    left_out: Mapping[str, str],
    allowed: Iterable[str],
    row: Mapping[str, Any],
    evaluation: tuple[list[str], Mapping[str, Any]] | None,
    boards: list[Board],
) -> str:
    """Return the card.

    Args:
        repo: ORG/NAME.
        build: the build's name.
        sources: what the manifest says of each source.
        entries: what build.json says of each source.
        made: what is published of each source, see `publish.plan`.
        left_out: source to the reason why it is not published.
        allowed: sources that are published in spite of a doubt.
        row: the first row of the first config.
        evaluation: names of the evaluation sets that all texts were compared with, and `decontaminate` of build.json.
        boards: what is known about MTEB's boards.
    """
    # what it is
    rows, without = sum(one["rows"] for one in made.values()), [name for name, one in made.items() if not one["negatives"]]
    what = "(query, passage)" if len(without) == len(made) else "(query, passage, hard negatives)"
    body = [
        f"# {as_markdown(repo.partition('/')[2])}",
        "",
        f"{rows:,} {what} tuples of {len(made)} open datasets, one config each, made by tuplesmith as build {as_code(build)}.",
        "`manifest.yaml` is the recipe, `manifest.lock` pins what it read, `provenance.json` counts every row, and",
        "`ATTRIBUTION.md` says whose data it is.",
    ]
    if len(without) == len(made):
        body.append("No hard negatives were mined: these are pairs only.")
    elif without:
        body.append(f"Without hard negatives, pairs only: {', '.join(without)}.")

    # how it is loaded, with the first config
    first, one = next(iter(made.items()))
    more = len(one["features"]) > 2 + one["negatives"]
    select = f".select_columns(['query', 'passage', *(f'negative_{{i + 1}}' for i in range({one['negatives']}))])" if more else ""
    train = TRAIN_EXAMPLE.format(repo=repo, config=first, select=select, only=", without the further columns" if more else "")
    note = (
        "`query` contains the instruction if a source has one (`Instruct: ...`, a new line, `Query: ...`): add no other prompt."
    )
    if any(feature["name"] == "positives" for feature in one["features"]):
        note += " `passage` is the first of `positives`, which lists all positives of a query."
    body += ["", "## Load", "", LOAD_EXAMPLE.format(repo=repo, config=first), train, note, ""]
    body += ["## Example", "", *_example(first, row), ""]

    # where it is from, what is in doubt, and what was left out
    lines = []
    for name, one in made.items():
        curated, data, mined = one["curated"], ", ".join(sources[name].places), one["mined"]
        license, url, day = claim(entries[name])
        lines.append(
            (
                as_code(name),
                as_link(data, f"https://huggingface.co/datasets/{data}") if _is_hub_id(data) else data,
                curated["revision"] or Markdown("-"),
                Markdown(as_link(license, url) + (f", seen {day}" if day else "")),
                curated["task"],
                curated["rows_in"],
                curated["kept"],
                mined["kept"] if mined else "-",
                one["rows"],
                one["negatives"],
            )
        )
    head = (
        "config", "dataset", "revision", "licence", "task", "rows in", "tuples kept", "with negatives", "rows here", "negatives",
    )  # fmt: skip
    body += ["## Sources", "", markdown_table(head, lines), ""]
    synthetic = [(name, origin) for name, one in made.items() if (origin := query_origin(one["curated"]))]
    for name, origin in synthetic:
        prompt = made[name]["curated"]["synthetic"]["prompt"]
        body += [f"{as_code(name)} has {as_markdown(origin)}. No person asked them. It was asked: {as_code(prompt)}", ""]
    for name in allowed:
        entry = entries[name]
        doubts = [] if entry["verified"] else [f"not verified ({entry['notes']})"]
        doubts += [f"its licence is '{entry['license'] or 'not named'}'"] if entry["license_class"] == "unknown" else []
        if doubts:
            body.append(f"{as_code(name)} was published although it is in doubt: {as_markdown(', '.join(doubts))}.\n")
    drops: list[tuple[Any, ...]] = []
    for name, one in made.items():
        curated, mined = one["curated"], one["mined"] or {"dropped": {}}
        reasons = (
            ("row", curated["rows_dropped"]),
            ("tuple", {"merged with one of the same query": curated["merged"], "held out for evaluation": curated["heldout"]}),
            ("tuple", curated["dropped"]),
            ("text", curated["texts_out"]),
            ("tuple", mined["dropped"]),
            ("tuple", one["left_out"]),
        )
        drops += [(as_code(name), what, reason, count) for what, found in reasons for reason, count in found.items() if count]
    if drops:
        body += ["## Rows left out", "", markdown_table(("config", "left out", "reason", "count"), drops), ""]
    if evaluation:
        body += ["## Evaluation sets", "", *_evaluation_sets(*evaluation, made), ""]
    board_rows, notes = board_lines(boards)
    if notes:
        body += ["## MTEB", "", *([markdown_table(BOARD_HEAD, board_rows), ""] if board_rows else []), *notes, ""]
    words = [(as_code(name), *_mining_in_words(one)) for name, one in made.items()]
    body += ["## Hard negatives", "", markdown_table(("config", "negatives", "model", "chosen from"), words), ""]
    limits = [
        "Licences are as the sources claim them; nobody has checked the claims.",
        "A negative is a text that the miner took for wrong; some will be right answers that no source marks as such.",
    ]
    if not evaluation:
        limits.append("The texts were not compared with any evaluation set.")
    if more := sum(one["positives_left_out"] for one in made.values()):
        limits.append(
            f"A row has one positive: {more:,} further positives of the same queries are not here (see `--columns positives`)."
        )
    for title, items in (
        ("Sources left out", [f"{as_code(name)}: {as_markdown(why)}" for name, why in left_out.items()]),
        ("Cite", [f"{as_code(name)}: {as_markdown(sources[name].citation)}" for name in made if sources[name].citation]),
        ("Known limits", limits),
    ):
        body += [f"## {title}", "", *(f"- {item}" for item in items), ""] if items else []
    return with_yaml(_card_head(repo, sources, entries, made), "\n".join(body).rstrip() + "\n")


def _example(name: str, row: Mapping[str, Any]) -> list[str]:
    """Return the lines that show a row; long texts are cut, and of several negatives the first and the last are shown."""
    negatives = [column for column in row if re.fullmatch(r"negative_\d+", column)]
    lines = []
    for column, value in row.items():
        if column in negatives[1:-1]:
            if column == negatives[1]:
                lines.append((Markdown("..."), ""))
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append((as_code(column), text[:VALUE_CHARS] + ("..." if len(text) > VALUE_CHARS else "")))
    return [f"The first row of {as_code(name)}:", "", markdown_table(("column", "value"), lines)]


def _evaluation_sets(sets: list[str], found: Mapping[str, Any], made: Mapping[str, Receipt]) -> list[str]:
    """Return the lines on the evaluation sets: what was found in the published sources, and what was done about it."""
    fields = ("query", "positive", "negative", "corpus")
    counts = {
        name: [sum(by_source.get(source, {}).get(field, 0) for source in made) for field in fields]
        for name, by_source in ((name, found["tasks"].get(name, {})) for name in sets)
    }
    clear = [as_code(name) for name in sets if not any(counts[name])]
    lines = [(as_code(name), *counts[name]) for name in sets if any(counts[name])]
    what = {
        "drop": "Tuples whose query or positive occurs in one of these sets were dropped; negatives that do were removed. "
        "Texts that occur in the corpus of a set, but that none of its queries needs, were kept.",
        "strict": "Tuples whose query or positive occurs in one of these sets or its corpus were dropped; negatives that do were "
        "removed.",
        "report": "Texts that occur in one of these sets were counted, **and kept**.",
    }[found["mode"]]
    head = ("evaluation set", "queries found", "positives", "negatives", "of its corpus")
    return [
        what,
        *(["", markdown_table(head, lines)] if lines else []),
        *(["", f"Nothing was found of {', '.join(clear)}."] if clear else []),
    ]


def _mining_in_words(one: Receipt) -> tuple[str, Markdown, str]:
    """Return how many negatives the rows of a source have and from where, the model that searched, and what it chose."""
    mined, number, no_model = one["mined"], one["negatives"], Markdown("-")
    if mined is None:
        return "none", no_model, ""
    strategy, settings, encoder = mined.get("strategy") or mined["way"], mined["settings"], mined.get("encoder", {})
    if not encoder and strategy == "given":
        return f"{number}, given by the source", no_model, ""
    if not encoder:
        return f"{number}, texts of other classes", no_model, "at random"

    # The model; one of somebody's own code has no dtype and no limit of tokens.
    model: list[str] = [as_code(encoder["model"])]
    if "dtype" in encoder:
        model += [encoder["dtype"], f"{encoder['max_tokens']:,} tokens"]
    if settings["reranker"]:
        model.append(f"reranked by {as_code(settings['reranker'])}")

    # From which candidates, and which of them were dropped.
    origin = {
        "dense": "passages that are nearest",
        "bm25": "passages that share words",
        "both": "passages that are nearest or share words",
    }
    among = f"{number}, {origin[settings['candidates']]}" + ", of other classes" * (strategy == "search_other_classes")
    of = "candidates that pass the filters" if settings["rank_basis"] == "surviving" else "candidates"
    skipped = f", without the first {settings['range_min']:,}" if settings["range_min"] else ""
    window = f"the {settings['range_max']:,} nearest {of}{skipped}"
    margin, similarity = settings["relative_margin"], settings["max_similarity"]
    similarity = mined["calibrated"]["max_similarity"] if similarity == "auto" else similarity
    level = f", less {settings['similarity_median']} of the query's median," if settings["similarity_median"] else ""
    filters = (
        (settings["max_score"], "score at most {:g}"),
        (settings["min_score"], "score at least {:g}"),
        (settings["absolute_margin"], "score at least {:g} below the positive's"),
        (None if margin is None else round(1 - margin, 6), "score at most {:g} of the positive's"),
        (similarity, f"similarity to the positives{level} below {{:g}}"),
        (settings["containment"], "less than {:g} of its word 3-grams in a positive"),
        (settings["reranker_max_score"], "reranker's score at most {:g}"),
        (settings["reranker_margin"], "reranker's score at least {:g} below the positive's"),
        (settings["exclude_query"] or None, "not the query"),
        (settings["exclude_group"] or None, "no duplicate of a positive"),
        (settings["exclude_answer"] or None, "without the answer"),
        (settings["distinct"] or None, "distinct"),
    )
    chosen = [f"preset {settings['preset']}", window, *(words.format(value) for value, words in filters if value is not None)]
    return among, Markdown(", ".join(model)), "; ".join(chosen) + PICKS[settings["pick"]]


def _card_head(
    repo: str, sources: Mapping[str, Source], entries: Mapping[str, Receipt], made: Mapping[str, Receipt]
) -> dict[str, Any]:
    """Return the keys that the Hub reads."""
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train-*"}]} for name in made
    ]
    if len(configs) == 1:
        configs[0]["default"] = True
    # the licence of the whole: the sources' if all have one that the Hub knows, else a mixture with a link to the list
    names = {entries[name]["license"] for name in made}
    first = min(names).lower()
    if len(names) == 1 and first in LICENSES:
        license = {"license": first}
    else:
        word = first if len(names) == 1 and LICENSE_NAME.fullmatch(first) else "mixture"
        link = f"https://huggingface.co/datasets/{repo}/blob/main/ATTRIBUTION.md"
        license = {"license": "other", "license_name": word, "license_link": link}
    hub = sorted({path for name in made if _is_hub_id(path := sources[name].path or "")})
    return {
        "language": sorted({one["curated"]["language"] for one in made.values()}),
        **license,
        "pretty_name": repo.partition("/")[2],
        "task_categories": ["text-retrieval", "feature-extraction", "sentence-similarity"],
        "size_categories": [size_of(sum(one["rows"] for one in made.values()))],
        "tags": [
            "sentence-transformers",
            "embeddings",
            "tuplesmith",
            *["synthetic"] * any("synthetic" in one["curated"] for one in made.values()),
        ],
        **({"source_datasets": hub} if hub else {}),
        "configs": configs,
        "dataset_info": [
            {
                "config_name": name,
                "features": one["features"],
                "splits": [{"name": "train", "num_bytes": one["bytes"], "num_examples": one["rows"]}],
                "download_size": sum(shard["bytes"] for shard in one["shards"].values()),
                "dataset_size": one["bytes"],
            }
            for name, one in made.items()
        ],
    }


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))
