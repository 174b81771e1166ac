"""The commands of `curate` that check a build and take it elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from curation.command import newest, output, say
from curation.progress import for_terminal

FORMATS = ("f2llm", "pair", "triplet", "n-tuple", "labeled-list", "scored-list", "flagembedding", "tevatron", "beir")


@click.command()
@click.argument("build", type=click.Path(path_type=Path), required=False)
@click.option("--format", "name", type=click.Choice(FORMATS), required=True, metavar="FORMAT", help="One of the above.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder to write; the files are in its data/.")
@click.option("--only", multiple=True, metavar="SOURCE", help="This source only; may be given again.")
@click.option("--negatives", type=click.IntRange(1), help="Negatives a tuple, see above.")
@click.option("--json", "as_json", is_flag=True, help="The receipt as JSON instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def export(
    build: Path | None, name: str, out: Path, only: tuple[str, ...], negatives: int | None, as_json: bool, quiet: bool
) -> None:
    """Write BUILD (or the newest build) as another tool's training data.

    \b
    f2llm          parquet of F2LLM's trainer, instructions in the queries
    pair, triplet, n-tuple, labeled-list, scored-list
                   parquet of sentence-transformers
    flagembedding  JSON Lines of FlagEmbedding (bge)
    tevatron       JSON Lines of Tevatron and MIRACL
    beir           corpus, queries and qrels

    Where negatives have columns of their own (f2llm, n-tuple), tuples with fewer
    are left out: fewer than 24, or 1 for a classification, unless --negatives
    says another number. Elsewhere --negatives is the most a tuple keeps. All but
    pair and beir need mined negatives.
    """
    from curation import export as exporting
    from curation import look

    if negatives and name in ("pair", "beir"):
        raise click.UsageError(f"'{name}' holds no negatives, so --negatives says nothing.")
    receipt, ran = exporting.export(newest(build), out, name, only, negatives, for_terminal(quiet))
    output(look.as_json(receipt) if as_json else exporting.exported_table(receipt))
    if not quiet:
        say(f"{out / 'data'}: {'written' if ran else 'nothing to do'}")


@click.command()
@click.argument("build", type=click.Path(path_type=Path), required=False)
@click.option("--only", multiple=True, metavar="SOURCE", help="This source only; may be given again.")
@click.option("--json", "as_json", is_flag=True, help="The problems as a JSON list.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, and nothing where all is well.")
def verify(build: Path | None, only: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Check every receipt, digest, id and count of BUILD or the newest build.

    One line a problem; the exit code is 1 where there is any.
    """
    from curation import look
    from curation import verify as checking

    folder = newest(build)
    problems = checking.problems(folder, only, for_terminal(quiet))
    if as_json:
        output(look.as_json([{"where": one.where, "what": one.what} for one in problems]))
    else:
        for one in problems:
            output(f"{one.where}: {one.what}")
        if not quiet:
            say(f"{folder}: {f'{len(problems)} problems' if problems else 'all is as it was written'}")
    return 1 if problems else 0
