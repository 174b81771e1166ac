"""The sections of a report that tell of the whole build: figures and samples in, HTML out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from curation.core.escape import as_html
from curation.report import figures
from curation.report.samples import drawn
from curation.report.text import licence, shown

if TYPE_CHECKING:
    from curation.report.samples import Lengths

LARGEST = 20  # overlaps listed below the heat map
OVERLAPS = 3  # sampled per evaluation set
STAGES = {"dedup": "duplicates", "decontaminate": "contaminated"}  # stage -> fate; tuples that other stages drop are filtered
HEAD = ("Source", "Task", "Licence", "Became", "Rows", "Unused", "Tuples", "Merged", "Filtered", "Duplicates", "Contaminated",
        "Held out", "Kept", "Passages")  # fmt: skip


class Section(NamedTuple):
    """A part of the page that the contents name."""

    anchor: str
    title: str
    body: str


def counts(receipt: Mapping[str, Any], dropped: pl.DataFrame) -> dict[str, int]:
    """Return rows, unused, tuples, passages and the six fates of tuples; the fates add up to the tuples."""
    stages = dict(dropped.select("reason", "stage").unique("reason").iter_rows())
    fates = dict.fromkeys(figures.FATES, 0)
    for reason, count in receipt["dropped"].items():
        fates[STAGES.get(stages.get(reason, ""), "filtered")] += count
    fates |= {"kept": receipt["kept"], "merged": receipt["merged"], "held out": receipt["heldout"]}
    rows = {"rows": receipt["rows_in"], "unused": sum(receipt["rows_dropped"].values())}
    return {**rows, "tuples": receipt["tuples_made"], "passages": receipt["passages"], **fates}


def totals(summary: Mapping[str, Any], receipts: Mapping[str, Any], counted: Mapping[str, dict[str, int]]) -> str:
    """Return the few numbers at the head of the page."""
    whole = {key: sum(one[key] for one in counted.values()) for key in ("rows", "tuples", "kept", "passages")}
    tasks: dict[str, int] = {}
    for name, receipt in receipts.items():
        tasks[receipt["task"]] = tasks.get(receipt["task"], 0) + counted[name]["kept"]
    numbers = [
        ("sources", len(receipts)),
        ("rows read", whole["rows"]),
        ("tuples made", whole["tuples"]),
        ("kept", whole["kept"]),
    ]
    boxes = "".join(
        f"<div><dt>{name}</dt><dd>{count:,}</dd></div>" for name, count in [*numbers, ("passages", whole["passages"])]
    )
    told = ", ".join(f"{count:,} {task}" for task, count in tasks.items())
    classes = Counter(entry.get("license_class", "unknown") for entry in summary["sources"].values())
    licences = ", ".join(f"{count} {kind}" for kind, count in classes.items())
    lines = f"Kept: {told or 'nothing'}.<br>Licences as claimed: {licences or 'none'}.<br>Seed {summary['seed']}."
    return f'<dl class="totals">{boxes}</dl><p class="quiet">{lines}</p>'


def contents(overview: Iterable[Section], names: Iterable[str]) -> str:
    """Return the list of links beside the page."""
    lines = [f'<li><a href="#{part.anchor}">{part.title}</a></li>' for part in overview]
    lines += [f'<li class="name"><a href="#source-{as_html(name)}">{as_html(name)}</a></li>' for name in names]
    return f"<ul>{''.join(lines)}</ul>"


def _section(anchor: str, title: str, note: str, body: str) -> Section:
    told = f'<p class="quiet">{note}</p>' if note else ""
    return Section(anchor, title, f'<section id="{anchor}"><h2>{title}</h2>{told}{body}</section>')


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], label: str, foot: Sequence[str] = (), words: int = 1) -> str:
    """Return a table that scrolls by itself where it is too wide; cells are HTML, those after the first `words` are numbers."""

    def row(cells: Sequence[str]) -> str:
        rest = "".join(f"<td{' class=zero' if cell == '0' else ''}>{cell}</td>" for cell in cells[1:])
        return f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>'

    heads = "".join(f'<th scope="col"{"" if at < words else " class=n"}>{name}</th>' for at, name in enumerate(head))
    last = f"<tfoot>{row(foot)}</tfoot>" if foot else ""
    body = "".join(row(line) for line in lines)
    return (
        f'<div class="wide" role="region" aria-label="{label}" tabindex="0"><table class="w{words}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody>{last}</table></div>"
    )


def sources(summary: Mapping[str, Any], receipts: Mapping[str, Any], counted: Mapping[str, dict[str, int]]) -> Section:
    """Return the table with a row a source."""
    lines = []
    for name, receipt in receipts.items():
        link = f'<a href="#source-{as_html(name)}">{as_html(name)}</a>'
        lines.append(
            [
                link,
                receipt["task"],
                licence(summary["sources"][name] | {"license_class": None}, "\u2013"),
                *_numbers(counted[name]),
            ]
        )
    keys = next(iter(counted.values()), {})
    whole = {key: sum(one[key] for one in counted.values()) for key in keys}
    foot = ["all", "", "", *_numbers(whole)] if len(lines) > 1 else []
    key = "".join(f'<span><i class="fate{at}"></i>{fate}</span>' for at, fate in enumerate(figures.FATES))
    note = "Rows that made no tuple are unused. Every tuple made was kept, held out, merged into one with the same query, or dropped."
    return _section("sources", "Sources", note, f'<p class="key">{key}</p>' + _table(HEAD, lines, "Sources", foot, words=4))


def _numbers(counted: Mapping[str, int]) -> list[str]:
    order = ("rows", "unused", "tuples", "merged", "filtered", "duplicates", "contaminated", "held out", "kept", "passages")
    fates = {fate: counted[fate] for fate in figures.FATES}
    said = ", ".join(f"{count:,} {fate}" for fate, count in fates.items() if count)
    return [figures.flow(fates, said), *(f"{counted[key]:,}" for key in order)]


def absent(summary: Mapping[str, Any]) -> Section | None:
    """Return the sources of the manifest that are not in the build, because they failed or their licence is not let in."""
    lines = [[as_html(name), "failed", as_html(error)] for name, error in summary["failed"].items()]
    lines += [[as_html(name), "left out", as_html(reason)] for name, reason in summary["excluded"].items()]
    if not lines:
        return None
    body = _table(("Source", "What", "Reason"), lines, "Sources that are not here", words=3)
    return _section("absent", "Not in the build", "", body)


def overlap(found: pl.DataFrame | None, names: list[str]) -> Section | None:
    """Return the picture of which sources share texts, and the largest overlaps in numbers."""
    if len(names) < 2:
        return None
    if found is None:
        return _section("overlap", "Overlap", "This build has not compared its sources with one another.", "")
    there = found.filter(
        pl.col("source_a").is_in(names) & pl.col("source_b").is_in(names) & (pl.col("source_a") != pl.col("source_b"))
    )
    shared = there.filter(pl.col("equal") > 0)
    among = [name for name in names if name in {*shared["source_a"], *shared["source_b"]}]
    alone = len(names) - len(among)
    note = "Texts of 12 characters or more, queries and passages, that two sources share once case and spacing are evened out, before any was dropped."
    note += f" {alone} of {len(names)} sources share none." if alone else ""
    order = ["equal", "source_a", "source_b"]
    top = there.filter((pl.col("equal") > 0) | (pl.col("near").fill_null(0) > 0)).sort(order, descending=[True, False, False])
    lines = [
        [f"{as_html(a)} · {as_html(b)}", *(f"{count:,}" if count is not None else "\u2013" for count in rest)]
        for a, b, *rest in top.head(LARGEST).select("source_a", "source_b", "equal", "near", "dropped").iter_rows()
    ]
    picture = figures.heat_key(shared) if len(among) > figures.FEW else ""
    if among:
        picture += f'<div class="wide" role="region" aria-label="Overlap" tabindex="0">{figures.heat(shared, among)}</div>'
    heads = ("Sources", "Equal", "Near-duplicate", "Dropped from the second")
    return _section("overlap", "Overlap", note, picture + (_table(heads, lines, "Largest overlaps") if lines else ""))


def lengths(found: Mapping[str, Lengths]) -> Section | None:
    """Return how long queries and positives are: one picture a source, all on the same axis."""
    if not found:
        return None
    used = sum(one.queries + one.positives for one in found.values()).nonzero()[0]
    per = figures.PER_DECADE
    decades = (int(used[0]) // per, int(used[-1]) // per + 1) if len(used) else (0, 1)
    drawn_all = []
    for name, one in found.items():
        said = f"medians {one.middle[0]:,} and {one.middle[1]:,}"
        up, down, ticks = figures.length_axis(one.queries, one.positives, decades)
        picture = figures.histogram(up, down, ticks, ("query", "positive"), f"{name}: {said} characters")
        drawn_all.append(f"<figure><figcaption><b>{as_html(name)}</b> <span>{said}</span></figcaption>{picture}</figure>")
    key = '<p class="key"><span><i class="query"></i>queries</span><span><i class="positive"></i>positives</span></p>'
    note = "Characters of each kept query and of each distinct positive, on a logarithmic axis; each curve to its own height."
    return _section("lengths", "Lengths", note, f'{key}<div class="figures">{"".join(drawn_all)}</div>')


def scores(mined: Mapping[str, Any]) -> Section | None:
    """Return what mined sources' positives and negatives scored: one picture a source, from its receipt."""
    pictures = []
    for name, receipt in mined.items():
        up, down = (np.array(receipt["histograms"][kind]) for kind in ("positives", "negatives"))
        if not down.sum():
            continue  # negatives that were drawn or given have no scores
        said = f"median positive {_median(up)}, median negative {_median(down)}"
        picture = figures.histogram(up, down, ("0", "0.5", "1"), ("positive", "negative"), f"{name}: {said}")
        said += f"; {receipt['kept']:,} of {receipt['rows_in']:,} tuples"
        pictures.append(f"<figure><figcaption><b>{as_html(name)}</b> <span>{said}</span></figcaption>{picture}</figure>")
    if not pictures:
        return None
    key = '<p class="key"><span><i class="positive"></i>positives</span><span><i class="negative"></i>negatives</span></p>'
    note = "What a query scores with its positive and with the negatives that were mined for it; each curve to its own height."
    return _section("scores", "Scores", note, f'{key}<div class="figures">{"".join(pictures)}</div>')


