"""Pictures of a report: small inline SVG, coloured by the page's style so that dark mode and print have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from curation.core.escape import as_html

PER_DECADE = 8  # bins of a histogram from one power of ten to the next
DECADES = 6  # longer texts than 10^6 characters share the last bin
FATES = ("kept", "held out", "merged", "filtered", "duplicates", "contaminated")
HEAT = 6  # shades of a heat map, one a power of ten
CELL, WIDE_CELL, FEW = 18, 52, 14  # sides of its cells; up to FEW sources the cells are wide and hold their number
LETTER = 6.6  # width of a letter at the size of its labels
NAMED = 8  # labels of a balance that are named


def length_bins(lengths: pl.Series) -> np.ndarray:
    """Return how many texts fall in each bin, (DECADES * PER_DECADE,) i64; `lengths` in characters, empty texts left out."""
    real = lengths.filter(lengths > 0).to_numpy()
    # a power of ten belongs to the bin it opens, whatever the logarithm's last bit says
    bins = np.floor(np.log10(real) * PER_DECADE + 1e-9).astype(np.int64)
    return np.bincount(np.minimum(bins, DECADES * PER_DECADE - 1), minlength=DECADES * PER_DECADE)


def length_axis(up: np.ndarray, down: np.ndarray, decades: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return what `histogram` draws of two rows of bins between two powers of ten, and the labels of the powers."""
    first, last = decades
    span = slice(first * PER_DECADE, last * PER_DECADE)
    return up[span], down[span], [_short(10**power) for power in range(first, last + 1)]


def histogram(up: np.ndarray, down: np.ndarray, ticks: Sequence[str], kinds: tuple[str, str], said: str) -> str:
    """Return two histograms on one axis, `up` above and `down` below it, each to its own height.

    `ticks` stand at equal distances from the first bin's beginning to the last one's end; `kinds` are the style's.
    """
    wide, tall, left, middle = 240, 34, 6, 38
    step = wide / len(up)
    drawn = []
    for at, label in enumerate(ticks):
        x = left + at * wide / (len(ticks) - 1)
        anchor = "start" if at == 0 else "end" if at == len(ticks) - 1 else "middle"
        drawn.append(f'<path class="tick" d="M{x:.0f} {middle - tall}v{2 * tall + 10}"/>')
        drawn.append(f'<text x="{x:.0f}" y="{middle + tall + 22}" text-anchor="{anchor}">{label}</text>')
    return (
        f'<svg viewBox="0 0 {wide + 2 * left} {middle + tall + 26}" role="img" aria-label="{as_html(said)}">{"".join(drawn)}'
        f'<path class="{kinds[0]}" d="{_steps(up, left, middle, step, -tall)}"/>'
        f'<path class="{kinds[1]}" d="{_steps(down, left, middle + 10, step, tall)}"/></svg>'
    )


def _steps(counts: np.ndarray, left: float, base: float, step: float, tall: float) -> str:
    """Return the outline of bars as a path; no bar is higher than `tall` (down where positive)."""
    highest = max(int(counts.max()), 1)
    tops = [f"V{base + tall * int(count) / highest:.1f}h{step:.2f}" for count in counts]
    return f"M{left} {base}{''.join(tops)}V{base}z"


def _short(number: int) -> str:
    return f"{number // 1_000_000}M" if number >= 1_000_000 else f"{number // 1000}k" if number >= 1000 else str(number)


def flow(counts: Mapping[str, int], said: str) -> str:
    """Return what became of a source's tuples as one bar; `counts` by the names in FATES."""
    whole = max(sum(counts.values()), 1)
    parts, x = [], 0.0
    for number, fate in enumerate(FATES):
        width = 160 * counts.get(fate, 0) / whole
        if width:
            parts.append(f'<rect class="fate{number}" x="{x:.2f}" width="{width:.2f}" height="10"/>')
        x += width
    return f'<svg class="flow" viewBox="0 0 160 10" preserveAspectRatio="none" role="img" aria-label="{as_html(said)}">{"".join(parts)}</svg>'


