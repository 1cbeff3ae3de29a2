"""A real browser for tests and benchmarks: headless Chromium, driven over a pipe (Chrome DevTools Protocol).

https://chromedevtools.github.io/devtools-protocol/ ; ``--remote-debugging-pipe`` reads requests from file descriptor 3
and writes answers to 4, each ended by a NUL byte, so that neither a port nor a package is needed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SWITCHES = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have 64 MB of it
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    "--proxy-server=direct://",
)


def find_chromium() -> str | None:
    """The browser's path, if one is installed (on Debian: apt-get install chromium)."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class BrowserError(RuntimeError):
    """The browser or a script in it failed, or did not answer in time."""


class Browser:
    """One Chromium with one page. A context manager."""

    def __init__(self, *, timeout_s: float = 60.0):
        """``timeout_s``: for each answer."""
        path = find_chromium()
        if path is None:
            raise BrowserError("no Chromium: apt-get install chromium")
        self.timeout_s = timeout_s
        self.messages: list[str] = []  # errors: uncaught, of the console, of policies and requests
        self.heard: Callable[[str, float], None] = lambda text, at_s: None  # of the page's function tell(text)
        self._profile = tempfile.mkdtemp(prefix="rdedge-chromium-")
        self._count = 0
        self._session: str | None = None
        self._unread = b""
        self._pid, self._to, self._from = _start(path, self._profile)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the protocol; events that arrive meanwhile are taken up."""
        self._count += 1
        message: dict[str, object] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until_s = time.monotonic() + self.timeout_s
        while True:
            answer = self._next(until_s - time.monotonic(), method)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, script: str, *, timeout_s: float | None = None) -> Any:
        """Wait until an expression is true; returns its value."""
        until_s = time.monotonic() + (timeout_s or self.timeout_s)
        while not (value := self._run_unless_leaving(script)):
            if time.monotonic() > until_s:
                body = self.run("document.body.innerText")
                raise BrowserError(f"never came true: {script}; messages {self.messages}; the page says:\n{body}")
            time.sleep(0.02)
        return value

    def _run_unless_leaving(self, script: str) -> Any:
        """The value, or None while the browser goes from one page to the next."""
        try:
            return self.run(script)
        except BrowserError as exc:
            if "Inspected target navigated" not in str(exc):
                raise
            return None

    def listen(self, timeout_s: float) -> None:
        """Take up events for so long, or until one came."""
        try:
            self._next(timeout_s, "an event")
        except BrowserError:
            return

    def open(self, url: str) -> None:
        """Go to an address; returns when its document is there."""
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        self.wait_for("document.readyState === 'complete'")

    def set_screen(self, width: int, height: int, *, scheme: str = "light", scale: float = 1.0) -> None:
        """The screen's size, and whether the system is ``light`` or ``dark``."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def tap(self, selector: str) -> None:
        """Touch the middle of an element, as a finger does: whatever lies on top of it gets the touch."""
        box = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )
        point = {"x": box[0], "y": box[1]}
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self, path: Path) -> None:
        """What the screen shows, as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser and its processes."""
        for descriptor in (self._to, self._from):
            if descriptor >= 0:
                os.close(descriptor)
        self._to = self._from = -1
        if self._pid:
            _end(self._pid)
            self._pid = 0
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _next(self, timeout_s: float, waiting_for: str) -> dict[str, Any]:
        """The next message; events are taken up on the way."""
        until_s = time.monotonic() + timeout_s
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until_s - time.monotonic()))
            if not ready:
                raise BrowserError(f"no answer in {timeout_s:.0f} s: {waiting_for}")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise BrowserError(f"the browser ended: {waiting_for}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._take_up(message, time.monotonic())
        return message

    def _take_up(self, message: Mapping[str, Any], at_s: float) -> None:
        details = message.get("params", {})
        match message.get("method"):
            case "Runtime.bindingCalled":
                self.heard(details["payload"], at_s)
            case "Runtime.exceptionThrown":
                self.messages.append(json.dumps(details["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if details["type"] in ("error", "assert"):
                self.messages.append(json.dumps(details["args"]))
            case "Log.entryAdded" if details["entry"]["level"] == "error":
                self.messages.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")


def _start(path: str, profile: str) -> tuple[int, int, int]:
    """Chromium's process (its own group), a descriptor to write requests to and one to read answers from."""
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (their_in, their_out)]
    arguments = [path, *_SWITCHES, f"--user-data-dir={profile}", "about:blank"]
    if os.getuid() == 0:
        arguments.insert(1, "--no-sandbox")  # its sandbox does not run as root, as in containers
    quiet = os.open(os.devnull, os.O_RDWR)
    actions = [
        (os.POSIX_SPAWN_DUP2, quiet, 0),
        (os.POSIX_SPAWN_DUP2, quiet, 1),
        (os.POSIX_SPAWN_DUP2, quiet, 2),
        (os.POSIX_SPAWN_DUP2, theirs[0], 3),
        (os.POSIX_SPAWN_DUP2, theirs[1], 4),
    ]
    environment = os.environ | {"HOME": profile, "XDG_CONFIG_HOME": profile, "XDG_CACHE_HOME": profile}
    try:
        pid = os.posix_spawn(path, arguments, environment, file_actions=actions, setpgroup=0)
    except BaseException:
        for descriptor in (our_out, our_in):
            os.close(descriptor)
        raise
    finally:
        for descriptor in (their_in, their_out, *theirs, quiet):
            os.close(descriptor)
    return pid, our_out, our_in


def _end(pid: int) -> None:
    """Wait for a browser whose pipe is closed, and end it and its children if it does not."""
    until_s = time.monotonic() + 5.0
    while time.monotonic() < until_s:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            pid = -pid
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(abs(pid), signal.SIGKILL)
    if pid > 0:
        os.waitpid(pid, 0)
