"""report.html: a build on one page that needs no other file, with the figures of `curate stats --json`.

This file collects what the page shows; `report.template.html` (Jinja) is the page. Texts are escaped there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from curation.core.builds import Receipt, check_beside, checked_stage, query_origin, read_summary
from curation.core.errors import listed
from curation.core.escape import as_html, visible
from curation.core.record import ORIGINS
from curation.core.store import atomic, check_files, digest_of, file_digest, is_sealed_page, read_receipt, sealed_page, versions
from curation.core.tables import chosen_of, read_frames, read_groups, read_parquet, read_table
from curation.read.outside import hide_local_paths
from curation.recipe.licenses import claim
from curation.recipe.manifest import load_manifest
from curation.recipe.mteb_boards import BOARD_HEAD, BOARDS_FILE, board_lines, zero_shot
from curation.report import figures
from curation.report.samples import compared, drops, matched_queries, near_pairs, sample_records, sampled, shown
from curation.shape.columns import EVIDENCE_CHARS

LAYOUT = 4  # raised when the page changes; then every report is written again
TEMPLATE = Path(__file__).with_name("report.template.html")
STATE = '<meta name="tuplesmith-state" content="{}">'
LARGEST = 20  # overlaps listed below the heat map
CONTAMINATION_SAMPLES = 3  # per evaluation set
LINE_CHARS = 24  # characters of evidence that fit on the line of an id
MEASURED = 200_000  # positives; of a source with more, the lengths of a sample are shown
MUCH = 0.25  # share of a source's rows or tuples; if more is left out, the head of the page says so
STAGES = {"dedup": "duplicates", "decontaminate": "contaminated"}  # stage -> fate; tuples that other stages drop are filtered
COUNT_NAMES = ("rows", "unused", "tuples", "merged", "filtered", "duplicates", "contaminated", "held out", "kept", "passages")
LEFT_OUT = (("rows_dropped", "rows"), ("dropped", "tuples"), ("texts_out", "texts"))  # keys of a receipt, and what they count


def write(folder: Path, again: bool = False) -> bool:
    """Write report.html of a build unless it shows the build as it is; return whether it was written.

    The same build gives the same bytes. With `again` it is written in any case.

    Raises:
        BuildError: there is no build, or a file of it was changed by hand.
    """
    target, state = folder / "report.html", _state(folder)
    if not again and target.exists() and is_sealed_page(target):
        with target.open("rb") as file:
            if state.encode() in file.read(500):
                return False
    with atomic(target) as file:
        file.write(sealed_page(render(folder)))
    return True


def render(folder: Path, left_out: Mapping[str, str] | None = None) -> str:
    """Return the page as HTML, without the folders of this machine.

    Args:
        folder: the build.
        left_out: sources that the page does not show, only why; those that are not published.

    Raises:
        BuildError: there is no build, or a file of it was changed by hand.
    """
    receipts, mined = _receipts(folder)
    receipts = {name: receipt for name, receipt in receipts.items() if name not in (left_out or {})}
    for name in receipts:
        checked_stage(folder, f"curated/{name}")
        if "files" in mined.get(name, {}):
            check_files(folder / "mined" / name, mined[name])
    check_beside(folder, "manifest.yaml", "overlaps.parquet", "contamination.parquet")
    manifest = load_manifest(folder / "manifest.yaml")
    threshold = manifest.dedup.threshold if manifest.dedup else 1.0
    summary = read_summary(folder)
    absent = [(name, "failed", error) for name, error in summary["failed"].items() if name not in (left_out or {})]
    absent += [(name, "left out", why) for name, why in (summary["excluded"] | dict(left_out or {})).items()]

    sources = [_collected(folder, name, receipts, mined.get(name), summary, threshold) for name in receipts]
    # the pictures of lengths have the same axis for all sources, from the shortest to the longest text
    used = [place for one in sources for bins in one["lengths"]["bins"] for place in bins.nonzero()[0]]
    per = figures.PER_DECADE
    first, last = (int(min(used)) // per, int(max(used)) // per + 1) if used else (0, 1)
    powers = [10**power for power in range(first, last + 1)]
    ticks = [f"{n // 10**6}M" if n >= 10**6 else f"{n // 1000}k" if n >= 1000 else str(n) for n in powers]
    for one in sources:
        queries, positives = (bins[first * per : last * per] for bins in one["lengths"]["bins"])
        label = f"{one['name']}: {one['lengths']['text']} characters"
        one["lengths"]["picture"] = figures.histogram(queries, positives, ticks, ("query", "positive"), label)
    warnings = []  # where much of a source was left out: how much, and why
    for one in sources:
        name, facts, counts = one["name"], one["facts"], one["counts"]
        tuples = counts["filtered"] + counts["duplicates"] + counts["contaminated"]
        for gone, of, key, what in (
            (counts["unused"], counts["rows"], "rows_dropped", "rows"),
            (tuples, counts["tuples"], "dropped", "tuples"),
        ):
            if gone > MUCH * of:
                reasons = sorted(facts[key].items(), key=lambda item: -item[1])
                why = listed([f"{reason} {count:,}" for reason, count in reasons], 3)
                warnings.append(f"{name}: {gone:,} of {of:,} {what} ({gone / of:.0%}) are left out: {why}")
    whole = {key: sum(one["counts"][key] for one in sources) for key in COUNT_NAMES}
    tasks = Counter[str]()  # tuples kept
    for one in sources:
        tasks[one["facts"]["task"]] += one["counts"]["kept"]
    boards, notes = board_lines(zero_shot(folder, list(receipts)))
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # texts with control characters as numbers; Jinja escapes them
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    environment.filters |= {"n": "{:,}".format, "shown": shown, "drop": _drop}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=summary["name"],
        state=Markup(_state(folder) if left_out is None else ""),
        version=versions()["tuplesmith"],
        seed=summary["seed"],
        fates=figures.FATES,
        sources=sources,
        whole=whole,
        whole_flow=_flow(whole),
        tasks=tasks,
        classes=Counter(one["facts"].get("license_class", "unknown") for one in sources),
        warnings=warnings,
        absent=absent,
        overlap=_overlap(folder, list(receipts)),
        threshold=f"{threshold:g}",
        contamination=_contamination(folder, summary, list(receipts)),
        boards={"head": [name.capitalize() for name in BOARD_HEAD], "lines": boards, "text": " ".join(notes)} if notes else None,
        compared=compared,
    )
    return hide_local_paths(page, manifest)


def _receipts(folder: Path) -> tuple[dict[str, Receipt], dict[str, Receipt]]:
    """Return the receipts of a build's sources, and of their negatives if these were mined from the tables that are there now."""
    names = read_summary(folder)["sources"]
    receipts: dict[str, Receipt] = {name: receipt for name in names if (receipt := read_receipt(folder / "curated" / name))}
    mined: dict[str, Receipt] = {}
    for name, curated in receipts.items():
        receipt = read_receipt(folder / "mined" / name)
        if receipt and receipt["curated"] == curated["digest"] and "histograms" in receipt:
            mined[name] = receipt
    return receipts, mined


