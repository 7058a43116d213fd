"""What students get: `python -m book.handouts --out students` writes the notebooks and the quizzes without solutions.

The notebooks have no outputs; their starter cells stay. They run in any folder, where the project is installed from its
clone (`make`).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nbformat

from book import course
from book.equations import HERE

# Notebook 07 has checks that lean on its solution until a part is written: it stays in the clone.
LOCAL = 'sys.path.insert(0, "solutions")'
INSTALLED = """from farmer_ref.support.record import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "solutions"))"""


def without_solutions(text: str) -> str:
    """Markdown without its folded parts."""
    return course.SOLUTION.sub("", text).strip()


def handout(path: Path) -> nbformat.NotebookNode:
    """The notebook of a .py file, for students."""
    notebook = course.read(path)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = without_solutions(cell.source)
        else:
            cell.source = cell.source.replace(LOCAL, INSTALLED)
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    return notebook


def quizzes() -> str:
    """The questions of all quizzes, as plain Markdown without the answers."""
    text = (HERE / "teaching" / "quizzes.md").read_text(encoding="utf-8")
    text = text[text.index("\n## ") : text.index("\n## What to remember")].replace("](../notebooks/", "](")
    asked = re.sub(r"\n{3,}", "\n\n", re.sub(r":::\{dropdown\}.*?\n:::\n", "", text, flags=re.DOTALL))
    return f"# Quizzes\n\n{asked.strip()}\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the folder, and name its files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("students"), help="the folder to write")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for path in course.paths():
        nbformat.write(handout(path), out / f"{path.stem}.ipynb")
        print(out / f"{path.stem}.ipynb")
    (out / "quizzes.md").write_text(quizzes(), encoding="utf-8")
    print(out / "quizzes.md")


if __name__ == "__main__":
    main()
