"""The commands of `curate` that check, compare, export, import and publish."""

from __future__ import annotations

from pathlib import Path

import click

from curation.core.console import PATH, RAY, WORKERS, check_places, newest, output, say
from curation.core.progress import for_terminal

EXPORTS = (
    "f2llm", "pair", "triplet", "n-tuple", "labeled-list", "scored-list", "flagembedding", "tevatron", "tevatron-ids", "nemo",
    "beir", "ids",
)  # fmt: skip


@click.command()
@click.argument("build", type=PATH, required=False)
@click.option("--format", "name", type=click.Choice(EXPORTS), required=True, metavar="FORMAT", help="One of the formats above.")
@click.option(
    "-o",
    "--out",
    type=PATH,
    required=True,
    help="Folder to write; the data goes into its folder data/.",
)
@click.option("--only", multiple=True, metavar="SOURCE", help="Only this source; repeatable.")
@click.option("--negatives", type=click.IntRange(1), help="Negatives per tuple, see above.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show progress.")
def export(
    build: Path | None, name: str, out: Path, only: tuple[str, ...], negatives: int | None, as_json: bool, quiet: bool
) -> None:
    """Write BUILD in the training format of another tool.

    BUILD is a build folder; by default the newest one in builds/.

    \b
    f2llm          parquet of F2LLM's trainer, instructions in the queries
    pair, triplet, n-tuple, labeled-list, scored-list
                   parquet of sentence-transformers
    flagembedding  JSON Lines of FlagEmbedding (bge)
    tevatron       JSON Lines of Tevatron and MIRACL
    tevatron-ids   JSON Lines of Tevatron 2: a corpus, and tuples of its ids
    nemo           JSON of NeMo Automodel: a corpus, and tuples of its ids
    beir           corpus, queries and qrels
    ids            parquet with each text once and tuples of ids, for resolve_ids
                   of sentence-transformers; a fraction of the space

    f2llm, n-tuple and nemo have a fixed number of negatives: --negatives, by
    default 24, or 1 for classification. Tuples with fewer are left out.
    In the other formats --negatives is the largest number per tuple. All formats
    except pair and beir require mined negatives.
    """
    from curation.build import show
    from curation.share import export as exporting

    if negatives and name in ("pair", "beir"):
        raise click.UsageError(f"'{name}' has no negatives, so --negatives has no effect.")
    receipt, ran = exporting.export(newest(build), out, name, only, negatives, for_terminal(quiet))
    output(show.as_json(receipt) if as_json else exporting.exported_table(receipt))
    if not quiet:
        say(f"{out / 'data'}: {'written' if ran else 'nothing to do'}")


