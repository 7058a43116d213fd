"""How fast is FARMER in a browser? `python -m benchmarks.live`. Writes results/live.json; needs Chromium.

Medians of single calls on one thread, with the WebAssembly kernel and without it: loading the weights, the likelihood
of an image, a sample without and with guidance, and the posterior over the classes, which a stroke of the pen asks for.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt

from book import live
from farmer_ref.support import cli
from farmer_ref.support.errors import InputError
from farmer_ref.support.files import write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MEASURE = """
const median = (f, repeats) => {
  const times = Array.from({length: repeats}, (_, i) => {
    const began = performance.now();
    f(i);
    return performance.now() - began;
  });
  return times.sort((a, b) => a - b)[repeats >> 1];
};
const found = {};
for (const [name, kernel] of [["webassembly", true], ["javascript", false]]) {
  let model;
  const load = median(() => { model = new (farmerLibrary().Farmer)(FARMER_WEIGHTS, kernel); }, 1);
  const image = model.dequantiser.apply(VALUES), prior = guidance => seed => {
    model.inverse(model.prior.sample(3, guidance, farmerLibrary().uniforms(seed)).z);
  };
  const plain = {scale: 0, weightTemperature: 1, scaleTemperature: 1};
  const guided = {...plain, scale: 1, candidates: [5, 5], pool: [192, 64]};
  model.likelihood(image, 3);
  found[name] = {
    kernel: model.kernel, load, likelihood: median(() => model.likelihood(image, 3), REPEATS),
    sample: median(prior(plain), REPEATS), guided_sample: median(prior(guided), REPEATS),
    posterior: median(() => model.bayes(image), REPEATS),
  };
}
document.body.textContent = `MEASURED ${JSON.stringify(found)} END`;
"""


@settings_class
class LiveBenchmark:
    """Which model, and how often."""

    run: str = "digits"
    """A run folder, a shipped model, or owner/name of the Hub."""
    repeats: PositiveInt = 21
    """Calls of each kind; their median counts."""


def measured(config: LiveBenchmark) -> dict[str, Any]:
    """Milliseconds of each kind of call, with the kernel and without it."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise InputError(f"no browser is installed; allowed: one of {', '.join(BROWSERS)}")
    model, student = live.load(config.run)
    values, _ = live.test_images(config.run, model)
    library = (live.STATIC / "farmer.js").read_text(encoding="utf-8")
    given = f"const VALUES = {values[0].flatten().tolist()}, REPEATS = {config.repeats};"
    scripts = "".join(
        f"<script>{part}</script>" for part in (live.weights_script(model, student), library, given + MEASURE)
    )
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f'<!doctype html><meta charset="utf-8"><body>{scripts}</body>', encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--dump-dom"]
        done = subprocess.run([program, *flags, page.as_uri()], capture_output=True, text=True, timeout=300)
    answer = re.search(r"MEASURED (.+) END", done.stdout)
    if answer is None:
        raise RuntimeError(f"{program} measured nothing: {done.stderr[-500:]}")
    return json.loads(answer[1])


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.live", LiveBenchmark(), "Time FARMER in a browser.", argv)
    record = {**provenance(torch.device("cpu")), "run": config.run, "milliseconds": measured(config)}
    print(json.dumps(record["milliseconds"], indent=2))
    write_json(ROOT / "results" / "live.json", record)


if __name__ == "__main__":
    cli.run(main)
