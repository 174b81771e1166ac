"""The command `curate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from curation.cli_share import diff, examples, export, importing, publish, verify
from curation.core.console import MEMORY, PATH, RAY, SETTINGS, VERSION, WORKERS, check_places, newest, output, run_command, say
from curation.core.errors import BuildError
from curation.core.progress import for_terminal

OUTSIDE_SHOWN = 12  # files outside of a manifest's folder that a build prints


@click.group(context_settings=SETTINGS)
@VERSION
def curate() -> None:
    """Turn open datasets into training tuples of (query, positives, negatives).

    Start with `curate examples` or `curate import`, then `curate build`.
    """


@curate.command()
@click.argument("manifest", type=PATH)
@click.option("-o", "--out", type=PATH, help="Build folder [default: builds/NAME].")
@click.option("--only", multiple=True, metavar="SOURCE", help="Build only this source; repeatable.")
@click.option("--limit", type=click.IntRange(1), help="Read at most this many rows per source, for a first look.")
@click.option("--no-decontaminate", is_flag=True, help="Skip `decontaminate:`, so that no evaluation set is read.")
@WORKERS
@MEMORY
@RAY
@click.option(
    "--licenses", type=click.Choice(["all", "no-nc", "permissive"]), help="Licence policy, instead of the one in MANIFEST."
)
@click.option("--confined", is_flag=True, help="Refuse to read outside MANIFEST's folder. For manifests of others.")
@click.option("--dry-run", is_flag=True, help="Show what the first rows become; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show progress.")
def build(
    manifest: Path,
    out: Path | None,
    only: tuple[str, ...],
    limit: int | None,
    no_decontaminate: bool,
    workers: int | None,
    memory: float | None,
    ray: str | None,
    licenses: Any,
    confined: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Build the sources of MANIFEST into tables of tuples.

    Running it again continues an interrupted build; after a change, only the
    stages that depend on the change run. If MANIFEST has a lock file next to it
    (see `curate lock`), the pinned revisions are used.

    --licenses no-nc leaves out sources whose licence forbids commercial use;
    permissive also leaves out share-alike licences. Both leave out sources with an
    unknown licence. build.json lists what was left out.

    By default -j is 1, plus 1 for each 64 MB of input outside the largest source,
    but at most the number of processors, and what fits into memory. A source that
    is much larger than the others is worked on by all workers, part by part. With
    --ray these are tasks of the cluster; its nodes must see the inputs and the
    build folder under the same paths. The result does not depend on where the
    work is done.
    """

    from curation.build import build as building
    from curation.build import show
    from curation.build.preview import preview
    from curation.read import outside
    from curation.recipe.manifest import load_manifest

    if dry_run and as_json:
        raise click.UsageError("--json has no effect with --dry-run, which prints texts.")
    check_places(workers, ray, "--dry-run" if dry_run else "", "which reads a few rows here")
    if not quiet:
        for where, names in outside.read_outside(load_manifest(manifest), manifest.parent).items():
            more = f" and {len(names) - OUTSIDE_SHOWN:,} more, see `curate check`" if len(names) > OUTSIDE_SHOWN else ""
            say(f"{manifest}: {where} reads outside of the manifest's folder: {', '.join(names[:OUTSIDE_SHOWN])}{more}")
    if dry_run:
        preview(manifest, only, limit, output, licenses, confined)
        return 0
    progress, decontaminated = for_terminal(quiet), not no_decontaminate
    outcome = building.build(manifest, out, only, limit, workers, progress, licenses, confined, decontaminated, ray, memory)
    if as_json:
        output(show.as_json(outcome.receipts))
    elif outcome.receipts:
        output(show.counts_table(outcome.receipts))
    for name, reason in outcome.excluded:
        say(f"curate: {manifest}: source '{name}' is left out: {reason}")
    for line in (*outcome.notes, *outcome.failed.values()):
        say(f"curate: {manifest}: {line}")
    if not quiet:
        count = len(outcome.receipts) + len(outcome.failed)
        fresh = f"{len(outcome.ran)} of {count} sources built" if outcome.ran or outcome.failed else "nothing to do"
        ready = f"; see report.html; next: `mine negatives {outcome.folder}`" if outcome.receipts else ""
        say(f"{outcome.folder}: {fresh}{ready}")
    return 1 if outcome.failed else 0


