"""The card of a published repository: its YAML header, and a check of it before anything is sent.

Keys: https://huggingface.co/docs/hub/datasets-cards and model-cards (2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from curation.core.escape import CONTROLS

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
    openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    gemma unknown other
    """.split()  # noqa: SIM905  one per line would fill a page
)
HUB_TASKS = ("text-retrieval", "feature-extraction", "sentence-similarity", "text-classification")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
         (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))  # fmt: skip
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})*|code|multilingual")
CONFIG = re.compile(r"[^<>:/\\|?*\s]+")
LICENSE_NAME = re.compile(r"[a-z0-9.+-]+")
LIST_KEYS = ("language", "task_categories", "size_categories", "tags", "source_datasets", "configs", "dataset_info", "datasets")


def size_of(rows: int) -> str:
    """Return the Hub's size category of a number of rows."""
    return next((word for most, word in SIZES if rows < most), "n>1B" if rows < 10**12 else "n>1T")


def with_yaml(head: Mapping[str, Any], body: str) -> str:
    """Return a card: YAML between two lines of dashes, then the text."""
    return f"---\n{yaml_text(head)}---\n\n{body}"


def yaml_text(values: Mapping[str, Any]) -> str:
    """Return YAML with keys in the given order; non-ASCII letters are escaped only if there are control characters."""
    shown = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)
    return yaml.safe_dump(dict(values), sort_keys=False, width=120) if CONTROLS.search(shown) else shown


def head_of(text: str) -> dict[str, Any]:
    """Return the YAML header of a card; empty if there is none.

    Raises:
        yaml.YAMLError: it cannot be read.
    """
    parts = re.split(r"^---[ \t]*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return {}
    found = yaml.safe_load(parts[1])
    return found if isinstance(found, dict) else {}


def card_problems(text: str, config_files: Iterable[str] = ()) -> Iterator[str]:
    """Yield what the Hub would refuse or show wrongly in a card.

    Args:
        text: the card.
        config_files: paths of the data files in the repository.
    """
    try:
        head = head_of(text)
    except yaml.YAMLError as error:
        yield f"its YAML cannot be read ({' '.join(str(error).split())})"
        return
    if not head:
        yield "it does not begin with YAML between two lines of dashes"
        return
    if unlisted := [key for key in LIST_KEYS if not isinstance(head.get(key, []), list)]:
        yield f"'{unlisted[0]}' is not a list"
        return
    if head.get("license") not in LICENSES:
        yield f"license '{head.get('license')}' is not a licence that the Hub knows"
    if head.get("license") == "other":
        if not LICENSE_NAME.fullmatch(str(head.get("license_name", ""))):
            yield "license 'other' needs a license_name of small letters, digits, dots and dashes"
        if not str(head.get("license_link", "")).startswith(("https://", "LICENSE")):
            yield "license 'other' needs a license_link"
    yield from _value_problems(head, list(config_files))
    if "model-index" in head:  # all that huggingface_hub checks without the Hub; `hub.upload` asks the Hub itself
        from huggingface_hub import ModelCard

        try:
            ModelCard(text)
        except (ValueError, AttributeError) as error:
            yield f"its model-index cannot be read ({' '.join(str(error).split())})"


def _value_problems(head: Mapping[str, Any], files: list[str]) -> Iterator[str]:
    """Yield what is wrong with languages, tags, tasks, sizes and configs."""
    for word in head.get("language", []):
        if not isinstance(word, str) or not LANGUAGE.fullmatch(word):
            yield f"language '{word}' is not an ISO 639 code"
    for word in head.get("tags", []):
        if not isinstance(word, str) or not 0 < len(word) <= 100:
            yield f"tags '{word}' is not a text of 1 to 100 characters"
    for key, words in (("task_categories", HUB_TASKS), ("size_categories", [word for _, word in SIZES] + ["n>1B", "n>1T"])):
        for word in head.get(key, []):
            if word not in words:
                yield f"{key} '{word}' is not one of {', '.join(words)}"
    configs = head.get("configs", [])
    names = [config.get("config_name") for config in configs]
    if len(set(names)) < len(names):
        yield "two configs have the same name"
    for name in names:
        if not isinstance(name, str) or not CONFIG.fullmatch(name):
            yield f"config_name '{name}' contains characters that the Hub does not allow"
    for pattern in [data["path"] for config in configs for data in config["data_files"]]:
        if not any(path.startswith(pattern.removesuffix("*")) for path in files):
            yield f"no file matches '{pattern}'"
    if [info.get("config_name") for info in head.get("dataset_info", [])] != names:
        yield "dataset_info does not describe the configs in their order"
