"""The command `mine`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curation.core.console import PATH, SETTINGS, VERSION, newest, output, run_command, say
from curation.core.escape import visible
from curation.core.progress import for_terminal

if TYPE_CHECKING:
    from mining.judge import Judge

WIDTH = 78  # columns of `mine show`
BUILD = click.argument("build", required=False, type=PATH)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="Where it encodes and searches: auto, cpu, cuda or cuda:N."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress.")
ONLY = click.option("--only", multiple=True, metavar="SOURCE", help="This source only; may be given again.")


@click.group(context_settings=SETTINGS)
@VERSION
def mine() -> None:
    """Find hard negatives for the tuples of a build."""


@mine.command()
@BUILD
@ONLY
@DEVICE
@click.option("--rank", type=click.IntRange(min=0), envvar="RANK", help="Share the work: each process has its own number.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipts as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Neither progress nor warnings.")
@click.option("-v", "--verbose", is_flag=True, help="Also print what each filter took, and the signature.")
def negatives(
    build: Path | None,
    only: tuple[str, ...],
    device: str,
    rank: int | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Mine the negatives of a build.

    BUILD is a folder, by default the newest under ./builds. The settings are the
    `mine:` section of its manifest. What is up to date is left alone; a new filter
    setting chooses again without encoding or searching again. Processes with a
    --rank each, or under torchrun, share the work through the build's folder; one
    that dies is replaced by the others.
    """
    build = newest(build)
    import json

    from curation.core.errors import BuildError
    from mining.builds import failed_sources
    from mining.mine import mine_build, plan, warnings_of

    receipts = plan(build, only, device) if dry_run else mine_build(build, only, device, for_terminal(quiet), rank=rank)
    if not quiet:
        lines = [line for name, receipt in receipts.items() if "kept" in receipt for line in warnings_of(name, receipt)]
        lines += dict.fromkeys(note for one in receipts.values() for note in one.get("encoder", {}).get("notes", []))
        if not only:
            lines += [
                f"{name}: failed in the build and has nothing to mine: {why}" for name, why in failed_sources(build).items()
            ]
        for line in lines:
            say(f"warning: {line}")
    output(json.dumps(receipts, indent=1, ensure_ascii=False) if as_json else _table(receipts, verbose))
    if not dry_run and not any(receipt["kept"] for receipt in receipts.values()):
        hint = f"see `curate show --dropped {build}` for them, and loosen `mine:`"
        raise BuildError(build, "not one row of it has enough negatives", hint)


@mine.command()
@BUILD
@ONLY
@click.option("-n", "number", default=5, show_default=True, type=click.IntRange(min=1), help="Tuples of each source.")
@click.option("--whole", is_flag=True, help="Whole texts, on as many lines as they take.")
def show(build: Path | None, only: tuple[str, ...], number: int, whole: bool) -> None:
    """Print tuples with their negatives.

    BUILD is a folder, by default the newest under ./builds. A positive comes with
    its score, a negative with score, rank (0 is the nearest passage) and origin.
    Three words or more in a row that a positive has too are in [[ ]].
    """
    build = newest(build)
    from mining.builds import mined_sources, shown

    for name in mined_sources(build, only):
        for row in shown(build, name, number):
            output(_readable(row, whole) + "\n")


@mine.command()
@BUILD
@ONLY
@DEVICE
@JSON
@QUIET
def calibrate(build: Path | None, only: tuple[str, ...], device: str, as_json: bool, quiet: bool) -> None:
    """Show what other limits would give.

    For each source that is searched: other relative margins, and other limits of
    the similarity to a positive, each with all else as in the manifest; its own are
    marked. taken: share of all candidates that the limit takes, without what the
    filters before it took; full: rows that get all their negatives; hardness: mean
    score of the negatives. Where queries have several positives, all but the first
    are hidden, and FN is the share of them among the negatives.
    """
    from mining.calibrate import curves

    for said in _judged(curves, build, only, device, as_json, quiet):
        output("  relative_margin            taken    full  hardness        FN")
        for row in said["relative_margin"]:
            output(f"  {row['relative_margin']:<24.2f}{_curve(row)}")
        output("  max_similarity (yield)     taken    full  hardness        FN")
        for row in said["max_similarity"]:
            output(f"  {row['max_similarity']:<8.3f}{'(' + format(row['target_yield'], '.2f') + ')':<16}{_curve(row)}")


