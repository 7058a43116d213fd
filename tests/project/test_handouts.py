"""What students get: notebooks without solutions and outputs, in any folder; and the course in numbers."""

import re

import jupytext
import nbformat
import pytest

from book import course, handouts
from book.equations import HERE
from book.pages import load

SOLUTIONS = {path.stem: path.read_text(encoding="utf-8") for path in course.NOTEBOOKS.glob("solutions/*.py")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("anywhere") / "students"
    handouts.main(["--out", str(place)])
    return place


def test_every_notebook_is_handed_out_without_solutions_and_outputs(folder):
    assert {path.stem for path in folder.glob("*.ipynb")} == {path.stem for path in course.paths()}
    for path in folder.glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
        text = "\n".join(cell.source for cell in notebook.cells)
        assert "<details>" not in text and "</details>" not in text, path.name
        assert len(course.EXERCISE.findall(text)) == 3, path.name
        assert not any(cell.get("outputs") for cell in notebook.cells)
        source = jupytext.read(course.NOTEBOOKS / f"{path.stem}.py")
        folds = re.findall(r"<details>.*?</details>", "\n".join(cell.source for cell in source.cells), re.DOTALL)
        hidden = [block.strip() for fold in folds for block in re.findall(r"```python\n(.*?)```", fold, re.DOTALL)]
        assert hidden and not [block for block in hidden if block in text], path.name
        starters = [cell.source for cell in source.cells if "raises-exception" in cell.metadata.get("tags", [])]
        assert all(starter in text for starter in starters), path.name


def test_a_handout_finds_the_project_from_any_folder(folder):
    for path in folder.glob("*.ipynb"):
        code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        local = [line for line in code.splitlines() if re.search(r"""["'](\.\./|solutions)""", line)]
        assert [line for line in local if "notebooks" not in line] == [], path.name


def test_the_handed_out_assignment_starts_in_any_folder(folder, monkeypatch):
    cells = [cell for cell in nbformat.read(folder / "07_write_farmer.ipynb", 4).cells if cell.cell_type == "code"]
    setup = next(cell.source for cell in cells if "import solution_07" in cell.source)
    monkeypatch.chdir(folder)
    found = {}
    exec(re.sub(r"^%.*$", "", setup, flags=re.MULTILINE), found)
    assert callable(found["fit"])


def test_quizzes_have_five_questions_for_each_notebook_and_are_handed_out_without_answers(folder):
    page = (HERE / "teaching" / "quizzes.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:-1]
    assert len(parts) == len({part.splitlines()[0] for part in parts})
    for part in parts:
        assert re.findall(r"^\*\*(\d)\.\*\*", part, re.MULTILINE) == list("12345")
        answers = re.findall(r":::\{dropdown\} Answer\n(.+?)\n:::", part, re.DOTALL)
        assert len(answers) == 5
    handed = (folder / "quizzes.md").read_text(encoding="utf-8")
    assert handed.count("\n**1.**") == len(parts) and "dropdown" not in handed and ":::" not in handed


def test_a_notebook_in_numbers(tmp_path):
    path = tmp_path / "09_small.py"
    path.write_text(
        "# %% [markdown]\n# # 09 · Small\n#\n# one two three\n#\n# **1 (think · 5 minutes · 2 marks).** Why?\n#\n"
        "# <details><summary>Solution</summary>\n#\n# never counted\n#\n# </details>\n\n"
        '# %% tags=["hide-input"]\nplot = 1\n\n# %%\nx = 2\n',
        encoding="utf-8",
    )
    found = course.notebook_of(path)
    assert (found.title, found.reading) == ("09 · Small", 1)
    assert found.exercises == [course.Exercise(1, "think", 5, 2)]
    shown = "# 09 · Small one two three **1 (think · 5 minutes · 2 marks).** Why? x = 2"
    assert found.words == len(shown.split())


def test_the_sessions_fit_with_a_margin():
    found = {notebook.stem.split("_")[0]: notebook for notebook in course.notebooks()}
    seconds = load("course")["seconds"]
    for number, session in enumerate(course.SESSIONS, 1):
        notebook = found[session.notebook]
        minutes = course.in_class(session, number, notebook, seconds[notebook.stem])
        assert minutes <= course.LESSON - 10, number
        assert course.at_home(session, found) <= 120, number


def test_every_exercise_is_counted():
    for notebook in course.notebooks():
        assert [exercise.number for exercise in notebook.exercises] == [1, 2, 3], notebook.stem
