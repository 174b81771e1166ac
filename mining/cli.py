"""The command `mine`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curation.core.console import PATH, RAY, SETTINGS, VERSION, check_places, newest, output, run_command, say
from curation.core.progress import for_terminal

if TYPE_CHECKING:
    from curation.recipe.settings import Mine
    from mining.source_search import Search

BUILD = click.argument("build", required=False, type=PATH)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="Device to encode and search on: auto, cpu, cuda or cuda:N."
)
WORKERS = click.option(
    *("-j", "--workers", "processes"),
    type=click.IntRange(1),
    help="Number of processes that hold the model [default: one per GPU, or one].",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
ONLY = click.option("--only", multiple=True, metavar="SOURCE", help="Only this source; may be repeated.")


def places(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options on what is mined, and where: `only`, `device`, `processes` and `ray`, arguments of `mine_build`."""
    for option in (RAY, WORKERS, DEVICE, ONLY):
        command = option(command)
    return command


@click.group(context_settings=SETTINGS)
@VERSION
def mine() -> None:
    """Find hard negatives for the tuples of a build."""


@mine.command()
@BUILD
@places
@click.option("--dry-run", is_flag=True, help="Show what would be mined, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipts as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress and no warnings.")
@click.option("-v", "--verbose", is_flag=True, help="Also print what each filter dropped, and the signature.")
def negatives(build: Path | None, dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **chosen: Any) -> None:
    """Mine the negatives of a build.

    BUILD is a folder, by default the newest one in ./builds. The settings are the
    `mine:` section of its manifest. Sources that are up to date are skipped. If
    only a filter changed, negatives are chosen again without encoding or
    searching.

    Encoding, searching and reranking are done by this process, by one process per
    GPU if there are several, by -j processes, or with --ray by one worker per GPU
    of a cluster (per processor if it has no GPU), whose nodes must see the build
    folder and the model under the same paths. A lost worker's part is done again
    by another. The result does not depend on where the work is done.
    """
    check_places(chosen["processes"], chosen["ray"], "--dry-run" if dry_run else "", "which mines nothing")
    build = newest(build)
    import json

    from curation.core.errors import BuildError
    from curation.recipe.manifest import load_manifest
    from mining.jobs import read_description
    from mining.mine import mine_build, plan, unsearched_documents, warnings_of

    if dry_run:
        receipts = plan(build, chosen["only"], chosen["device"])
    else:
        receipts = mine_build(build, progress=for_terminal(quiet), **chosen)
    if not quiet:
        lines = [line for name, receipt in receipts.items() if "kept" in receipt for line in warnings_of(name, receipt)]
        lines += dict.fromkeys(note for one in receipts.values() for note in one.get("encoder", {}).get("notes", []))
        failed = {} if chosen["only"] else read_description(build).get("failed", {})
        lines += [f"{name}: failed in the build, so there is nothing to mine: {why}" for name, why in failed.items()]
        lines += unsearched_documents(load_manifest(build / "manifest.yaml"), receipts)
        for line in lines:
            say(f"warning: {line}")
    output(json.dumps(receipts, indent=1, ensure_ascii=False) if as_json else _table(receipts, verbose))
    if dry_run:
        return
    if not any(receipt["kept"] for receipt in receipts.values()):
        hint = f"see `curate show --dropped {build}`, and loosen the filters in `mine:`"
        raise BuildError(build, "no tuple has enough negatives", hint)
    if not quiet:
        count = sum(receipt["ran"] for receipt in receipts.values())
        done = f"{count} of {len(receipts)} sources mined" if count else "nothing to do"
        following = (
            f"train {build}" if load_manifest(build / "manifest.yaml").train else f"curate export {build} --format FORMAT -o DIR"
        )
        say(f"{build}: {done}; look at them with `mine show {build}`; next: `{following}`")


