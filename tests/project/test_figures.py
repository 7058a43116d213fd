"""The pages of the book include what book/figures.py and book/measured.py write, and all of it."""

import re
from pathlib import Path

from book import figures, measured
from book.smaller import shorter_graphic, shorter_page, unused
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


def test_every_number_and_table_is_used():
    """A page that names a number that is not there fails the build."""
    texts = "".join(page.read_text(encoding="utf-8") for page in BOOK.glob("*.md"))
    assert set(re.findall(r"\{\{ (\w+) \}\}", texts)) == measured.numbers().keys()
    assert set(measured.parts()) <= set(re.findall(r"_generated/(\w+)\.md", texts))


def test_the_reference_has_every_module():
    listed = {name for page in BOOK.glob("api/*.md") for name in re.findall(r"automodule:: (\S+)", page.read_text())}
    package = BOOK.parent / "farmer_ref"
    files = {path for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert listed == {".".join(path.relative_to(BOOK.parent).with_suffix("").parts) for path in files}


def test_no_page_types_in_a_measured_number():
    """A mean with its spread, or a percentage with a decimal, is what our measurements look like."""
    for page in BOOK.glob("*.md"):
        assert not re.search(r"\d\s*±|\d\.\d+%", page.read_text(encoding="utf-8")), page


def test_a_smaller_book_draws_the_same():
    """Coordinates are rounded, scales are not, names that are used stay, and so do pictures inside."""
    drawn = """<svg><metadata>when</metadata>
    <g id="a"><path id="b" style="fill: none; stroke: red" d="M 1.23456 2
L 3.1 4.999" transform="translate(1.999 2) scale(0.015625)"/></g>
    <use href="#b"/><image href="data:image/png;base64,iVBOR.123456"/></svg>"""
    assert shorter_graphic(drawn) == (
        '<svg><path id="b" style="fill:none;stroke:red" d="M1.23 2L3.1 4.99" '
        'transform="translate(1.99 2) scale(0.015625)"/><use href="#b"/>'
        '<image href="data:image/png;base64,iVBOR.123456"/></svg>'
    )
    code = '<span class="k">def</span><span class="w"> </span><span class="n">f</span><span class="p">():</span>'
    assert shorter_page(code, {}) == '<span class="k">def</span> f():'
    formula = '<span class="math notranslate nohighlight">\\(x\\)</span>'
    assert shorter_page(f"{formula}, {formula} y", {}) == f'<span class="together">{formula},</span> {formula} y'
    assert shorter_page("<pre>python --images x</pre>", {}) == '<pre>python <span class="flag">--images</span> x</pre>'
    assert shorter_page("<p>\n    a\n</p>\n<pre>\n    b\n</pre>\n  c", {}) == "<p>\na\n</p>\n<pre>\n    b\n</pre>\nc"


def test_what_pages_load_stays():
    names = {"_static/mathjax/tex-chtml.js": False, "_static/mathjax/tex-svg.js": True, "_static/a.css.map": True}
    names |= {"_static/mathjax/output/chtml/fonts/woff-v2/a.woff": False, "_static/scripts/fontawesome.js": True}
    assert {name: unused(name) for name in names} == names
