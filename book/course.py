"""The course in numbers, read from the notebooks: words, minutes, exercises and marks. For the teaching kit's tables.

Reading is counted at `READING` words a minute, over the text and the code that is not folded; solutions are left out.
The seconds that the cells need are measured by `python -m benchmarks.course`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat

from book.equations import ROOT
from book.pages import RESULTS, load, source, table

READING = 200  # words a minute
NOTEBOOKS = ROOT / "notebooks"
SOLUTION = re.compile(r"<details>.*?</details>\n*", re.DOTALL)
EXERCISE = re.compile(r"^\*\*(\d) \(([\w ]+)(?: · (\d+) minutes · (\d+) marks?)?\)\.\*\*", re.MULTILINE)


class Exercise(NamedTuple):
    """An exercise as its heading says: number, kind, minutes and marks."""

    number: int
    kind: str
    minutes: int
    marks: int


class Notebook(NamedTuple):
    """A notebook's file name, its title, its words and its exercises."""

    stem: str
    title: str
    words: int
    exercises: list[Exercise]

    @property
    def reading(self) -> int:
        """Minutes to read it."""
        return math.ceil(self.words / READING)

    def minutes_of(self, *numbers: int) -> int:
        """Minutes that some of its exercises ask for."""
        return sum(exercise.minutes for exercise in self.exercises if exercise.number in numbers)


def paths() -> list[Path]:
    """The source of every notebook; the appendix last."""
    return sorted(path for path in NOTEBOOKS.glob("*_*.py") if re.match(r"\d|[A-Z]_", path.name))


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook of a .py file, without outputs."""
    return jupytext.read(path)


def notebook_of(path: Path) -> Notebook:
    """What a notebook asks of its reader."""
    cells = read(path).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    shown = [c.source for c in cells if c.cell_type == "code" and "hide-input" not in c.metadata.get("tags", [])]
    words = len(SOLUTION.sub("", text).split()) + sum(len(code.split()) for code in shown)
    exercises = [
        Exercise(int(number), kind, int(minutes or 0), int(marks or 0))
        for number, kind, minutes, marks in EXERCISE.findall(text)
    ]
    return Notebook(path.stem, re.search(r"^# (.+)$", text, re.MULTILINE)[1], words, exercises)


def notebooks() -> list[Notebook]:
    """All of them."""
    return [notebook_of(path) for path in paths()]


def linked(notebook: Notebook) -> str:
    """A link to a notebook, from a page of book/teaching/."""
    return f"[{notebook.title}](../notebooks/{notebook.stem}.ipynb)"


def timings() -> str:
    """How long each notebook takes: in class, read with its first exercise; at home, the other two exercises."""
    seconds = load("course")["seconds"] if (RESULTS / "course.json").exists() else {}
    rows = []
    for notebook in notebooks():
        cells = seconds.get(notebook.stem)
        running = math.ceil(cells / 60) if cells else 0
        rows.append(
            [
                linked(notebook),
                f"{notebook.words:,}",
                str(notebook.reading),
                f"{cells:.0f}" if cells else "not timed",
                str(notebook.reading + running + notebook.minutes_of(1)),
                str(notebook.minutes_of(2)),
                str(notebook.minutes_of(3)),
            ]
        )
    heads = ["notebook", "words", "to read (min)", "cells (s)", "in class, with exercise 1 (min)", "exercise 2", "3"]
    made = f"\n\nThe cells were timed by {source('course')}." if seconds else ""
    return table(heads, rows, numbers=True) + made


def marks() -> str:
    """The exercises of each notebook: kind, minutes and marks."""
    rows = [
        [
            linked(notebook) if exercise is notebook.exercises[0] else "",
            str(exercise.number),
            exercise.kind,
            str(exercise.minutes or ""),
            str(exercise.marks or ""),
        ]
        for notebook in notebooks()
        for exercise in notebook.exercises
    ]
    return table(["notebook", "exercise", "kind", "minutes", "marks"], rows)


def parts() -> dict[str, str]:
    """Every table, by the name under which the pages include it."""
    return {"timings": timings(), "marks": marks()}