def _table(receipts: dict[str, dict[str, Any]], verbose: bool) -> str:
    """Return one line per source, with `verbose` also what its filters dropped."""
    strategies = {name: receipt["strategy"].replace("_", " ") for name, receipt in receipts.items()}
    first, second = (max(map(len, column)) for column in (["source", *receipts], ["strategy", *strategies.values()]))
    lines = [f"{'source':<{first}}  {'strategy':<{second}}  {'rows':>10}  {'kept':>10}  {'dropped':>8}  state"]
    for name, receipt in receipts.items():
        is_plan = "kept" not in receipt
        kept, lost = ("", "") if is_plan else (f"{receipt['kept']:,}", f"{sum(receipt['dropped'].values()):,}")
        state = ("would be mined" if is_plan else "mined") if receipt["ran"] else "up to date"
        lines.append(f"{name:<{first}}  {strategies[name]:<{second}}  {receipt['rows_in']:>10,}  {kept:>10}  {lost:>8}  {state}")
        if is_plan or not verbose:
            continue
        for key, count in receipt["filters"].items():
            lines.append(f"  {key} dropped {count:,} of {receipt['candidates']:,} candidates")
        if "promotion" in receipt:
            promoted, among = receipt["promotion"]["promoted"], receipt["promotion"]["rows"]
            lines.append(f"  {promoted:,} candidates of {among:,} rows were promoted to positives")
        if "index" in receipt:
            index = receipt["index"]
            if index["kind"] == "exact":
                lines.append("  searched exactly: too few passages for an index")
            else:
                lines.append(
                    f"  searched {index['probes']:,} of {index['lists']:,} lists per query, which found "
                    f"{100 * index['recall']:.1f} % of the {index['recall_of']} nearest, for {index['recall_queries']} queries"
                )
        lines.append(f"  {receipt['signature']}")
    return "\n".join(lines)


@mine.command()
@BUILD
@click.option("--model", default="", metavar="NAME", help="Model to encode with; by default that of the `mine:` section.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "auto"]),
    help="Number format, like `dtype` in `mine:`; by default the value given there.",
)
@places
@JSON
@QUIET
def embed(build: Path | None, model: str, dtype: str | None, as_json: bool, quiet: bool, **chosen: Any) -> None:
    """Store the vectors of all texts of the mined tuples.

    Training uses them in two ways. `distill_vectors` needs the vectors of a
    teacher: name it with --model. `cluster_batches` needs the vectors of the
    queries. Texts whose vectors are stored are not encoded again. -j and --ray are
    those of `mine negatives`.
    """
    check_places(chosen["processes"], chosen["ray"])
    build = newest(build)
    import json

    from mining.mine import embed_build

    found = embed_build(build, model, dtype or "", progress=for_terminal(quiet), **chosen)
    if as_json:
        return output(json.dumps(found, indent=1, ensure_ascii=False))
    for name, one in found.items():
        output(f"{name}: {one['texts']:,} texts, {one['encoded']:,} of them encoded now")


@mine.command()
@BUILD
@ONLY
@click.option("-n", "number", default=5, show_default=True, type=click.IntRange(min=1), help="Tuples per source.")
@click.option("--whole", is_flag=True, help="Print whole texts, wrapped over several lines.")
def show(build: Path | None, only: tuple[str, ...], number: int, whole: bool) -> None:
    """Print tuples with their negatives.

    BUILD is a folder, by default the newest one in ./builds. The first positive
    has its score and its rank (0 is the nearest passage); a promoted one has the
    reranker's score; a negative has its score, its rank and its origin. Each
    source that was reranked begins with what was promoted and dropped.

    [[ ]] mark three or more words in a row that a positive contains too.
    """
    build = newest(build)
    from mining.show import as_text, mined_sources, mined_tuples, promotion_line

    for name in mined_sources(build, only):
        if line := promotion_line(build, name):
            output(line + "\n")
        for row in mined_tuples(build, name, number):
            output(as_text(row, whole) + "\n")