def _state(folder: Path) -> str:
    """Return the line of the page that holds the digest of all that it shows."""
    receipts, mined = _receipts(folder)
    tables = [file_digest(path) for path in (folder / "overlaps.parquet", folder / "contamination.parquet") if path.exists()]
    sources = [[receipt["digest"], receipt["files"]] for receipt in receipts.values()]
    look = [
        LAYOUT,
        versions()["tuplesmith"],
        file_digest(folder / "manifest.yaml") if (folder / "manifest.yaml").is_file() else "",  # `render` names its absence
        file_digest(TEMPLATE),
        file_digest(BOARDS_FILE),
    ]
    summary = json.dumps(read_summary(folder))
    return STATE.format(digest_of([*look, summary, sources, tables, [receipt["digest"] for receipt in mined.values()]]))


def _collected(
    folder: Path, name: str, receipts: Mapping[str, Receipt], mined: Receipt | None, summary: Receipt, threshold: float
) -> dict[str, Any]:
    """Return all that the page shows of one source."""
    stage, receipt, seed = folder / "curated" / name, receipts[name], summary["seed"]
    facts = receipt | summary["sources"][name]
    facts["notes"] = ". ".join(note for note in (query_origin(receipt), facts.get("notes")) if note)
    dropped = read_parquet(stage / "dropped.parquet", ["id", "stage", "reason"])
    # COUNT_NAMES: rows, unused, tuples, passages and the six fates of tuples; the fates add up to the tuples
    stages = dict(dropped.select("reason", "stage").unique("reason").iter_rows())
    fates = dict.fromkeys(figures.FATES, 0)
    for reason, count in receipt["dropped"].items():
        fates[STAGES.get(stages.get(reason, ""), "filtered")] += count
    fates |= {"kept": receipt["kept"], "merged": receipt["merged"], "held out": receipt["heldout"]}
    fates |= {"rows": receipt["rows_in"], "unused": sum(receipt["rows_dropped"].values())}
    fates |= {"tuples": receipt["tuples_made"], "passages": receipt["passages"]}
    counts = {key: fates[key] for key in COUNT_NAMES}
    samples = drops(stage / "dropped.parquet", dropped, seed, name)
    has_tuples = mined is not None and "files" in mined
    reasons = [(what, reason, count, samples.get(reason, [])) for key, what in LEFT_OUT for reason, count in facts[key].items()]
    if facts["merged"]:
        reasons.append(("tuples merged", "same_query", facts["merged"], samples.get("same_query", [])))
    of_label = read_table(stage, "pairs", ["label"])["label"].drop_nulls().value_counts()
    labels = list(of_label.sort("count", "label", descending=[True, False]).iter_rows())  # (label, tuples), largest first
    return {
        "name": name,
        "facts": facts,
        "licence": claim(facts),
        "counts": counts,
        "flow": _flow(counts),
        "records": sample_records(stage, seed, name, mined["kept"], folder / "mined" / name)
        if mined is not None and has_tuples
        else sample_records(stage, seed, name, receipt["kept"]),
        "near": near_pairs(folder, name, dropped, threshold, seed),
        "reasons": reasons,
        "matched": matched_queries({other: folder / "curated" / other for other in receipts}, samples),
        "lengths": _lengths(stage),
        "labels": labels,
        "outline": figures.label_outline([count for _, count in labels]) if labels else "",
        "negatives": _negatives(folder, name, mined, has_tuples) if mined is not None else None,
    }


