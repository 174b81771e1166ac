"""The parts of the documents that are made from the code: help texts, the manifest's keys, its JSON Schema, model folders.

`python -m tests.documents` (`make docs`) writes them; `test_docs.py` fails when they are stale.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.testing import CliRunner

from curation.build.costs import RATES, costs, duration
from curation.core.escape import markdown_table
from curation.recipe.evaluation import Decontaminate, EvalSet
from curation.recipe.manifest import Dedup, Manifest
from curation.recipe.settings import Mine, OfSource, Train
from curation.recipe.source import Filters, Source
from curation.recipe.yaml import Section
from tests.training.model import model_folders

ROOT = Path(__file__).resolve().parents[1]
README, HELP = ROOT / "README.md", ROOT / "docs" / "commands.md"
KEYS, SCHEMA = ROOT / "manifests" / "README.md", ROOT / "manifests" / "manifest.schema.json"
MODELS = ROOT / "docs" / "models.md"
CLUSTERS = ROOT / "docs" / "clusters.md"


def commands() -> dict[str, click.Command]:
    """Every command a person can type, by its words."""
    from curation.cli import curate
    from mining.cli import mine
    from training.cli import train_command
    from tuplesmith_command import all_commands

    found: dict[str, click.Command] = {"tuplesmith": all_commands()}
    for name, group in (("curate", curate), ("mine", mine), ("train", train_command)):
        found[name] = group
        found |= {f"{name} {sub}": command for sub, command in group.commands.items() if not command.hidden}
    return found


def help_of(words: str) -> str:
    """What `words -h` prints at 80 columns, of which click leaves two free."""
    root, *rest = words.split()
    done = CliRunner().invoke(commands()[root], [*rest, "-h"], prog_name=root, env={"COLUMNS": "80"}, terminal_width=78)
    assert done.exit_code == 0, done.output
    return done.output


def helps() -> str:
    """docs/commands.md: what each command says with -h."""
    about = (
        "# Commands\n\nWhat each says with `-h`; made by `make docs`. Exit codes: 0 done, 1 an error you can mend (one line: where,\n"
        "what, what to try) or differences found, 2 wrong usage, 130 interrupted (143 by SIGTERM).\n"
    )
    return about + "".join(f"\n## {words}\n\n```text\n{help_of(words).rstrip()}\n```\n" for words in commands())


def schema() -> str:
    """The JSON Schema that editors check a manifest with."""
    return json.dumps(Manifest.model_json_schema(), indent=1) + "\n"


def keys() -> str:
    """manifests/README.md: every key of a manifest."""
    parts = [
        "# Manifests\n\nA manifest is a YAML file: the recipe of a dataset and of a model. Everything that changes the result is in the manifest;\n"
        "where, how fast and how loud a command runs are its flags. `curate examples` copies the manifests below into a folder of yours.\n"
        "This page is generated from the code by `make docs`; editors can check a manifest with `manifest.schema.json`.\n\n"
        "| file | what it is |\n|---|---|\n"
        "| quickstart.yaml | the demo: functions of Python's standard library, offline, in minutes; `manifests/quickstart.py` writes its data |\n"
        "| f2llm.yaml | the 62 English sources of F2LLM v1, with what is known and not known of each |\n"
        "| f2llm-clean.yaml | the same without non-commercial and unknown licences, and clear of what MTEB scores |\n"
        "| dev.yaml | thirty real datasets, from a folder `shared/data` beside the checkout: every reader, every shape |\n"
        "| train/qwen3-*.yaml | F2LLM's recipes for Qwen3 of 0.6, 1.7 and 4 billion weights, each value with who says it |\n"
        "| train/f2llm-v2-*.yaml | F2LLM-v2's recipes of 80 million to 14 billion weights, in one stage or two (`train --from`); what its paper leaves open is named |\n\n"
        "Values mean what they look like: `language: no` is Norwegian, `revision: 0123e5` is text, `lr: 1e-5` is a number.\n"
        'Paths in `files:` are relative to the manifest\'s folder. Unknown and repeated keys are errors. "If empty" below means: if the\n'
        "key is not given.\n"
    ]
    sections: list[tuple[str, str, type[Section]]] = [
        ("The manifest", "", Manifest),
        ("`filters:`", "Also inside a source, instead of the manifest's.", Filters),
        ("`dedup:`", Dedup.__doc__ or "", Dedup),
        ("`decontaminate:`", Decontaminate.__doc__ or "", Decontaminate),
        ("`decontaminate: against:`", EvalSet.__doc__ or "", EvalSet),
        ("`sources:`", "A list; the order is the priority.", Source),
        ("`mine:`", "", Mine),
        ("`train:`", "Also a file of its own: `train BUILD --recipe FILE`.", Train),
    ]
    return "\n".join(parts + [_section(*section) for section in sections])


def costs_table() -> str:
    """The table of docs/clusters.md: what six and sixty million tuples cost, of 60 sources that are alike."""
    head = ["step", "measured, per second", "on", "6 million tuples", "shared by 8", "60 million", "shared by 32"]
    small, large = (costs(60 * size, 60 * size, 60 * [(size, size)]) for size in (100_000, 1_000_000))
    lines = []
    for one, ten in zip(small, large, strict=True):
        alone = one.step == "choose"  # the command itself does it
        shared = ["", ""] if alone else [duration(one.seconds / 8), duration(ten.seconds / 32)]
        rate, unit, on = RATES[one.step]
        lines.append([one.step, f"{rate:,} {unit}", on, duration(one.seconds), shared[0], duration(ten.seconds), shared[1]])
    return markdown_table(head, lines) + "\n"


def _section(title: str, about: str, model: type[Section]) -> str:
    lines = [f"## {title}\n", *([about + "\n"] if about else []), "| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        lines.append(f"| `{name}` | {default} | {field.description} |")
        options = [field.annotation]  # with what is inside of unions and annotations
        for option in options:
            options += getattr(option, "__args__", ())
        inner = next((option for option in options if _is_fields(option)), None)
        if inner:
            name += ".NAME" if inner is OfSource else ""
            for sub, f in inner.model_fields.items():
                lines.append(f"| `{name}.{sub}` | {'required' if f.is_required() else _default(f.default)} | {f.description} |")
    return "\n".join(lines) + "\n"


def _is_fields(annotation: object) -> bool:
    return (
        isinstance(annotation, type)
        and issubclass(annotation, Section)
        and annotation.__name__ in ("DistillVectors", "Fields", "DeepSpeed", "Lora", "OfSource", "Prompts", "Questions")
    )


def _default(value: object) -> str:
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, Section):
        return "see below"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`".replace("\n", "\\n")


if __name__ == "__main__":
    HELP.write_text(helps())
    KEYS.write_text(keys())
    SCHEMA.write_text(schema())
    MODELS.write_text(model_folders.table())
    before, _, rest = CLUSTERS.read_text().partition("| step |")
    CLUSTERS.write_text(before + costs_table() + "\n" + rest.partition("\n\n")[2])
