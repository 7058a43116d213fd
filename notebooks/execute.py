"""Make each notebook's .ipynb from its .py and run it: `python notebooks/execute.py 00_tour`, or all of them.

Progress bars are removed from the saved outputs, and so are the machine-dependent names of temporary folders; vector
graphics keep two decimals of a point, and no two of a notebook share a name. Starter cells of exercises (tag
raises-exception) stop at `raise NotImplementedError`, and are saved without outputs. Any other error, and any other output
on standard error, stops the work, so that no warning gets into the book.
"""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from book.smaller import shorter_graphic  # noqa: E402  (of the clone, which is not installed)

SVG = "image/svg+xml"
# The last state of a progress bar: the client has removed those before it.
PROGRESS = re.compile(r"^.*\d%\|.*\| \d+/\d+ \[.*\]", re.MULTILINE)


def read_source(path: Path) -> nbformat.NotebookNode:
    """The notebook of a .py file, without outputs; deterministic."""
    notebook = jupytext.read(path)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Remove progress bars, temporary folders and the tracebacks of starter cells from the outputs, and shorten vector
    graphics. Raises `SystemExit` for messages on standard error."""
    numbers = itertools.count()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if "raises-exception" in cell.metadata.get("tags", []):
            cell.outputs = []
        messages = "".join(output.text for output in cell.outputs if output.get("name") == "stderr")
        if PROGRESS.sub("", messages).strip():
            raise SystemExit(f"a cell writes to standard error:\n{cell.source}\n\n{messages}")
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if SVG in output.get("data", {}):
                drawing = shorter_graphic(output.data[SVG], mark=str(next(numbers)))
                # JSON escapes double quotes, not single ones.
                output.data[SVG] = re.sub(r'="([^"\']*)"', r"='\1'", drawing)
            if "text" in output:
                output.text = re.sub(
                    rf"{re.escape(tempfile.gettempdir())}/\w+", "a temporary folder", output.text
                )


def main(names: list[str]) -> None:
    """Run the named notebooks, or all of them."""
    for path in [HERE / f"{name}.py" for name in names] or sorted(HERE.glob("[0-9A]*.py")):
        notebook, began = read_source(path), time.perf_counter()
        NotebookClient(
            notebook,
            timeout=600,
            resources={"metadata": {"path": HERE}},
            record_timing=False,
            coalesce_streams=True,  # the same cells of a slow machine
        ).execute()
        tidy(notebook)
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path.with_suffix(".ipynb"))
        print(f"{path.stem}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
