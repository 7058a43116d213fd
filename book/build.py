"""Build the book: `python -m book.build`, or `make book`; it ends in an error at any warning.

The pages, the committed notebooks, the pictures of results/ and the computed parts are laid out in one folder, which
Jupyter Book turns into HTML: book/_build/html/index.html, to be read from the file system, without a network. Where a
page has `{{ name }}`, the build puts a number of `measured.numbers`.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml
from sklearn.datasets import load_digits

import farmer_ref
from book import course, figures, live, measured, pages
from book.equations import HERE, REPOSITORY, ROOT
from book.smaller import make_smaller
from farmer_ref.support.drawings import drawings

LOGO = 3  # which of scikit-learn's digits
DRAWINGS = {draw.__name__: draw for draw in drawings()}
MODEL = live.shipped()[0]  # whose likelihood the pages compute
LIVE = {  # widgets of the live page, by notebook and the heading that they follow
    "00_tour": {"Sample": ["sample"]},
    "01a_change_of_variables": {"Two numbers": ["volume"], "A broken mask": ["mask"]},
    "01b_flow_invertibility": {"Two ways back": ["race"]},
    "04_guided_resampling": {"How many candidates?": ["guidance"]},
    "05_distillation": {"Speed": ["race"]},
}
WANTED = {"04_guided_resampling": ("CFG", "classifier-free guidance")}  # notebooks that the search finds by other words
PICTURE = re.compile(r"^\[!\[.*\]\(\.\./results/live_\w+\.png\)\].*\n?", re.MULTILINE)  # of a widget, for other readers
STRINGS = re.compile(r"""(?:title|suptitle|set_title)(?:\(|=)\s*(["'])([^"'{}\\]+)\1""")


def build(out: Path) -> Path:
    """Build the book into out/_build; returns the folder of its HTML. Raises `SystemExit` at a warning."""
    source = out / "_build" / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    shutil.copytree(ROOT / "results", source / "results", ignore=shutil.ignore_patterns("*.json", "*.md"))
    (source / "notebooks").mkdir()
    for path in sorted((ROOT / "notebooks").glob("[0-9A]*.ipynb")):
        write_notebook(path, source / "notebooks" / path.name)
    shutil.copytree(ROOT / "notebooks" / "solutions", source / "notebooks" / "solutions")  # a page includes one
    figures.main(str(source / "_generated"))
    configuration = yaml.safe_load((HERE / "_config.yml").read_text(encoding="utf-8"))
    configuration["parse"]["myst_substitutions"] = measured.numbers()
    configuration["sphinx"]["config"]["html_search_scorer"] = str(source / "_ext" / "scorer.js")
    (source / "_config.yml").write_text(yaml.safe_dump(configuration, allow_unicode=True), encoding="utf-8")
    for name, text in {**pages.parts(), **measured.parts(), **course.parts()}.items():
        (source / "_generated" / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    live.write(source / "_static" / "live", MODEL)
    (source / "logo.svg").write_text(logo(), encoding="utf-8")
    html = out / "_build" / "html"
    shutil.rmtree(html / "_images", ignore_errors=True)  # Sphinx keeps those of earlier builds
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "--path-output", str(out), "--all", "-q", "-W", "-n", "--keep-going"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or "WARNING" in done.stderr:
        raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}\nThe book has warnings or errors: see above.")
    (html / "_static" / "live" / "live.html").replace(html / "live.html")
    make_smaller(html)
    return html


def write_notebook(path: Path, target: Path) -> None:
    """Copy a notebook, with its widgets, and a text for each picture: the heading above it and its code's titles."""
    notebook, heading = nbformat.read(path, 4), path.stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = PICTURE.sub("", cell.source)  # here, the widget itself follows
            heading = next(iter(reversed(re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE))), heading)
            continue
        titles = [title for _, title in STRINGS.findall(cell.source)]
        text = "; ".join([f"Figure: {re.sub(r'[$`*]', '', heading)}", *titles])
        if drawing := DRAWINGS.get(cell.source.rstrip().removesuffix("()")):
            text = " ".join(inspect.getdoc(drawing).split())
        cell.metadata["mystnb"] = {"image": {"alt": text}}
    places = LIVE.get(path.stem, {})
    if missing := [place for place in places if not re.search(rf"^#+ {re.escape(place)}$", text_of(notebook), re.M)]:
        raise SystemExit(f"{path.name} has no heading {missing[0]!r}, which a widget of the live page should follow")
    notebook.cells = [more for cell in notebook.cells for more in with_widgets(cell, places)]
    if words := WANTED.get(path.stem):
        entries = "\n\n".join(f"```{{index}} ! {word}\n```" for word in words)
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(entries, id="index"))
    notebook.cells.append(nbformat.v4.new_markdown_cell(sources(notebook, path.stem), id="sources"))
    nbformat.write(notebook, target)


def text_of(notebook: nbformat.NotebookNode) -> str:
    """The text of all markdown cells."""
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def with_widgets(cell: nbformat.NotebookNode, places: dict[str, list[str]]) -> list[nbformat.NotebookNode]:
    """A cell, and after one that has a heading among `places`, a cell for each widget there."""
    headings = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
    names = [name for heading in headings for name in places.get(heading, [])]
    return [cell, *(nbformat.v4.new_markdown_cell(f"```{{live}} {name}\n```", id=f"live-{name}") for name in names)]


def sources(notebook: nbformat.NotebookNode, stem: str) -> str:
    """Links to the modules that a notebook imports from, and to its solutions."""
    modules = set()
    for cell in notebook.cells:
        for module, names in re.findall(r"^from farmer_ref(?:\.([\w.]+))? import (.+)$", cell.source, re.MULTILINE):
            modules |= {module} if module else {module_of(name.split()[0]) for name in names.split(",")}
    files = [
        *(f"farmer_ref/{name.replace('.', '/')}.py" for name in sorted(modules)),
        f"notebooks/solutions/solution_{stem.split('_')[0]}.py",
    ]
    return "Sources: " + " · ".join(f"[`{file}`]({REPOSITORY}/blob/main/{file})" for file in files)


def module_of(name: str) -> str:
    """The module that defines a name of the package, or the name itself if it is a module."""
    if (ROOT / "farmer_ref" / f"{name}.py").exists():
        return name
    return getattr(getattr(farmer_ref, name), "__module__", "farmer_ref.training.presets").removeprefix("farmer_ref.")


def logo() -> str:
    """A handwritten digit as 16 tokens of 2x2 pixels."""
    image, squares = load_digits().images[LOGO], []
    for row in range(8):
        for column in range(8):
            x, y = (10 * index + 4 * (index // 2) for index in (column, row))
            ink = 0.08 + 0.92 * image[row, column] / 16
            squares.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="#8856a7" fill-opacity="{ink:.2f}"/>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 96 96">{"".join(squares)}</svg>\n'


def main() -> None:
    """Build the book and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="the book is built in this folder's _build")
    began = time.perf_counter()
    html = build(parser.parse_args().out)
    print(f"{html / 'index.html'} ({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
