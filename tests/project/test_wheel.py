"""The wheel: built, installed into an empty environment, and drawing a digit there."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def run(*arguments, folder):
    """What a command prints, run as by somebody who has not cloned the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment with the wheel in it; the running one lends its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building leaves files behind
    shutil.copytree(ROOT / "farmer_ref", source / "farmer_ref", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index", "--quiet"]
    run(*pip, "wheel", *alone, "--no-build-isolation", "--wheel-dir", folder, source, folder=folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", folder=folder)
    scripts, packages = (
        Path(sysconfig.get_path(name, "venv", {"base": str(folder / "env"), "platbase": str(folder / "env")}))
        for name in ("scripts", "purelib")
    )
    (wheel,) = folder.glob("*.whl")
    python = scripts / "python"
    run(*pip, "--python", python, "install", *alone, wheel, folder=folder)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def files(package):
    kinds = {".py", ".md", ".json", ".safetensors"}
    return {path.relative_to(package).as_posix() for path in package.rglob("*") if path.suffix in kinds}


def test_the_wheel_holds_every_file_of_the_package(python, tmp_path):
    code = "import importlib.util as util; print(util.find_spec('farmer_ref').origin)"
    installed = Path(run(python, "-c", code, folder=tmp_path).strip()).parent
    assert installed.is_relative_to(python.parents[1])
    assert files(installed) == files(ROOT / "farmer_ref")
    assert "weights/digits/student.safetensors" in files(installed)


def test_the_wheel_draws_a_digit(python, tmp_path):
    run(python, "-m", "farmer_ref.sample", "--run", "digits", "--rows", 1, "--out", "digit.png", folder=tmp_path)
    assert Image.open(tmp_path / "digit.png").size == (10 * 42 + 2, 42 + 2)
