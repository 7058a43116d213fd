"""The notebooks as files: paired, run to the end, with their solutions. What they compute, nbval runs."""

import ast
import builtins
import contextlib
import importlib
import re
import textwrap

import jupytext
import nbformat
import pytest
from helpers import NOTEBOOKS, STARTER, starters

import farmer_ref

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("[0-9A]*.py"))
EXERCISE = re.compile(r"^\*\*(\d) \((think|a few lines|open) · \d+ minutes · \d+ marks?\)\.\*\*", re.MULTILINE)
FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
IMPORTS = re.compile(r"^(?:(?:from|import) .+\n|[A-Z]+ = .+\n|\n)+")  # at the head of a solution, with constants
CHECKED = "nbval-check-output"


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)


def prefix(name):
    """The number of a notebook, such as 01a."""
    return name.split("_")[0]


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def test_every_notebook_has_both_files_and_solutions():
    assert sorted(path.stem for path in NOTEBOOKS.glob("[0-9A]*.ipynb")) == NAMES
    assert [f"solution_{prefix(name)}" for name in NAMES] == sorted(
        path.stem for path in (NOTEBOOKS / "solutions").glob("*.py")
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_two_files_are_one_notebook(name):
    """Time stamps mean nothing after a clone: each file is made again from the other, and compared."""
    script, saved = jupytext.read(NOTEBOOKS / f"{name}.py"), read(name)
    assert [(c.cell_type, c.source, c.metadata.get("tags")) for c in script.cells] == [
        (c.cell_type, c.source, c.metadata.get("tags")) for c in saved.cells
    ]
    saved.metadata["jupytext"] = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags"}
    assert jupytext.writes(saved, "py:percent") == (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_finds_its_files_from_any_folder(name):
    """What it reads of the repository begins at ROOT, and what it writes in a temporary folder."""
    code = "\n".join(sources(read(name), "code"))
    found = re.findall(r"""(\w* ?/? ?)f?["'](?:\.\./)*(?:results|notebooks|book|data|runs)/""", code)
    assert all(before == "ROOT / " for before in found), found


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_run_to_its_end_without_a_complaint(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert {output.output_type for output in cell.outputs} <= {"stream", "display_data", "execute_result"}
        assert all(output.get("name") != "stderr" for output in cell.outputs)
        assert not (CHECKED in cell.metadata.get("tags", []) and not cell.outputs)


@pytest.mark.parametrize("after", ["", "UserWarning: slow\n"])
def test_a_progress_bar_is_no_complaint(after, monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    execute = importlib.import_module("execute")
    bar = "tour: 100%|██████████| 250/250 [00:20<00:00, 12.33step/s, bits_per_dim=2.17]\n"
    stream = nbformat.v4.new_output("stream", name="stderr", text=bar + after)
    cell = nbformat.v4.new_code_cell("train()", outputs=[stream])
    with pytest.raises(SystemExit, match="UserWarning") if after else contextlib.nullcontext():
        execute.tidy(nbformat.v4.new_notebook(cells=[cell]))
        assert not cell.outputs


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_defines_nothing_that_the_package_has(name):
    defined = set()
    for cell in sources(read(name), "code"):
        tree = ast.parse(re.sub(r"^%.*$", "", cell, flags=re.MULTILINE))
        defined |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert not defined & set(farmer_ref.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_hidden_until_it_is_predicted(name):
    """The outputs that follow "Predict first" are folded in the book: of the next cell, or the one after it."""
    cells = read(name).cells
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown" and re.search(r"\*Predict\s+first", cell.source):
            code = [other for other in cells[place:] if other.cell_type == "code"]
            shown = [other for other in code[:3] if other.outputs and "hide-output" in other.metadata.get("tags", [])]
            assert shown, cell.source


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_on_a_hosted_service(name):
    first, setup = read(name).cells[:2]
    assert f"(https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/{name}.ipynb)" in (
        first.source
    )
    assert setup.source == read(NAMES[0]).cells[1].source


@pytest.mark.parametrize("name", NAMES)
def test_folded_solutions_are_the_tested_code(name):
    solution = (NOTEBOOKS / "solutions" / f"solution_{prefix(name)}.py").read_text(encoding="utf-8")
    blocks = folded_code("\n".join(sources(read(name), "markdown")))
    assert len(blocks) >= 2
    for block in blocks:
        code = re.sub(IMPORTS, "", block)
        assert code.strip() in solution, block


@pytest.mark.parametrize("name", NAMES)
def test_a_solution_needs_nothing_that_its_notebook_has_not(name):
    known = set(dir(builtins))
    for cell in read(name).cells:
        code = re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)
        known |= names(code) if cell.cell_type == "code" else set()
    for block in folded_code("\n".join(sources(read(name), "markdown"))):
        known |= names(block := textwrap.dedent(block))
        used = {node.id for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Name)}
        assert used <= known, used - known


def folded_code(text):
    """The code of the folded solutions."""
    return [block for fold in FOLD.findall(text) for block in re.findall(r"```python\n(.*?)```", fold, re.DOTALL)]


def names(code):
    """What a piece of code defines, imports or sets."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_there_are_three_exercises_with_kind_minutes_and_marks(name):
    text = "\n".join(sources(read(name), "markdown")).split("## Exercises")[1]
    assert EXERCISE.findall(text) == [("1", "think"), ("2", "a few lines"), ("3", "open")]


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_with_code_has_a_starter_cell(name):
    """Between the question and the folded solution: a function of the solution to write, and asserts for it."""
    cells = read(name).cells
    begin = next(place for place, cell in enumerate(cells) if re.search("^## Exercises", cell.source, re.MULTILINE))
    number, starter, solution = 0, {}, {}  # the functions of both, for each exercise
    for cell in cells[begin:]:
        for part in re.split(r"(?=^\*\*\d \()", cell.source, flags=re.MULTILINE):
            if head := EXERCISE.match(part):
                number = int(head[1])
            if STARTER in cell.metadata.get("tags", []):
                assert number not in solution, "a starter cell stands above the solution"
                starter[number] = starter.get(number, set()) | functions(part).keys()
            for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL):
                solution[number] = solution.get(number, set()) | functions(code).keys()
    assert [number for number in solution if not solution[number] & starter.get(number, set())] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_cell_waits_for_the_solution(name):
    """It has no outputs, its function raises, there are asserts, and the solution's file has that function."""
    solution = (NOTEBOOKS / "solutions" / f"solution_{prefix(name)}.py").read_text(encoding="utf-8")
    for cell in starters(name):
        assert not cell.outputs
        assert cell.source.count("raise NotImplementedError  # yours") == len(functions(cell.source)) > 0
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))
        for function, arguments in functions(cell.source).items():
            assert functions(solution)[function] == arguments


def functions(code):
    """The functions that a piece of code defines, and their arguments."""
    return {node.name: ast.unparse(node.args) for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
