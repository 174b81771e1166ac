"""The section of a report that tells of one source: facts and samples in, HTML out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from curation.core.escape import as_html
from curation.report.samples import Near, Pair
from curation.report.text import compared, licence, shown
from curation.shape.columns import EVIDENCE_CHARS

BRIEF = 24  # characters of evidence that fit beside an id


def source(
    name: str,
    facts: Mapping[str, Any],
    counted: Mapping[str, int],
    records: Sequence[Mapping[str, Any]],
    near: Near,
    threshold: float,
    left_out: Mapping[str, list[dict[str, Any]]],
    matched: Mapping[str, str],
) -> str:
    """Return a source's own section: its facts, a record to read, and more of them folded away."""
    told = [facts["task"], facts["shape"], facts["language"], f"{counted['kept']:,} of {counted['tuples']:,} tuples kept"]
    first, *others = [_record(row) for row in records] or [""]
    parts = [f"<h3>{as_html(name)}</h3>", f'<p class="quiet">{" · ".join(map(as_html, told))} · {licence(facts)}</p>']
    if facts["instruction"]:
        parts.append(f'<p class="instruction" dir="auto">{as_html(facts["instruction"])}</p>')
    doubt = "Not verified. " if facts.get("verified") is False else ""
    if doubt or facts.get("notes"):
        parts.append(f'<p class="{"warning" if doubt else "quiet"}">{doubt}{as_html(facts.get("notes") or "")}</p>')
    if facts.get("outside"):
        parts.append(f'<p class="quiet">Read from outside of the manifest\'s folder: {as_html(", ".join(facts["outside"]))}</p>')
    parts += [first, _more(f"{len(others)} more records", "".join(others))] if others else [first]
    if near.pairs:
        title = f"Near-duplicate pairs: {near.above:,} at or above {threshold:g}, {near.below:,} just below"
        parts.append(_more(title, "".join(_pair(pair) for pair in near.pairs)))
    parts.append(_left_out(facts, left_out, matched))
    return f'<section class="source" id="source-{as_html(name)}">{"".join(parts)}</section>'


def _more(title: str, body: str) -> str:
    return f'<details class="more"><summary>{title}</summary>{body}</details>'


def _record(row: Mapping[str, Any]) -> str:
    label = f'<span class="label">{as_html(row["label"])}</span>' if row["label"] is not None else ""
    lines = [f'<dt>query</dt><dd class="q">{shown(row["query"])}{label}</dd>']
    others = f'<p class="quiet">and {row["others"]:,} more</p>' if row["others"] > 0 else ""
    lines += [f"<dt>positive</dt><dd>{shown(text)}{others}</dd>" for text in row["positives"][:1]]
    for at, text in enumerate(row["negatives"], 1):
        more = f'<p class="quiet">and {row["more"]:,} more</p>' if row["more"] and at == len(row["negatives"]) else ""
        lines.append(f"<dt>negative</dt><dd>{shown(text)}{more}</dd>")
    return f'<article class="record"><p class="id">{as_html(row["id"])}</p><dl>{"".join(lines)}</dl></article>'


def _jaccard(score: float) -> str:
    return f"Jaccard {math.floor(100 * score + 1e-9) / 100:.2f}"  # never rounded up over a threshold


def _pair(pair: Pair) -> str:
    said = f"{_jaccard(pair.score)}: {pair.verdict}"
    return f'<div class="pair"><p class="quiet">{said}</p>{compared(pair.left, pair.right)}</div>'


def _left_out(facts: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]], matched: Mapping[str, str]) -> str:
    """Return the reasons for which rows, tuples and texts were left out, with samples."""
    kinds = (("rows_dropped", "rows"), ("dropped", "tuples"), ("texts_out", "texts"))
    reasons = [(what, reason, count) for key, what in kinds for reason, count in facts[key].items()]
    reasons += [("tuples merged", "same_query", facts["merged"])] if facts["merged"] else []
    if not reasons:
        return '<p class="quiet">Nothing was left out.</p>'
    parts = []
    for what, reason, count in reasons:
        rows = "".join(_drop(row, matched) for row in samples.get(reason, []))
        listed = f'<ul class="plain">{rows}</ul>' if rows else ""
        parts.append(f'<div class="reason"><h4><code>{as_html(reason)}</code> <span>{count:,}</span> {what}</h4>{listed}</div>')
    whole = ", ".join(f"{as_html(reason)} {count:,}" for _, reason, count in reasons)
    return _more(f'Left out: <span class="quiet">{whole}</span>', "".join(parts))


def _drop(row: Mapping[str, Any], matched: Mapping[str, str]) -> str:
    evidence, match = row["evidence"] or "", matched.get(row["matched_id"] or "")
    score = f", {_jaccard(row['score'])}" if row["score"] is not None else ""
    gave_way = f" for {as_html(row['matched_id'])}{score}" if row["matched_id"] else ""
    if row["stage"] == "dedup" and match and evidence.strip() != match.strip():
        body = compared(evidence, match[:EVIDENCE_CHARS] if len(evidence) == EVIDENCE_CHARS else match)
    else:
        brief = len(evidence) <= BRIEF and "\n" not in evidence
        body = f'<span class="brief" dir="auto">{as_html(evidence)}</span>' if brief else shown(evidence)
    return f'<li><p class="id">{as_html(row["id"])}{gave_way}</p>\n{body}</li>'
