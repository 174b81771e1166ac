"""Datasets of the Hugging Face Hub: their commits and files, and its errors in one line. No code of a dataset is ever run."""

from __future__ import annotations

import errno
import glob
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from curation.core.errors import SourceError, did_you_mean, explain_refusal, listed
from curation.core.hub import http_library, retrying, temporary_failure
from curation.core.store import atomic, digest_of
from curation.core.tables import parquet_columns
from curation.read.rows import File
from curation.recipe.source import Table

ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def check_id(path: str) -> None:
    """Refuse a path that cannot be a dataset of the Hub.

    Raises:
        SourceError: it is not an id, or it names a builder of `datasets`, which would read the current folder.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if not ID.fullmatch(path) or path.startswith("buckets/") or path in _PACKAGED_DATASETS_MODULES:
        what = "names neither a dataset of the Hub nor an existing folder"
        raise SourceError(path, what, "a Hub id is `org/name`; name files with `files:`, relative to the manifest's folder")


@retrying
def dataset_commit(table: Table) -> str:
    """Return the commit of a dataset's revision: the revision itself if it is a commit, else what the Hub says.

    If the Hub is switched off, the commit is the one that the Hub gave last.

    Raises:
        SourceError: the dataset or revision does not exist, or the Hub cannot be asked.
    """
    check_id(str(table.path))
    if table.revision and COMMIT.fullmatch(table.revision):
        return table.revision
    with hub_errors(table):
        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_OFFLINE

        answer = answer_path(str(table.path), table.revision)
        if HF_HUB_OFFLINE and answer.is_file():
            return str(json.loads(answer.read_text("utf-8")))
        commit = str(huggingface_hub.HfApi().dataset_info(str(table.path), revision=table.revision).sha)
        write_answer(answer, commit)
        return commit


def answer_path(*question: str | None) -> Path:
    """Return where an answer of the Hub is kept, in the Hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / "tuplesmith" / f"{digest_of(question)}.json"


def write_answer(path: Path, answer: object) -> None:
    """Keep an answer of the Hub, if the cache can be written."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(json.dumps(answer, ensure_ascii=False).encode())


@retrying
def file_names(table: Table, commit: str) -> list[str]:
    """Return the paths of all files of a dataset at a commit. The answer is kept: a commit never changes.

    Raises:
        SourceError: the dataset or commit does not exist, or the Hub cannot be asked.
    """
    answer = answer_path(str(table.path), "files", commit)
    with suppress(OSError, ValueError):
        return list(json.loads(answer.read_text("utf-8")))
    with hub_errors(table):
        import huggingface_hub

        names = sorted(huggingface_hub.HfApi().list_repo_files(str(table.path), repo_type="dataset", revision=commit))
    write_answer(answer, names)
    return names


@retrying
def names_its_data(table: Table) -> bool:
    """Return whether the card of a dataset says which files are its data.

    Raises:
        SourceError: the dataset does not exist, or the Hub cannot be asked.
    """
    with hub_errors(table):
        import huggingface_hub

        card = huggingface_hub.HfApi().dataset_info(str(table.path), revision=table.revision).card_data
        return bool(card and card.get("configs"))


@retrying
def columns_of(table: Table, commit: str, name: str) -> list[str]:
    """Return the columns of a parquet file of a dataset at a commit; only the file's footer is fetched.

    Raises:
        SourceError: the file cannot be read.
    """
    with hub_errors(table):
        import huggingface_hub

        return parquet_columns(huggingface_hub.HfFileSystem().open(f"datasets/{table.path}@{commit}/{name}", "rb"))


@retrying
def fetched(table: Table, commit: str, names: list[str]) -> list[File]:
    """Return files of a dataset from the Hub's cache; those that are not in the cache are downloaded first.

    Raises:
        SourceError: they cannot be downloaded.
    """
    with hub_errors(table):
        import huggingface_hub

        at: dict[str, Any] = {"repo_id": str(table.path), "repo_type": "dataset", "revision": commit}
        missing = [name for name in names if not isinstance(huggingface_hub.try_to_load_from_cache(filename=name, **at), str)]
        if len(missing) > 1 and not huggingface_hub.constants.HF_HUB_OFFLINE:  # several at once
            huggingface_hub.snapshot_download(allow_patterns=[glob.escape(name) for name in missing], **at)
        load = partial(huggingface_hub.hf_hub_download, **at)
        paths = [Path(load(filename=name)) for name in names]
        return [File(path, f"{table.path}/{name}", path.parent) for name, path in zip(names, paths, strict=True)]


def streamed(table: Table, commit: str, names: list[str]) -> list[File]:
    """Return files of a dataset that are downloaded as they are read, and no farther."""

    @retrying
    def open_remote(name: str) -> IO[bytes]:
        with hub_errors(table):
            import huggingface_hub

            file = huggingface_hub.HfFileSystem().open(f"datasets/{table.path}@{commit}/{name}", "rb")
            return file  # type: ignore[no-any-return]

    return [File(Path(name), f"{table.path}/{name}", Path(), unpack=partial(open_remote, name), remote=True) for name in names]


@retrying
def snapshot(table: Table) -> Path:
    """Return a folder with the files of a Hub dataset that `files` names; those not in the Hub's cache are downloaded.

    Raises:
        SourceError: they cannot be downloaded.
    """
    with hub_errors(table):
        import huggingface_hub

        path = huggingface_hub.snapshot_download(
            str(table.path), repo_type="dataset", revision=table.revision, allow_patterns=table.files
        )
        return Path(path)


@contextmanager
def hub_errors(table: Table) -> Iterator[None]:
    """Keep `datasets` silent, and turn what it and the Hub's client raise into an error of one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except (OSError, ValueError, RuntimeError, http_library().HTTPError, datasets.exceptions.DatasetsError) as error:
        answer = temporary_failure(error)[0]
        busy = answer.startswith("the Hub answers")
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            place, what, hint = explain_refusal(error, "the Hub's cache")
            raise SourceError(table.path, f"{place} {what}", f"{hint} (HF_HOME says where the Hub's cache is)") from None
        what, hint = (answer, "run the same command again in a while") if busy else _what_and_hint(table, error)
        raise SourceError(table.path, what, hint) from None


