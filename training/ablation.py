"""What an ablation found: differences with their intervals, as a table, a page, and a manifest without the sources that harm.

A difference is nDCG@10 with a source less nDCG@10 without it, for the same query and seed. Its interval is a percentile interval
of the bootstrap over queries and seeds (Owen, "The pigeonhole bootstrap", 2007): the queries of each set are drawn with
replacement as `train evaluate` draws them, and of n seeds n - 1 are drawn, which makes the variance over few seeds unbiased (Rao
and Wu, JASA 1988). With one seed only queries are drawn, and the interval leaves out what differs between runs: in a simulation
in which runs differed by .01, 25 % of the intervals of sources without effect excluded 0, with 2 to 5 seeds 5 to 6 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined

from curation.core import store
from curation.core.builds import check_beside
from curation.core.errors import ManifestError
from curation.core.escape import visible
from curation.core.record import draws
from curation.recipe.addresses import without_credentials
from curation.recipe.manifest import read_manifest
from curation.recipe.yaml import read_yaml
from training.evaluate import RESAMPLES, SEED, TAIL, resampled_means

MOST_LINES = 60  # of a printed table of sets; with more, only differences that are more than chance are printed


def compare_runs(
    before: Mapping[str, np.ndarray],
    runs: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    own: Mapping[str, Sequence[str]],
    sign: int = 1,
) -> dict[str, Any]:
    """Return means and differences of nDCG@10; a difference is [value, low, high] and above 0 where the source helps.

    With `sign` -1 it is above 0 where what a run does in place of leaving out the source helps.

    Args:
        before: nDCG@10 of each query by set, (n,) float64, before training.
        runs: the same of each run, by what it leaves out (empty: nothing) and seed.
        own: the held-out sets of the sources that are left out.
    """
    sets, whats, seeds = list(before), [what for what in runs if what], len(runs[""])
    drawn = (draws(SEED, "seeds/bootstrap", np.arange(RESAMPLES * max(1, seeds - 1))) % np.uint64(seeds)).reshape(RESAMPLES, -1)
    shares = np.stack([(drawn == number).mean(axis=1) for number in range(seeds)])  # (seeds, RESAMPLES)
    values: dict[str, dict[str, float]] = {what: {} for what in whats}
    resampled: dict[str, dict[str, np.ndarray]] = {what: {} for what in whats}  # (RESAMPLES,)
    for name in sets:
        apart = np.array([[sign * (a[name] - b[name]) for a, b in zip(runs[""], runs[what], strict=True)] for what in whats])
        means = resampled_means(apart.reshape(-1, apart.shape[-1]), name).reshape(len(whats), seeds, RESAMPLES)
        for number, what in enumerate(whats):
            values[what][name] = float(apart[number].mean())
            resampled[what][name] = (means[number] * shares).sum(axis=0)

    def over(what: str, some: Sequence[str]) -> list[float] | None:
        if not some:
            return None
        ends = np.percentile(np.mean([resampled[what][name] for name in some], axis=0), [TAIL, 100 - TAIL])
        return [float(np.mean([values[what][name] for name in some])), *ends.tolist()]

    def mean_of(what: str, name: str) -> float:
        return float(np.mean([run[name] for run in runs[what]]))

    found: dict[str, dict[str, Any]] = {}
    for what in whats:
        every = over(what, sets)
        assert every is not None
        found[what] = {
            "verdict": "helps" if every[1] > 0 else "harms" if every[2] < 0 else "unclear",
            "all_sets": every,
            "own_sets": over(what, own[what]),
            "other_sets": over(what, [name for name in sets if name not in own[what]]),
            "sets": {name: {"without": mean_of(what, name), "difference": over(what, [name])} for name in sets},
        }
    start = {name: float(np.mean(before[name])) for name in sets}
    with_all = {name: mean_of("", name) for name in sets}
    return {
        "queries": {name: len(before[name]) for name in sets},
        "before": {"mean": float(np.mean(list(start.values()))), "sets": start},
        "all": {"mean": float(np.mean(list(with_all.values()))), "sets": with_all},
        "sources": dict(sorted(found.items(), key=lambda item: -item[1]["all_sets"][0])),
    }


def intervals_in_words(seeds: int) -> str:
    """Return how the intervals were made."""
    return f"95 %, {RESAMPLES:,} resamples of the queries" + (
        f" and of the {seeds} seeds" if seeds > 1 else "; too narrow, with one seed"
    )


def table_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield an ablation as lines of at most 80 columns; some begin with an empty one."""
    sources, sets = found["sources"], found["all"]["sets"]
    before, after = found["before"]["mean"], found["all"]["mean"]
    yield f"nDCG@10, mean of {len(sets)} sets: {before:.4f} before, {after:.4f} after {found['steps']:,} steps with all"
    weight = found["weight"]
    what = f"at {weight:g} times the weight less nDCG@10" if weight else "with a source less nDCG@10 without it"
    yield f"sources. Below: nDCG@10 {what}, " + (f"mean of {many} seeds." if (many := len(found["seeds"])) > 1 else "one seed.")
    width = max(6, *(min(len(name), 24) for name in [*sources, *sets]))
    for verdict in ("helps", "unclear", "harms"):
        some = {what: one for what, one in sources.items() if one["verdict"] == verdict}
        if some:
            yield f"\n{verdict:<{width}}  steps  all sets      95 % interval        own   others"
        for what, one in some.items():
            value, low, high = one["all_sets"]
            own, others = (f"{one[key][0]:+.4f}" if one[key] else "-" for key in ("own_sets", "other_sets"))
            spread = f"{value:+.4f}  {low:+.4f} to {high:+.4f}"
            yield f"{what[:width]:<{width}}  {one['steps']:>5.0f}   {spread}  {own:>7}  {others:>7}"
    chance = 2 * TAIL / 100 * len(sources)
    yield f"\nIntervals: {found['intervals']}."
    yield f"By chance alone {chance:.1f} of {len(sources)} of them would exclude 0."
    yield from (f"{what}: no step trained on it." for what in found["not_trained_on"])

    lines, whole = 0, len(sources) * len(sets) <= MOST_LINES
    for what, one in sources.items():
        rows = {name: cell for name, cell in one["sets"].items() if whole or excludes_zero(cell["difference"])}
        lines += len(rows)
        if rows:
            other = f"x{weight:g}" if weight else "without"
            yield f"\n{f'{what[:width]}, by set':<{width + 8}}  {other:>7}    with      95 % interval"
        for name, cell in rows.items():
            value, low, high = cell["difference"]
            figures = f"{cell['without']:.4f}  {sets[name]:.4f}  {value:+.4f}  {low:+.4f} to {high:+.4f}"
            yield f"  {name[:width]:<{width + 6}}   {figures}"
    if rest := len(sources) * len(sets) - lines:
        yield f"\n{rest:,} more differences, whose intervals include 0, are in ablation.html."