def _median(counts: np.ndarray) -> str:
    """Return the middle of the bin between 0 and 1 that holds the median."""
    return f"{(np.searchsorted(counts.cumsum(), counts.sum() / 2) + 0.5) / len(counts):.2f}" if counts.sum() else "none"


def labels(found: Mapping[str, list[tuple[str, int]]]) -> Section | None:
    """Return how the tuples of labelled sources spread over their labels."""
    if not found:
        return None
    pictures = []
    for name, counted in found.items():
        said = f"{len(counted):,} labels, {counted[-1][1]:,} to {counted[0][1]:,} tuples"
        pictures.append(
            f"<figure><figcaption><b>{as_html(name)}</b> <span>{said}</span></figcaption>{figures.balance(counted)}</figure>"
        )
    return _section("labels", "Labels", "Kept tuples by label, largest first.", f'<div class="figures">{"".join(pictures)}</div>')


def contamination(said: Mapping[str, Any] | None, found: pl.DataFrame | None, seed: int) -> Section | None:
    """Return which evaluation sets overlap with which sources, with a few of the matching spans."""
    if said is None:
        return None
    fields = ("query", "positive", "negative", "corpus")
    lines = [
        [as_html(task), as_html(source), *(f"{counted.get(field, 0):,}" for field in fields)]
        for task, by_source in said["tasks"].items()
        for source, counted in by_source.items()
    ]
    note = f"Mode: {as_html(str(said['mode']))}." + ("" if lines else " No text of an evaluation set was found in any source.")
    body = (
        _table(("Evaluation set", "Source", "Queries", "Positives", "Negatives", "Corpus"), lines, "Contamination", words=2)
        if lines
        else ""
    )
    samples = []
    for (task,), rows in found.group_by("task", maintain_order=True) if found is not None else ():
        for row in rows[drawn(seed, f"contamination/{task}", len(rows), OVERLAPS)].to_dicts():
            named = as_html(row["id"] or row["source"])  # a passage of the corpus has no tuple
            where = (
                f"{named} {row['field']} · {as_html(str(task))} {as_html(row['eval_id'])} {row['eval_field']} · {row['action']}"
            )
            samples.append(f'<li><p class="quiet">{where}</p>{shown(row["evidence"] or "")}</li>')
    body += (
        f'<details class="more"><summary>Samples</summary><ul class="plain">{"".join(samples)}</ul></details>' if samples else ""
    )
    return _section("contamination", "Contamination", note, body)