def _what_and_hint(table: Table, error: Exception) -> tuple[str, str]:
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )  # fmt: skip

    text = str(error)
    there_are = "there are: " + listed(re.findall(r"'([^']*)'", text.partition("[")[2].partition("]")[0]))
    if "scripts are no longer supported" in text:
        return "comes with a loading script, which would run code", "`revision: refs/convert/parquet` may hold the same rows"
    missing = isinstance(error, LocalEntryNotFoundError)
    if "OfflineModeIsEnabled" in text or "offline mode is enabled" in text or (missing and HF_HUB_OFFLINE):
        return "cannot be downloaded while the Hub is switched off", "unset HF_HUB_OFFLINE, or name a local folder"
    lost = isinstance(error, http_library().HTTPError) and not isinstance(error, HfHubHTTPError)  # no answer at all
    if missing or lost or isinstance(error, ConnectionError):
        return "the Hub cannot be reached", "check the network, or name a local folder"
    if "gated dataset" in text or isinstance(error, GatedRepoError):
        return "is a gated dataset", "ask for access on its page, then `hf auth login`"
    if text.startswith("Revision") or isinstance(error, RevisionNotFoundError):
        return f"no revision '{table.revision}'", "name a commit, tag or branch of the dataset"
    if "doesn't exist on the Hub" in text or isinstance(error, RepositoryNotFoundError):
        what = "no such dataset on the Hub, or a private one" + _similar_id(str(table.path))
        return what, "check the id; `hf auth login` for a private one"
    if "BuilderConfig" in text and "not found" in text:
        return f"no config '{table.config}'", there_are
    if "Config name is missing" in text:
        return "needs a `config:`", there_are
    if text.startswith(("Unknown split", "Bad split")):
        return f"no split '{table.split}'", there_are
    cause = error.__cause__ or error
    return (
        f"`datasets` cannot read it ({(str(cause) or type(cause).__name__).splitlines()[0]})",
        "check path, config, split and revision",
    )


def _similar_id(wanted: str) -> str:
    """Return ` (did you mean ...?)` with a similar id of the Hub, or nothing if it has none or cannot be asked."""
    import huggingface_hub

    try:
        found = [one.id for one in huggingface_hub.HfApi().list_datasets(search=wanted.rpartition("/")[2], limit=50)]
    except (OSError, ValueError, http_library().HTTPError):
        return ""
    return did_you_mean(wanted, found) or (f" (did you mean '{found[0]}'?)" if found else "")
