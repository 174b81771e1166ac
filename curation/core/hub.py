"""Talking to the Hub: waiting and trying again, one-line errors, and publishing a set of files in one commit.

`upload` sends large files first, where nobody sees them, then one commit names all files and deletes those of the version
before that are gone. The commit carries its parent, so the Hub refuses it if somebody else committed meanwhile. After an
interruption the same call continues: files that the Hub has are not sent again.

The Hub is contacted here, for datasets in `curation/read/` (`hub.py`, `dataset.py`, `lock.py`), for models in
`training/model/files.py`, and for NanoBEIR's sets in `training/collection.py`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

from curation.core.errors import HubError, UserError

BUSY = (408, 429, 500, 502, 503, 504)  # HTTP status codes that pass
WAITS = (1, 2, 4, 8, 16, 32)  # seconds between tries
LONGEST_WAIT = 300  # seconds, where the Hub says how long
MARK = "provenance.json"  # a repository with this file was made by a publishing command
Kind = Literal["dataset", "model"]
Say = Callable[[str], None]
P = ParamSpec("P")
R = TypeVar("R")
_retrying: ContextVar[bool] = ContextVar("_retrying", default=False)


def http_library() -> Any:
    """Return the module whose errors the Hub's client raises: httpx2 since huggingface_hub 2, httpx before."""
    from huggingface_hub.errors import HfHubHTTPError

    return import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])


