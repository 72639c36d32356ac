"""A headless browser that tests drive through the DevTools protocol, over a pipe rather than a socket."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
WIDTH, HEIGHT = 1440, 900
PATIENCE = 60.0
"""Seconds to wait for an answer."""


def find_browser() -> str | None:
    """The first browser on PATH."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page of a browser; `complaints` is what it wrote to its console as an error, and what it threw."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.numbers = itertools.count(1)
        self.buffer = b""
        self.session: str | None = None
        self.events: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        window = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **window)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something and wait for the answer."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (said := self._receive()).get("id") != number:
            self._note(said)
        assert "error" not in said, said["error"]
        result: dict[str, Any] = said["result"]
        return result

    def open(self, address: str) -> None:
        """Go to an address and wait until it is loaded."""
        self.events.clear()
        loads = "loaderId" in self.call("Page.navigate", url=address)
        while loads and "Page.loadEventFired" not in self.events:
            self._note(self._receive())

    def evaluate(self, script: str) -> Any:
        """What an expression of the page's script yields, promises awaited."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def press(self, *keys: str) -> None:
        """Keys by name, or a single letter."""
        for key in keys:
            typed = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **typed)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def turn_wheel(self, x: float, y: float, by: float) -> None:
        """Turn the mouse's wheel at a place, by pixels."""
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def drag(self, x: float, y: float, across: float, down: float) -> None:
        """Press the mouse's left button at a place, move it and let it go; a click where it does not move."""
        held = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **held)
        if across or down:
            for part in (0.5, 1):
                place = {"x": x + part * across, "y": y + part * down}
                self.call("Input.dispatchMouseEvent", type="mouseMoved", **place, **held)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + across, y=y + down, **held)

    def prefer(self, scheme: str) -> None:
        """Make `light` or `dark` the person's choice."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def first_paint(self) -> float:
        """Milliseconds from the start of loading to the first contentful paint."""
        find = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
        end = time.monotonic() + PATIENCE
        while (found := self.evaluate(find)) is None:
            assert time.monotonic() < end, "nothing was painted"
            time.sleep(0.05)
        return float(found)

    def take_picture(self) -> bytes:
        """What is in the window, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], PATIENCE)
            said = os.read(self.from_browser, 1 << 20) if ready else b""
            assert said, "the browser says nothing"
            self.buffer += said
        message, _, self.buffer = self.buffer.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        return heard

    def _note(self, said: dict[str, Any]) -> None:
        method, parameters = said.get("method", ""), said.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.complaints.append(str(parameters["args"]))


@contextmanager
def browse(browser: str, profile: Path) -> Iterator[Tab]:
    """A tab of a browser that is started for it and ended after it; its files lie in `profile`."""
    read_theirs, write_ours = os.pipe()
    read_ours, write_theirs = os.pipe()
    command = [browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"]

    def connect() -> None:
        os.dup2(read_theirs, 3)
        os.dup2(write_theirs, 4)

    process = subprocess.Popen(
        command,
        preexec_fn=connect,  # noqa: PLW1509  the protocol wants these two descriptors
        pass_fds=(3, 4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_theirs)
    os.close(write_theirs)
    try:
        yield Tab(write_ours, read_ours)
    finally:
        os.close(write_ours)
        process.wait(PATIENCE)
        os.close(read_ours)
