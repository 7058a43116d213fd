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
TALK = 1.5  # in class, a notebook takes so many times the minutes of reading and running it
QUIZ, SLIDES, QUESTION, CODE, LESSON = 5, 20, 10, 30, 90  # minutes: of a file of code, and of a session
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


class Session(NamedTuple):
    """A session: what its slides are about, the notebook that is read in class with its exercise 1, the discussion
    questions and the minutes of projects; at home a notebook with its exercise 1, other exercises, code, other tasks.
    """

    topic: str
    notebook: str
    questions: tuple[int, ...]
    presented: int = 0
    home: str = ""
    exercises: tuple[str, ...] = ()
    code: str = ""
    also: str = ""


SESSIONS = (
    Session("change of variables", "00", (1,), exercises=("00.2",), also="[Background](../background.md), first half"),
    Session("triangular Jacobians", "01a", (2,), home="01b", exercises=("01a.2",), code="flow.py"),
    Session("mixtures, dequantisation", "02a", (3,), home="02b", exercises=("02a.2",), code="prior.py"),
    Session(
        "what is worth predicting", "03", (4,), exercises=("03.2",), also="choose a [project](marking.md#five-projects)"
    ),
    Session("importance resampling; the student", "04", (5,), home="05", exercises=("04.2",), also="questions 6 and 7"),
    Session(
        "uses and failures of a likelihood",
        "06",
        (8,),
        presented=10,
        home="A",
        also="or the assignment, [07](../notebooks/07_write_farmer.ipynb)",
    ),
)


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
    heads = ["notebook", "words", "to read (min)", "cells (s)", "with exercise 1 (min)", "exercise 2", "3"]
    made = f"\n\nThe cells were timed by {source('course')}." if seconds else ""
    return table(heads, rows, numbers=True) + made


def in_class(session: Session, number: int, found: Notebook, seconds: float) -> int:
    """Minutes of a session: quiz (from the second on), slides, notebook, its first exercise, questions, projects."""
    notebook = math.ceil(TALK * (found.reading + math.ceil(seconds / 60)))
    questions = QUESTION * len(session.questions)
    return QUIZ * (number > 1) + SLIDES + notebook + found.minutes_of(1) + questions + session.presented


def at_home(session: Session, found: dict[str, Notebook]) -> int:
    """Minutes that a session asks for at home, its `also` not counted."""
    minutes = CODE * bool(session.code)
    if session.home:
        minutes += found[session.home].reading + found[session.home].minutes_of(1)
    for exercise in session.exercises:
        notebook, number = exercise.split(".")
        minutes += found[notebook].minutes_of(int(number))
    return minutes


def sessions() -> str:
    """The plan: what each session does, how long that takes in class and at home."""
    seconds = load("course")["seconds"]
    found = {notebook.stem.split("_")[0]: notebook for notebook in notebooks()}
    rows = []
    for number, session in enumerate(SESSIONS, 1):
        notebook = found[session.notebook]
        link = f"[{session.notebook}](../notebooks/{notebook.stem}.ipynb)"
        questions = ", ".join(f"question\u00a0{question}" for question in session.questions)
        tasks = []
        if session.home:
            tasks.append(f"[{session.home}](../notebooks/{found[session.home].stem}.ipynb) with {session.home}.1")
        tasks += [f"exercise\u00a0{exercise}" for exercise in session.exercises]
        tasks += [f"read `farmer_ref/model/{session.code}`"] if session.code else []
        minutes = in_class(session, number, notebook, seconds[notebook.stem])
        rows.append(
            [
                f"[{number} · {session.topic}](session_{number}.md)",
                link,
                f"exercise\u00a0{session.notebook}.1; {questions}" + ("; projects" if session.presented else ""),
                f"{minutes} of {LESSON}",
                "; ".join([*tasks, session.also] if session.also else tasks),
                str(at_home(session, found)),
            ]
        )
    heads = ["session, and its slides", "notebook, in pairs", "then, together", "minutes", "at home", "minutes"]
    return table(heads, rows)


def marks() -> str:
    """The exercises of each notebook: kind, minutes and marks."""
    rows = [
        [
            linked(notebook) if exercise is notebook.exercises[0] else "",
            str(exercise.number),
            exercise.kind.replace(" ", "\u00a0"),
            str(exercise.minutes or ""),
            str(exercise.marks or ""),
        ]
        for notebook in notebooks()
        for exercise in notebook.exercises
    ]
    return table(["notebook", "exercise", "kind", "minutes", "marks"], rows, numbers=True)


def parts() -> dict[str, str]:
    """Every table, by the name under which the pages include it."""
    return {"sessions": sessions(), "timings": timings(), "marks": marks()}
