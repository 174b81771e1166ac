"""A small server with the OpenAI routes over loopback: `POST /v1/chat/completions`, as servers of language models have it.

with chat(lambda prompt: "Who wrote Emma?") as server:
    f"{server.url}/chat/completions"
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Chat:
    """A running server: how it answers, what it was asked, and its faults."""

    def __init__(self, answer):
        self.answer = answer  # prompt -> text, or the whole body as bytes, or (status, body, headers)
        self.asked = []  # (prompt, body, headers)
        self.faults = []  # each request takes the first one: None, or what `answer` may return, or "hang"
        self.most, self.now = 0, 0  # requests at the same time
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.chat = self
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def prompts(self):
        return [prompt for prompt, _, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        chat = self.server.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with chat.lock:
            chat.asked.append((prompt, body, dict(self.headers)))
            chat.now += 1
            chat.most = max(chat.most, chat.now)
            fault = chat.faults.pop(0) if chat.faults else None
        try:
            if fault == "hang":
                time.sleep(2)
            found = chat.answer(prompt) if fault in (None, "hang") else fault
        finally:
            with chat.lock:
                chat.now -= 1
        if self.path != "/v1/chat/completions":
            found = (404, b"<html>Not Found</html>", {})
        status, headers = 200, {}
        if isinstance(found, tuple):
            status, found, headers = found
        if isinstance(found, str):  # of one choice, as the API's reference shows it
            choice = {"index": 0, "message": {"role": "assistant", "content": found}, "finish_reason": "stop"}
            found = {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"], "choices": [choice]}
        if isinstance(found, dict):
            found = json.dumps(found).encode()
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)
        except (BrokenPipeError, ConnectionResetError):  # the client waited no longer
            self.close_connection = True


def error(status, message, **headers):
    """Return a fault in the form of OpenAI's errors."""
    return status, {"error": {"message": message, "type": "invalid_request_error", "code": None}}, headers


@contextmanager
def chat(answer):
    """Run a server."""
    served = Chat(answer)
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()
