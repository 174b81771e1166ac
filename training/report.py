"""report.html of a run: its curves on one page that needs nothing else, no script either."""

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
AGAIN = "`train --restart` makes the run again"
POINTS = 300  # of a curve; a longer one shows the means of as many stretches
WIDTH, HEIGHT = 300, 100  # units of a drawing, which is stretched to its place
TERMS = {"loss_hard": "hard negatives", "loss_inbatch": "in-batch", "loss_distilled": "distilled"}
MEMORY = {"memory_gb": "process", "gpu_memory_gb": "GPU"}
Curve = tuple[Sequence[int], Sequence[float]]  # steps, counted from 1, and values


def write(run: Path) -> Path:
    """Write RUN/report.html from RUN/log.jsonl, whether the run is done or not, and return it.

    Raises:
        BuildError: the run has no step behind it.
    """
    if (run / store.TIMINGS).exists():  # the run is done
        known = store.read_sealed(run / store.TIMINGS, AGAIN).get("files", {}).get("log.jsonl")
        if known and store.file_digest(run / "log.jsonl") != known:
            raise BuildError(run / "log.jsonl", "was changed since the run ended (its digest is not timings.json's)", AGAIN)
    lines = list(read_log(run / "log.jsonl"))
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise BuildError(run, "has no step in log.jsonl", "name the folder of a run, such as builds/NAME/train")
    measured = [line for line in lines if "ndcg@10" in line]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=as_html(run.resolve().parent.name if run.name == "train" else run.resolve().name),
        facts="".join(f"<div><dt>{name}</dt><dd>{as_html(str(value))}</dd></div>" for name, value in _facts(steps, measured)),
        curves="".join(_curves(steps, measured)),
        sources="".join(_sources(steps)),
    )
    with store.atomic(run / "report.html") as file:
        file.write(store.sealed_page(page))
    return run / "report.html"


def _facts(steps: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, object]]:
    seconds, tokens = sum(line["seconds"] for line in steps), sum(line["tokens"] for line in steps)
    pads = sum(line["tokens"] * line.get("pad_share", 0) / (1 - line.get("pad_share", 0)) for line in steps)
    yield "steps", f"{len(steps):,}"
    yield "tokens", f"{tokens:,}"
    yield "of them padding", f"{pads / (pads + tokens):.1%}"
    yield "time in steps", duration(seconds)
    yield "tokens a second", f"{tokens / seconds:,.0f}"
    if measured:
        best = max(measured, key=lambda line: float(line["ndcg@10"]))
        yield f"best nDCG@10, step {best['step'] + 1:,}", f"{best['ndcg@10']:.4f}"
    shares = [line["mfu"] for line in steps if line.get("mfu") is not None]
    yield "of the peak (MFU)", f"{np.mean(shares):.1%}" if shares else "peak unknown"
    for key, where in MEMORY.items():
        if peak := max((line.get(key) or 0 for line in steps), default=0):
            yield f"memory of the {where}, GB", f"{peak:.1f}"
    yield "left", duration(steps[-1].get("seconds_left", 0))


def _curves(steps: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield _figure("Loss", {"": _of(steps, "loss")})
    terms = {word: curve for key, word in TERMS.items() if (curve := _of(steps, key))[0]}
    if terms:  # `loss: infonce` has one alone
        yield _figure("Loss by term", terms)
    if measured:
        names = list(dict.fromkeys(name for line in measured for name in line["sources"]))
        mean = {"mean": _of(measured, "ndcg@10")} if len(names) > 1 else {}
        each = {name: _of([{"step": line["step"], "v": line["sources"].get(name)} for line in measured], "v") for name in names}
        yield _figure("nDCG@10 on held-out queries", {**mean, **(each if len(names) < 6 else {})})
    yield _figure("Learning rate", {"": _of(steps, "lr")}, "{:.2e}".format)
    yield _figure("Gradient norm", {"": _of(steps, "grad_norm")})
    yield _figure("Tokens a second", {"": _of(steps, "tokens_per_second")}, "{:,.0f}".format)
    if (curve := _of(steps, "mfu"))[0]:
        yield _figure("Share of the GPU's peak (MFU)", {"": curve}, "{:.1%}".format)
    memory = {where: curve for key, where in MEMORY.items() if (curve := _of(steps, key))[0]}
    if memory:
        yield _figure("Highest memory so far, GB", memory)


def _sources(steps: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield a small figure a source: what it costs, all with one scale of steps but their own of loss."""
    for name in sorted({line["source"] for line in steps}):
        yield _figure(name, {"": _of([line for line in steps if line["source"] == name], "loss")})


def _of(lines: Iterable[Mapping[str, Any]], key: str) -> Curve:
    """Return the steps that have a value, counted from 1, and the values."""
    some = [(line["step"] + 1, float(line[key])) for line in lines if line.get(key) is not None]
    return [step for step, _ in some], [value for _, value in some]


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """Return a curve of at most so many points, each the mean of a stretch of the given one."""
    if len(curve[0]) <= points:
        return curve
    parts = np.array_split(np.arange(len(curve[0])), points)
    steps, values = np.array(curve[0]), np.array(curve[1])
    return [int(steps[part[-1]]) for part in parts], [float(values[part].mean()) for part in parts]


def _figure(name: str, curves: Mapping[str, Curve], shown: Callable[[float], str] = "{:.4g}".format) -> str:
    """Return a drawing of some curves, with one scale; its words are HTML, so that they do not shrink with it."""
    thin = {label: thinned(curve) for label, curve in curves.items()}
    values = [value for curve in thin.values() for value in curve[1]]
    steps = [step for curve in thin.values() for step in curve[0]]
    low, high, first, last = min(values), max(values), min(steps), max(steps)

    def points(curve: Curve) -> str:
        across = [(step - first) / (last - first or 1) * WIDTH for step in curve[0]]
        down = [HEIGHT - (value - low) / (high - low or 1) * HEIGHT for value in curve[1]]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))

    drawn = "".join(f'<polyline class="c{place}" points="{points(curve)}"/>' for place, curve in enumerate(thin.values()))
    keys = [f'<span class="key"><i class="c{place}"></i>{as_html(label)}</span>' for place, label in enumerate(thin) if label]
    ends = ", ".join(shown(curve[1][-1]) for curve in thin.values())
    told = as_html(f"{name}, steps {first} to {last}, from {shown(low)} to {shown(high)}, at the end {ends}")
    return (
        f'<figure><figcaption><b>{as_html(name)}</b> <span class="end">{"" if keys else "at the end " + ends}</span></figcaption>'
        f'<div class="keys">{"".join(keys)}</div>'
        f'<div class="y">{shown(high)}</div><svg viewBox="0 -2 {WIDTH} {HEIGHT + 4}" preserveAspectRatio="none" role="img" '
        f'aria-label="{told}">{drawn}</svg><div class="y">{shown(low)}</div>'
        f'<div class="x"><span>step {first:,}</span><span>{last:,}</span></div></figure>'
    )