def _lengths(stage: Path) -> dict[str, Any]:
    """Return the histograms of the characters of queries and of distinct positives, and their medians.

    Of a large source these are of a sample: as many row groups as have MEASURED rows, evenly spread.
    """
    used = [shard["positives"].explode(empty_as_null=False).unique() for shard in read_frames(stage, "pairs", ["positives"])]
    positives = pl.concat(used).unique()
    every = 1 + len(positives) // MEASURED
    queries = [shard["query"].str.len_chars() for shard in read_frames(stage, "pairs", ["query"], every)]
    passages = [
        shard.filter(pl.col("pid").is_in(positives.implode()))["text"].str.len_chars()
        for shard in read_frames(stage, "passages", ["pid", "text"], every)
    ]
    both = pl.concat(queries), pl.concat(passages)
    medians = [int(np.median(texts.to_numpy())) for texts in both]
    text = f"medians {medians[0]:,} and {medians[1]:,}" + (" (sampled)" if every > 1 else "")
    return {"bins": [figures.length_bins(texts) for texts in both], "text": text}


def _flow(counts: Mapping[str, int]) -> Markup:
    fates = {fate: counts[fate] for fate in figures.FATES}
    return figures.flow(fates, ", ".join(f"{count:,} {fate}" for fate, count in fates.items() if count))


