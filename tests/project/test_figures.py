"""The pages of the book include what book/figures.py and book/measured.py write, and all of it."""

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure
from PIL import Image

from book import figures, measured
from book.formulas import typeset
from book.smaller import shorter_graphic, shorter_page, shorter_path, unused
from farmer_ref.parameters import step_costs
from farmer_ref.support.plots import collisions

BOOK = Path(__file__).parents[2] / "book"


def test_graphics_of_a_notebook_share_no_names():
    """Some editors put all of them into one page, where a letter would take the shape of another graphic's."""
    for path in (BOOK.parent / "notebooks").glob("*.ipynb"):
        taken = set()
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                graphic = output.get("data", {}).get("image/svg+xml", "")
                names = set(re.findall(r" id='([^']+)'", graphic))
                assert set(re.findall(r"(?:href='|url\()#([^')]+)", graphic)) == names, path
                names |= {f".{name}" for name in re.findall(r" class='([^']+)'", graphic)}
                assert all(f"{name}{{" in graphic for name in names if name.startswith(".")), path
                assert not names & taken, path
                taken |= names


def test_every_part_is_written_and_used(tmp_path):
    figures.main(str(tmp_path))
    pages = "".join(page.read_text(encoding="utf-8") for page in BOOK.glob("*.md"))
    included = set(re.findall(r"_generated/(\w+\.\w+)", pages))  # with parts that book/pages.py computes
    assert {path.name for path in tmp_path.iterdir()} <= included
    assert all(path.stat().st_size > 100 for path in tmp_path.iterdir())
    costs = (tmp_path / "costs.md").read_text()
    for cell in step_costs("farmer-1.9b-p8").split()[1:]:
        assert f"| {cell} |" in costs, cell


def test_figures_of_pages_are_not_crowded(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.update({path.name: figure}))
    for draw in (figures.one_picture, figures.change_of_variables, figures.drawn):
        draw(tmp_path)
    assert {name: found for name, figure in drawn.items() if (found := collisions(figure))} == {}


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


def test_bars_around_a_determinant_are_set_as_brackets():
    """`\\log|\\det|` has a gap behind its first bar; `\\log\\lvert\\det\\rvert` and `\\left|` have none."""
    root = BOOK.parent
    for page in [*BOOK.rglob("*.md"), *BOOK.glob("*.yml"), *root.glob("notebooks/**/*.py"), root / "README.md"]:
        if "_build" not in page.parts:
            text = page.read_text(encoding="utf-8")
            assert not re.search(r"(?<!\\left)\|\s*\\det", text), page


def test_rounding_a_path_does_not_add_up():
    line = " ".join(f"L {0.004 * i:.3f} {0.003 * i:.3f}" for i in range(1001))
    steps = [float(step) for step in re.findall(r"-?\d*\.?\d+", shorter_path(f"M 0 0 {line} L -1 .5 z", 2))]
    assert len(steps) < 2 * 1001 and all(abs(step) < 0.02 for step in steps[:-2])
    assert shorter_path("M 0 0 L 1.5 1.5 L 3 1.5 L 3 .25 z M 9 9", 2) == "m0 0 1.5 1.5h1.5v-1.25zm9 9"
    assert shorter_path("M0 0 A 1 1 0 0 0 2 2", 2) == "M0 0 A 1 1 0 0 0 2 2"  # an arc is left as it is


FORMULAS = {
    "p_c (p_c / p_u)^w": "<p>[c] (<p>[c] / <p>[u]){w}",
    "Z_R ~ N(0, I)": "<Z>[R] ~ <N>(0, <I>)",
    "log pi_k + log N(z; mu_k, diag sigma_k^2)": "log <π>[k] + log <N>(<z>; <μ>[k], diag <σ>[k]{2})",
    "prod_i p(z_i^I | z_<i^I, c) * G_{N+1}": "∏[i] <p>(<z>[i]{I} | <z>[<i]{I}, <c>) · <G>[N+1]",
    "(T_pi,v, T_sigma,v), p'(z), sum_c' p(v | c')": "(<T>[π,v], <T>[σ,v]), <p′>(<z>), ∑[c′] <p>(<v> | <c′>)",
    "x (B,N,D) to Z^{n-1}, the model's A and a token": "<x> (<B,N,D>) to <Z>{n−1}, the model's A and a token",
    "y_i = A x_i + e^-dH, 10^6": "<y>[i] = <A> <x>[i] + <e>{−dH}, 10{6}",
    "noise_std * e, e.g. farmer_ref.model.flow.x": "`noise_std` · <e>, e.g. `farmer_ref.model.flow.x`",
    "(.ipynb_checkpoints), 03_class7.png": "(`.ipynb_checkpoints`), `03_class7.png`",
    "Ctrl-C, A.2, I/O": "Ctrl-C, A.2, <I>/<O>",
    "(B,heads,N,1), (count,H,W,3) of (B,N+1)": "(<B>,heads,<N>,1), (count,<H,W>,3) of (<B,N>+1)",
    "-log2 P(v), levels 0..L-1, (-s, s)": "−log[2] <P>(<v>), levels 0..<L>−1, (−<s>, <s>)",
    "(sum w)^2 / sum w^2, the sum of all": "(∑ <w>){2} / ∑ <w>{2}, the sum of all",
    "models/proj/givt/parallel_decode.py, ~ dx/dz": "`models/proj/givt/parallel_decode.py`, ~ <dx>/<dz>",
}