def balance(labels: Sequence[tuple[str, int]]) -> str:
    """Return label counts, largest first, as bars: all of them where they are few, else their outline and both ends."""
    most = max(count for _, count in labels)
    if len(labels) <= NAMED:
        return _bars(labels, most)
    ends = [*labels[: NAMED // 2], *labels[-NAMED // 2 :]]
    counts = np.array([count for _, count in labels])
    outline = _steps(counts, 0, 50, 240 / len(labels), -46)
    said = f"{len(labels)} labels, from {most:,} down to {labels[-1][1]:,}"
    picture = f'<svg viewBox="0 0 240 51" role="img" aria-label="{said}"><path class="query" d="{outline}"/></svg>'
    return picture + _bars(ends, most, gap=NAMED // 2)


def _bars(labels: Sequence[tuple[str, int]], most: int, gap: int = 0) -> str:
    lines = []
    for at, (name, count) in enumerate(labels):
        lines += ['<tr class="gap"><td colspan="3">…</td></tr>'] if gap and at == gap else []
        bar = f'<i style="width:{100 * count / most:.1f}%"></i>'
        lines.append(f'<tr><th scope="row" dir="auto">{as_html(name[:60])}</th><td>{count:,}</td><td class="bar">{bar}</td></tr>')
    return f'<table class="bars"><tbody>{"".join(lines)}</tbody></table>'


def heat_key(overlaps: pl.DataFrame) -> str:
    """Return what the shades of a heat map stand for, as far as they are used."""
    used = sorted({_shade(equal) for equal in overlaps["equal"]})
    told = "".join(f'<span><i class="heat{shade}"></i>{10 ** (shade - 1):,} or more</span>' for shade in used)
    return f'<p class="key">{told}</p>'


def _shade(equal: int) -> int:
    return min(HEAT, len(str(equal)))


def heat(overlaps: pl.DataFrame, names: Sequence[str]) -> str:
    """Return a heat map of source_a, source_b, equal; `names` are those that share anything, in the manifest's order."""
    few = len(names) <= FEW
    width, height = (WIDE_CELL, 26) if few else (CELL, CELL)
    margin = LETTER * max(len(name) for name in names) + 10
    top = margin * 0.72 + 6
    place = {name: at for at, name in enumerate(names)}
    parts = []
    for a, b, equal in overlaps.select("source_a", "source_b", "equal").iter_rows():
        column, row = sorted((place[a], place[b]))
        x, y = margin + column * width, top + (row - 1) * height
        said = f"{as_html(a)} and {as_html(b)}: {equal:,}"
        shade = _shade(equal)
        parts.append(
            f'<rect class="heat{shade}" x="{x:.0f}" y="{y:.0f}" width="{width - 2}" height="{height - 2}"><title>{said}</title></rect>'
        )
        if few:
            parts.append(
                f'<text class="on{shade}" x="{x + width / 2 - 1:.0f}" y="{y + 16:.0f}" text-anchor="middle">{equal:,}</text>'
            )
    beds = []
    for at, name in enumerate(names):
        beds.append(
            f'<rect class="bed" x="{margin:.0f}" y="{top + (at - 1) * height:.0f}" width="{at * width - 2:.0f}" height="{height - 2}"/>'
        )
        if at:  # the first has nobody before it, the last nobody after
            parts.append(
                f'<text x="{margin - 8:.0f}" y="{top + (at - 1) * height + height / 2 + 3:.0f}" text-anchor="end">{as_html(name)}</text>'
            )
        if at < len(names) - 1:
            x, y = margin + at * width + width / 2, top - 6
            parts.append(f'<text x="{x:.0f}" y="{y:.0f}" transform="rotate(-45 {x:.0f} {y:.0f})">{as_html(name)}</text>')
    across, down = margin + (len(names) - 1) * width + margin * 0.72, top + (len(names) - 1) * height + 4
    return (
        f'<svg class="heat" viewBox="0 0 {across:.0f} {down:.0f}" width="{across:.0f}" height="{down:.0f}" role="img" '
        f'aria-label="Texts that two sources share; the table below has the numbers">{"".join(beds[1:] + parts)}</svg>'
    )
