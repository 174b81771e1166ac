"""Files to a repository of the Hub: one commit on the commit that was looked at, or none.

Large files go first, where nobody sees them; then one commit names all files, and takes away those of an earlier version
that are no more. It carries its parent, so that the Hub refuses it if somebody was faster. What stops on the way is
gone on with by the same call: blobs that are there are not sent again.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

from curation.core.errors import HubError, UserError

BUSY = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8, 16, 32)  # seconds between tries
LONGEST_WAIT = 300  # seconds to wait where the Hub asks for it
P = ParamSpec("P")
R = TypeVar("R")
_asking: ContextVar[bool] = ContextVar("_asking", default=False)


def retry(call: Callable[[], Any], say: Callable[[str], None]) -> Any:
    """Return what a call gives; one that fails for the moment is tried retry, with a line to say so."""
    for number, wait in enumerate((*WAITS, None)):
        try:
            return call()
        except Exception as error:
            what, asked = temporary_failure(error, first=number == 0)
            if wait is None or not what:
                if isinstance(error, RuntimeError) and error.__cause__:  # how the client tells of a large file
                    raise error.__cause__ from None
                raise
        pause = asked if asked is not None else wait
        say(f"{what}; trying retry in {pause} s")
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def retrying(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that asks the Hub try retry; of one within another the outer one does."""

    @functools.wraps(function)
    def asking(*args: P.args, **more: P.kwargs) -> R:
        if _asking.get():
            return function(*args, **more)
        before = _asking.set(True)
        try:
            given: R = retry(lambda: function(*args, **more), logging.getLogger("tuplesmith").warning)
            return given
        finally:
            _asking.reset(before)

    return asking


def temporary_failure(error: BaseException, first: bool = False) -> tuple[str, int | None]:
    """Return what will pass, and after how many seconds if the Hub says so; nothing of what will not.

    Where nobody answers to begin with there is no network, and waiting does not bring it.
    """
    from httpx2 import ConnectError, TransportError
    from huggingface_hub.errors import HfHubHTTPError

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in BUSY:
            asked = cause.response.headers.get("Retry-After", "")
            return f"the Hub answers {cause.response.status_code}", min(int(asked), LONGEST_WAIT) if asked.isdigit() else None
        reading = isinstance(error, UserError)
        if isinstance(cause, TransportError) and not (reading and first and isinstance(cause, ConnectError)):
            return f"the Hub cannot be reached ({type(cause).__name__})", None
    return "", None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came of."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


MARK = "provenance.json"  # a repository that has it was made by a publishing command
Kind = Literal["dataset", "model"]
Say = Callable[[str], None]


class Piece(NamedTuple):
    """A file to publish: where it lies, or its bytes; its size, and its digest."""

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
    """Return what MARK says of the files that it is published with: path -> bytes and sha256."""
    return {path: {"bytes": pieces[path].size, "sha256": pieces[path].sha256} for path in sorted(pieces)}


class Published(NamedTuple):
    """Where it stands now, and what was done."""

    url: str
    commit: str
    sent: dict[str, int]  # path -> bytes of the files that are new or changed
    deleted: list[str]
    tagged: bool


def upload(
    repo: str, kind: Kind, files: Mapping[str, Piece], private: bool = False, tag: str | None = None, say: Say = lambda line: None
) -> Published:
    """Make a repository hold `files`, README.md and MARK among them, in one commit; with `tag`, name that commit.

    Raises:
        HubError: no rights, no such name, another's repository, somebody was faster, the network; or a file changed meanwhile.
    """
    with _hub_errors(repo):
        from huggingface_hub import HfApi

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        api = HfApi()
        retry(api.whoami, say)
        parent = retry(lambda: _head(api, repo, kind, private), say)
        there = retry(lambda: _tree(api, repo, kind, parent), say) if parent else {}
        if parent:
            _may_overwrite(repo, there)
        sent = {path: piece.size for path, piece in files.items() if not _same(there.get(path), piece)}
        deleted = sorted(_earlier(api, repo, kind, parent, there) - set(files)) if parent else []
        tagged = _tag_of(api, repo, kind, tag) if parent and tag else None
        if tagged and (tagged != parent or sent or deleted):
            raise HubError(repo, f"has a tag '{tag}' already, of another version", "choose another `--tag`")
        commit = parent
        if sent or deleted or not parent:
            commit = _commit(api, repo, kind, parent, private, {path: files[path] for path in sent}, deleted, say)
        if tag and not tagged:
            retry(lambda: api.create_tag(repo, tag=tag, revision=commit, repo_type=kind, exist_ok=True), say)
        url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        return Published(url, str(commit), sent, deleted, bool(tag and not tagged))


@retrying
def commit_of(repo: str, kind: Kind, revision: str | None) -> str:
    """Return the commit that a branch or tag names now; main by default.

    Raises:
        HubError: there is none, or the Hub cannot be had.
    """
    with _hub_errors(repo):
        from huggingface_hub import HfApi

        return str(HfApi().repo_info(repo, repo_type=kind, revision=revision).sha)


@retrying
def read_file(repo: str, kind: Kind, revision: str, name: str) -> Path:
    """Return a file of a commit, from the cache or the Hub.

    Raises:
        HubError: there is none, or it cannot be had.
    """
    with _hub_errors(repo):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            return Path(hf_hub_download(repo, name, repo_type=kind, revision=revision))
        except RemoteEntryNotFoundError:
            raise HubError(repo, f"has no {name}", "was it published by `curate publish`?") from None


