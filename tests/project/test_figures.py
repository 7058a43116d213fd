"""What the pages of the book include is written by book/figures.py, from the package and the results."""

import re
from pathlib import Path

from book import figures
from book.pages import load
from farmer_ref.parameters import step_costs

BOOK = Path(__file__).parents[2] / "book"


def test_every_part_is_written_and_used(tmp_path):
    figures.main(str(tmp_path))
    pages = "".join(page.read_text(encoding="utf-8") for page in BOOK.glob("*.md"))
    included = set(re.findall(r"_generated/(\w+\.\w+)", pages))  # with parts that book/pages.py computes
    assert {path.name for path in tmp_path.iterdir()} <= included
    assert all(path.stat().st_size > 100 for path in tmp_path.iterdir())
    costs = (tmp_path / "costs.md").read_text()
    for cell in step_costs("farmer-1.9b-p8").split()[1:]:
        assert f"| {cell} |" in costs, cell
    digits = load("digits")
    assert f"{digits['bits_per_dim']['mean']:.3f} ± " in (tmp_path / "first_screen.md").read_text()
    assert "#SBATCH" in (tmp_path / "slurm.md").read_text()


def test_a_long_command_is_the_same_command_in_lines_that_fit():
    command = "torchrun --standalone " + " ".join(f"--option-{k} value-{k}" for k in range(20))
    lines = figures.wrapped(command).split(" \\\n")
    assert " ".join(" ".join(lines).split()) == command
    assert max(map(len, lines)) <= figures.WIDTH + 4


def test_no_page_types_in_a_measured_number():
    """A mean with its spread is what our measurements look like: those come from the results."""
    for page in BOOK.glob("*.md"):
        assert not re.search(r"\d\s*±", page.read_text(encoding="utf-8")), page
