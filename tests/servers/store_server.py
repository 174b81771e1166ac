"""A small web server over loopback: files with etags and ranges, an index of links, and faults.

with web({"/a.csv": b"q,a\\n1,2\\n"}) as server:
    f"{server.url}/a.csv"
"""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """A running server: its files, what it was asked, and how it answers."""

    def __init__(self, files):
        self.files = files
        self.requests = []  # (method, path with query)
        self.sent = 0  # bytes of answers to GET
        self.faults = {}  # path: list of faults; each GET takes the first one, the last one stays
        self.marks = ("ETag", "Length", "Ranges")  # which facts about a file it gives; and knows; also Last-Modified
        self.closed = False
        self.users = None  # the Authorization header that it wants
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.web = self
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def gets(self):
        """Return the paths that were fetched."""
        return [path for method, path in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        web = self.server.web
        if web.closed:  # a connection that was kept
            self.close_connection = True
            return
        web.requests.append((self.command, self.path))
        path = self.path.partition("?")[0]
        faults = web.faults.get(path, [])
        fault = faults.pop(0) if len(faults) > 1 else faults[0] if faults else None
        if callable(fault):
            fault = fault(self.command)
        if fault == "hang":
            time.sleep(5)
            self.close_connection = True
            return
        if web.users and self.headers.get("Authorization") != web.users:
            fault = 401
        data = web.files.get(path)
        if path.endswith("/"):
            data = "".join(f'<a href="{name}">x</a>' for name in web.files if name.startswith(path)).encode() or None
        if isinstance(fault, int) or data is None:
            self.send_response(fault or 404)
            if fault == 302:  # to itself
                self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")[0]) if "Ranges" in web.marks else 0
        self.send_response(206 if start else 200)
        if "ETag" in web.marks:
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        if "Last-Modified" in web.marks:
            self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        if path.endswith((".gz", ".html")):  # as Apache declares a packed file
            self.send_header(*(("Content-Encoding", "gzip") if path.endswith(".gz") else ("Content-Type", "text/html")))
        data = data[start:]
        if "Length" in web.marks:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "HEAD":
            return
        web.sent += len(data) // 2 if fault == "cut" else len(data)
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif "Length" in web.marks:
            self.wfile.write(data)
        else:
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))

    do_HEAD = do_GET


@contextmanager
def web(files):
    """Serve {path: bytes}; the dict may change meanwhile."""
    running = Web(files)
    thread = threading.Thread(target=running.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.closed = True
        running.server.shutdown()
        running.server.server_close()
        thread.join()