@curate.command()
@click.argument("build", type=PATH, required=False)
@click.option("--only", multiple=True, metavar="SOURCE", help="Only this source; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def stats(build: Path | None, only: tuple[str, ...], as_json: bool) -> None:
    """Count rows and tuples of BUILD, and why rows were dropped.

    BUILD is a build folder; by default the newest one in builds/.
    """
    from curation.build import show
    from curation.clean import decontaminate
    from curation.core.builds import receipts as receipts_of
    from curation.core.escape import text_table
    from curation.recipe.mteb_boards import BOARD_HEAD, board_lines, zero_shot

    folder = newest(build)
    receipts = receipts_of(folder, only)
    if as_json:
        output(
            show.as_json({name: {**receipt, "overlaps": show.overlaps_of(folder, name)} for name, receipt in receipts.items()})
        )
    else:
        output(show.counts_table(receipts) + "\n")
        output(show.reasons_table(receipts))
        if shared := show.overlaps_table(folder, list(receipts)):
            output("\n" + shared)
        if overlaps_found := decontaminate.table_of(folder, list(receipts)):
            output("\n" + text_table(("overlap with", "in", "query", "positive", "negative", "corpus"), overlaps_found))
        board_rows, notes = board_lines(zero_shot(folder, list(receipts)))
        if notes:
            output("\n" + "\n".join([*([text_table(BOARD_HEAD, board_rows)] if board_rows else []), *notes]))


@curate.command()
@click.argument("build", type=PATH, required=False)
def report(build: Path | None) -> None:
    """Write report.html of BUILD again and print its path.

    BUILD is a build folder; by default the newest one in builds/.

    `curate build` writes the report too. It shows counts, overlaps, lengths,
    labels, near-duplicates, and samples of kept and dropped texts.
    """
    from curation.report import page as reporting

    folder = newest(build)
    reporting.write(folder, again=True)
    output(str(folder / "report.html"))


@curate.command()
@click.argument("build", type=PATH, required=False)
@click.option("--only", multiple=True, metavar="SOURCE", help="Only this source; repeatable.")
@click.option("-n", "count", type=click.IntRange(1), default=3, show_default=True, help="Records per source.")
@click.option("--dropped", is_flag=True, help="Print dropped records and why they were dropped.")
@click.option("--reason", help="With --dropped: only this reason.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record per line.")
def show(build: Path | None, only: tuple[str, ...], count: int, dropped: bool, reason: str | None, as_json: bool) -> None:
    """Print records of BUILD as they will be trained on.

    BUILD is a build folder; by default the newest one in builds/.
    """
    import json

    from curation.build import show

    if reason and not dropped:
        raise click.UsageError("--reason requires --dropped.")
    folder = newest(build)
    records = show.dropped_records(folder, only, count, reason) if dropped else show.records(folder, only, count)
    found = False
    for record in records:
        found = True
        output(json.dumps(record, ensure_ascii=False) if as_json else show.record_text(record))
    if not found:
        raise BuildError(folder, "has no such records", "see `curate stats` for sources and reasons")


@curate.command()
@click.argument("manifest", type=PATH)
@click.option("--online", is_flag=True, help="Also check on the Hub and in stores that everything exists.")
@click.option("--confined", is_flag=True, help="Refuse to read outside MANIFEST's folder. For manifests of others.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def check(manifest: Path, online: bool, confined: bool, as_json: bool) -> int:
    """Check MANIFEST, and print what it will give and cost.

    Checks keys, names, licences, limits, expected tuples, local files and the lock
    file. With --online it also asks the Hub about ids, revisions, configs, splits,
    columns and files, and stores about URLs. The exit code is 1 if there is a
    problem; a source with `verified: no` is reported but is not a problem.
    """
    from curation.build import check as checking
    from curation.build import show

    found = checking.check(manifest, online, confined)
    output(show.as_json(found) if as_json else checking.check_text(found))
    if not as_json:
        say(checking.verdict(found))
    return 1 if found["problems"] else 0


@curate.command()
@click.argument("manifest", type=PATH)
@click.option("--only", multiple=True, metavar="SOURCE", help="Lock only this source; repeatable.")
@click.option("--confined", is_flag=True, help="Refuse to read outside MANIFEST's folder. For manifests of others.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show progress.")
def lock(manifest: Path, only: tuple[str, ...], confined: bool, quiet: bool) -> int:
    """Pin the version of each source of MANIFEST in a lock file.

    MANIFEST.lock, next to MANIFEST, holds commit, columns, rows, bytes, digest and
    licence of each source. Builds then use these commits, and a source that has
    changed since fails. Publishing requires the lock file. Rows on the Hub are not
    downloaded; local files and URLs are read and counted.
    """
    from curation.build.build import pick
    from curation.read import lock as locking
    from curation.read.outside import refuse_outside
    from curation.recipe.licenses import allowed
    from curation.recipe.manifest import load_manifest

    kept, out = allowed(load_manifest(manifest))
    chosen = pick(kept, only, out)
    refused = refuse_outside(kept, manifest) if confined else {}
    failed = locking.write_lock(manifest, kept, chosen, for_terminal(quiet), refused)
    for name, error in failed.items():
        say(f"curate: {manifest}: source '{name}': {error}")
    if not quiet:
        say(f"{locking.lock_path(manifest)}: {len(chosen) - len(failed)} of {len(chosen)} sources locked")
    return 1 if failed else 0


@curate.command()
@click.argument("build", type=PATH, required=False)
@click.option("-o", "--out", type=PATH, required=True, help="Parquet file to write.")
@click.option("--only", multiple=True, metavar="SOURCE", help="Only this source; repeatable.")
def signatures(build: Path | None, out: Path, only: tuple[str, ...]) -> None:
    """Write MinHash signatures of the texts of BUILD to a file.

    BUILD is a build folder; by default the newest one in builds/.

    The signatures can be loaded into datasketch's MinHashLSH.
    """
    from curation.share.signature_file import write_signatures

    say(f"{out}: {write_signatures(newest(build), out, only):,} signatures")


for command in (diff, examples, export, importing, publish, verify):
    curate.add_command(command)


def main() -> None:
    """Run the command line."""
    run_command(curate, "curate")