def retry(call: Callable[[], Any], say: Say) -> Any:
    """Return the result of a call; after a temporary failure, say so, wait and call again."""
    for number, wait in enumerate((*WAITS, None)):
        try:
            return call()
        except Exception as error:
            what, asked = temporary_failure(error, first=number == 0)
            if wait is None or not what:
                if isinstance(error, RuntimeError) and error.__cause__:  # the client wraps errors of large files
                    raise error.__cause__ from None
                raise
        pause = asked if asked is not None else wait
        say(f"{what}; trying again in {pause} s")
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def retrying(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function that reads from the Hub in `retry`; inside another wrapped function it is called once."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **more: P.kwargs) -> R:
        if _retrying.get():
            return function(*args, **more)
        before = _retrying.set(True)
        try:
            result: R = retry(lambda: function(*args, **more), logging.getLogger("tuplesmith").warning)
            return result
        finally:
            _retrying.reset(before)

    return wrapped


def temporary_failure(error: BaseException, first: bool = False) -> tuple[str, int | None]:
    """Return what failed for the moment, and the seconds to wait if the Hub says so; ("", None) for a lasting failure.

    If the very first connection fails there is no network, and waiting does not help.
    """
    from huggingface_hub.errors import HfHubHTTPError

    http = http_library()
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in BUSY:
            asked = cause.response.headers.get("Retry-After", "")
            return f"the Hub answers {cause.response.status_code}", min(int(asked), LONGEST_WAIT) if asked.isdigit() else None
        no_network = isinstance(error, UserError) and first and isinstance(cause, http.ConnectError)
        if isinstance(cause, http.TransportError) and not no_network:
            return f"the Hub cannot be reached ({type(cause).__name__})", None
        cause = cause.__cause__ or cause.__context__
    return "", None


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one line.

    Raises:
        HubError: in place of each of them.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    status = {
        401: ("the token is not valid", "`hf auth login`, or set HF_TOKEN"),
        403: ("the token may not write there", "use a token with write permission, and an ORG that you belong to"),
        404: ("no such repository or revision", "check the name; a private one needs a token"),
    }
    try:
        yield
    except LocalTokenNotFoundError:
        hint = "`hf auth login`, or set HF_TOKEN, with a token that may write"
        raise HubError(repo, "no token to publish with", hint) from None
    except HFValidationError as error:
        what = f"is not a valid name on the Hub ({str(error).splitlines()[0]})"
        raise HubError(repo, what, "use the form ORG/NAME") from None
    except OfflineModeIsEnabled:
        raise HubError(repo, "the Hub is switched off", "unset HF_HUB_OFFLINE") from None
    except HfHubHTTPError as error:
        other = (f"the Hub answers: {' '.join(str(error).split())[:300]}", "run the same command again")
        raise HubError(repo, *status.get(error.response.status_code, other)) from None
    except http_library().TransportError as error:
        what = f"the Hub cannot be reached ({error or type(error).__name__})"
        raise HubError(repo, what, "run the same command again") from None


def check_name(repo: str) -> None:
    """Refuse a name that no repository can have, without asking the Hub.

    Raises:
        HubError: it is not of the form ORG/NAME, or has characters that the Hub does not allow.
    """
    with _hub_errors(repo):
        import_module("huggingface_hub.utils").validate_repo_id(repo)
    if "/" not in repo:
        raise HubError(repo, "is not a valid name on the Hub (it names no user or organisation)", "use the form ORG/NAME")


class Piece(NamedTuple):
    """A file to publish: its path or its bytes, its size and its digest."""

    content: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, content: Path | bytes) -> Piece:
        """Return a file as it is now."""
        if isinstance(content, bytes):
            return cls(content, len(content), hashlib.sha256(content).hexdigest())
        with content.open("rb") as file:
            return cls(content, content.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def listing(pieces: Mapping[str, Piece]) -> dict[str, dict[str, Any]]:
    """Return the list of files for MARK: path -> bytes and sha256."""
    return {path: {"bytes": pieces[path].size, "sha256": pieces[path].sha256} for path in sorted(pieces)}


class Published(NamedTuple):
    """What `upload` did."""

    url: str
    commit: str
    sent: dict[str, int]  # path -> bytes of the files that are new or changed
    deleted: list[str]
    tagged: bool


def upload(
    repo: str, kind: Kind, files: Mapping[str, Piece], private: bool = False, tag: str | None = None, say: Say = lambda line: None
) -> Published:
    """Make a repository hold `files`, with README.md and MARK among them, in one commit; `tag` names that commit.

    Raises:
        HubError: no permission, invalid name, a repository made by others, somebody committed meanwhile, a network failure,
            or a file that changed while it was sent.
    """
    with _hub_errors(repo):
        from huggingface_hub import HfApi

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        api = HfApi()
        retry(api.whoami, say)
        # what the repository holds
        parent = retry(lambda: _head(api, repo, kind, private), say)
        there = retry(lambda: _tree(api, repo, kind, parent), say) if parent else {}
        if parent:
            _check_ours(repo, there)
        # what to send, and what to delete: files of the version before, as its MARK lists them; others' files stay
        sent = {path: piece.size for path, piece in files.items() if not _same(there.get(path), piece)}
        earlier: set[str] = set()
        if MARK in there:
            mark = Path(api.hf_hub_download(repo, MARK, repo_type=kind, revision=parent))
            earlier = json.loads(mark.read_bytes())["files"].keys() & there.keys()
        deleted = sorted(earlier - set(files))
        # the tag, if it exists, must be of this version
        tagged = None
        if parent and tag:
            tags = api.list_repo_refs(repo, repo_type=kind).tags
            tagged = next((str(one.target_commit) for one in tags if one.name == tag), None)
        if tagged and (tagged != parent or sent or deleted):
            raise HubError(repo, f"already has a tag '{tag}', for another version", "choose another `--tag`")
        commit = parent
        if sent or deleted or not parent:
            commit = _commit(api, repo, kind, parent, private, {path: files[path] for path in sent}, deleted, say)
        if tag and not tagged:
            retry(lambda: api.create_tag(repo, tag=tag, revision=commit, repo_type=kind, exist_ok=True), say)
        url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        return Published(url, str(commit), sent, deleted, bool(tag and not tagged))


@retrying
def repo_commit(repo: str, revision: str | None) -> str:
    """Return the commit that a branch or tag of a dataset names now; main by default.

    Raises:
        HubError: it does not exist, or the Hub does not answer.
    """
    with _hub_errors(repo):
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(repo, revision=revision).sha)


@retrying
def read_file(repo: str, revision: str, name: str) -> Path:
    """Return a file of a commit of a dataset, from the cache or the Hub.

    Raises:
        HubError: it does not exist, or the Hub does not answer.
    """
    with _hub_errors(repo):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            return Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision))
        except RemoteEntryNotFoundError:
            raise HubError(repo, f"has no {name}", "was it published by `curate publish`?") from None


