"""The `curate` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from curation.cli_share import diff, export, importing, publish, verify
from curation.core.console import PATH, SETTINGS, VERSION, newest, output, run_command, say
from curation.core.errors import BuildError
from curation.core.progress import for_terminal


@click.group(context_settings=SETTINGS)
@VERSION
def curate() -> None:
    """From open datasets to tuples: build, look, count, check, exchange."""


@curate.command()
@click.argument("manifest", type=PATH)
@click.option("-o", "--out", type=PATH, help="Build folder [default: builds/NAME].")
@click.option("--only", multiple=True, metavar="SOURCE", help="Build this source only; may be given again.")
@click.option("--limit", type=click.IntRange(1), help="At most this many rows a source, for a quick show.")
@click.option("-j", "--workers", type=click.IntRange(1), help="Processes [default: as many as pay].")
@click.option(
    "--licenses", type=click.Choice(["all", "no-nc", "permissive"]), help="Sources to take, instead of what MANIFEST says."
)
@click.option("--confined", is_flag=True, help="Refuse what MANIFEST reads outside of its folder: it is somebody else's.")
@click.option("--dry-run", is_flag=True, help="Read a little of each source, show what it becomes, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="The receipts as JSON instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def build(
    manifest: Path,
    out: Path | None,
    only: tuple[str, ...],
    limit: int | None,
    workers: int | None,
    licenses: Any,
    confined: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Build the sources of MANIFEST into tables of tuples.

    A second run does nothing; after a change, only what depends on it runs.
    Where the lock file of `curate lock` lies beside MANIFEST, revisions are its.

    `--licenses no-nc` leaves out sources whose licence forbids commercial use,
    `permissive` also those that ask for the same terms, and both all sources
    whose licence is not known. The sources left out stand in build.json.

    Without -j, one process works, and a further one for each 64 MB of input beside
    the largest source, at most one a core: small builds would take ten times the
    processor time. The tables are the same with any number.
    """

    from curation.build import build as building
    from curation.build import show
    from curation.build.preview import preview
    from curation.read import outside
    from curation.recipe.manifest import load_manifest

    if dry_run and as_json:
        raise click.UsageError("--dry-run shows texts to read, so --json says nothing.")
    if not quiet:
        for where, names in outside.read_outside(load_manifest(manifest), manifest.parent).items():
            say(f"{manifest}: {where} reads outside of the manifest's folder: {', '.join(names)}")
    if dry_run:
        preview(manifest, only, limit, output, licenses, confined)
        return 0
    outcome = building.build(manifest, out, only, limit, workers, for_terminal(quiet), licenses, confined)
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
@click.option("--only", multiple=True, metavar="SOURCE", help="This source only; may be given again.")
@click.option("--json", "as_json", is_flag=True, help="The receipts as JSON instead of a table.")
def stats(build: Path | None, only: tuple[str, ...], as_json: bool) -> None:
    """Count rows and tuples of BUILD, and what was dropped why.

    Without BUILD: of the newest build.
    """
    from curation.build import show
    from curation.clean import decontaminate
    from curation.core.builds import receipts as receipts_of
    from curation.core.escape import text_table

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


@curate.command()
@click.argument("build", type=PATH, required=False)
def report(build: Path | None) -> None:
    """Write the report.html of BUILD anew, and print its path.

    Without BUILD: of the newest build.

    `curate build` writes it too: one page with counts, overlaps, lengths, labels,
    near-duplicates and samples of what was kept and of what was left out.
    """
    from curation.report import page as reporting

    folder = newest(build)
    reporting.write(folder, again=True)
    output(str(folder / "report.html"))


@curate.command()
@click.argument("build", type=PATH, required=False)
@click.option("--only", multiple=True, metavar="SOURCE", help="This source only; may be given again.")
@click.option("-n", "count", type=click.IntRange(1), default=3, show_default=True, help="Records a source.")
@click.option("--dropped", is_flag=True, help="Show what was dropped, and why, instead.")
@click.option("--reason", help="With --dropped: this reason only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON record a line.")
def show(build: Path | None, only: tuple[str, ...], count: int, dropped: bool, reason: str | None, as_json: bool) -> None:
    """Print records of BUILD as they will be trained on.

    Without BUILD: of the newest build.
    """
    from curation.build import show

    if reason and not dropped:
        raise click.UsageError("--reason is for --dropped.")
    folder = newest(build)
    records = show.dropped_records(folder, only, count, reason) if dropped else show.records(folder, only, count)
    found = False
    for record in records:
        found = True
        output(show.as_line(record) if as_json else show.as_text(record))
    if not found:
        raise BuildError(folder, "has no such records", "see `curate stats` for sources and reasons")


@curate.command()
@click.argument("manifest", type=PATH)
@click.option("--online", is_flag=True, help="Ask the Hub, too, whether all that is named is there.")
@click.option("--confined", is_flag=True, help="Refuse what MANIFEST reads outside of its folder: it is somebody else's.")
@click.option("--json", "as_json", is_flag=True, help="What was found as JSON.")
def check(manifest: Path, online: bool, confined: bool, as_json: bool) -> int:
    """Tell what MANIFEST gives, what it costs, what is in doubt.

    Without --online nothing leaves this machine: keys, names, licences, limits,
    expected tuples, local files, the lock file. With it also ids, revisions,
    configs, splits, columns and files. No row is read. The exit code is 1 where
    there is a problem; a source that is not verified is none.
    """
    from curation.build import check as checking
    from curation.build import show

    found = checking.check(manifest, online, confined)
    output(show.as_json(found) if as_json else checking.as_text(found))
    if not as_json:
        say(checking.verdict(found))
    return 1 if found["problems"] else 0


@curate.command()
@click.argument("manifest", type=PATH)
@click.option("--only", multiple=True, metavar="SOURCE", help="Resolve this source only; may be given again.")
@click.option("--confined", is_flag=True, help="Refuse what MANIFEST reads outside of its folder: it is somebody else's.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def lock(manifest: Path, only: tuple[str, ...], confined: bool, quiet: bool) -> int:
    """Write down what each source of MANIFEST is now, beside it.

    MANIFEST.lock has the commit, columns, rows, bytes and a digest of each, and
    its licence. From then on builds take these commits, and a source that is not
    as it was locked fails; publishing needs the file. No rows of the Hub are
    fetched; local ones are read and counted.
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
@click.option("--only", multiple=True, metavar="SOURCE", help="This source only; may be given again.")
def signatures(build: Path | None, out: Path, only: tuple[str, ...]) -> None:
    """Write MinHash signatures of the texts of BUILD.

    Without BUILD: of the newest build.

    datasketch's MinHashLSH loads them, see curation/share/signature_file.py.
    """
    from curation.share.signature_file import write_signatures

    say(f"{out}: {write_signatures(newest(build), out, only):,} signatures")


for command in (diff, export, importing, publish, verify):
    curate.add_command(command)


def main() -> None:
    """Run the command line."""
    run_command(curate, "curate")
