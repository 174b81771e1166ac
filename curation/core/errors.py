"""Errors that a user can fix, each one line: where, what, what to try.

UserError
├── ManifestError   a mistake in a manifest
├── SourceError     rows that cannot be read or understood
├── ModelError      a model or tokenizer that cannot be used
├── BuildError      a build folder that is missing, incomplete or was changed by hand
├── HubError        a repository that cannot be read or written
└── SetupError      an installation or a machine that cannot do what was asked

What the operating system refuses (`refusal`) becomes such a line too. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable
from typing import Any

from curation.core.escape import visible

LONGEST_WORD = 100  # characters of a word in a list


class UserError(Exception):
    """`where: what; hint`. The command line prints it and exits with 1."""

    def __init__(self, where: object, what: str, hint: str = "") -> None:
        self.where, self.what, self.hint = str(where), what, hint
        line = decoded(f"{where}: {what}" + (f"; {hint}" if hint else ""))
        line = visible(line.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t"))
        super().__init__(line)  # one line, whatever a file holds

    def __reduce__(self) -> tuple[type[UserError], tuple[Any, ...]]:
        return type(self), (self.where, self.what, self.hint)  # survives the way back from a worker process


class ManifestError(UserError):
    """A mistake in a manifest; `others` are further ones, each on a line of its own."""

    def __init__(self, where: object, what: str, hint: str = "", others: Iterable[ManifestError] = ()) -> None:
        super().__init__(where, what, hint)
        self.others = tuple(others)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *map(str, self.others)])

    def __reduce__(self) -> tuple[type[UserError], tuple[Any, ...]]:
        return type(self), (self.where, self.what, self.hint, self.others)


class SourceError(UserError):
    """Rows that cannot be read or understood."""


class ModelError(UserError):
    """A model or tokenizer that cannot be used."""


class BuildError(UserError):
    """A build folder that is missing, incomplete or was changed by hand."""


class HubError(UserError):
    """A repository on the Hub that cannot be read or written."""


class SetupError(UserError):
    """An installation or a machine that cannot do what was asked."""


def decoded(name: str) -> str:
    """Return the name of a file or archive member as valid UTF-8; other bytes become `\\xe9`."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that represent no bytes
        return name.encode("utf-8", "backslashreplace").decode()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or "" if no known word is similar; case does not matter."""
    by_form = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), list(by_form), n=1, cutoff=0.6)
    return f" (did you mean '{by_form[near[0]]}'?)" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the error's class name if there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def a_kind(value: object) -> str:
    """Return the type of a value with its article: `a list`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU is full: torch's, CUDA's, cuBLAS', Triton's or faiss'."""
    signs = ("out of memory", "alloc fail", "alloc_fail", "allocator fail")
    message = f"{type(error).__name__} {error}".lower()  # torch's own class may come without a message
    return isinstance(error, RuntimeError) and any(sign in message for sign in (*signs, "outofmemoryerror"))


def listed(words: Iterable[object], most: int = 12) -> str:
    """Return words as a list for reading: at most `most` words of at most LONGEST_WORD characters."""
    all_words = [word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}..." for word in map(str, words)]
    more = f" and {len(all_words) - most} more" if len(all_words) > most else ""
    return ", ".join(all_words[:most]) + more


RUN_AGAIN = "run the same command again to continue"
FULL = ("the disk is full", f"free some space and {RUN_AGAIN}")
OTHER_PLACE = "check its permissions and those of its folder, or choose another place"
REFUSALS = {  # errno: what is wrong, what to try
    errno.EACCES: ("may not be read or written by this user", OTHER_PLACE),
    errno.EPERM: ("may not be changed by this user", OTHER_PLACE),
    errno.EROFS: ("is on a read-only file system", "choose another place"),
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.ENOENT: ("no such file or folder", "check the name; was it removed meanwhile?"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another place"),
    errno.EISDIR: ("is a folder, not a file", "name a file"),
    errno.EEXIST: ("already exists", "choose another place, or delete it"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("is a symbolic link that leads to itself", "correct the links"),
    errno.EMFILE: ("too many files are open", "raise the limit, for example with `ulimit -n 4096`, or use a smaller -j"),
    errno.ENFILE: ("too many files are open on this machine", "close some and run the same command again"),
    errno.EIO: ("the disk reports an error", f"check the disk, and {RUN_AGAIN}"),
    errno.ENOMEM: ("out of memory", "use a smaller -j, or a machine with more memory"),
}
BUGS = (errno.EBADF, errno.EINVAL, errno.EFAULT, errno.ECHILD)  # mistakes of a program, not of a user


def refusal(error: BaseException) -> OSError | None:
    """Return the refusal of the operating system that an error reports; None if it reports something else.

    Libraries in Rust (safetensors, tokenizers, polars) raise their own errors, which end in "(os error 28)"; numpy reports how
    much it could not write.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return None if error.errno in BUGS else error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def is_disk_full(error: OSError) -> bool:
    """Return whether an error means that the disk or a quota is full."""
    return REFUSALS.get(error.errno or 0) == FULL


def explain_refusal(refused: OSError, otherwise: str = "output") -> tuple[str, str, str]:
    """Return where, what, and what to try. `otherwise` is the place to report if the error names no file."""
    named = isinstance(refused.filename, str | bytes)
    if not named and refused.errno == errno.ENOENT and not os.path.lexists("."):
        return "the current folder", "was removed", "change to another folder and run the same command again"
    where = os.fsdecode(refused.filename) if named else otherwise
    return where, *REFUSALS.get(refused.errno or 0, (str(refused.strerror).lower(), RUN_AGAIN))