def _head(api: Any, repo: str, kind: Kind, private: bool) -> str | None:
    """Return the newest commit; None if the repository does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        return None
    if private and not info.private:
        raise HubError(repo, "already exists and is public", "leave out `--private`, or make it private on its page")
    return str(info.sha)


def _tree(api: Any, repo: str, kind: Kind, commit: str | None) -> dict[str, tuple[int, str]]:
    """Return {path: (size, sha256 of a large file, git's digest of another)}."""
    found = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind)
    return {one.path: (one.size, one.lfs.sha256 if one.lfs else one.blob_id) for one in found if hasattr(one, "blob_id")}


def _same(there: tuple[int, str] | None, piece: Piece) -> bool:
    """Return whether a file of the repository equals a file to publish."""
    if there is None or there[0] != piece.size:
        return False
    if there[1] == piece.sha256:
        return True
    if len(there[1]) == 64:
        return False
    content = piece.content if isinstance(piece.content, bytes) else piece.content.read_bytes()
    return hashlib.sha1(b"blob %d\x00" % piece.size + content).hexdigest() == there[1]  # how git names a blob


def _check_ours(repo: str, there: Mapping[str, object]) -> None:
    """Refuse a repository that holds files and no MARK."""
    strange = sorted(path for path in there if path != ".gitattributes")
    if strange and MARK not in there:
        what = f"holds '{strange[0]}' but no {MARK}, so it was not made by a publishing command"
        raise HubError(repo, what, "choose another name")


def _commit(
    api: Any, repo: str, kind: Kind, parent: str | None, private: bool, pieces: Mapping[str, Piece], deleted: list[str], say: Say
) -> str:
    """Create the repository if needed, send new files, and commit; return the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoCard
    from huggingface_hub.errors import HfHubHTTPError

    if parent is None:
        retry(lambda: api.create_repo(repo, repo_type=kind, private=private, exist_ok=True), say)
        parent = retry(lambda: _head(api, repo, kind, private), say)
        _check_ours(repo, retry(lambda: _tree(api, repo, kind, parent), say))
    adding = {path: CommitOperationAdd(path, piece.content) for path, piece in pieces.items()}
    if "README.md" in pieces:
        card = pieces["README.md"].content
        assert isinstance(card, bytes)
        try:
            retry(lambda: RepoCard(card.decode(), ignore_metadata_errors=True).validate(repo_type=kind), say)
        except ValueError as error:
            raise HubError(repo, f"the Hub refuses the card ({' '.join(str(error).split())})", "nothing was sent") from None
    try:
        retry(lambda: api.preupload_lfs_files(repo, adding.values(), repo_type=kind, free_memory=False), say)
    except HfHubHTTPError:
        _check_unchanged(adding, pieces, read=True)
        raise
    _check_unchanged(adding, pieces)
    steps = [*adding.values(), *(CommitOperationDelete(path) for path in deleted)]
    message = f"Publish with tuplesmith: {len(adding)} files" + (f", {len(deleted)} deleted" if deleted else "")
    try:
        done = retry(lambda: api.create_commit(repo, steps, commit_message=message, repo_type=kind, parent_commit=parent), say)
        return str(done.oid)
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
    # the parent is no longer the head: either our commit arrived and its answer was lost, or somebody else committed
    head = str(retry(lambda: _head(api, repo, kind, private), say))
    there = retry(lambda: _tree(api, repo, kind, head), say)
    if all(_same(there.get(path), piece) for path, piece in pieces.items()) and not set(deleted) & set(there):
        return head
    raise HubError(repo, "somebody else committed meanwhile", "look at it, then run the same command again to publish on top")


def _check_unchanged(adding: Mapping[str, Any], pieces: Mapping[str, Piece], read: bool = False) -> None:
    """Compare the files that were sent with `pieces`, by the digests that the client took, or by reading them again.

    Raises:
        HubError: a file changed meanwhile; no commit names it.
    """
    for path, operation in adding.items():
        info, piece = operation.upload_info, pieces[path]
        now = Piece.of(piece.content).sha256 if read else info.sha256.hex() if info.is_hashed else piece.sha256
        if now != piece.sha256:
            where = piece.content if isinstance(piece.content, Path) else path
            what = "was changed while it was sent, so nothing was published"
            raise HubError(where, what, "delete it and run the command again")
