"""README.md of a published build: what is in it, from where, under which licence, what was left out, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from curation.core.card import LICENSES, WORD, size_of, with_yaml
from curation.core.escape import Markdown, as_code, as_link, as_markdown, markdown_table
from curation.recipe.source import Source

Receipt = Mapping[str, Any]
LOAD = """\
```python
from datasets import load_dataset

rows = load_dataset("{repo}", "{config}", split="train")
print(rows[0]["query"], rows[0]["passage"])
```
"""
TRAIN = """\
With sentence-transformers the columns are anchor, positive and negatives as they stand{only}:

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
) -> str:
    """Return the card.

    Args:
        repo: ORG/NAME.
        build: the build's name.
        sources: what the manifest says of each source.
        entries: what build.json says of each source.
        made: what is published of each, as `publish` made it.
        left_out: source to the reason why it is not published.
        allowed: sources that are published although something speaks against it.
    """
    body = [
        f"# {as_markdown(repo.partition('/')[2])}",
        "",
        _about(build, made),
        "",
        "## Load",
        "",
        *_loading(repo, made),
        "## Sources",
        "",
    ]
    body += [_sources(sources, entries, made), ""]
    body += [
        f"{as_code(name)} was published although it is in doubt: {as_markdown(_doubt(entries[name]))}.\n"
        for name in allowed
        if _doubt(entries[name])
    ]
    body += ["## Rows left out", "", _drops(made), ""] if _drop_lines(made) else []
    body += ["## Hard negatives", "", _mining(made), ""]
    body += _section("Sources left out", [f"{as_code(name)}: {as_markdown(why)}" for name, why in left_out.items()])
    body += _section(
        "Cite", [f"{as_code(name)}: {as_markdown(sources[name].citation)}" for name in made if sources[name].citation]
    )
    body += _section("Known limits", list(_limits(made)))
    return with_yaml(_head(repo, sources, entries, made), "\n".join(body).rstrip() + "\n")


def _head(
    repo: str, sources: Mapping[str, Source], entries: Mapping[str, Receipt], made: Mapping[str, Receipt]
) -> dict[str, Any]:
    rows = sum(one["rows"] for one in made.values())
    hub = [sources[name].path or "" for name in made]
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train-*"}]} for name in made
    ]
    if len(configs) == 1:
        configs[0]["default"] = True
    return {
        "language": sorted({one["curated"]["language"] for one in made.values()}),
        **_license(repo, {entries[name]["license"] for name in made}),
        "pretty_name": repo.partition("/")[2],
        "task_categories": ["text-retrieval", "feature-extraction", "sentence-similarity"],
        "size_categories": [size_of(rows)],
        "tags": ["sentence-transformers", "embeddings", "tuplesmith"],
        **({"source_datasets": found} if (found := sorted({path for path in hub if _is_hub_id(path)})) else {}),
        "configs": configs,
        "dataset_info": [_info(name, one) for name, one in made.items()],
    }


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def _license(repo: str, names: set[str]) -> dict[str, str]:
    """Return the licence of the whole: the sources' where all have one that the Hub knows, else a mixture with its link."""
    name = min(names).lower()
    if len(names) == 1 and name in LICENSES:
        return {"license": name}
    word = name if len(names) == 1 and WORD.fullmatch(name) else "mixture"
    link = f"https://huggingface.co/datasets/{repo}/blob/main/ATTRIBUTION.md"
    return {"license": "other", "license_name": word, "license_link": link}


def _info(name: str, one: Receipt) -> dict[str, Any]:
    download = sum(shard["bytes"] for shard in one["shards"].values())
    split = {"name": "train", "num_bytes": one["bytes"], "num_examples": one["rows"]}
    return {
        "config_name": name,
        "features": one["features"],
        "splits": [split],
        "download_size": download,
        "dataset_size": one["bytes"],
    }


