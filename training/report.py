"""report.html of a run: its curves on one page without scripts or other files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from curation.core import store
from curation.core.errors import BuildError
from curation.core.escape import as_html
from training.log import duration, read_log

TEMPLATE = Path(__file__).with_name("report.template.html")
RESTART = "`train --restart` repeats the run"
POINTS = 300  # of a curve; each point of a longer curve is the mean of a stretch
WINDOW_SHARE = 20  # a smoothed curve is the mean over a window of a twentieth of the points
SMOOTHED_FROM = 20  # points; a shorter curve is not smoothed
WIDTH, HEIGHT = 300, 100  # units of a drawing, which is stretched to fit the page
TERMS = {
    "loss_hard": "hard negatives",
    "loss_inbatch": "in-batch",
    "loss_distilled": "distilled",
    "loss_spread_out": "spread out",
}
MEMORY = {"memory_gb": "process", "gpu_memory_gb": "GPU"}
Curve = tuple[Sequence[int], Sequence[float]]  # steps, counted from 1, and values


def write_report(run: Path) -> Path:
    """Write RUN/report.html from RUN/log.jsonl, whether or not the run is finished, and return its path.

    Raises:
        BuildError: the run has not done a step yet, or its log was changed after it finished.
    """
    if (run / store.TIMINGS).exists():  # the run is finished
        known = store.read_sealed(run / store.TIMINGS, RESTART).get("files", {}).get("log.jsonl")
        if known and not (run / "log.jsonl").is_file():
            raise BuildError(run / "log.jsonl", "was removed since the run ended", RESTART)
        if known and store.file_digest(run / "log.jsonl") != known:
            raise BuildError(run / "log.jsonl", "was changed since the run ended (its digest is not timings.json's)", RESTART)
    lines = list(read_log(run / "log.jsonl"))
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise BuildError(run, "has no step in log.jsonl", "give the folder of a run, such as builds/NAME/train")
    measured = [line for line in lines if "ndcg@10" in line]
    of_sources = [
        _figure(name, {"": _curve([line for line in steps if line["source"] == name], "loss")})
        for name in sorted({line["source"] for line in steps})
    ]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=as_html(run.resolve().parent.name if run.name == "train" else run.resolve().name),
        headline=as_html(_headline(steps, measured)),
        facts="".join(f"<div><dt>{name}</dt><dd>{as_html(str(value))}</dd></div>" for name, value in _facts(steps, measured)),
        curves="".join(_curves(steps, measured)),
        sources="".join(of_sources),
    )
    with store.atomic(run / "report.html") as file:
        file.write(store.sealed_page(page))
    return run / "report.html"


def _headline(steps: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> str:
    """Return the result in a sentence: nDCG@10 before and after training, else the loss at both ends."""
    before = next((line for line in measured if line["step"] < 0), None)
    after = [line for line in measured if line["step"] >= 0]
    if after:
        best = max(after, key=lambda line: float(line["ndcg@10"]))
        best_too = "" if best is after[-1] else f" (best: {best['ndcg@10']:.4f} after step {best['step'] + 1:,})"
        start = f"{before['ndcg@10']:.4f} before training, " if before else ""
        return f"nDCG@10 on held-out queries: {start}{after[-1]['ndcg@10']:.4f} after {after[-1]['step'] + 1:,} steps{best_too}"
    part = max(1, len(steps) // 10)
    first, last = (float(np.mean([line["loss"] for line in some])) for some in (steps[:part], steps[-part:]))
    return f"Loss: {first:.4f} in the first tenth of {len(steps):,} steps, {last:.4f} in the last"


def _facts(steps: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, object]]:
    seconds, tokens = sum(line["seconds"] for line in steps), sum(line["tokens"] for line in steps)
    pads = sum(line["tokens"] * line.get("pad_share", 0) / (1 - line.get("pad_share", 0)) for line in steps)
    yield "steps", f"{len(steps):,}"
    yield "tokens", f"{tokens:,}"
    yield "padding tokens", f"{pads / (pads + tokens):.1%}"
    yield "time in steps", duration(seconds)
    yield "tokens per second", f"{tokens / seconds:,.0f}"
    if after := [line for line in measured if line["step"] >= 0]:
        best = max(after, key=lambda line: float(line["ndcg@10"]))
        yield f"best nDCG@10, step {best['step'] + 1:,}", f"{best['ndcg@10']:.4f}"
    shares = [line["mfu"] for line in steps if line.get("mfu") is not None]
    if shares:
        yield "share of the GPU's peak (MFU)", f"{np.mean(shares):.1%}"
    for key, where in MEMORY.items():
        if peak := max((line.get(key) or 0 for line in steps), default=0):
            yield f"memory of the {where}, GB", f"{peak:.1f}"
    if (left := steps[-1].get("seconds_left", 0)) >= 1:
        yield "time left", duration(left)


def _curves(steps: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield _figure("Loss", {"": _curve(steps, "loss")})
    terms = {word: curve for key, word in TERMS.items() if (curve := _curve(steps, key))[0]}
    if terms:  # `loss: infonce` has no separate terms
        yield _figure("Loss by term", terms)
    if measured:
        names = list(dict.fromkeys(name for line in measured for name in line["sources"]))
        mean = {"mean": _curve(measured, "ndcg@10")} if len(names) > 1 else {}
        each = {
            name: _curve([{"step": line["step"], "v": line["sources"].get(name)} for line in measured], "v") for name in names
        }
        yield _figure("nDCG@10 on held-out queries", {**mean, **(each if len(names) < 6 else {})}, smooth=False)
    yield _figure("Learning rate", {"": _curve(steps, "lr")}, "{:.2e}".format, smooth=False)
    yield _figure("Gradient norm", {"": _curve(steps, "grad_norm")})
    yield _figure("Tokens per second", {"": _curve(steps, "tokens_per_second")}, "{:,.0f}".format)
    if (curve := _curve(steps, "mfu"))[0]:
        yield _figure("Share of the GPU's peak (MFU)", {"": curve}, "{:.1%}".format)
    memory = {where: curve for key, where in MEMORY.items() if (curve := _curve(steps, key))[0]}
    if memory:
        yield _figure("Highest memory so far, GB", memory, smooth=False)


def _curve(lines: Iterable[Mapping[str, Any]], key: str) -> Curve:
    """Return the steps that have a value, counted from 1, and the values."""
    some = [(line["step"] + 1, float(line[key])) for line in lines if line.get(key) is not None]
    return [step for step, _ in some], [value for _, value in some]


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """Return a curve of at most `points` points, each the mean of a stretch of the given curve."""
    if len(curve[0]) <= points:
        return curve
    parts = np.array_split(np.arange(len(curve[0])), points)
    steps, values = np.array(curve[0]), np.array(curve[1])
    return [int(steps[part[-1]]) for part in parts], [float(values[part].mean()) for part in parts]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours, over a window that is narrower at both ends."""
    half = max(1, len(values) // WINDOW_SHARE // 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach = np.minimum(half, np.minimum(place, len(values) - 1 - place))
    return [float(mean) for mean in (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)]


def _figure(name: str, curves: Mapping[str, Curve], shown: Callable[[float], str] = "{:.4g}".format, smooth: bool = True) -> str:
    """Return a drawing of some curves with a common scale; labels are HTML, so that they do not shrink with the drawing.

    With `smooth`, a curve of enough points is drawn faintly, and its smoothed curve over it.
    """
    thin = {label: thinned(curve) for label, curve in curves.items()}
    values = [value for curve in thin.values() for value in curve[1]]
    steps = [step for curve in thin.values() for step in curve[0]]
    low, high, first, last = min(values), max(values), min(steps), max(steps)

    def points(curve: Curve) -> str:
        across = [(step - first) / (last - first or 1) * WIDTH for step in curve[0]]
        down = [HEIGHT - (value - low) / (high - low or 1) * HEIGHT for value in curve[1]]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))

    drawn = ""
    for place, curve in enumerate(thin.values()):
        if smooth and len(curve[1]) >= SMOOTHED_FROM:
            drawn += f'<polyline class="c{place} raw" points="{points(curve)}"/>'
            curve = curve[0], smoothed(curve[1])
        drawn += f'<polyline class="c{place}" points="{points(curve)}"/>'
    keys = [f'<span class="key"><i class="c{place}"></i>{as_html(word)}</span>' for place, word in enumerate(thin) if word]
    ends = ", ".join(shown(curve[1][-1]) for curve in thin.values())
    label = as_html(f"{name}, steps {first} to {last}, from {shown(low)} to {shown(high)}, at the end {ends}")
    return (
        f'<figure><figcaption><b>{as_html(name)}</b> <span class="end">{"" if keys else "at the end " + ends}</span></figcaption>'
        f'<div class="keys">{"".join(keys)}</div>'
        f'<div class="y">{shown(high)}</div><svg viewBox="0 -2 {WIDTH} {HEIGHT + 4}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{drawn}</svg><div class="y">{shown(low)}</div>'
        f'<div class="x"><span>step {first:,}</span><span>{last:,}</span></div></figure>'
    )
