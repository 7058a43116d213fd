"""The starter cells of a notebook, run with the solution's functions in place of the student's."""

import ast
from pathlib import Path
from types import ModuleType

import jupytext

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def run_starters(notebook: str, solution: ModuleType) -> list[str]:
    """Run what the starter cells of a notebook assert, on the functions of its solution; returns their names.

    A starter cell needs nothing but what the solution imports, and what it makes itself.
    """
    found = []
    for cell in jupytext.read(NOTEBOOKS / f"{notebook}.py").cells:
        if "raises-exception" in cell.metadata.get("tags", []):
            tree = ast.parse(cell.source)
            functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            for function in functions:
                theirs = ast.parse(Path(solution.__file__).read_text(encoding="utf-8")).body
                (same,) = [node for node in theirs if getattr(node, "name", "") == function.name]
                assert ast.unparse(same.args) == ast.unparse(function.args)
                assert ast.get_docstring(same) == ast.get_docstring(function)
                assert ast.unparse(function.body[1:]) == "raise NotImplementedError"
                found.append(function.name)
            rest = ast.Module([node for node in tree.body if node not in functions], type_ignores=[])
            assert any(isinstance(node, ast.Assert) for node in rest.body)
            exec(compile(rest, notebook, "exec"), dict(vars(solution)))
    return found