def _overlap(folder: Path, names: list[str]) -> dict[str, Any] | None:
    """Return the picture of which sources share texts, and the largest overlaps in numbers; None for a single source."""
    path = folder / "overlaps.parquet"
    if len(names) < 2 or not path.exists():
        return None if len(names) < 2 else {"compared": False}
    a, b = pl.col("source_a"), pl.col("source_b")
    found = read_parquet(path).filter(a.is_in(names) & b.is_in(names) & (a != b))
    shared = found.filter(pl.col("equal") > 0)
    among = [name for name in names if name in {*shared["source_a"], *shared["source_b"]}]
    top = found.filter((pl.col("equal") > 0) | (pl.col("near").fill_null(0) > 0))
    top = top.sort("equal", "source_a", "source_b", descending=[True, False, False]).head(LARGEST)
    return {
        "compared": True,
        "alone": len(names) - len(among),
        "of": len(names),
        "shades": sorted({figures.shade(equal) for equal in shared["equal"]}) if len(among) > figures.FEW_SOURCES else [],
        "picture": figures.heat(shared, among) if among else "",
        "largest": top.select("source_a", "source_b", "equal", "near", "dropped").rows(),
    }


def _contamination(folder: Path, summary: Receipt, names: list[str]) -> dict[str, Any] | None:
    """Return which evaluation sets overlap with which sources, and a few matching spans; None without `decontaminate:`."""
    if (about := summary.get("decontaminate")) is None:
        return None
    fields = ("query", "positive", "negative", "corpus")
    lines = [
        (task, source, *(counted.get(field, 0) for field in fields))
        for task, by_source in about["tasks"].items()
        for source, counted in by_source.items()
        if source in names
    ]
    path, places, start = folder / "contamination.parquet", dict[str, list[np.ndarray]](), 0
    for some in read_groups(path, ["task", "source"]) if path.exists() else ():
        ours = some.with_row_index("place", start).filter(pl.col("source").is_in(names))
        for (task,), rows in ours.group_by("task", maintain_order=True):
            places.setdefault(str(task), []).append(rows["place"].to_numpy())
        start += len(some)
    chosen, samples = np.zeros(start, bool), []
    for task, parts in places.items():
        every = np.concatenate(parts)
        chosen[every[sampled(summary["seed"], f"contamination/{task}", len(every), CONTAMINATION_SAMPLES)]] = True
    if places:
        found = pl.concat(chosen_of([path], chosen))
        samples = [row for task in places for row in found.filter(pl.col("task") == task).to_dicts()]
    return {"mode": about["mode"], "lines": lines, "samples": samples}


def _negatives(folder: Path, name: str, mined: Receipt, has_tuples: bool) -> dict[str, Any]:
    """Return how a source's negatives were found, where they come from, and what they score."""
    origins = Counter[int]()
    for shard in read_frames(folder / "mined" / name, "pairs", ["negative_origin"]) if has_tuples else ():
        origins.update(dict(shard["negative_origin"].explode(empty_as_null=False).value_counts().iter_rows()))
    up, down = (np.array(mined["histograms"][kind]) for kind in ("positives", "negatives"))
    medians = [
        f"{(np.searchsorted(counts.cumsum(), counts.sum() / 2) + 0.5) / len(counts):.2f}" if counts.sum() else "none"
        for counts in (up, down)
    ]
    middle = f"median positive {medians[0]}, median negative {medians[1]}"
    picture = figures.histogram(up, down, ("0", "0.5", "1"), ("positive", "negative"), f"{name}: {middle}")
    return {
        "strategy": mined.get("strategy") or mined.get("way") or "search",
        "preset": mined.get("settings", {}).get("preset") or "",
        "model": (mined.get("encoder") or {}).get("model") or "",
        "rows": mined["rows_in"],
        "kept": mined["kept"],
        "origins": [origins.get(at, 0) for at in range(len(ORIGINS))],
        "text": f"{middle}; {mined['kept']:,} of {mined['rows_in']:,} tuples",
        "picture": picture if down.sum() else "",  # negatives that were drawn or given have no scores
    }


def _drop(row: Mapping[str, Any], matched: Mapping[str, str]) -> str:
    """Return the HTML of the evidence of a dropped row; a near-duplicate is compared with the query that was kept."""
    evidence, match = row["evidence"] or "", matched.get(row["matched_id"] or "")
    if row["stage"] == "dedup" and match and evidence.strip() != match.strip():
        return compared(evidence, match[:EVIDENCE_CHARS] if len(evidence) == EVIDENCE_CHARS else match)
    if len(evidence) <= LINE_CHARS and "\n" not in evidence:
        return f'<span class="brief" dir="auto">{as_html(evidence)}</span>'
    return shown(evidence)
