"""The package's layout: one stack of folders, light to import, the paper in few lines, nothing pickled."""

import ast
import graphlib
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "farmer_ref"
# Each may import the ones before it.
STACK = ["support", "model", "data", "training", "evaluation", "applications", "commands"]
PAPER = ["tokens", "transformer", "mixture", "flow", "coupling", "guidance", "prior", "farmer", "student"]


def name_of(path):
    """farmer_ref.model.flow of farmer_ref/model/flow.py, farmer_ref.model of its __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(path, package="farmer_ref"):
    """The names of `package`'s modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by a relative name"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= submodules or {node.module}
    return {name for name in found if name == package or name.startswith(f"{package}.")}


IMPORTS = {name: imports(path) for name, path in FILES.items()}


def room_of(module):
    """The folder of a module; `commands` for a file on top; None for the package itself."""
    _, *parts = module.split(".")
    return (parts[0] if parts[0] in STACK else "commands") if parts else None


def against_the_stack(importing):
    """The imports of {module: modules} that go up the stack, or lead to a command or to the package's own names."""
    for module, names in importing.items():
        for name in names:
            room, other = room_of(module), room_of(name)
            up = room is not None and other is not None and STACK.index(other) > STACK.index(room)
            if up or other in ("commands", None):
                yield module, name


def all_imports(module):
    """Every module that importing one needs, the package's __init__ apart."""
    found, todo = set(), [module]
    while todo:
        found |= (new := IMPORTS[todo.pop()] - found)
        todo += new
    return found


def test_each_folder_imports_only_the_folders_below_it():
    assert {room_of(name) for name in FILES} == {*STACK, None}
    assert list(against_the_stack(IMPORTS)) == []
    tuple(graphlib.TopologicalSorter(IMPORTS).static_order())  # raises where imports run in a circle


@pytest.mark.parametrize(
    ("module", "imported"),
    [("model.flow", "data.sets"), ("apply", "train"), ("training.runs", "sample"), ("support.parallel", "model.flow")],
)
def test_the_check_notices_an_import_against_the_stack(module, imported):
    wrong = (f"farmer_ref.{module}", f"farmer_ref.{imported}")
    assert list(against_the_stack(IMPORTS | {wrong[0]: {wrong[1]}})) == [wrong]


def test_the_student_does_not_need_the_whole_model():
    assert "farmer_ref.model.farmer" not in all_imports("farmer_ref.model.student")


def test_tests_of_the_model_train_nothing_and_start_nothing():
    """What `make quick` runs: a formula is checked in seconds."""
    for path in (ROOT / "tests" / "model").glob("*.py"):
        rooms = {room_of(name) for name in imports(path)}
        assert rooms <= {"support", "model", None}, path
        assert not re.search(r"^(import|from) (helpers|subprocess)\b", path.read_text(), re.MULTILINE), path


def test_importing_the_package_is_light():
    """No pictures, no training loop, no command-line library, no client of the Hub, no FID, no data sets, no ONNX."""
    heavy = {"matplotlib", "tyro", "huggingface_hub", "torch_fidelity", "torchvision", "sklearn", "tensorboard", "onnx"}
    code = "import sys, farmer_ref; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    assert "farmer_ref.model.farmer" in loaded and not loaded & {*heavy, "farmer_ref.training.trainer"}


LAYOUT = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}


def lines_of_code(text):
    """Lines with code on them: no docstring, comment or blank."""
    docstrings, code = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, node.end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_the_paper_is_a_thousand_lines():
    assert lines_of_code('"""A text\nof two lines."""\n\n# why\nx = f(\n    1,\n)  # shape\n"""Of x."""\n') == 3
    count = {path.stem: lines_of_code(path.read_text(encoding="utf-8")) for path in (PACKAGE / "model").glob("*.py")}
    assert max(count.values()) <= 220, count
    assert sum(count[name] for name in PAPER) <= 1000, count


def test_nothing_is_pickled():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"torch\.(load|save)\(|import pickle|joblib", path.read_text(encoding="utf-8")), path