@pytest.mark.parametrize(("text", "expected"), FORMULAS.items(), ids=FORMULAS)
def test_formulas_in_plain_text_are_set(text, expected):
    marks = {"Text": "{}", "emphasis": "<{}>", "literal": "`{}`", "subscript": "[{}]", "superscript": "{{{}}}"}
    assert "".join(marks[type(node).__name__].format(node.astext()) for node in typeset(text)) == expected


def test_a_smaller_book_draws_the_same():
    """Coordinates are rounded, scales are not, names that are used stay, and so do pictures inside."""
    drawn = """<?xml version='1.0'?><svg><metadata>when</metadata>
    <g id="one"><path id="two" style="fill: none; stroke: #aabbcc" d="M 1.23456 2
L 3.1 4.999" transform="translate(1.999 2) scale(0.123456)"/></g>
    <g><use xlink:href="#two" x="0.123" style="fill: red"/><use xlink:href="#two" x="3" style="fill: red"/></g></svg>"""
    two = drawn.replace("</g></svg>", '</g><path style="fill:red" d="M 0 0"/></svg>')
    assert "<style>.a7{fill:red}</style>" in shorter_graphic(two, mark="7")
    assert "<style>.a{fill:red}</style>" in shorter_graphic(two) and shorter_graphic(two).count('class="a"') == 2
    assert shorter_graphic(drawn) == (
        '<svg><path id="a" style="fill:none;stroke:#abc" d="m1.23 2 1.87 3" '
        'transform="translate(2 2) scale(0.123456)"/>'
        '<g style="fill:red"><use href="#a" x=".12"/><use href="#a" x="3"/></g></svg>\n'
    )
    letters = """<svg><g><path id='x' d='M 603 4863 L 603 0 Q 10 20 31 40 z' transform='scale(0.015625)'/>
    <path id='y' transform='scale(0.015625)'/>
    <use xlink:href='#x'/><use xlink:href='#y' transform='translate(5 0)'/>
    <use xlink:href='#x' transform='translate(63.62 0)'/></g></svg>"""
    assert shorter_graphic(letters) == (
        '<svg><g><path id="a" d="m60 486v-486q-59 2-57 4z" transform="scale(0.15625)"/>'
        '<path transform="scale(0.015625)"/><use href="#a"/><use href="#a" x="63.62"/></g></svg>\n'
    )
    png = '<image href="data:image/png;base64,{}"/>'.format("\n".join(re.findall(".{1,76}", picture())))
    shorter = shorter_graphic(png)
    assert "data:image/webp" in shorter and len(shorter) < len(png)
    code = '<span class="k">def</span><span class="w"> </span><span class="n">f</span><span class="p">():</span>'
    assert shorter_page(code, {}) == '<span class="k">def</span> f():'
    formula = '<span class="math notranslate nohighlight">\\(x\\)</span>'
    assert shorter_page(f"{formula}, {formula} y", {}) == f'<span class="together">{formula},</span> {formula} y'
    assert shorter_page(f"deviations ({formula}) y", {}) == f'deviations <span class="together">({formula})</span> y'
    assert shorter_page(f"({formula} y)", {}) == f'<span class="together">({formula}</span> y)'
    names = {
        "test_a_class_that_the_model_lacks": "test_a_class_<wbr>that_<wbr>the_<wbr>model_<wbr>lacks",
        "farmer_ref.training.data_parallel": "farmer_ref.<wbr>training.<wbr>data_<wbr>parallel",
        "data/test_folders.py::test_a_broken_link": "data/test_folders.py::test_<wbr>a_<wbr>broken_<wbr>link",
        "farmer_ref/evaluation/likelihood.py": "farmer_ref/evaluation/likelihood.py",
        ".ipynb_checkpoints": ".ipynb_checkpoints",
    }
    assert {name: shorter_page(f'<span class="pre">{name}</span>', {}) for name in names} == names
    assert shorter_page("<pre>python --images x</pre>", {}) == '<pre>python <span class="flag">--images</span> x</pre>'
    name = '<a class="nav-link" href="#a.b"><code class="x"><span class="pre">{}</span></code></a>'
    assert ">_keep_<wbr>the<wbr>Labels()<" in shorter_page(name.format("_keep_theLabels()"), {})
    assert shorter_page("<p>\n    a\n</p>\n<pre>\n    b\n</pre>\n  c", {}) == "<p>\na\n</p>\n<pre>\n    b\n</pre>\nc"


def picture():
    """A PNG in base64."""
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "png", compress_level=0)
    return base64.b64encode(file.getvalue()).decode()


def test_what_pages_load_stays():
    names = {"_static/mathjax/input/tex.js": False, "_static/mathjax/tex-chtml.js": True, "_static/a.css.map": True}
    names |= {"_static/mathjax/output/chtml/fonts/woff-v2/a.woff": False, "_static/scripts/fontawesome.js": True}
    assert {name: unused(name) for name in names} == names