def excludes_zero(difference: Sequence[float]) -> bool:
    """Return whether the interval of [value, low, high] excludes 0."""
    return difference[1] > 0 or difference[2] < 0


def page_of(found: Mapping[str, Any]) -> str:
    """Return an ablation as an HTML page that needs no other file."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.finalize = lambda value: visible(value) if isinstance(value, str) else value
    ends = [abs(end) for one in found["sources"].values() for end in one["all_sets"]]
    template = environment.from_string(Path(__file__).with_name("ablation.template.html").read_text(encoding="utf-8"))
    return template.render(found=found, reach=max([*ends, 1e-6]), excludes_zero=excludes_zero)


def write_suggestion(build: Path, found: Mapping[str, Any], path: Path) -> list[str]:
    """Write a manifest that leaves out the sources that harm, next to the build's own manifest; return their names.

    Of runs with another weight: one that gives that weight to the sources of which it helps. Nothing is written for none.

    Raises:
        ManifestError: see `check_suggestion`.
    """
    weight = found["weight"]
    base = check_suggestion(build, path, weight)
    names, seeds = dict[str, str](), ", ".join(map(str, found["seeds"]))
    for what, one in found["sources"].items():
        if one["verdict"] == ("helps" if weight else "harms"):
            value, low, high = one["all_sets"]
            did = f"{weight:g} times its weight" if weight else "it"
            why = f"nDCG@10 {value:+.4f} with {did} ({low:+.4f} to {high:+.4f}, {found['steps']} steps, seeds {seeds})"
            names |= dict.fromkeys(
                one["sources"], f"train ablate: {what}: {why}" if [what] != one["sources"] else f"train ablate: {why}"
            )
    if names:
        keys = read_yaml(base).value
        keys = keys if "extends" in keys else {"extends": base.name}
        whole, head = read_manifest(base).value, ""
        if weight:
            train = whole["train"]
            given = {name: {"weight": 1, **train.get("sources", {}).get(name, {})} for name in names}
            more = {name: one | {"weight": float(one["weight"]) * weight} for name, one in given.items()}
            keys = keys | {"name": path.stem, "train": train | {"sources": train.get("sources", {}) | more}}
            head = "".join(f"# {name}: {why}\n" for name, why in names.items())
        else:
            keys = keys | {"name": path.stem, "without": whole.get("without", {}) | names}
        with store.atomic(path) as file:
            file.write(head.encode())
            file.write(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=120).encode())
    return list(names)


def check_suggestion(build: Path, path: Path, weight: float | None = None) -> Path:
    """Return the manifest that the build was made from, which must be in the folder that a suggestion is written to.

    Raises:
        ManifestError: it is not, or the file exists already, or there is no `train:` section for a weight.
    """
    if path.exists():
        raise ManifestError(path, "exists already", "give --suggest another name")
    check_beside(build, "manifest.yaml")
    made_from = read_yaml(build / "manifest.yaml").value
    for other in sorted(path.parent.glob("*.yaml")):
        try:
            keys = read_manifest(other).value
            if without_credentials(keys) == made_from:
                break
        except ManifestError:
            continue  # another YAML file
    else:
        hint = f"put it into the folder of the manifest that {build} was made from; `extends` and relative paths need that"
        raise ManifestError(path, f"no manifest in {path.parent} is that of {build}", hint)
    if weight and "train" not in keys:
        raise ManifestError(other, "has no `train:` section to write weights into", "move the recipe there, and build again")
    return other
