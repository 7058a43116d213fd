"""The commands in the README, the notebooks and the book: they parse, the first ones run, and they are the same."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from farmer_ref import evaluate, sample, train
from farmer_ref.support import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md")), *sorted((ROOT / "notebooks").glob("[0-9A]*.py"))]
FIRST = [  # what a new user types, in the README
    "python -m farmer_ref.train --preset digits --out runs/digits --max-minutes 6",
    "python -m farmer_ref.evaluate --run runs/digits",
    "python -m farmer_ref.sample --run runs/digits --out samples.png",
]


def commands():
    """Module and arguments of each command in prose or code, continued lines joined; not a module's bare name."""
    found = set()
    for page in PAGES:
        text = re.sub(r"\\\n\s*(# )?", " ", page.read_text(encoding="utf-8"))
        text = re.sub(r"`[^`\n]*\n[^`\n]*`", lambda code: code[0].replace("\n", " "), text)
        found |= {m.groups() for m in re.finditer(r"-m ((?:farmer_ref|benchmarks)\.\w+)([^`\n]*)", text)}
    written = ((module, re.sub(r"\s+# .*", "", arguments).strip()) for module, arguments in found)
    return sorted({command for command in written if command[1]})


class ParsedError(Exception):
    """Raised in place of the work that follows."""


@pytest.mark.parametrize(("module", "arguments"), commands())
def test_a_documented_command_parses(module, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parse = cli.tyro.cli

    def only_parse(*positional, **options):
        parse(*positional, **options)
        raise ParsedError

    monkeypatch.setattr(cli.tyro, "cli", only_parse)
    # A run of the reader's is not here: a shipped one takes its place.
    words = shlex.split(re.sub(r"--run \S+", "--run digits", arguments).removeprefix("-- "))
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):  # a folder of the package that is a command, too
        found = importlib.import_module(f"{module}.__main__")
    with pytest.raises(ParsedError):
        found.main(words)


def test_there_are_many_commands():
    assert len(commands()) >= 20
    assert {module for module, _ in commands()} >= {
        f"farmer_ref.{name}" for name in ("train", "sample", "apply", "ablate")
    }


def test_the_first_commands_run(monkeypatch, tmp_path, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"\n{line}\n" in readme for line in FIRST)
    monkeypatch.chdir(tmp_path)
    small = ["--steps", "20"], ["--samples", "20", "--draws", "1"], []
    for line, command, smaller in zip(FIRST, (train, evaluate, sample), small, strict=True):
        command.main([*shlex.split(line)[3:], *smaller])
    assert "bits" in capsys.readouterr().out
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_make_runs_the_same_commands():
    recipe = subprocess.run(["make", "-n", "train"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in FIRST:
        module, *flags = shlex.split(line)[2:]
        made = next(made for made in recipe.splitlines() if module in made)
        assert all(flag in made for flag in flags if flag.startswith("--")), line
    tests = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m pytest" in tests and "--nbval-lax notebooks" in tests