def _about(build: str, made: Mapping[str, Receipt]) -> str:
    rows, without = sum(one["rows"] for one in made.values()), [name for name, one in made.items() if not one["negatives"]]
    what = "(query, passage)" if len(without) == len(made) else "(query, passage, hard negatives)"
    lines = [
        f"{rows:,} {what} tuples of {len(made)} open datasets, one config each, made by tuplesmith as build {as_code(build)}.",
        "`manifest.yaml` is the recipe, `manifest.lock` pins what it read, `provenance.json` counts every row, and",
        "`ATTRIBUTION.md` says whose data it is.",
    ]
    if len(without) == len(made):
        lines.append("No hard negatives were mined: these are pairs only.")
    elif without:
        lines.append(f"Without hard negatives, pairs only: {', '.join(without)}.")
    return "\n".join(lines)


def _loading(repo: str, made: Mapping[str, Receipt]) -> list[str]:
    name, one = next(iter(made.items()))
    more = len(one["features"]) > 2 + one["negatives"]
    select = f".select_columns(['query', 'passage', *(f'negative_{{i + 1}}' for i in range({one['negatives']}))])" if more else ""
    train = TRAIN.format(repo=repo, config=name, select=select, only=", without the further columns" if more else "")
    told = (
        "`query` holds the instruction where a source has one (`Instruct: ...`, a new line, `Query: ...`): put nothing before it."
    )
    if any(feature["name"] == "positives" for feature in one["features"]):
        told += " `passage` is the first of `positives`, which are all that a query has."
    return [LOAD.format(repo=repo, config=name), train, told, ""]


def _sources(sources: Mapping[str, Source], entries: Mapping[str, Receipt], made: Mapping[str, Receipt]) -> str:
    lines = []
    for name, one in made.items():
        source, entry, curated = sources[name], entries[name], one["curated"]
        data = ", ".join(source.places)
        shown = as_link(data, f"https://huggingface.co/datasets/{data}") if _is_hub_id(data) else data
        seen = as_link(entry["license"], entry["license_url"] or "")
        day = f", seen {entry['license_checked']}" if entry["license_checked"] else ""
        mined = one["mined"]["kept"] if one["mined"] else "-"
        kept = (curated["rows_in"], curated["kept"], mined, one["rows"], one["negatives"])
        lines.append((as_code(name), shown, curated["revision"] or Markdown("-"), Markdown(seen + day), curated["task"], *kept))
    head = (
        "config",
        "dataset",
        "revision",
        "licence",
        "task",
        "rows in",
        "tuples kept",
        "with negatives",
        "rows here",
        "negatives",
    )
    return markdown_table(head, lines)


def _doubt(entry: Receipt) -> str:
    told = [] if entry["verified"] else [f"not verified ({entry['notes']})"]
    told += [f"its licence is '{entry['license'] or 'not named'}'"] if entry["license_class"] == "unknown" else []
    return ", ".join(told)


def _drop_lines(made: Mapping[str, Receipt]) -> list[tuple[Any, ...]]:
    lines: list[tuple[Any, ...]] = []
    for name, one in made.items():
        curated, mined = one["curated"], one["mined"] or {"dropped": {}}
        counts = (
            ("row", curated["rows_dropped"]),
            ("tuple", {"merged with one of the same query": curated["merged"], "held out for evaluation": curated["heldout"]}),
            ("tuple", curated["dropped"]),
            ("text", curated["texts_out"]),
            ("tuple", mined["dropped"]),
            ("tuple", one["left_out"]),
        )
        lines += [(as_code(name), what, reason, count) for what, found in counts for reason, count in found.items() if count]
    return lines


def _drops(made: Mapping[str, Receipt]) -> str:
    return markdown_table(("config", "left out", "reason", "count"), _drop_lines(made))


def _mining(made: Mapping[str, Receipt]) -> str:
    lines = [(as_code(name), as_code(one["mined"]["signature"]) if one["mined"] else "none mined") for name, one in made.items()]
    return markdown_table(("config", "how they were found"), lines)


def _limits(made: Mapping[str, Receipt]) -> Iterable[str]:
    yield "Licences are as the sources claim them; nobody has checked the claims."
    yield "A negative is a text that the miner took for wrong; some will be right answers that no source marks as such."
    more = sum(one["positives_left_out"] for one in made.values())
    if more:
        yield f"A row has one positive: {more:,} further positives of the same queries are not here (see `--columns positives`)."


def _section(title: str, items: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {item}" for item in items), ""] if items else []
