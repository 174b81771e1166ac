"""What the small Hub of the tests takes: new repositories, large files, commits, tags."""

from __future__ import annotations

import base64
import hashlib
import json
import time

import yaml

from tests.servers.hub_routes import API, REPO, REV
from tests.servers.hub_storage import Refused, is_large

LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "other", "unknown")


def create(ask):
    kind, id_ = _named(ask)
    ask.may_write(id_)
    try:
        private = ask.given.get("visibility") == "private" or bool(ask.given.get("private"))
        ask.storage.create(kind, id_, private)
    except Refused as error:
        return ask.send(error.status, {"error": error.message, "url": ask.page(kind, id_)})
    ask.send(200, {"url": ask.page(kind, id_), "name": id_, "id": id_})


def delete(ask):
    kind, id_ = _named(ask)
    ask.writable(kind, id_)
    ask.storage.delete(kind, id_)
    ask.send(200, b"OK")


def _named(ask):
    owner = ask.given.get("organization") or (ask.user() or {}).get("name")
    return f"{ask.given.get('type') or 'model'}s", f"{owner}/{ask.given['name']}"


def tag(ask, kind, id_, rev):
    ask.writable(kind, id_)
    ask.storage.point(kind, id_, f"refs/tags/{ask.given['tag']}", ask.commit(kind, id_, rev)["oid"])
    ask.send(200, {})


def validate_yaml(ask):
    errors = list(_card_errors(ask.given["content"]))
    ask.send(400 if errors else 200, {"errors": [{"message": text} for text in errors], "warnings": []})


def _card_errors(text):
    if not text.startswith("---\n"):
        return
    try:
        card = yaml.safe_load(text.split("---\n", 2)[1])
    except yaml.YAMLError as error:
        yield f"bad YAML: {error}"
        return
    licences = card.get("license", [])
    for licence in [licences] if isinstance(licences, str) else licences:
        if licence not in LICENSES:
            yield f'"license" must be one of [{", ".join(LICENSES)}]'
    for key in ("task_categories", "tags", "configs", "size_categories"):
        if not isinstance(card.get(key, []), list):
            yield f'"{key}" must be an array'


def preupload(ask, kind, id_, rev):
    ask.writable(kind, id_)
    before = ask.commit(kind, id_, rev)["tree"]
    files = []
    for file in ask.given["files"]:
        large = is_large(file["path"], base64.b64decode(file["sample"]), file["size"])
        oid = before.get(file["path"], {}).get("oid")
        files.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    ask.send(200, {"files": files})


def lfs_batch(ask, kind, id_):
    ask.writable("datasets" if kind else "models", id_)
    objects = []
    for one in ask.given["objects"]:
        there = ask.storage.blob(one["oid"]).exists()
        address = ask.server.hub.endpoint
        actions = {"upload": {"href": f"{address}/lfs/{one['oid']}"}, "verify": {"href": f"{address}/lfs-verify"}}
        objects.append({**one, "authenticated": True, **({} if there else {"actions": actions})})
    ask.send(200, {"transfer": "basic", "objects": objects})


def lfs_put(ask, oid):
    if hashlib.sha256(ask.body).hexdigest() != oid:
        raise Refused(400, "", "the bytes are not those of the oid")
    ask.storage.put(oid, ask.body)
    ask.send(200)


def lfs_verify(ask):
    blob = ask.storage.blob(ask.given["oid"])
    if not blob.exists() or blob.stat().st_size != ask.given["size"]:
        raise Refused(404, "", "no such object")
    ask.send(200, {})


def xet_token(ask, kind, id_, what, rev):
    (ask.writable if what == "write" else ask.readable)(kind, id_)
    found = {"accessToken": "xet", "exp": int(time.time()) + 3600, "casUrl": f"local://{ask.storage.folder / 'xet'}"}
    headers = {"X-Xet-Cas-Url": found["casUrl"], "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(found["exp"])}
    ask.send(200, found, headers)


def commit(ask, kind, id_, rev):
    ask.writable(kind, id_)
    ref = ask.storage.resolve(kind, id_, rev)[0]
    added, deleted, header = {}, [], {}
    for line in filter(None, ask.body.split(b"\n")):
        one = json.loads(line)
        value = one["value"]
        if one["key"] == "header":
            header = value
        elif one["key"] == "file":
            added[value["path"]] = ask.storage.add(value["path"], base64.b64decode(value["content"]))
        elif one["key"] == "lfsFile":
            if not ask.storage.blob(value["oid"]).exists() and not ask.storage.in_xet(value["oid"]):
                raise Refused(400, "", f"LFS pointer pointed to a file that does not exist: {value['path']}")
            added[value["path"]] = {"oid": value["oid"], "size": value["size"], "lfs": True}
        else:
            deleted.append(value["path"].rstrip("/") + ("/" if one["key"] == "deletedFolder" else ""))
    oid = ask.storage.commit(kind, id_, ref, added, deleted, header["summary"], header.get("parentCommit"))
    url = f"{ask.page(kind, id_)}/commit/{oid}"
    ask.send(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


ROUTES = [
    ("POST", "/api/repos/create", create),
    ("DELETE", "/api/repos/delete", delete),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", f"{API}/tag/{REV}", tag),
    ("POST", f"{API}/preupload/{REV}", preupload),
    ("POST", f"{API}/commit/{REV}", commit),
    ("GET", f"{API}/xet-(?P<what>write|read)-token/{REV}", xet_token),
    ("POST", rf"/(?P<kind>datasets/)?{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", "/lfs-verify", lfs_verify),
]
