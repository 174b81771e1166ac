"""Pictures of a report: small inline SVG. The page's style has the colours, so dark mode and print have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from markupsafe import Markup

from curation.core.escape import as_html

PER_DECADE = 8  # bins of a histogram from one power of ten to the next
DECADES = 6  # longer texts than 10^6 characters share the last bin
FATES = ("kept", "held out", "merged", "filtered", "duplicates", "contaminated")
HEAT = 6  # shades of a heat map, one per power of ten
CELL, WIDE_CELL, FEW_SOURCES = 18, 52, 14  # sides of its cells; those of few sources are wide and hold their number
LETTER = 6.6  # width of a letter at the size of its labels


def length_bins(lengths: pl.Series) -> np.ndarray:
    """Return how many texts fall in each bin, (DECADES * PER_DECADE,) i64; `lengths` in characters, empty texts left out."""
    real = lengths.filter(lengths > 0).to_numpy()
    # a power of ten belongs to the bin it opens, whatever the logarithm's last bit says
    bins = np.floor(np.log10(real) * PER_DECADE + 1e-9).astype(np.int64)
    return np.bincount(np.minimum(bins, DECADES * PER_DECADE - 1), minlength=DECADES * PER_DECADE)


def histogram(up: np.ndarray, down: np.ndarray, ticks: Sequence[str], kinds: tuple[str, str], label: str) -> Markup:
    """Return two histograms on one axis, `up` above and `down` below it, each to its own height.

    `ticks` are at equal distances from the start of the first bin to the end of the last; `kinds` are classes of the style.
    """
    wide, tall, left, middle = 240, 34, 6, 38
    step = wide / len(up)
    axis = []
    for at, tick in enumerate(ticks):
        x = left + at * wide / (len(ticks) - 1)
        anchor = "start" if at == 0 else "end" if at == len(ticks) - 1 else "middle"
        axis.append(f'<path class="tick" d="M{x:.0f} {middle - tall}v{2 * tall + 10}"/>')
        axis.append(f'<text x="{x:.0f}" y="{middle + tall + 22}" text-anchor="{anchor}">{tick}</text>')
    return Markup(
        f'<svg viewBox="0 0 {wide + 2 * left} {middle + tall + 26}" role="img" aria-label="{as_html(label)}">{"".join(axis)}'
        f'<path class="{kinds[0]}" d="{_steps(up, left, middle, step, -tall)}"/>'
        f'<path class="{kinds[1]}" d="{_steps(down, left, middle + 10, step, tall)}"/></svg>'
    )


def _steps(counts: np.ndarray, left: float, base: float, step: float, tall: float) -> str:
    """Return the outline of bars as a path; no bar is higher than `tall` (down if positive)."""
    highest = max(int(counts.max()), 1)
    tops = [f"V{base + tall * int(count) / highest:.1f}h{step:.2f}" for count in counts]
    return f"M{left} {base}{''.join(tops)}V{base}z"


def flow(counts: Mapping[str, int], label: str) -> Markup:
    """Return what became of a source's tuples as one bar; `counts` by the names in FATES."""
    whole = max(sum(counts.values()), 1)
    parts, x = [], 0.0
    for number, fate in enumerate(FATES):
        width = 160 * counts.get(fate, 0) / whole
        if width:
            parts.append(f'<rect class="fate{number}" x="{x:.2f}" width="{width:.2f}" height="10"/>')
        x += width
    return Markup(
        f'<svg class="flow" viewBox="0 0 160 10" preserveAspectRatio="none" role="img" aria-label="{as_html(label)}">'
        f"{''.join(parts)}</svg>"
    )


def label_outline(counts: Sequence[int]) -> Markup:
    """Return the tuples per label, largest first, as an outline."""
    label = f"{len(counts)} labels, from {counts[0]:,} down to {counts[-1]:,}"
    outline = _steps(np.array(counts), 0, 50, 240 / len(counts), -46)
    return Markup(f'<svg viewBox="0 0 240 51" role="img" aria-label="{label}"><path class="fate0" d="{outline}"/></svg>')


def shade(equal: int) -> int:
    """Return the shade of a number of equal texts in a heat map; shade n means 10^(n-1) or more."""
    return min(HEAT, len(str(equal)))


def heat(overlaps: pl.DataFrame, names: Sequence[str]) -> Markup:
    """Return a heat map of source_a, source_b, equal; `names` are those that share anything, in the manifest's order."""
    few = len(names) <= FEW_SOURCES
    width, height = (WIDE_CELL, 26) if few else (CELL, CELL)
    margin = LETTER * max(len(name) for name in names) + 10
    top = margin * 0.72 + 6
    place = {name: at for at, name in enumerate(names)}
    cells, beds, labels = [], [], []
    for a, b, equal in overlaps.select("source_a", "source_b", "equal").iter_rows():
        column, row = sorted((place[a], place[b]))
        x, y, tone = margin + column * width, top + (row - 1) * height, shade(equal)
        cells.append(f'<rect class="heat{tone}" x="{x:.0f}" y="{y:.0f}" width="{width - 2}" height="{height - 2}">')
        cells.append(f"<title>{as_html(a)} and {as_html(b)}: {equal:,}</title></rect>")
        if few:
            middle = x + width / 2 - 1
            cells.append(f'<text class="on{tone}" x="{middle:.0f}" y="{y + 16:.0f}" text-anchor="middle">{equal:,}</text>')
    for at, name in enumerate(names):
        y = top + (at - 1) * height
        if at:  # a row for each source but the first, with an empty cell for each source before it
            bed = f'x="{margin:.0f}" y="{y:.0f}" width="{at * width - 2:.0f}" height="{height - 2}"'
            beds.append(f'<rect class="bed" {bed}/>')
            labels.append(f'<text x="{margin - 8:.0f}" y="{y + height / 2 + 3:.0f}" text-anchor="end">{as_html(name)}</text>')
        if at < len(names) - 1:  # a column for each source but the last
            x = margin + at * width + width / 2
            at_top = f'x="{x:.0f}" y="{top - 6:.0f}" transform="rotate(-45 {x:.0f} {top - 6:.0f})"'
            labels.append(f"<text {at_top}>{as_html(name)}</text>")
    across, down = margin + (len(names) - 1) * width + margin * 0.72, top + (len(names) - 1) * height + 4
    return Markup(
        f'<svg class="heat" viewBox="0 0 {across:.0f} {down:.0f}" width="{across:.0f}" height="{down:.0f}" role="img" '
        f'aria-label="Texts that two sources share; the table below has the numbers">{"".join(beds + cells + labels)}</svg>'
    )
