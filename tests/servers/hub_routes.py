"""What the small Hub of the tests tells: who one is, repositories, their trees and history, and files."""

from __future__ import annotations

import hashlib
from urllib.parse import parse_qs

from tests.servers.hub_storage import Refused, git_oid

KIND = r"(?P<kind>datasets|models)"
REPO = r"(?P<id_>[\w.-]+/[\w.-]+)"
API = f"/api/{KIND}/{REPO}"
REV = r"(?P<rev>[^/]+)"
EMPTY = hashlib.sha1(b"").hexdigest()


def whoami(ask):
    user = ask.user()
    if user is None:
        raise Refused(401, "", "Invalid username or password.")
    ask.send(200, {"type": "user", "name": user["name"], "fullname": user["name"], "email": "", "orgs": [{"name": org, "type": "org"} for org in user["orgs"]],
                   "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": user["role"]}}})  # fmt: skip


def search(ask, kind):
    wanted = ask.query.get("search", [""])[0].lower()
    author = ask.query.get("author", [""])[0]
    names = [id_ for id_ in ask.storage.names(kind) if wanted in id_.lower() and id_.startswith(author)]
    seen = [id_ for id_ in names if not ask.storage.repo(kind, id_)["private"] or ask.owns(id_)]
    ask.send(200, [_info(ask, kind, id_, "main") for id_ in seen[: int(ask.query.get("limit", ["100"])[0])]])


def info(ask, kind, id_, rev=""):
    ask.readable(kind, id_)
    ask.send(200, _info(ask, kind, id_, rev or "main"))


def _info(ask, kind, id_, rev):
    repo = ask.storage.repo(kind, id_)
    commit = ask.storage.resolve(kind, id_, rev)[1]
    card = ask.storage.card(commit["tree"])
    files = [{"rfilename": path, "size": entry["size"], "blobId": entry["oid"]} for path, entry in commit["tree"].items()]
    licence = card.get("license")
    tags = [*card.get("tags", []), *([f"license:{licence}"] if isinstance(licence, str) else [])]
    return {"_id": EMPTY[:24], "id": id_, "modelId": id_, "author": id_.split("/")[0], "sha": commit["oid"], "private": repo["private"], "gated": repo["gated"],
            "disabled": False, "lastModified": commit["date"], "createdAt": "2026-01-01T00:00:00.000Z", "downloads": 0, "likes": 0, "tags": tags,
            "cardData": card, "siblings": files, "usedStorage": sum(file["size"] for file in files)}  # fmt: skip


def tree(ask, kind, id_, rev, path=""):
    whole = ask.commit(kind, id_, rev)["tree"]
    root = f"{path}/" if path else ""
    inside = [name for name in whole if name.startswith(root)]
    if path and not inside:
        raise Refused(404, "EntryNotFound", f"{path} does not exist on {rev}")
    deep = ask.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    folders, files = {}, []
    for name in inside:
        parts = name[len(root) :].split("/")
        folders |= {root + "/".join(parts[:depth]): None for depth in range(1, len(parts) if deep else min(len(parts), 2))}
        if deep or len(parts) == 1:
            files.append(_entry(name, whole[name]))
    ask.send(200, [*map(_folder, folders), *files])


def paths_info(ask, kind, id_, rev):
    whole = ask.commit(kind, id_, rev)["tree"]
    as_json = "json" in ask.headers.get("Content-Type", "")
    paths = ask.given["paths"] if as_json else parse_qs(ask.body.decode()).get("paths", [])
    found = []
    for path in paths:
        if path in whole:
            found.append(_entry(path, whole[path]))
        elif any(name.startswith(f"{path}/") for name in whole):
            found.append(_folder(path))
    ask.send(200, found)


def _entry(path, entry):
    large = {"lfs": {"oid": entry["oid"], "size": entry["size"], "pointerSize": 130}} if entry["lfs"] else {}
    oid = git_oid(entry["oid"].encode()) if large else entry["oid"]
    return {"type": "file", "path": path, "size": entry["size"], "oid": oid, **large}


def _folder(path):
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}


def refs(ask, kind, id_):
    repo = ask.readable(kind, id_)
    answer = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    for ref, oid in repo["refs"].items():
        where = {"heads": "branches", "tags": "tags", "convert": "converts", "pr": "pullRequests"}[ref.split("/")[1]]
        answer[where].append({"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": oid})
    ask.send(200, answer)


def commits(ask, kind, id_, rev):
    ask.readable(kind, id_)
    same = {"message": "", "authors": [{"user": id_.split("/")[0]}]}
    found = ask.storage.history(kind, id_, rev)
    ask.send(200, [{"id": one["oid"], "title": one["title"], "date": one["date"], **same} for one in found])


def resolve(ask, kind, id_, rev, path):
    found = ask.commit("datasets" if kind else "models", id_, rev, content=True)
    entry, headers = found["tree"].get(path), {"X-Repo-Commit": found["oid"]}
    if entry is None:
        what = "Entry not found"
        return ask.send(404, {"error": what}, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": what})
    size, tag = entry["size"], f'"{entry["oid"]}"'
    file = ask.storage.content(entry["oid"], size) if ask.command != "HEAD" else None
    headers |= {"ETag": tag, "Accept-Ranges": "bytes", "X-Linked-Size": str(size), "X-Linked-ETag": tag}
    asked = ask.headers.get("Range", "")
    if not asked.startswith("bytes="):
        return ask.send_file(200, file, 0, size, headers)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        return ask.send(416, b"", {"Content-Range": f"bytes */{size}"})
    ask.send_file(206, file, start, stop, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})


ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("GET", f"/api/{KIND}", search),
    ("GET", API, info),
    ("GET", f"{API}/revision/{REV}", info),
    ("GET", f"{API}/tree/{REV}(?:/(?P<path>.*))?", tree),
    ("POST", f"{API}/paths-info/{REV}", paths_info),
    ("GET", f"{API}/refs", refs),
    ("GET", f"{API}/commits/{REV}", commits),
    ("GET", rf"/(?P<kind>datasets/)?{REPO}/resolve/{REV}/(?P<path>.+)", resolve),
]