@click.command()
@click.argument("build", type=PATH)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--lock", type=PATH, help="Lock file [default: BUILD/manifest.lock].")
@click.option(
    "--allow",
    multiple=True,
    metavar="SOURCE",
    help="Publish this source although it is not verified, or its licence is unknown; repeatable.",
)
@click.option("--negatives", type=click.IntRange(1), help="Number of negative columns [default: all mined].")
@click.option("--columns", default="", metavar="LIST", help="Extra columns: positives,ids,scores,provenance.")
@click.option("--private", is_flag=True, help="Create the repository as private.")
@click.option("--tag", metavar="NAME", help="Tag this version, for example v1.0.")
@click.option("--dry-run", is_flag=True, help="Show files, sizes and the card; send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show progress.")
def publish(
    build: Path,
    repo: str,
    lock: Path | None,
    allow: tuple[str, ...],
    negatives: int | None,
    columns: str,
    private: bool,
    tag: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish BUILD on the Hub as ORG/NAME, in one commit.

    Each source becomes one config with the columns query (with its instruction),
    passage (the first positive; `--columns positives` adds a list of all) and
    negative_1 to negative_N. The card, manifest, lock file, report and attribution
    are published too. Sources with `verified: no` or an unknown licence are left
    out and listed. Publishing again sends only what changed.
    """
    from curation.build import show
    from curation.core.escape import text_table
    from curation.share import publish as publishing

    chosen = [name.strip() for name in columns.split(",") if name.strip()]
    if wrong := [name for name in chosen if name not in publishing.GROUPS]:
        raise click.UsageError(f"--columns knows {', '.join(publishing.GROUPS)}, not '{wrong[0]}'.")
    made = publishing.plan(build, repo, lock, allow, negatives, chosen, for_terminal(quiet), need_lock=not dry_run)
    for name, why in made.left_out.items():
        say(f"left out: {name}: {why}")
    for note in made.notes:
        say(f"not published: {note}")
    if dry_run:
        files = {path: piece.size for path, piece in made.pieces.items()}
        shown = {"repo": repo, "files": files, "bytes": made.size(), "left_out": made.left_out, "card": made.card}
        lines = [*files.items(), ("all", made.size())]
        return output(show.as_json(shown) if as_json else f"{text_table(('file', 'bytes'), lines)}\n\n{made.card}")
    done = publishing.publish(made, private, tag, (lambda line: None) if quiet else say)
    result = {"url": done.url, "commit": done.commit, "tag": tag, "sent": done.sent, "deleted": done.deleted}
    summary = f"{len(done.sent)} of {len(made.pieces)} files, {sum(done.sent.values()):,} bytes" if done.sent else "nothing to do"
    output(show.as_json(result) if as_json else f"{done.url} at {done.commit[:12]}: {summary}")


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--only", multiple=True, metavar="SOURCE", help="Only this source; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the first rows that differ.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show progress.")
def diff(a: str, b: str, only: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Show what changed from A to B: recipe, counts, rows and why.

    A and B are builds, or published versions such as my-org/name@v1.0. Of a build
    and a published version, in either order, the changes since the publication are
    shown. The exit code is 1 if anything differs.
    """
    from curation.build import show
    from curation.share import diff as comparing

    found = comparing.diff(a, b, only, for_terminal(quiet))
    output(show.as_json(found) if as_json else comparing.diff_text(found))
    return 1 if comparing.differs(found) else 0


@click.command()
@click.argument("build", type=PATH, required=False)
@click.option(
    "--model",
    type=PATH,
    metavar="RUN",
    help="Check this run of `train`, or a model folder.",
)
@click.option("--only", multiple=True, metavar="SOURCE", help="Only this source; repeatable.")
@WORKERS
@RAY
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
def verify(
    build: Path | None,
    model: Path | None,
    only: tuple[str, ...],
    workers: int | None,
    ray: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Check every receipt, digest, id and count of BUILD.

    BUILD is a build folder, by default the newest one in builds/; or an export; or
    a published dataset as `hf download` saves it. A run in BUILD/train is checked
    too. With --model: the checkpoints and the model of a run, and the mined tables
    that it was trained on. All files are read completely.

    Prints one line per problem; the exit code is 1 if there are any. With --ray the
    nodes must see the folders under the same paths. The output does not depend on
    where the work is done.
    """
    from curation.build import show
    from curation.share import verify as checking

    check_places(workers, ray)
    problems, folder, progress = [], model or newest(build), for_terminal(quiet)
    if model:
        home = build or (model.parent if (model.parent / "build.json").is_file() else None)
        problems = checking.problems_of_model(model, home, progress, workers, ray)
        if home is None and not quiet:
            say(f"{model}: has no build next to it; `curate verify BUILD --model {model}` also checks what it was trained on")
    if build or not model:
        folder = build or folder
        problems = list(dict.fromkeys([*problems, *checking.problems(folder, only, progress, workers, ray)]))
    if as_json:
        output(show.as_json([{"where": one.where, "what": one.what} for one in problems]))
    else:
        for one in problems:
            output(f"{one.where}: {one.what}")
        if not quiet:
            say(f"{folder}: {f'{len(problems)} problems' if problems else 'no problems'}")
    return 1 if problems else 0


@click.command("import")
@click.argument("what", metavar="PATH_OR_ID")
@click.option("-o", "--out", type=PATH, required=True, help="Manifest to write.")
def importing(what: str, out: Path) -> None:
    """Write a first manifest for existing data.

    PATH_OR_ID is a csv or tsv file, or a folder of them; a parquet or JSON Lines
    file, or a folder of them, in a format of `curate export`; a BEIR folder; or a
    dataset on the Hub in one of these formats, such as those of MTEB. The columns
    decide the format. Of csv and tsv files, columns are guessed by their names,
    encoding and delimiter by the first bytes. Data named dev, valid or test becomes
    an evaluation set of `decontaminate:`, not a source.
    """
    from curation.share.importing import write_manifest

    found = write_manifest(what, out)
    for name, form in found.sources.items():
        output(f"{name}: {form}")
    for line in found.notes:
        say(line)
    say(f"{out}: check it, above all columns, task, language and licence; next: `curate build {out}`")


@click.command()
@click.argument("folder", type=PATH, default=Path("manifests"))
def examples(folder: Path) -> None:
    """Copy the example manifests into FOLDER [default: manifests].

    Files that exist are not replaced. `python FOLDER/quickstart.py` runs the whole
    path from quickstart.yaml to a model; with `--data` it only writes the file that
    `curate build FOLDER/quickstart.yaml` reads.
    """
    from curation.recipe.manifest import copy_examples

    for path in copy_examples(folder):
        output(str(path))
    say(f"{folder}: see {folder / 'README.md'} for every key; next: `python {folder / 'quickstart.py'} --data`")
