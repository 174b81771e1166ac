"""What the operating system refuses: a full disk, a folder of somebody else, a name that is too long. No bug, but a line."""

from __future__ import annotations

import errno
import os
import re

AGAIN = "run the same command again to go on"
FULL = ("no room left on the disk", f"make room and {AGAIN}")
PLACE = "see its permissions and its folder's, or name another place"
SAID = {  # errno: what is wrong, what to try
    errno.EACCES: ("may not be read or written by this user", PLACE),
    errno.EPERM: ("may not be changed by this user", PLACE),
    errno.EROFS: ("is on a file system that cannot be written", "name another place"),
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.ENOENT: ("no such file or folder", "check the name; was it removed meanwhile?"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "name another place"),
    errno.EISDIR: ("is a folder, not a file", "name a file"),
    errno.EEXIST: ("is there already", "name another place, or remove it"),
    errno.ENAMETOOLONG: ("is too long a name", "name a shorter one"),
    errno.ELOOP: ("leads from link to link and to no file", "mend the links"),
    errno.EMFILE: ("too many files are open", "raise the limit, as with `ulimit -n 4096`, or take a smaller -j"),
    errno.ENFILE: ("too many files are open on this machine", "close some, and run the same command again"),
    errno.EIO: ("the disk reports an error", f"check the disk, and {AGAIN}"),
    errno.ENOMEM: ("no memory is left", "give it more, or take a smaller -j"),
}
BUGS = (errno.EBADF, errno.EINVAL, errno.EFAULT, errno.ECHILD)  # what a program does wrong, not a person


def refusal(error: BaseException) -> OSError | None:
    """Return what the operating system refused, None where an error means something else.

    Libraries in Rust (safetensors, tokenizers, polars) raise errors of their own that end in "(os error 28)"; numpy counts
    what it could not write.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return None if error.errno in BUGS else error
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(told[1]), os.strerror(int(told[1])))
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def no_room(error: OSError) -> bool:
    """Tell whether an error means that the disk, or the quota on it, is full."""
    return SAID.get(error.errno or 0) == FULL


def explained(refused: OSError, otherwise: str = "output") -> tuple[str, str, str]:
    """Return where, what and what to try; `otherwise` is where, if the error names no file."""
    named = isinstance(refused.filename, str | bytes)
    if not named and refused.errno == errno.ENOENT and not os.path.lexists("."):
        return "the current folder", "was removed", "change to another one and run the same command again"
    where = os.fsdecode(refused.filename) if named else otherwise
    return where, *SAID.get(refused.errno or 0, (str(refused.strerror).lower(), AGAIN))
