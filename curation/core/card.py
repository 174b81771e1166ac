"""The card of a published repository: the YAML that the Hub reads, and our own check of it before anything is sent.

The keys are those of https://huggingface.co/docs/hub/datasets-cards and model-cards, as seen in 2026-11.
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
    """.split()  # noqa: SIM905  one a line would be a page
)
HUB_TASKS = ("text-retrieval", "feature-extraction", "sentence-similarity", "text-classification")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
         (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))  # fmt: skip
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})*|code|multilingual")
CONFIG = re.compile(r"[^<>:/\\|?*\s]+")
WORD = re.compile(r"[a-z0-9.+-]+")
LISTS = ("language", "task_categories", "size_categories", "tags", "source_datasets", "configs", "dataset_info", "datasets")


def size_of(rows: int) -> str:
    """Return the Hub's word for a number of rows."""
    return next((word for most, word in SIZES if rows < most), "n>1B" if rows < 10**12 else "n>1T")


def with_yaml(head: Mapping[str, Any], body: str) -> str:
    """Return a card: YAML between two lines of dashes, and the text."""
    return f"---\n{yaml_text(head)}---\n\n{body}"


def yaml_text(values: Mapping[str, Any]) -> str:
    """Return YAML with its keys in the order given; letters as they are, unless there are control characters to escape."""
    shown = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)
    return yaml.safe_dump(dict(values), sort_keys=False, width=120) if CONTROLS.search(shown) else shown


def head_of(text: str) -> dict[str, Any]:
    """Return the YAML of a card; empty where it has none.

    Raises:
        yaml.YAMLError: it cannot be read.
    """
    parts = re.split(r"^---[ \t]*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return {}
    found = yaml.safe_load(parts[1])
    return found if isinstance(found, dict) else {}


def problems(text: str, config_files: Iterable[str] = ()) -> Iterator[str]:
    """Yield what the Hub would refuse, or show wrongly, in a card.

    Args:
        text: the card.
        config_files: paths of the data files in the repository; each belongs to one config, and each config has some.
    """
    try:
        head = head_of(text)
    except yaml.YAMLError as error:
        yield f"its YAML cannot be read ({' '.join(str(error).split())})"
        return
    if not head:
        yield "it has no YAML between two lines of dashes at its head"
        return
    if unlisted := [key for key in LISTS if not isinstance(head.get(key, []), list)]:
        yield f"'{unlisted[0]}' is not a list"
        return
    yield from _license(head)
    yield from _words(head)
    yield from _configs(head, list(config_files))


def _words(head: Mapping[str, Any]) -> Iterator[str]:
    for key, known, what in (("language", LANGUAGE, "an ISO 639 code"), ("tags", None, "a text of 1 to 100 characters")):
        for word in head.get(key, []):
            fits = isinstance(word, str) and (known.fullmatch(word) is not None if known else 0 < len(word) <= 100)
            if not fits:
                yield f"{key} '{word}' is not {what}"
    for key, words in (("task_categories", HUB_TASKS), ("size_categories", [word for _, word in SIZES] + ["n>1B", "n>1T"])):
        for word in head.get(key, []):
            if word not in words:
                yield f"{key} '{word}' is none of {', '.join(words)}"


def _license(head: Mapping[str, Any]) -> Iterator[str]:
    name = head.get("license")
    if name not in LICENSES:
        yield f"license '{name}' is none that the Hub knows"
    if name == "other":
        if not WORD.fullmatch(str(head.get("license_name", ""))):
            yield "license 'other' needs a license_name of small letters, digits, dots and dashes"
        if not str(head.get("license_link", "")).startswith(("https://", "LICENSE")):
            yield "license 'other' needs a license_link"


def _configs(head: Mapping[str, Any], files: list[str]) -> Iterator[str]:
    names = [config.get("config_name") for config in head.get("configs", [])]
    if len(set(names)) < len(names):
        yield "two configs have one name"
    for name in names:
        if not isinstance(name, str) or not CONFIG.fullmatch(name):
            yield f"config_name '{name}' holds signs that the Hub does not allow"
    patterns = [data["path"] for config in head.get("configs", []) for data in config["data_files"]]
    for pattern in patterns:
        if not any(path.startswith(pattern.removesuffix("*")) for path in files):
            yield f"no file fits '{pattern}'"
    described = [info.get("config_name") for info in head.get("dataset_info", [])]
    if described != names:
        yield "dataset_info does not describe the configs in their order"
