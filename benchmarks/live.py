"""How fast is FARMER in a browser? `python -m benchmarks.live` writes results/live.json, by Chromium.

For every shipped model that the live page can carry, medians in milliseconds. Of single calls on one thread, with the
WebAssembly kernel and without it: loading the weights, the likelihood of an image, a sample without and with guidance,
the three inverses, and the posterior over the classes, which a stroke of the pen asks for. And of the page itself:
until its widgets stand there, until the first answer, and from a change of the drawing until all figures are new.
A picture of each widget goes to results/live_NAME.png, for notebooks that are read outside of the book.
"""

from __future__ import annotations

import http.server
import json
import queue
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageChops
from pydantic import PositiveInt

from book import live
from farmer_ref.support import cli
from farmer_ref.support.errors import InputError
from farmer_ref.support.files import write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
MEASURE = """
const median = times => times.sort((a, b) => a - b)[times.length >> 1];
const clock = async (f, repeats = REPEATS) => {
  const times = [];
  for (let i = 0; i < repeats; i++) {
    const began = performance.now();
    await f(i);
    times.push(performance.now() - began);
  }
  return median(times);
};
addEventListener("load", async () => {
  const page = {widgets: performance.now()}, text = document.querySelector(".fl-say");
  const shift = [...document.querySelectorAll("button")].find(button => button.textContent === "Shift it");
  const stroke = () => new Promise(done => {
    new MutationObserver((_, observer) => done(observer.disconnect())).observe(text, {childList: true});
    shift.click();
  });
  page.first_answer = await clock(stroke, 1);
  page.stroke = await clock(stroke);
  const calls = {}, library = farmerLibrary();
  for (const [name, fast, repeats] of [["webassembly", true, REPEATS], ["javascript", false, 3]]) {
    let model;
    const load = await clock(() => model = new library.Farmer(FARMER_WEIGHTS, fast), 1);
    const image = library.middles(VALUES, FARMER_WEIGHTS.config.levels), [z] = model.encode(image);
    const prior = guidance => seed => model.inverse(model.prior.sample(3, guidance, library.uniforms(seed)).z);
    const plain = {scale: 0, weightTemperature: 1, scaleTemperature: 1};
    const kinds = {
      likelihood: () => model.likelihoods(image, [3]), posterior: () => model.bayes(image), sample: prior(plain),
      guided_sample: prior({...plain, scale: 1, candidates: [5, 5], pool: [192, 64]}),
      inverse: () => model.inverse(z), jacobi: () => model.jacobi(z), student: () => model.student(z),
    };
    calls[name] = {kernel: model.fast, load};
    for (const [kind, call] of Object.entries(kinds)) calls[name][kind] = await clock(call, repeats);
    if (!model.form) delete calls[name].student;
  }
  report({page, ...calls});
});
"""


@settings_class
class LiveBenchmark:
    """How often."""

    repeats: PositiveInt = 21
    """Calls of each kind; their median counts. Plain JavaScript is called three times."""


def chromium(profile: str, *arguments: str) -> list[str]:
    """The command that has Chromium do something without a window, in a profile of its own."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise InputError(f"no Chromium is installed; allowed: one of {', '.join(NAMES)}")
    return [program, *FLAGS, f"--user-data-dir={profile}", *arguments]


def reported(page: str, script: str, *, seconds: float = 300) -> Any:
    """What a script gives to its function `report`, after Chromium has opened the page from a file.

    Nothing but the report leaves the browser, and it goes to this machine; no debugger slows the page down.
    """
    answers: queue.Queue[Any] = queue.Queue()

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as server, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        send = 'fetch("http://127.0.0.1:%d", {method: "POST", mode: "no-cors", body: JSON.stringify(value)})'
        script = f"const report = value => {send % server.server_port};\n{script}"
        opened = Path(folder) / "page.html"
        opened.write_text(f"{page}<script>\n{script}</script>\n", encoding="utf-8")
        command = chromium(f"{folder}/profile", opened.as_uri())
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return answers.get(timeout=seconds)
        except queue.Empty:
            raise RuntimeError(f"{command[0]} reported nothing in {seconds:.0f} s") from None
        finally:
            process.terminate()
            process.wait()
            server.shutdown()


def draw_pictures(page: str, folder: Path) -> None:
    """Save each widget of the live page, as it stands untouched, as live_NAME.png."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in live.WIDGETS:
            opened, saved = Path(temporary) / "page.html", Path(temporary) / "saved.png"
            alone = (
                f"body > :not(main), section:not(#{name}) {{ display: none }} section > div {{ margin: 0 !important }}"
            )
            opened.write_text(f"{page}<style>{alone}</style>", encoding="utf-8")
            command = chromium(temporary, "--window-size=1000,1200", f"--screenshot={saved}", opened.as_uri())
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            with Image.open(saved) as picture:
                shot = picture.convert("RGB")
            edges = ImageChops.difference(shot, Image.new("RGB", shot.size, "white")).getbbox()
            shot.crop(edges).quantize(128).save(folder / f"live_{name}.png", optimize=True)


def measured(name: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of the page and of each kind of call, with the kernel and without it."""
    values, _ = live.test_images(name, live.load(name)[0])
    given = f"const VALUES = {values[0].flatten().tolist()}, REPEATS = {repeats};"
    return reported(page_of(name), given + MEASURE)


def page_of(name: str) -> str:
    """The live page of a model."""
    with tempfile.TemporaryDirectory() as folder:
        live.write(Path(folder), name)
        return (Path(folder) / "live.html").read_text(encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.live", LiveBenchmark(), "Time FARMER in a browser.", argv)
    record = {
        **provenance(torch.device("cpu")),
        "milliseconds": {name: measured(name, config.repeats) for name in live.shipped()},
        "script_bytes": live.script_bytes(),
    }
    print(json.dumps({name: record[name] for name in ("milliseconds", "script_bytes")}, indent=2))
    write_json(ROOT / "results" / "live.json", record)
    draw_pictures(page_of(live.shipped()[0]), ROOT / "results")


if __name__ == "__main__":
    cli.run(main)
