"""Headless browsers without a network: Chromium over its DevTools protocol, Firefox over WebDriver BiDi.

Neither needs another program: Chromium is spoken to through two pipes, Firefox through a websocket.
"""

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
import websocket

INSIDE = ("file:", "data:", "blob:", "about:")  # addresses that need no network


class Browser:
    """One page. `complaints` are errors of the console and requests that failed or left the file system."""

    names: tuple[str, ...]  # of the program, any of them

    def __init__(self, program: str):
        self.program, self.profile = program, Path(tempfile.mkdtemp())
        self.complaints, self.sent = [], 0
        self.start(dark=False)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters: object) -> dict:
        self.sent += 1
        number = self.sent
        self.send({"id": number, "method": method, "params": parameters})
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']} {answer.get('message', '')}")
                return answer["result"]
            self.note(answer.get("method"), answer.get("params", {}))

    def requested(self, address: str) -> None:
        if not address.startswith(INSIDE):
            self.complaints.append(f"left the file system: {address}")

    def open(self, address: str) -> None:
        """Load a page, and wait until its mathematics are set."""
        self.load(address)
        self.run("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 0) : 0")

    def run(self, script: str) -> object:
        """The value of an expression on the page; a promise is awaited."""
        value = self.evaluate(f"(async () => JSON.stringify(await ({script})))()")
        return None if value is None else json.loads(value)

    def press_and_wait(self, root: str, button: str) -> None:
        """Press a button of a widget, whose expression is given, and wait until its work begins and ends.

        The page itself looks on: a look from outside may come too late for the beginning.
        """
        assert self.run(
            f"""new Promise(done => {{
                const root = {root};
                let busy = false;
                new MutationObserver(() => root.ariaBusy === "true" ? busy = true : busy && done(true))
                    .observe(root, {{attributeFilter: ["aria-busy"]}});
                setTimeout(() => done(false), 60_000);
                [...root.querySelectorAll("button")].find(b => b.textContent === {json.dumps(button)}).click(); }})"""
        )


class Chromium(Browser):
    names = ("chromium", "chromium-browser", "google-chrome")
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND"),  # no name is found: the network is off
    )

    def start(self, *, dark: bool) -> None:
        to_read, self.to_write = os.pipe()
        self.to_hear, to_answer = os.pipe()

        def pipes_in_place() -> None:  # Chromium reads from 3 and writes to 4
            low = [os.dup(to_read), os.dup(to_answer)]
            os.dup2(low[0], 3)
            os.dup2(low[1], 4)

        self.process = subprocess.Popen(
            [self.program, *self.flags, f"--user-data-dir={self.profile}", "about:blank"],
            preexec_fn=pipes_in_place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_answer)
        self.buffer, self.session, self.loaded = b"", None, False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.prefer(dark=dark)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self.to_write)
        os.close(self.to_hear)

    def send(self, message: dict) -> None:
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.to_write, json.dumps({**message, **session}).encode() + b"\0")

    def receive(self, seconds: float = 120) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            if not select.select([self.to_hear], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            read = os.read(self.to_hear, 1 << 20)
            if not read:
                raise RuntimeError("the browser has ended")
            self.buffer += read
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

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
        elif event == "Network.requestWillBeSent":
            self.requested(about["request"]["url"])

    def prefer(self, *, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def load(self, address: str) -> None:
        self.loaded = False
        self.call("Page.navigate", url=address)
        while not self.loaded:
            message = self.receive()
            self.note(message.get("method"), message.get("params", {}))

    def evaluate(self, expression: str) -> object:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def drag(self, *points: tuple[float, float]) -> None:
        """Press the mouse at the first point, move it through the others, let go."""
        mouse = {"button": "left", "buttons": 1, "clickCount": 1}
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **mouse)

    def key(self, name: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code="Space" if name == " " else name)

    def picture(self, path: Path) -> None:
        """The whole page as PNG, once its sidebar has stopped moving."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        self.resize(size["width"], size["height"])
        time.sleep(0.6)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


# A proxy that is not there: the network is off.
OFFLINE = {"network.proxy.type": 1, "network.proxy.socks": "127.0.0.1", "network.proxy.socks_port": 9}
KEYS = {"End": "\ue010", "Home": "\ue011", "ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowDown": "\ue015"}


class Firefox(Browser):
    names = ("firefox", "firefox-esr")

    def start(self, *, dark: bool) -> None:
        self.dark = dark
        settings = {**OFFLINE, "layout.css.prefers-color-scheme.content-override": 0 if dark else 1}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in settings.items()]
        (self.profile / "user.js").write_text("".join(lines))
        place = self.profile / "WebDriverBiDiServer.json"
        place.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [self.program, "--headless", "--no-remote", "--profile", self.profile, "--remote-debugging-port", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 120
        while not (place.is_file() and place.read_text().endswith("}")):
            assert time.monotonic() < end, "Firefox does not start"
            time.sleep(0.1)
        port = json.loads(place.read_text())["ws_port"]
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}/session", timeout=120, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )
        self.call("session.new", capabilities={})
        self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]
        self.call("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent", "network.fetchError"])

    def stop(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)

    def send(self, message: dict) -> None:
        self.socket.send(json.dumps(message))

    def receive(self) -> dict:
        return json.loads(self.socket.recv())

    def note(self, event: str | None, about: dict) -> None:
        if event == "log.entryAdded" and about["level"] == "error":
            self.complaints.append(f"{about['type']}: {about['text']}")
        elif event == "network.fetchError":
            self.complaints.append(f"failed: {about['errorText']}")
        elif event == "network.beforeRequestSent":
            self.requested(about["request"]["url"])

    def prefer(self, *, dark: bool) -> None:
        if dark != self.dark:  # a setting that is read at the start
            self.stop()
            self.start(dark=dark)

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height}
        self.call("browsingContext.setViewport", context=self.context, viewport=size, devicePixelRatio=1)

    def load(self, address: str) -> None:
        self.call("browsingContext.navigate", context=self.context, url=address, wait="complete")

    def evaluate(self, expression: str) -> object:
        target = {"context": self.context}
        answer = self.call("script.evaluate", expression=expression, target=target, awaitPromise=True)
        if answer["type"] == "exception":
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def perform(self, kind: str, actions: list[dict]) -> None:
        source = {"type": kind, "id": kind, "actions": actions}
        self.call("input.performActions", context=self.context, actions=[source])

    def drag(self, *points: tuple[float, float]) -> None:
        """Press the mouse at the first point, move it through the others, let go."""
        first, *moves = [{"type": "pointerMove", "x": round(x), "y": round(y)} for x, y in points]
        down, up = ({"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp"))
        self.perform("pointer", [first, down, *moves, up])

    def key(self, name: str) -> None:
        self.perform("key", [{"type": kind, "value": KEYS.get(name, name)} for kind in ("keyDown", "keyUp")])


KINDS = {"chromium": Chromium, "firefox": Firefox}


@contextlib.contextmanager
def running(kind: str):
    """A browser inside the `with` block; the test is skipped where it is not installed."""
    program = next(filter(None, map(shutil.which, KINDS[kind].names)), None)
    if program is None:
        pytest.skip(f"no {kind} here: no page is looked at in it")
    browser = KINDS[kind](program)
    try:
        yield browser
    finally:
        browser.close()
