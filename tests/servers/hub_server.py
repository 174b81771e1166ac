"""A small Hub of our own over HTTP, for the real clients: datasets and models, commits, tags, large files, Xet, and faults.

    with hub(folder) as server:
        server.put("datasets", "org/name", {"train.csv": "a,b\\n1,2\\n"}, tag="v1")
        subprocess.run([...], env=os.environ | server.environment())

`hf_owner` may write below `owner`, `org` and `my-org`; `hf_reader` belongs to the same user and may only read; `hf_other` is another user's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers import hub_routes, hub_writes
from tests.servers.hub_storage import Refused, Storage

USERS = {
    "hf_owner": {"name": "owner", "orgs": ["org", "my-org"], "role": "write"},
    "hf_reader": {"name": "owner", "orgs": ["org", "my-org"], "role": "read"},
    "hf_other": {"name": "other", "orgs": [], "role": "write"},
}
BLOCK = 1 << 20  # bytes
ROUTES = [(method, re.compile(pattern), answer) for method, pattern, answer in hub_routes.ROUTES + hub_writes.ROUTES]


class Hub:
    """A running Hub: its address, what it was asked, and the faults it is to show."""

    def __init__(self, folder):
        self.storage = Storage(folder)
        self.folder = folder
        self.requests = []  # (method, path, bytes of the body)
        self.faults = []  # [pattern, times left, status]
        self.before = None  # called with (method, path) before each answer
        self.xet = False
        self.once = inf  # bytes of a file that is deleted when all of it was sent
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, token="hf_owner", home=None):
        """Return the variables that bring a client here; `home` is where it keeps its cache."""
        found = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home or self.folder / "home"), "HF_HUB_OFFLINE": "0"}
        found |= {"HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return found | {
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        }

    def put(self, kind, id_, files, **more):
        """Set a repository's files; see `Storage.put_repo`."""
        return self.storage.put_repo(kind, id_, files, **more)

    def fail(self, status, times=1, path=""):
        """Answer the next `times` requests whose "METHOD path" fits with an error.

        0 cuts the connection before anything is done, 1 after all is done: the answer is lost.
        """
        self.faults.append([re.compile(path), times, status])

    def client(self, code, token="hf_owner", home=None):
        """Run Python code in a process of its own that knows this Hub; return (exit code, output, errors)."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | self.environment(token, home),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    def sent(self):
        """Return the bytes that clients sent as files: large ones, and those in commits."""
        return sum(size for method, path, size in self.requests if method == "PUT" or "/commit/" in path)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    lost = False

    def log_message(self, *args):
        pass

    def _handle(self):
        hub = self.server.hub
        self.storage = hub.storage
        path = urlsplit(self.path).path
        self.query = parse_qs(urlsplit(self.path).query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if not self._chunked() else self._chunks()
        hub.requests.append((self.command, path, len(self.body)))
        try:
            if hub.before:
                hub.before(self.command, path)
            self._fault(f"{self.command} {path}")
            for method, pattern, function in ROUTES:
                if (method == self.command or (method == "GET" and self.command == "HEAD")) and (
                    found := pattern.fullmatch(path)
                ):
                    return function(self, **{name: unquote(value or "") for name, value in found.groupdict().items()})
            raise Refused(404, "", f"no such route: {self.command} {path}")
        except Refused as error:
            self.send(error.status, {"error": error.message}, {"X-Error-Code": error.code, "X-Error-Message": error.message})
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _chunked(self):
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def _chunks(self):
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _fault(self, asked):
        for fault in self.server.hub.faults:
            if fault[1] and fault[0].search(asked):
                fault[1] -= 1
                if fault[2] == 0:
                    raise ConnectionAbortedError
                if fault[2] == 1:
                    self.lost = True
                    return
                raise Refused(fault[2], "", "injected")

    def send(self, status, value=b"", headers=None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self._send_head(
            status, len(data), ({} if isinstance(value, bytes) else {"Content-Type": "application/json"}) | (headers or {})
        )
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_file(self, status, path, start, stop, headers):
        """Send a part of a file, a block at a time."""
        self._send_head(status, stop - start, headers)
        if self.command != "HEAD":
            with path.open("rb") as file:
                file.seek(start)
                while block := file.read(min(BLOCK, stop - file.tell())):
                    self.wfile.write(block)
            if status == 200 and stop - start >= self.server.hub.once:
                path.unlink()

    def _send_head(self, status, size, headers):
        if self.lost:
            raise ConnectionAbortedError
        self.send_response(status)
        for name, text in headers.items():
            if text:
                self.send_header(name, text)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    # -- what is asked for, and who may what

    @property
    def given(self):
        return json.loads(self.body)

    def page(self, kind, id_):
        return f"{self.server.hub.endpoint}/{'datasets/' if kind == 'datasets' else ''}{id_}"

    def commit(self, kind, id_, rev, content=False):
        """Return a commit of a repository that this user may see."""
        self.readable(kind, id_, content)
        return self.storage.resolve(kind, id_, rev)[1]

    def user(self):
        """Return who asks, or None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in USERS:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return USERS[token]

    def owns(self, id_):
        user = self.user()
        return user is not None and id_.split("/")[0] in (user["name"], *user["orgs"])

    def readable(self, kind, id_, content=False):
        """Return a repository that this user may see; its files too with `content`."""
        user = self.user()
        try:
            repo = self.storage.repo(kind, id_)
        except Refused:
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found") from None
        if repo["private"] and not self.owns(id_):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if content and repo["gated"] and not self.owns(id_):
            raise Refused(403 if user else 401, "GatedRepo", f"Access to dataset {id_} is restricted.")
        return repo

    def writable(self, kind, id_):
        repo = self.readable(kind, id_)
        self.may_write(id_)
        return repo

    def may_write(self, id_):
        user = self.user()
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        if user["role"] != "write" or not self.owns(id_):
            raise Refused(403, "", f"You don't have the rights to write to {id_}")


@contextmanager
def hub(folder, xet=False):
    """Run a Hub whose repositories lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    running = Hub(folder)
    running.xet = xet
    thread = threading.Thread(target=running.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.server.shutdown()
        running.server.server_close()
        thread.join()