def _head(api: Any, repo: str, kind: Kind, private: bool) -> str | None:
    """Return the newest commit, or None where there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        return None
    if private and not info.private:
        raise HubError(repo, "is there already, and public", "leave `--private` out, or make it private on its page")
    return str(info.sha)


def _tree(api: Any, repo: str, kind: Kind, commit: str | None) -> dict[str, tuple[int, str]]:
    """Return {path: (size, sha256 of a large file, git's digest of another)}."""
    found = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind)
    return {one.path: (one.size, one.lfs.sha256 if one.lfs else one.blob_id) for one in found if hasattr(one, "blob_id")}


def _same(there: tuple[int, str] | None, piece: Piece) -> bool:
    if there is None or there[0] != piece.size:
        return False
    if there[1] == piece.sha256:
        return True
    if len(there[1]) == 64:
        return False
    content = piece.content if isinstance(piece.content, bytes) else piece.content.read_bytes()
    return hashlib.sha1(b"blob %d\x00" % piece.size + content).hexdigest() == there[1]  # as git names a blob


def _may_overwrite(repo: str, there: Mapping[str, object]) -> None:
    strange = sorted(path for path in there if path != ".gitattributes")
    if strange and MARK not in there:
        raise HubError(repo, f"holds '{strange[0]}' and no {MARK}, so no publishing command made it", "choose another name")


def _earlier(api: Any, repo: str, kind: Kind, commit: str | None, there: Mapping[str, object]) -> set[str]:
    """Return the files of the version before, which its MARK lists; what others have put beside them stays."""
    import json

    if MARK not in there:
        return set()
    path = api.hf_hub_download(repo, MARK, repo_type=kind, revision=commit)
    return {name for name in json.loads(Path(path).read_bytes())["files"] if name in there}


def _tag_of(api: Any, repo: str, kind: Kind, tag: str | None) -> str | None:
    return next((str(one.target_commit) for one in api.list_repo_refs(repo, repo_type=kind).tags if one.name == tag), None)


def _commit(
    api: Any, repo: str, kind: Kind, parent: str | None, private: bool, pieces: Mapping[str, Piece], deleted: list[str], say: Say
) -> str:
    """Send what is new, make the repository if it is not there, and commit; return the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoCard
    from huggingface_hub.errors import HfHubHTTPError

    if parent is None:
        retry(lambda: api.create_repo(repo, repo_type=kind, private=private, exist_ok=True), say)
        parent = retry(lambda: _head(api, repo, kind, private), say)
        _may_overwrite(repo, retry(lambda: _tree(api, repo, kind, parent), say))
    adding = {path: CommitOperationAdd(path, piece.content) for path, piece in pieces.items()}
    if "README.md" in pieces:
        card = pieces["README.md"].content
        assert isinstance(card, bytes)
        try:
            retry(lambda: RepoCard(card.decode(), ignore_metadata_errors=True).validate(repo_type=kind), say)
        except ValueError as error:
            raise HubError(repo, f"the Hub refuses the card ({' '.join(str(error).split())})", "nothing was sent") from None
    steps = [*adding.values(), *(CommitOperationDelete(path) for path in deleted)]
    try:
        retry(lambda: api.preupload_lfs_files(repo, adding.values(), repo_type=kind, free_memory=False), say)
    except HfHubHTTPError:
        _unchanged(adding, pieces, read=True)
        raise
    _unchanged(adding, pieces)
    message = f"Publish with tuplesmith: {len(adding)} files" + (f", {len(deleted)} deleted" if deleted else "")
    try:
        done = retry(lambda: api.create_commit(repo, steps, commit_message=message, repo_type=kind, parent_commit=parent), say)
        return str(done.oid)
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
    # A commit whose answer was lost on the way is ours; another's is not.
    head = str(retry(lambda: _head(api, repo, kind, private), say))
    there = retry(lambda: _tree(api, repo, kind, head), say)
    if all(_same(there.get(path), piece) for path, piece in pieces.items()) and not set(deleted) & set(there):
        return head
    raise HubError(repo, "somebody committed there meanwhile", "look at it, and run the same command again to publish on top")


def _unchanged(adding: Mapping[str, Any], pieces: Mapping[str, Piece], read: bool = False) -> None:
    """Compare what was sent with what was to be sent: the digests that the client took, or with `read` the files anew.

    Raises:
        HubError: a file changed after it was looked at; no commit names it.
    """
    for path, operation in adding.items():
        info, piece = operation.upload_info, pieces[path]
        now = Piece.of(piece.content).sha256 if read else info.sha256.hex() if info.is_hashed else piece.sha256
        if now != piece.sha256:
            where = piece.content if isinstance(piece.content, Path) else path
            raise HubError(
                where, "was changed while it was sent, so nothing was published", "delete it and run the command again"
            )


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn what the client raises into one line."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise HubError(
            repo, "no token to publish with", "`hf auth login`, or set HF_TOKEN, with a token that may write"
        ) from None
    except HFValidationError as error:
        raise HubError(repo, f"is no name for the Hub ({str(error).splitlines()[0]})", "name it ORG/NAME") from None
    except OfflineModeIsEnabled:
        raise HubError(repo, "the Hub is switched off", "unset HF_HUB_OFFLINE") from None
    except HfHubHTTPError as error:
        what, hint = _told(error.response.status_code, error)
        raise HubError(repo, what, hint) from None
    except TransportError as error:
        raise HubError(
            repo, f"the Hub cannot be reached ({error or type(error).__name__})", "run the same command again"
        ) from None


def _told(status: int, error: Any) -> tuple[str, str]:
    known = {
        401: ("the token is not valid", "`hf auth login`, or set HF_TOKEN"),
        403: ("the token may not write there", "use one with the right to write, and an ORG that you belong to"),
        404: ("no such repository or revision", "check the name; a private one needs a token"),
    }
    return known.get(status, (f"the Hub answers: {' '.join(str(error).split())[:300]}", "run the same command again"))
