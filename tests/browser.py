"""A headless Chromium driven through a pipe, with nothing but the standard library.

`python -m tests.browser PAGE PICTURE [WIDTH [HEIGHT [dark]]]` photographs the top of a page.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
BAD = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--remote-debugging-pipe")  # fmt: skip


def executable() -> str | None:
    """Return the browser of this machine, if it has one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab. `problems` gathers what the console, the log and the network complained of; `requests` all addresses asked for."""

    def __init__(self, read: Any, write: Any) -> None:
        self.read, self.write, self.number, self.rest = read, write, 0, b""
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.seen: list[str] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for room in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{room}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self.write.write(json.dumps(message).encode() + b"\0")
        self.write.flush()
        while (answer := self._next()).get("id") != self.number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            block = os.read(self.read.fileno(), 1 << 16)
            if not block:
                raise RuntimeError("the browser went away")
            self.rest += block
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        self.seen.append(method)
        loud = method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert")
        if method in BAD or loud:
            self.problems.append(json.dumps(params)[:500])
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window of this many CSS pixels, and wait until it is loaded."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.seen.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self.seen:
            self._note(self._next())

    def value(self, script: str) -> Any:
        """Return what an expression of JavaScript gives."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"])
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Press and let go of a key that writes nothing, such as Tab."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9}[key])

    def picture(self, whole: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """Run a browser with a profile of its own; gone afterwards."""
    commands_in, commands_out = os.pipe()
    answers_in, answers_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        line = f'exec "$@" 3<&{commands_in} 4>&{answers_out}'
        arguments = [program, *FLAGS, f"--user-data-dir={home}"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            ["bash", "-c", line, "browser", *arguments],
            pass_fds=(commands_in, answers_out), stdin=quiet, stdout=quiet, stderr=quiet,
        )  # fmt: skip
        os.close(commands_in)
        os.close(answers_out)
        try:
            with open(answers_in, "rb", buffering=0) as read, open(commands_out, "wb") as write:
                page = Page(read, write)
                yield page
                page.session = None
                page.call("Browser.close")
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(20)


def main(page: str, picture: str, width: str = "1280", height: str = "900", dark: str = "") -> None:
    """Photograph the top of a page."""
    program = executable()
    assert program, f"none of {', '.join(NAMES)} is installed"
    with browser(program) as tab:
        tab.open(Path(page), int(width), int(height), bool(dark))
        Path(picture).write_bytes(tab.picture())


if __name__ == "__main__":
    main(*sys.argv[1:])
