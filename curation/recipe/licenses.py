"""Licences: the class of each licence, and which classes a policy allows. Licences that are not in the table are unknown.

The table says what a licence is commonly understood to allow for training data; it is not legal advice. If a source names
several licences (`cc-by-3.0, cc-by-sa-3.0`), the strictest counts, and an unknown one makes the source unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from curation.core.errors import ManifestError, did_you_mean
from curation.recipe.manifest import Manifest
from curation.recipe.source import Source

Class = Literal["permissive", "share-alike", "non-commercial", "unknown"]
Policy = Literal["all", "no-nc", "permissive"]
CLASSES: tuple[Class, ...] = ("permissive", "share-alike", "non-commercial", "unknown")  # from lenient to strict
TABLE: dict[Class, str] = {
    # any use, with attribution
    "permissive": "apache-2.0 mit bsd bsd-2-clause bsd-3-clause isc zlib unlicense wtfpl artistic-2.0 afl-3.0 ms-pl psf-2.0 "
    "cc0-1.0 pddl public-domain cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 odc-by cdla-permissive-1.0 cdla-permissive-2.0",
    # any use; derived works under the same terms
    "share-alike": "cc-by-sa-2.0 cc-by-sa-2.5 cc-by-sa-3.0 cc-by-sa-4.0 odbl gfdl cdla-sharing-1.0 mpl-2.0 "
    "gpl-2.0 gpl-3.0 lgpl-2.1 lgpl-3.0 agpl-3.0",
    # no commercial use
    "non-commercial": "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 msr-la-nc",
}
CLASS_OF: dict[str, Class] = {name: kind for kind, names in TABLE.items() for name in names.split()}
ALLOWED: dict[Policy, tuple[Class, ...]] = {
    "all": CLASSES,
    "no-nc": ("permissive", "share-alike"),
    "permissive": ("permissive",),
}


class Excluded(NamedTuple):
    """A source that is left out, and why."""

    source: str
    reason: str


def class_of(license: str | None) -> Class:
    """Return the class of a licence; of several, separated by commas, the strictest."""
    names = [name.strip().lower() for name in (license or "").split(",")]
    return max((CLASS_OF.get(name, "unknown") for name in names), key=CLASSES.index)


def claim(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return a source's licence as it is claimed, from its entry in build.json: name, address and day of the claim."""
    return entry.get("license") or "none seen", entry.get("license_url") or "", entry.get("license_checked") or ""


def reason_of(source: Source, policy: Policy) -> str | None:
    """Return why a policy leaves a source out; None if it allows the source."""
    kind = class_of(source.license)
    if kind in ALLOWED[policy]:
        return None
    if source.license is None:
        return f"it names no licence, and `licenses: {policy}` allows known licences only"
    if kind == "unknown":
        guess = did_you_mean(source.license.lower(), CLASS_OF)
        return (
            f"the class of its licence '{source.license}' is unknown{guess}, and `licenses: {policy}` allows known licences only"
        )
    return f"its licence {source.license} is {kind}, and the policy is `licenses: {policy}`"


def allowed(manifest: Manifest, policy: Policy | None = None) -> tuple[Manifest, list[Excluded]]:
    """Return the manifest with the sources that a policy allows (by default the manifest's own policy), and the others.

    Sources in `without` are among the others too.

    Raises:
        ManifestError: no source is left, or `without` names a source that does not exist.
    """
    policy = policy or manifest.licenses
    names = [source.name for source in manifest.sources]
    for name in manifest.without:
        if name not in names:
            raise ManifestError("without", f"no source '{name}'" + did_you_mean(name, names))
    found = [(source, manifest.without.get(source.name) or reason_of(source, policy)) for source in manifest.sources]
    kept = [source for source, reason in found if reason is None]
    out = [Excluded(source.name, reason) for source, reason in found if reason is not None]
    if not kept:
        raise ManifestError(f"licenses: {policy}", "leaves no source", f"for example '{out[0].source}': {out[0].reason}")
    return manifest.model_copy(update={"sources": kept, "licenses": policy}), out
