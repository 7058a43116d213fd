"""Write again all that is generated and committed: `python -m book.refresh`, or `make refresh`.

That is the verdicts in results/*.json, the plots of what they hold, the page results/README.md, and the marked blocks
of the project's README:

    <!-- generated: NAME -->
    ...
    <!-- end -->

A test checks that writing them again changes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import cifar10, growth, guidance, healthy, rivals
from benchmarks.applications import draw_reliability, draw_scores
from book import measured
from book.equations import ROOT
from book.pages import RESULTS
from farmer_ref.ablate import picture
from farmer_ref.evaluation.tables import OF_SAMPLES, bases, tables
from farmer_ref.evaluation.verdicts import judged, report
from farmer_ref.support.files import write_json
from farmer_ref.support.plots import save_plot
from farmer_ref.training.presets import PRESETS

BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_blocks(text: str) -> str:
    """A page with its marked blocks written again."""
    parts = measured.readme_blocks()
    return BLOCK.sub(lambda block: f"{block[1]}{parts[block[2]]}\n{block[3]}", text)


def rejudged(record: dict[str, Any], stem: str) -> dict[str, Any]:
    """A result of `farmer_ref.ablate`, with the title, note, claims and sentences that the code has for its rows.

    Of a row, only what the paper says is written again.
    """
    preset, name = PRESETS[record["data"]], stem.split("_")[0]
    if name == "basis":
        steps = {int(number) for row in record["rows"] for number in re.findall(r", (\d+) steps", row["name"])}
        table = bases(preset, *steps)
    else:
        table = tables(preset)[name]
    said = judged(table, record["rows"], record.get("fifths"))
    paper = {row.name: row.paper for row in table.rows}
    rows = [row | {"paper": paper[row["name"]]} for row in record["rows"]]
    return record | {"title": table.title, "note": table.note, "rows": rows} | said


def plots() -> Iterator[tuple[Path, Figure]]:
    """The plots that are drawn again: all that need no more than their record."""
    records = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    for path, record in records.items():
        if "sentences" in record and path.stem.split("_")[0] not in OF_SAMPLES:
            yield path.with_suffix(".svg"), picture(record)
    uses = records[RESULTS / "applications.json"]
    yield RESULTS / "anomalies.svg", draw_scores(uses["anomalies"])
    yield RESULTS / "reliability.svg", draw_reliability(uses["classification"])
    yield RESULTS / "cifar10-small.svg", cifar10.draw(records[RESULTS / "cifar10-small.json"])
    yield RESULTS / "growth.svg", growth.draw(records[RESULTS / "growth.json"]["axes"])
    yield RESULTS / "guidance.svg", guidance.draw_figure(records[RESULTS / "guidance.json"])
    yield RESULTS / "healthy.svg", healthy.healthy_curves(records[RESULTS / "healthy.json"]["healthy"])
    yield RESULTS / "rivals.svg", rivals.draw(records[RESULTS / "rivals.json"])


def main(root: Path = ROOT) -> None:
    """Write what has changed, and name it."""
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "sentences" in record and (now := rejudged(record, path.stem)) != record:
            write_json(path, now)
            print(f"{path.relative_to(root)}: verdicts")
    for path, figure in plots():
        save_plot(figure, path)
    for path, text in (
        (RESULTS / "README.md", report(RESULTS)),
        (root / "README.md", with_blocks((root / "README.md").read_text(encoding="utf-8"))),
    ):
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(root))


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m book.refresh", description="Write again what is generated.").parse_args()
    main()