@mine.command()
@BUILD
@ONLY
@DEVICE
@JSON
@QUIET
def audit(build: Path | None, only: tuple[str, ...], device: str, as_json: bool, quiet: bool) -> None:
    """Measure negatives, of the manifest and the presets.

    Where queries have several positives, all but the first are hidden: FN is the
    share of them among the first 7 and all negatives, loose also counts copies of
    them, plain is FN of skipping ranks alone at equal hardness. hard: mean score
    of the other negatives. lost: share of candidates at .90 to .95 of the
    positive's score that were not chosen.
    """
    from mining.audit import audit

    for said in _judged(audit, build, only, device, as_json, quiet):
        output("  setting        full   FN@7     FN  loose  plain   hard  lost  copies")
        for setting, row in said["settings"].items():
            output(f"  {setting:<13}" + _audited(row))


def _judged(
    judge: Judge, build: Path | None, only: tuple[str, ...], device: str, as_json: bool, quiet: bool
) -> Iterator[dict[str, Any]]:
    """Yield what is said of each source, below a line with its name; or print all of it as JSON."""
    build = newest(build)
    import json

    from mining.judge import judged

    found = judged(judge, build, only, device, for_terminal(quiet))
    if as_json:
        return output(json.dumps(found, indent=1, ensure_ascii=False))
    for name, said in found.items():
        which = "those with several positives, all but one hidden" if said["gold"] else "spread over the source"
        output(f"{name}: {said['rows']:,} of {said['of']:,} rows, {which}")
        yield said


def _audited(row: dict[str, Any]) -> str:
    parts = [("full", 6, 1), ("strict_7", 7, 2), ("strict", 7, 2), ("loose", 7, 2), ("plain", 7, 2)]
    line = "".join(_percent(row.get(key), width, digits) for key, width, digits in parts)
    return f"{line}  {row['hardness']:5.3f}" + _percent(row["clean_lost"], 6, 0) + _percent(row["copies"], 8, 2)


def _percent(share: float | None, width: int, digits: int) -> str:
    return f"{'-' if share is None else format(100 * share, f'.{digits}f') + '%':>{width}}"


def _curve(row: dict[str, Any]) -> str:
    hardness = "-" if row["hardness"] is None else f"{row['hardness']:.3f}"
    return (
        f"{_percent(row['taken'], 8, 1)}{_percent(row['full'], 8, 1)}{hardness:>10}{_percent(row.get('false_negatives'), 10, 3)}"
        f"{'  as set' if row['set'] else ''}"
    )


def main() -> None:
    """Run the command line."""
    run_command(mine, "mine")


def _table(receipts: dict[str, dict[str, Any]], verbose: bool) -> str:
    """Return a line a source, and with `verbose` what its filters took."""
    width = max([6, *(len(name) for name in receipts)])
    lines = [f"{'source':<{width}}  {'way':<6}  {'rows':>10}  {'kept':>10}  {'dropped':>8}  state"]
    for name, said in receipts.items():
        dry = "kept" not in said
        kept, lost = ("", "") if dry else (f"{said['kept']:,}", f"{sum(said['dropped'].values()):,}")
        state = ("would be mined" if dry else "mined") if said["ran"] else "up to date"
        lines.append(f"{name:<{width}}  {said['way']:<6}  {said['rows_in']:>10,}  {kept:>10}  {lost:>8}  {state}")
        if verbose and not dry:
            lines += [f"  {key} took {count:,} of {said['candidates']:,} candidates" for key, count in said["filters"].items()]
            lines += [f"  {_index(said['index'])}"] if "index" in said else []
            lines.append(f"  {said['signature']}")
    return "\n".join(lines)


def _index(said: dict[str, Any]) -> str:
    """Return how a source was searched that was to be searched in part."""
    if said["kind"] == "exact":
        return "searched exactly: it has too few passages for an index"
    found = f"found {100 * said['recall']:.1f} % of the {said['recall_of']} nearest, of {said['recall_queries']} queries"
    return f"searched {said['probes']:,} of {said['lists']:,} lists for each query, which {found}"


def _readable(row: dict[str, Any], whole: bool) -> str:
    """Return a tuple on lines of at most 80 columns: a text each, or with `whole` as many as it takes."""
    scores = [row["positive_score"]] + [None] * (len(row["positives"]) - 1)
    texts = [("query", "", row["query"])]
    texts += [("positive", _score(score), text) for score, text in zip(scores, row["positives"], strict=True)]
    texts += [(origin, f"{_score(score)} {'' if rank is None else rank}", text) for text, score, rank, origin in row["negatives"]]
    return "\n".join([visible(" ".join(row["id"].split())), *(_line(*some, whole) for some in texts)])


def _line(what: str, numbers: str, text: str, whole: bool) -> str:
    line = f"  {what:<9}{numbers:<10}{visible(' '.join(text.split()))}"
    if whole:
        import textwrap

        return textwrap.fill(line, WIDTH, subsequent_indent=" " * 21)
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"
