"""Repositories of the small Hub of the tests: blobs by their content, commits that name a whole tree, refs that name a commit.

    blobs/OID          the bytes of a file; OID is git's sha1 for a regular file, sha256 for a large one
    commits/OID.json   {"oid", "parent", "title", "date", "tree": {path: {"oid", "size", "lfs"}}}
    repos/KIND/NAMESPACE/NAME.json   {"private", "gated", "refs": {"refs/heads/main": OID, ...}}
    xet/               what hf_xet keeps in a folder instead of a server

All of it lies on the disk, so that a Hub that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LARGE = (".parquet", ".safetensors", ".bin", ".gz", ".zst", ".arrow")
REFS = ("refs/heads/", "refs/tags/")
ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()


class Refused(Exception):
    """An answer other than 200: a status, the Hub's error code, and words."""

    def __init__(self, status, code="", message=""):
        super().__init__(message or code)
        self.status, self.code, self.message = status, code, message or code


def is_large(path, sample=b"", size=0):
    """Tell whether the Hub keeps a file outside git."""
    return path.endswith(LARGE) or size > 10_000_000 or b"\x00" in sample


def git_oid(content):
    """Return git's name for a blob."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


class Storage:
    """All repositories of a Hub, in a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.lock = threading.RLock()
        for name in ("blobs", "commits", "repos", "xet"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    # -- blobs

    def blob(self, oid):
        return self.folder / "blobs" / oid

    def put(self, oid, content):
        part = self.folder / "blobs" / f".{oid}.{threading.get_ident()}"
        part.write_bytes(content)
        part.replace(self.blob(oid))

    def add(self, path, content):
        """Keep a file, of which bytes are given or a path, whose file is moved; return what a tree says of it."""
        if isinstance(content, Path):
            size = content.stat().st_size
            if not is_large(path, size=size):
                return self.add(path, content.read_bytes())
            with content.open("rb") as file:
                oid = hashlib.file_digest(file, "sha256").hexdigest()
            content.replace(self.blob(oid))
            return {"oid": oid, "size": size, "lfs": True}
        large = is_large(path, content[:512], len(content))
        oid = hashlib.sha256(content).hexdigest() if large else git_oid(content)
        self.put(oid, content)
        return {"oid": oid, "size": len(content), "lfs": large}

    # -- repositories

    def _at(self, kind, id_):
        return self.folder / "repos" / kind / f"{id_}.json"

    def repo(self, kind, id_):
        try:
            return json.loads(self._at(kind, id_).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise Refused(404, "RepoNotFound", "Repository not found") from None

    def save(self, kind, id_, repo):
        at = self._at(kind, id_)
        at.parent.mkdir(parents=True, exist_ok=True)
        part = at.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        part.write_text(json.dumps(repo))
        part.replace(at)

    def names(self, kind):
        root = self.folder / "repos" / kind
        return sorted(str(path.relative_to(root).with_suffix("")) for path in root.glob("*/*.json"))

    def create(self, kind, id_, private=False):
        with self.lock:
            if self._at(kind, id_).exists():
                raise Refused(409, "", f"You already created this {kind[:-1]} repo: {id_}")
            self.save(kind, id_, {"private": private, "gated": False, "refs": {}})
            self.commit(
                kind, id_, "refs/heads/main", {".gitattributes": self.add(".gitattributes", ATTRIBUTES)}, [], "initial commit"
            )

    def delete(self, kind, id_):
        self.repo(kind, id_)
        self._at(kind, id_).unlink()

    def resolve(self, kind, id_, rev):
        """Return (ref or "", commit) for a branch, a tag, a whole ref or a commit."""
        refs = self.repo(kind, id_)["refs"]
        for name in (rev, *(prefix + rev for prefix in REFS)):
            if name in refs:
                return name, self.read_commit(refs[name])
        if len(rev) == 40 and (self.folder / "commits" / f"{rev}.json").exists():
            return "", self.read_commit(rev)
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")

    def read_commit(self, oid):
        return json.loads((self.folder / "commits" / f"{oid}.json").read_text())

    def history(self, kind, id_, rev):
        oid = self.resolve(kind, id_, rev)[1]["oid"]
        while oid:
            commit = self.read_commit(oid)
            yield commit
            oid = commit["parent"]

    def point(self, kind, id_, ref, oid):
        with self.lock:
            repo = self.repo(kind, id_)
            if ref in repo["refs"]:
                raise Refused(409, "", f"Reference already exists: {ref}")
            repo["refs"][ref] = oid
            self.save(kind, id_, repo)

    def commit(self, kind, id_, ref, added, deleted, title, parent=None, oid=None):
        """Add a commit to a branch, under a given name with `oid`; `deleted` are paths, and folders that end with /.

        Refuses one whose `parent`, if named, is not the branch's newest commit.
        """
        with self.lock:
            repo = self.repo(kind, id_)
            head = repo["refs"].get(ref)
            if parent and parent != head:
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
            before = self.read_commit(head) if head else {"tree": {}, "number": -1}
            tree = {path: entry for path, entry in before["tree"].items() if not _gone(path, deleted)} | added
            number = before["number"] + 1
            date = (BEGAN + timedelta(minutes=number)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            commit = {"parent": head, "number": number, "title": title, "date": date, "tree": dict(sorted(tree.items()))}
            oid = oid or hashlib.sha1(json.dumps([id_, commit], sort_keys=True).encode()).hexdigest()
            (self.folder / "commits" / f"{oid}.json").write_text(json.dumps({"oid": oid, **commit}))
            repo["refs"][ref] = oid
            self.save(kind, id_, repo)
            return oid

    # -- for tests

    def put_repo(self, kind, id_, files, *, rev="main", private=False, gated=False, tag=None, oid=None):
        """Set a repository's files, made if it is not there; `files` is {path: bytes, str or Path} or a folder. Returns the commit.

        `rev` is a branch; with slashes it is a whole ref, such as refs/convert/parquet. `oid` names the commit.
        """
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in sorted(files.rglob("*")) if path.is_file()}
        if not self._at(kind, id_).exists():
            self.create(kind, id_)
        content = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        ref = rev if rev.startswith("refs/") else f"refs/heads/{rev}"
        oid = self.commit(kind, id_, ref, {path: self.add(path, data) for path, data in content.items()}, [], "put", oid=oid)
        self.save(kind, id_, self.repo(kind, id_) | {"private": private, "gated": gated})
        if tag:
            self.point(kind, id_, f"refs/tags/{tag}", oid)
        return oid

    def files(self, id_, rev="main", kind="datasets"):
        """Return {path: bytes} of a revision."""
        tree = self.resolve(kind, id_, rev)[1]["tree"]
        return {
            path: self.content(entry["oid"], entry["size"]).read_bytes()
            for path, entry in tree.items()
            if path != ".gitattributes"
        }

    def card(self, tree):
        """Return the YAML at the head of a revision's README."""
        if "README.md" not in tree:
            return {}
        text = self.blob(tree["README.md"]["oid"]).read_text()
        return yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}

    # -- Xet

    def in_xet(self, oid):
        """Tell whether hf_xet has put a file with this sha256 into the folder."""
        return oid in _xet_files(self.folder / "xet")

    def content(self, oid, size):
        """Return the file of a blob; one that came over Xet is put together by hf_xet itself, in a process of its own."""
        if not self.blob(oid).exists():
            found = _xet_files(self.folder / "xet")[oid]
            part = self.folder / f"{oid}.{threading.get_ident()}"
            arguments = [f"local://{self.folder / 'xet'}", found, str(size), str(part)]
            subprocess.run([sys.executable, "-c", FROM_XET, *arguments], check=True, timeout=60)
            part.replace(self.blob(oid))
        return self.blob(oid)


FROM_XET = """
import sys, hf_xet
endpoint, found, size, path = sys.argv[1:]
with hf_xet.XetSession().new_file_download_group(endpoint=endpoint) as group:
    group.start_download_file(hf_xet.XetFileInfo(found, int(size)), path)
"""


def _xet_files(folder):
    """Return {sha256: Xet's hash} of the files that the shards in a folder name.

    A shard begins with 48 bytes; then comes for each file its hash, flags and the number of its pieces (48 bytes), the
    pieces (48 each), as many again where bit 31 is set, and the sha256 (48) where bit 30 is set; then a hash of ones.
    """
    known = {}
    for shard in folder.glob("xet/xorbs/shards/*.mdb"):
        data, at = shard.read_bytes(), 48
        while data[at : at + 32] != b"\xff" * 32:
            flags, pieces = struct.unpack_from("<II", data, at + 32)
            end = at + 48 * (1 + pieces * (2 if flags >> 31 else 1))
            if flags >> 30 & 1:
                known[_words(data[end : end + 32])] = _words(data[at : at + 32])
                end += 48
            at = end
    return known


def _words(data):
    """Return the hexadecimal digits of a hash that is kept as four little-endian words."""
    return "".join(data[at : at + 8][::-1].hex() for at in range(0, 32, 8))


def _gone(path, deleted):
    return any(path == name or (name.endswith("/") and path.startswith(name)) for name in deleted)
