"""build.json: the sources of a build, in the order of the manifest. Mining and training read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.core.builds import CONSTANTS, COUNTS, FORMAT, Receipt, is_older, read_summary
from curation.core.errors import BuildError, UserError
from curation.core.store import BUILD, RECEIPT, atomic, file_digest, sealed, write_json
from curation.recipe.addresses import without_credentials
from curation.recipe.licenses import Excluded, class_of
from curation.recipe.manifest import Manifest, read_manifest
from curation.recipe.source import Source
from curation.recipe.yaml import merged_yaml

LISTED_FILES = (
    "manifest.yaml",
    "manifest.lock",
    "ATTRIBUTION.md",
    "overlaps.parquet",
    "contamination.parquet",
    "mteb_training_datasets.json",
)


def summary_of(
    folder: Path,
    manifest: Manifest,
    curated: dict[str, Receipt],
    failed: dict[str, UserError],
    current: list[str],
    excluded: list[Excluded],
    contamination: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of build.json.

    Args:
        folder: the build. Sources that this run did not build keep their entries in its build.json if they are current.
        manifest: the sources that the licence policy allows.
        curated: the receipts of the sources that this run built.
        failed: the sources that this run could not build.
        current: the sources that are up to date, although this run did not build them.
        excluded: the sources that the licence policy leaves out.
        contamination: overlaps with evaluation sets, with `decontaminate:`.

    Raises:
        BuildError: the folder's build.json was not written by this function.
    """
    earlier: dict[str, Any] = {"sources": {}, "failed": {}}
    if (folder / BUILD).exists() and not is_older(folder):
        earlier = read_summary(folder)
    fresh = {
        name: {key: receipt[key] for key in (*CONSTANTS, *COUNTS, "synthetic") if key in receipt} | {"tuples": receipt["kept"]}
        for name, receipt in curated.items()
    }
    errors = {name: str(error) for name, error in failed.items()}
    names = [source.name for source in manifest.sources]
    entries = {name: earlier["sources"][name] for name in current if name in earlier["sources"]} | fresh
    broken = {name: text for name, text in (earlier["failed"] | errors).items() if name in names and name not in fresh}
    sources = {source.name: entries[source.name] | described(source) for source in manifest.sources if source.name in entries}
    return {
        "format": FORMAT,
        "name": manifest.name,
        "seed": manifest.seed,
        "licenses": manifest.licenses,
        "sources": sources,
        "failed": broken,
        "excluded": {one.source: one.reason for one in excluded},
        **({"decontaminate": contamination} if contamination is not None else {}),
    }


def refuse_other_files(folder: Path, path: Path) -> None:
    """Refuse a build folder in which files of others would be replaced: a folder named as a stage's, or the manifest itself.

    Raises:
        BuildError: there is such a folder and never was a build; or the manifest is FOLDER/manifest.yaml, and its copy would
            differ: it has a base manifest, or credentials.
    """
    if not (folder / BUILD).exists() and not (folder / ".curate-build.lock").exists():
        for name in ("shaped", "near", "cleaned", "curated", "heldout", "across", "decontaminate"):
            if (folder / name).exists():
                raise BuildError(folder, f"holds '{name}', which no build wrote", "name a folder that does not exist yet")
    copy, document = folder / "manifest.yaml", read_manifest(path)
    if copy.exists() and copy.samefile(path) and copy.read_bytes() != merged_yaml(document, without_credentials(document.value)):
        raise BuildError(folder, "holds the manifest itself, which the build's copy of it would replace", "name another folder")


def write_summary(folder: Path, path: Path, manifest: Manifest, summary: dict[str, Any]) -> None:
    """Write manifest.yaml, and build.json with the digests of the files next to it and of the receipts of all stages."""
    document, copy, target = read_manifest(path), folder / "manifest.yaml", folder / BUILD
    text = merged_yaml(document, without_credentials(document.value))
    if not copy.exists() or copy.read_bytes() != text:
        with atomic(copy) as file:
            file.write(text)
    files = {name: file_digest(folder / name) for name in LISTED_FILES if (folder / name).is_file()}

    # the stages that the build consists of; others in its folder are left from an earlier manifest
    of_source = ["shaped", *(["near"] if manifest.dedup else []), "cleaned", "curated", "heldout"]
    stages = [f"{stage}/{name}" for name in summary["sources"] for stage in of_source]
    stages += ["across/overlaps"] if len(summary["sources"]) > 1 else []
    stages += ["across/pairs", "across/drops"] if manifest.dedup and manifest.dedup.across else []
    stages += ["decontaminate"] if manifest.decontaminate else []
    receipts = {stage: folder / stage / RECEIPT for stage in stages}
    digests = {stage: file_digest(receipt) for stage, receipt in receipts.items() if receipt.is_file()}
    whole = {**summary, "files": files, "stages": digests}
    if target.exists() and target.read_bytes() == sealed(whole):
        target.touch()  # the newest build is the one last asked for
    else:
        write_json(target, whole)


def described(source: Source) -> dict[str, Any]:
    """Return what build.json says about a source in addition to its counts, from the manifest as it is now."""
    return {
        "license": source.license or "",
        "license_class": class_of(source.license),
        "license_url": source.license_url,
        "license_checked": source.license_checked,
        "verified": source.verified,
        "notes": source.notes,
    }