@mine.command()
@BUILD
@ONLY
@DEVICE
@JSON
@QUIET
def calibrate(build: Path | None, as_json: bool, quiet: bool, **chosen: Any) -> None:
    """Show what other limits would give.

    For each source that is searched, the tables try other relative margins and
    other limits for the similarity to a positive; all other settings are those of
    the manifest, whose own values are marked `current`.

    \b
    dropped   share of the candidates that the limit drops, after the filters
              before it
    full      share of tuples that get all their negatives
    hardness  mean score of the negatives
    FN        share of the negatives that are hidden positives: of queries with
              several positives, all except the first are hidden

    Then come the limits on the positive, with the share of tuples that each would
    drop. With `promote` or `uncertain`, the last table tries other margins:

    \b
    taken     share of the candidates near each query that the margin takes
    tuples    share of tuples that have any of these
    right     share of those taken that are hidden positives
    """
    from mining.calibrate import compare_limits

    def line(limit: str, row: dict[str, Any]) -> str:
        hardness = "-" if row["hardness"] is None else f"{row['hardness']:.3f}"
        shares = _percent(row["dropped"], 8, 1) + _percent(row["full"], 8, 1)
        return f"  {limit:<24}{shares}{hardness:>10}{_percent(row.get('false_negatives'), 10, 3)}{'  current' * row['current']}"

    for found in _print_sources(compare_limits, build, as_json, quiet, **chosen):
        output("  relative_margin          dropped    full  hardness        FN")
        for row in found["relative_margin"]:
            output(line(f"{row['relative_margin']:.2f}", row))
        output("  max_similarity (yield)   dropped    full  hardness        FN")
        for row in found["max_similarity"]:
            output(line(f"{row['max_similarity']:<8.3f}({row['target_yield']:.2f})", row))
        if "positives" in found:
            output("  limit on the positive        dropped")
        for row in found.get("positives", ()):
            limit = f"  {row['setting']} {row['limit']:.4g}"
            output(f"{limit:<30}{_percent(row['dropped'], 8, 1)}{'  current' * row['current']}")
        if found.get("relabelling"):
            output("  margin                     taken  tuples   right")
        for row in found.get("relabelling", ()):
            shares = "".join(_percent(row.get(key), 8, 1) for key in ("taken", "tuples", "right"))
            output(f"  {row['setting'] + ' ' + format(row['margin'], '.4g'):<22}{shares}{'  current' * row['current']}")


@mine.command()
@BUILD
@places
@JSON
@QUIET
def audit(build: Path | None, as_json: bool, quiet: bool, **chosen: Any) -> None:
    """Measure the negatives of your settings and of the presets.

    Where queries have several positives, all except the first are hidden, to
    count how many of them are chosen as negatives (false negatives, FN).

    \b
    full      share of tuples that get all their negatives
    FN@7, FN  share of hidden positives among the first 7, and among all negatives
    loose     FN with copies of hidden positives counted too
    plain     for comparison: the FN of a simple miner that only skips the nearest
              ranks, so many that its negatives are equally hard
    hard      mean score of the negatives that are no hidden positives
    lost      share of the candidates at .90 to .95 of the positive's score that
              were not chosen
    copies    share of negatives that copy a known positive

    -j and --ray are those of `mine negatives`.
    """
    check_places(chosen["processes"], chosen["ray"])
    from mining.audit import measure_presets

    columns = [("full", 6, 1), ("strict_7", 7, 2), ("strict", 7, 2), ("loose", 7, 2), ("plain", 7, 2)]
    for found in _print_sources(measure_presets, build, as_json, quiet, **chosen):
        output("  setting        full   FN@7     FN  loose  plain   hard  lost  copies")
        for setting, row in found["settings"].items():
            line = f"  {setting:<13}" + "".join(_percent(row.get(key), width, digits) for key, width, digits in columns)
            output(f"{line}  {row['hardness']:5.3f}" + _percent(row["clean_lost"], 6, 0) + _percent(row["copies"], 8, 2))


def _print_sources(
    measure: Callable[[Search, Mine], dict[str, Any]], build: Path | None, as_json: bool, quiet: bool, **chosen: Any
) -> Iterator[dict[str, Any]]:
    """Print a line per searched source and yield its measurements, to be printed below; or print all of them as JSON."""
    build = newest(build)
    import json

    from mining.calibrate import evaluate_sources

    results = evaluate_sources(measure, build, progress=for_terminal(quiet), **chosen)
    if as_json:
        return output(json.dumps(results, indent=1, ensure_ascii=False))
    for name, found in results.items():
        which = "those with several positives, all except one hidden" if found["gold"] else "spread over the source"
        output(f"{name}: {found['rows']:,} of {found['of']:,} rows, {which}")
        yield found


def _percent(share: float | None, width: int, digits: int) -> str:
    return f"{'-' if share is None else format(100 * share, f'.{digits}f') + '%':>{width}}"


def main() -> None:
    """Run the command line."""
    run_command(mine, "mine")
