"""A headless Chromium, driven over its DevTools protocol through two pipes: nothing else to install."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND"),  # no name is found: the network is off
]


class Browser:
    """One page. `complaints` are errors of the console and requests that failed or left the file system."""

    def __init__(self):
        self.profile = tempfile.mkdtemp()
        to_read, self.to_write = os.pipe()
        self.to_hear, to_answer = os.pipe()

        def pipes_in_place() -> None:  # Chromium reads from 3 and writes to 4
            low = [os.dup(to_read), os.dup(to_answer)]
            os.dup2(low[0], 3)
            os.dup2(low[1], 4)

        self.process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            preexec_fn=pipes_in_place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_answer)
        self.buffer, self.sent, self.session = b"", 0, None
        self.complaints, self.loaded = [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self.to_write)
        os.close(self.to_hear)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters: object) -> dict:
        self.sent += 1
        number, message = self.sent, {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next_message()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def next_message(self, seconds: float = 120) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            if not select.select([self.to_hear], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            read = os.read(self.to_hear, 1 << 20)
            if not read:
                raise RuntimeError("the browser has ended")
            self.buffer += read
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        self.note(message.get("method"), message.get("params", {}))
        return message

    def note(self, event: str | None, about: dict) -> None:
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.complaints.append(f"console: {[a.get('value', a.get('description')) for a in about['args']]}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {about['exceptionDetails']}")
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.complaints.append(f"log: {about['entry']['text']} {about['entry'].get('url', '')}")
        elif event == "Network.loadingFailed" and not about.get("canceled"):
            self.complaints.append(f"failed: {about['errorText']}")
        elif event == "Network.requestWillBeSent" and not about["request"]["url"].startswith(
            ("file:", "data:", "blob:")
        ):
            self.complaints.append(f"left the file system: {about['request']['url']}")

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, address: str) -> None:
        """Load a page, and wait until its mathematics are set."""
        self.loaded = False
        self.call("Page.navigate", url=address)
        while not self.loaded:
            self.next_message()
        self.run("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 0) : 0")

    def run(self, script: str) -> object:
        """The value of an expression on the page; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """The whole page as PNG, once its sidebar has stopped moving."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        self.resize(size["width"], size["height"])
        time.sleep(0.6)
        shot = self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def running():
    """A browser inside the `with` block; the test is skipped where there is none."""
    if PROGRAM is None:
        pytest.skip("no Chromium here: no page is looked at in a browser")
    browser = Browser()
    try:
        yield browser
    finally:
        browser.close()
