"""A headless Chromium for tests of pages."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

# Returns the elements that reach beyond the window.
OVERFLOWING = """
document.querySelectorAll("details").forEach(part => part.open = true);
const inside = document.documentElement.clientWidth;
return [...document.querySelectorAll("body *")]
  .filter(e => !e.classList.contains("skip") && e.getBoundingClientRect().right > inside + 0.5)
  .map(e => e.outerHTML.slice(0, 100));
"""


class Browser:
    """A headless Chromium, driven through its driver's HTTP interface (W3C WebDriver)."""

    FLAGS = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync"
    )

    def __init__(self, profile: Path) -> None:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
        )
        assert self._driver.stdout
        port = next(
            found[1]
            for line in self._driver.stdout
            if (found := re.search(r"successfully on port (\d+)", line))
        )
        self._address = f"http://127.0.0.1:{port}/session"
        self._wait_for(int(port))
        options = {
            "binary": shutil.which("chromium"),
            "args": [*self.FLAGS.split(), f"--user-data-dir={profile}"],
        }
        wanted = {"goog:loggingPrefs": {"browser": "ALL"}, "goog:chromeOptions": options}
        try:
            session = self._call("", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._driver.kill()
            raise
        self._address += "/" + session["sessionId"]

    def _wait_for(self, port: int) -> None:
        # On a busy machine it prints its port before it listens.
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                return
            except OSError:
                if self._driver.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _call(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self._call("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, path: Path, width: int, scheme: str) -> None:
        shape = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", **shape)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.command("Emulation.setEmulatedMedia", features=features)
        self._call("/url", {"url": path.as_uri()})

    def evaluate(self, script: str) -> Any:
        return self._call("/execute/sync", {"script": script, "args": []})

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            parameters = {"key": key, "windowsVirtualKeyCode": code}
            if text and kind == "keyDown":
                parameters["text"] = text
            self.command("Input.dispatchKeyEvent", type=kind, **parameters)

    def console(self) -> list[dict[str, Any]]:
        log: list[dict[str, Any]] = self._call("/se/log", {"type": "browser"})
        return log

    def close(self) -> None:
        self._call("", method="DELETE")
        self._driver.terminate()
        self._driver.wait(30)
