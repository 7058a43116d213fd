"""The book: builds without a warning, links hold, works without a network, and says of the code what is true.

BOOK_PICTURES=folder saves a picture of every page, at both widths.
"""

import ast
import functools
import importlib
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browsers
import pytest
import yaml
from docutils import nodes
from docutils.core import publish_doctree

from book import bibliography, equations, pages, signatures
from book._ext.farmer_book import plain_docstring
from book.build import build
from farmer_ref.distill import DistillConfig
from farmer_ref.evaluation import verdicts
from farmer_ref.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
DOCSTRINGS = equations.docstrings()
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "farmer_ref").rglob("*.py")]


# -- equations ---------------------------------------------------------------------------------------------------------


def misplaced(text, name=""):
    """The items that a paragraph cites and the paper does not have, or has elsewhere.

    Where it says that something *is* an item, as in "(Eq. 8)" or "Table 3: ...", words that belong to it must stand in
    the paragraph, or in the name that it documents.
    """
    known, said = equations.paper_items(), f"{name} {text}"
    claimed = equations.cited(" ".join(re.findall(r"\([^()]*\)|(?:Table|Fig\.|Figure) \d\w?(?=:)", text)))
    return [
        cite
        for cite in equations.cited(text)
        if cite not in known
        or (cite in claimed and not any(re.search(word, said, re.IGNORECASE) for word in known[cite]["words"]))
    ]


def paragraphs(text):
    """The paragraphs (with the formula they lead to) and table rows of a page or a script, uncommented."""
    lines = [re.sub(r"^\s*#+ ?(?:> ?)?", "", line) for line in text.splitlines()]
    return re.split(r"(?<![:,])\n\s*\n|\n(?=\||- |def |class )", "\n".join(lines))


@functools.cache
def listed():
    """Each item of the paper: the names that its entries list, or None where it is marked as having no code."""
    names = {}
    for entry in equations.entries():
        for cite in equations.cited(entry["cite"]):
            names[cite] = None if "no_code" in entry else entry["code"]
    return names


def test_everything_that_the_paper_numbers_is_listed_once():
    numbered = (("Eq.", 18), ("Alg.", 2), ("Table", 6), ("Fig.", 8))
    wanted = [f"{kind} {number}" for kind, last in numbered for number in range(1, last + 1)]
    assert list(equations.paper_items()) == wanted
    assert sorted(cite for entry in equations.entries() for cite in equations.cited(entry["cite"])) == sorted(wanted)
    for entry in equations.entries():
        assert entry["about"].strip()
        assert ("no_code" in entry) != (bool(entry.get("code")) and bool(entry.get("tests"))), entry["cite"]
        assert misplaced(f"{entry['cite']} {entry['title']} {entry['about']}") == []


def test_citations_stand_beside_what_the_paper_says_there():
    pages = [*ROOT.glob("*/*.md"), ROOT / "README.md", *(ROOT / "notebooks").rglob("*.py")]
    for path in [*pages, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").glob("*/test_*.py")]:
        if path == Path(__file__):  # which has wrong ones, below
            continue
        for part in paragraphs(path.read_text(encoding="utf-8")):
            assert misplaced(part) == [], f"{path.name}: {part}"


def test_citations_in_the_code_stand_beside_what_the_paper_says_there():
    others = equations.read()["other_papers"]
    for name, text in DOCSTRINGS.items():
        assert set(misplaced(text, name)) <= set(others.get(name, [])), name


@pytest.mark.parametrize(
    "text",
    [
        "log p(z) = logsumexp_k [log pi_k + log N(z; mu_k, diag sigma_k^2)] (Eq. 12)",
        "The density before an invertible map is the density after it, times |det| of the map's derivatives (Eq. 5).",
        "A density of a sequence as a product of predictions, each given what came before (Eq. 6).",
        "A weighted sum of Gaussians (Eq. 7).",
        "log p(z_i | z_<i) of the autoregressive model (Eq. 13)",
        "The guided density (Eq. 16)",
        "The one-step student (Alg. 1)",
        "The baseline, a coupling flow (Table 3)",
        "| Table 4: resampling beats the naive rule |",
        "Samples by their log-determinant (Fig. 7)",
        "A guided density, Eq. 19 of the paper",
    ],
)
def test_a_wrong_number_is_noticed(text):
    assert misplaced(text)


def test_citations_are_read_as_people_write_them():
    assert equations.cited("(Eqs. 8-10) and Alg. 2, not Eqn. 3") == ["Eq. 8", "Eq. 9", "Eq. 10", "Alg. 2"]
    assert equations.cited("Eqs. 8 to 10, Table 4; Figs. 6a and 6b") == [
        *("Eq. 8", "Eq. 9", "Eq. 10", "Table 4", "Fig. 6", "Fig. 6")
    ]
    assert equations.cited("Tables 4 and 5, Figure 7, the last 3") == ["Table 4", "Table 5", "Fig. 7"]
    assert equations.cited("Eqs. 6, 11-13, Eqs. 10 and\n12-14") == [
        f"Eq. {number}" for number in (6, 11, 12, 13, 10, 12, 13, 14)
    ]


@pytest.mark.parametrize("entry", equations.entries(), ids=lambda entry: entry["cite"])
def test_listed_code_exists_and_cites_the_equation(entry):
    for name in entry.get("code", []):
        module = max((known for known in MODULES if name.startswith(f"{known}.")), key=len)
        functools.reduce(getattr, name.removeprefix(f"{module}.").split("."), importlib.import_module(module))
        assert DOCSTRINGS[name], f"{name} has no docstring"
        around = [text for other, text in DOCSTRINGS.items() if name == other or name.startswith(f"{other}.")]
        for cite in equations.cited(entry["cite"]):
            cites = cite in equations.cited("\n".join(around))
            assert cites or not cite.startswith(("Eq.", "Alg.")), f"{name} does not cite {cite}"


def test_every_citation_in_the_code_is_listed():
    others = equations.read()["other_papers"]
    for name, text in DOCSTRINGS.items():
        for cite in set(equations.cited(text)) - set(others.get(name, [])):
            if not cite.startswith(("Eq.", "Alg.")):
                continue
            public = name.split("._")[0]  # a private function's module
            names = listed()[cite] or []
            assert any(n == public or n.startswith(f"{public}.") for n in names), f"{cite} does not list {name}"
    for name, cites in others.items():
        assert set(cites) <= set(equations.cited(DOCSTRINGS[name])), name


def test_listed_tests_exist():
    for entry in equations.entries():
        for test in entry.get("tests", []):
            file, function = test.split("::")
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_tests_that_a_page_names_exist():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "book" / "your_pictures.md").read_text(encoding="utf-8")))
    assert len(named) > 50
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []


# -- other papers ------------------------------------------------------------------------------------------------------

NAMED = re.compile(r"([A-Z][\w'-]+) (?:(et al\.?)|and [A-Z][\w-]+)?,? ?\(?((?:19|20)\d\d[a-z]?)\b")


def test_every_paper_that_is_named_has_an_entry():
    labels = sorted(bibliography.labels().values())
    assert len(set(labels)) == len(labels)
    known = {(re.split(r" et al\.| and |,", label)[0].split()[-1], label.split(", ")[1]) for label in labels}
    pages_and_scripts = [*ROOT.glob("*/*.md"), *(ROOT / "notebooks").rglob("*.py"), ROOT / "README.md"]
    for text in [*DOCSTRINGS.values(), *(path.read_text(encoding="utf-8") for path in pages_and_scripts)]:
        for name, others, year in NAMED.findall(re.sub(r"\s+(?:# )?", " ", text)):
            if others or name in dict(known):
                assert (name, year) in known, f"{name} {year}"


def test_examples_in_docstrings_stay_code():
    example = ">>> draw()\ntensor([[1.],\n        [2.]])\n>>> x * y\n3"
    lines = f"Draws (B,C,H,W).\n\n{example}\n\n    a --> b\n".splitlines()
    plain_docstring(None, "function", "draw", None, None, lines)
    document = publish_doctree("\n".join(lines))
    assert [type(block).__name__ for block in document] == ["paragraph", "doctest_block", "literal_block"]
    assert document[1].astext() == example


def test_flags_are_code_and_words_in_stars_are_emphasised():
    """Typographers' dashes are for prose: --fid is two hyphens."""
    lines = ["With --fid and --model.flow-width, `x --y`. *Start.* Of *two words* and 2 * x * y, f(*job), *.png."]
    plain_docstring(None, "function", "draw", None, None, lines)
    (paragraph,) = publish_doctree("\n".join(lines))
    assert [node.astext() for node in paragraph.findall(nodes.literal)] == ["--fid", "--model.flow-width", "x --y"]
    assert [node.astext() for node in paragraph.findall(nodes.emphasis)] == ["Start.", "two words"]
    assert paragraph.astext().endswith("2 * x * y, f(*job), *.png.")


def test_signatures_have_plain_types_and_short_defaults():
    field = "FieldInfo(annotation=NoneType, required=True, metadata=[Ge(ge=1), Le(le=9)])"
    assert signatures.plain_type(f"~typing.Annotated[int, {field}] | None") == "int | None"
    assert signatures.plain_type(f"list[~typing.Annotated[~package.Name, {field}]]") == "list[~package.Name]"
    assert signatures.plain_type("Count | None", TrainConfig) == "int | None"
    assert signatures.plain_type("StudentForm", DistillConfig) == "Literal['forward', 'inverse']"
    assert signatures.plain_type("~tyro.conf.Positional[str]") == "str"
    assert signatures.plain_type("~typing.Unpack[~package.Options]") == "~package.Options"
    long = f"Guidance({', '.join(f'temperature_{number}=1.0' for number in range(9))})"
    assert signatures.plain_parameters(
        f"(a: dict[str, ~typing.Any] = <factory>, *b: int, c: int = 3, d: D = {long})"
    ) == ("(a: dict[str, ~typing.Any]=..., *b: int, c: int=3, d: D=...)")


# -- pages as files ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Links, anchors and pictures of a page, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.loaded, self.pictures = [], set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon", "preconnect"):
            self.loaded.append(given["href"])
        if tag == "img":
            self.pictures.append(given)


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return build(tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def parsed(html):
    return {path: Page(path) for path in sorted(html.rglob("*.html")) if "_static" not in path.parts}


def pages_of(toc):
    if isinstance(toc, list):
        return [page for item in toc for page in pages_of(item)]
    own = [toc[key] for key in ("root", "file") if key in toc]
    return own + [page for key in ("parts", "chapters", "sections") for page in pages_of(toc.get(key, []))]


def test_every_page_is_there(html):
    wanted = pages_of(yaml.safe_load((ROOT / "book" / "_toc.yml").read_text()))
    assert len(wanted) >= 20
    assert [page for page in wanted if not (html / f"{page}.html").exists()] == []
    assert {path.stem for path in (ROOT / "notebooks").glob("[0-9A]*.ipynb")} == {
        page.split("/")[1] for page in wanted if page.startswith("notebooks/")
    }


def test_the_book_is_small(html):
    size = {path.relative_to(html).as_posix(): path.stat().st_size for path in html.rglob("*") if path.is_file()}
    assert size["live.html"] < 4e6 and sum(size.values()) < 15e6


def test_every_column_has_a_heading(html, parsed):
    for path in parsed:
        heads = re.findall(r"<th\b.*?</th>", path.read_text(encoding="utf-8"), re.DOTALL)
        assert [head for head in heads if not re.sub(r"<[^>]*>", "", head).strip()] == [], path


def test_no_formula_of_a_docstring_is_plain_text(html):
    """In paragraphs nothing is left of p_c and e^x, and of names of the code, outside of <code>."""
    for path in [html / "api.html", *(html / "api").glob("*.html")]:
        article = re.search(r"<article.*</article>", path.read_text(encoding="utf-8"), re.DOTALL)[0]
        for paragraph in re.findall(r"<p\b[^>]*>(.*?)</p>", article, re.DOTALL):
            text = re.sub(r"<[^>]*>", "", re.sub(r"<(code|a|sup)\b.*?</\1>", "", paragraph, flags=re.DOTALL))
            assert not re.search(r"\w_\w|\^|\b(?:mu|sigma)\b", text), (path.name, text)


def test_signatures_are_for_readers(html):
    """No limits beside a type, nothing of pydantic's own, no value longer than a line, no alias in pieces."""
    for path in (html / "api").glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert "ConfigDict" not in page, path
        for head in re.findall(r"<dt class=\"sig[^>]*>.*?</dt>", page, re.DOTALL):
            text = re.sub(r"<[^>]*>", "", head)
            assert not re.search(r"Annotated|FieldInfo|factory|~typing|Positional|Unpack|ClassVar", text), (path, text)
            value = re.search(r"<em class=\"property\"> = (.*?)</em>", head, re.DOTALL)
            assert not (value and signatures.MODULE.search(value[1])), (path, text)
            assert len(re.sub(r"<[^>]*>", "", value[1] if value else "")) < signatures.LINE, (path, text)
        aliases = re.findall(r"<p>alias of (.*?)</p>", page)
        assert all(re.fullmatch(r"<code\b.*</code>", alias) for alias in aliases), (path, aliases)


def test_answers_are_folded(html):
    for name in ("01a_change_of_variables", "04_guided_resampling"):
        assert '<details class="admonition hide below-input">' in (html / "notebooks" / f"{name}.html").read_text()


def test_links_lead_somewhere(html, parsed):
    broken = []
    for path, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "http", "mailto", "javascript"), (path, link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in parsed and anchor not in parsed[target].anchors):
                broken.append(f"{path.relative_to(html)}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(html, parsed):
    for path, page in parsed.items():
        for address in page.loaded:
            parts = urlsplit(address)
            assert parts.scheme in ("", "data") and not parts.netloc, (path, address)
            assert parts.scheme or (path.parent / unquote(parts.path)).exists(), (path, address)
    for sheet in html.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import [\"']?http", sheet.read_text(encoding="utf-8")), sheet


def test_pictures_have_a_text(html, parsed):
    missing = [
        f"{path.relative_to(html)}: {picture.get('src')}"
        for path, page in parsed.items()
        for picture in page.pictures
        if not (picture.get("alt") or "").strip() or re.fullmatch(r"\S+\.(png|svg)", picture["alt"])
    ]
    assert missing == []


def test_notebooks_open_in_colab(html, parsed):
    for path in html.glob("notebooks/*.html"):
        wanted = f"https://colab.research.google.com/github/farmer-ref/farmer_ref/blob/main/notebooks/{path.stem}.ipynb"
        assert parsed[path].links.count(wanted) >= 2, path  # in the page's head, and in the notebook's first cell


def test_the_paper_s_claims_are_all_shown(parsed, html):
    text = re.sub(r"<[^>]+>", "", (html / "paper_checked.html").read_text(encoding="utf-8"))
    for word in ("✓ holds", "✗ does not", "? open"):
        assert word in text
    assert parsed[html / "paper_checked.html"].anchors >= {"table3", "table4", "table5", "figure6a", "figure8", "basis"}


def test_what_the_page_says_in_words_is_in_the_results():
    def verdict(stem, said, measure):
        return next(c["verdicts"][measure] for c in claims if (c["stem"], c["said"]) == (stem, said))

    claims = pages.judged()
    better = "*autoregressive flow* better than *coupling flow*"
    assert verdict("table4", better, "bits_per_dim") == "holds"
    shared = "*both, resampling* better than *both, resampling, Z_R ~ N(0, I)*"
    assert verdict("table3", shared, "bits_per_dim") == "holds"
    student = "*autoregressive flow* better than *autoregressive flow, one step*"
    assert verdict("table4", student, "frechet_distance") == "holds"
    assert verdict("table4", student, "sample_accuracy") == "inconclusive"
    quick, three = "_mnist-quick_histogram", ("frechet_distance", "sample_accuracy", "bits_per_dim")
    for stem, said, expected in (
        ("table3" + quick, "*both, naive guidance* better than *split, both*", ["holds"] * 2),
        ("table3" + quick, "*both, resampling* better than *both, naive guidance*", ["holds"] * 2),
        ("table3" + quick, "*split, condition repeated* better than *split*", ["inconclusive"] * 3),
        ("table3" + quick, "*split, final permutation* better than *split*", ["inconclusive"] * 3),
        ("table3", "*split, condition repeated* better than *split*", ["inconclusive"] * 3),
        ("table3", "*split, final permutation* better than *split*", ["inconclusive"] * 3),
        ("table3", "*split, both* better than *split, condition repeated*", ["inconclusive"] * 3),
        ("figure6a" + quick, "*K = 64* better than *K = 1*", ["inconclusive", "inconclusive", "holds"]),
        ("figure6a" + quick, "*K = 64* better than *K = 256*", ["inconclusive", "inconclusive", "does not hold"]),
        (f"table4{quick}_long", better, ["does not hold"] * 3),
        (f"table4{quick}_long", student, ["does not hold"] * 2),
    ):
        found = [verdict(stem, said, measure) for measure in three[: len(expected)]]
        assert found == expected, (stem, said)
    behind = []
    for name in ("table4" + quick, f"table4{quick}_long"):
        flows = {row["name"]: row["bits_per_dim"]["mean"] for row in pages.load(name)["rows"]}
        behind.append(flows["autoregressive flow"] - flows["coupling flow"])
    assert behind[0] > 2 * behind[1] > 0
    early = {row["way"]: row for row in pages.load("early_guidance")["table"]}
    for worse, better, measure, expected in (
        ("no guidance", "naive, w = 1", "sample_accuracy", "holds"),
        ("naive, w = 1", "resampling, w = 1", "sample_accuracy", "holds"),
        ("no guidance", "naive, w = 1", "frechet_distance", "inconclusive"),
        ("no guidance", "resampling, w = 1", "frechet_distance", "inconclusive"),
        ("naive, w = 1", "resampling, w = 1", "frechet_distance", "inconclusive"),
    ):
        seeds = [early[way][measure]["seeds"] for way in (better, worse)]
        found = verdicts.verdict(*seeds, higher_is_better=measure == "sample_accuracy", paired=True)
        assert found["verdict"] == expected, (better, worse, measure)
    contest = {name: found["curve"] for name, found in pages.load("rivals")["contenders"].items()}
    both = zip(contest["FARMER, linear"], contest["TARFlow"], strict=True)
    first, *later = (theirs["bits_per_dim"] - ours["bits_per_dim"] for ours, theirs in both)
    assert first < 0 < min(later)
    rows = [row["bits_per_dim"]["mean"] for row in pages.load("figure6b")["rows"]]
    assert rows[:4] == sorted(rows[:4], reverse=True)
    for name in ("distillation", "distillation_losses"):
        accuracy = [row["sample_accuracy"]["mean"] for row in pages.load(name)["table"].values()]
        assert max(accuracy) - min(accuracy) < 0.005
    speedup = {
        (row["method"], row["batch"]): row["speedup_over_sequential"]
        for row in pages.load("inverses")["matrix"]["rows"]
    }
    assert speedup["student", 1]["min"] > speedup["student", 16]["max"]
    assert max(speedup["jacobi", batch]["median"] for batch in (1, 16)) < 1


# -- pages in a browser ------------------------------------------------------------------------------------------------

EXAMINED = """(() => {
    const text = document.createTreeWalker(document.querySelector("article") || document.body, NodeFilter.SHOW_TEXT, {
        acceptNode: node => node.parentElement.closest("pre, code, script, mjx-container, textarea, .xref")
            ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT});
    let raw = [], node;
    while ((node = text.nextNode()))
        if (/\\$\\$|\\\\[()[\\]]|\\\\(begin|frac|mathrm)/.test(node.data)) raw.push(node.data.trim().slice(0, 80));
    document.querySelectorAll("details").forEach(fold => fold.open = true);
    const wide = [...document.querySelectorAll("article *")].filter(e => {
        for (let up = e; up; up = up.parentElement)
            if (["auto", "scroll", "hidden"].includes(getComputedStyle(up).overflowX)) return false;
        return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
    }).map(e => e.outerHTML.slice(0, 120));
    return {
        raw,
        mathematics: document.querySelectorAll(".math").length,
        set: document.querySelectorAll("mjx-container").length,
        errors: document.querySelectorAll("mjx-merror").length,
        filters: (() => {
            document.documentElement.dataset.theme = "dark";
            const found = [...document.querySelectorAll("article img")].map(i => getComputedStyle(i).filter);
            document.documentElement.dataset.theme = "light";
            return [...new Set(found)];
        })(),
        missing: [...document.images].filter(i => i.loading !== "lazy" && !i.naturalWidth).map(i => i.src),
        width: document.documentElement.scrollWidth,
        wide: wide.slice(0, 3),
    };
})()"""


@pytest.fixture(scope="module")
def browser():
    with browsers.running("chromium") as browser:
        yield browser


def test_every_page_in_a_browser_without_a_network(html, parsed, browser):
    pictures = os.environ.get("BOOK_PICTURES")
    for path in parsed:
        name = str(path.relative_to(html).with_suffix(""))
        browser.complaints.clear()
        browser.resize(1280)  # a page that was loaded narrow hides its sidebar for good
        browser.open(path.as_uri())
        for width in (1280, 390):
            browser.resize(width)
            seen = browser.run(EXAMINED)
            if pictures:
                target = Path(pictures) / f"{name.replace('/', '-')}-{width}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                browser.picture(target)
            assert browser.complaints == [], name
            assert (seen["raw"], seen["errors"], seen["missing"]) == ([], 0, []), name
            assert seen["filters"] == ["none"] or not seen["filters"], name  # dark mode dims no picture
            assert seen["set"] >= seen["mathematics"], name
            assert seen["width"] <= width, (name, width, seen["wide"])
    assert browser.run("innerWidth") == 390


@pytest.mark.parametrize("kind", browsers.KINDS)
def test_widgets_inside_pages_compute_with_the_live_page_s_weights(html, kind):
    with browsers.running(kind) as browser:
        for page, widget, button in (
            ("index", "draw", "A blank page"),
            ("notebooks/01b_flow_invertibility", "race", "Other latents"),
        ):
            browser.open((html / f"{page}.html").as_uri())
            root = f"document.querySelector('[data-farmer={widget}]')"
            before = browser.run(f"{root}.textContent")
            browser.press_and_wait(root, button)
            assert browser.run(f"{root}.textContent") != before
            assert browser.run("document.querySelectorAll('iframe').length") == 0
        assert browser.complaints == []


@pytest.mark.parametrize(
    ("query", "wanted", "among"),
    [
        ("CFG", "notebooks/04", 1),
        ("install", "index", 1),
        ("GPU", "scaling", 1),
        ("mixture", "notebooks/", 1),
        ("logdet", "api/model", None),
    ],
)
def test_search_finds_what_is_there(html, browser, query, wanted, among):
    browser.complaints.clear()
    browser.open((html / "search.html").as_uri() + f"?q={query}")
    found = """new Promise(done => {
        let before = 0;
        const look = () => {
            const links = [...document.querySelectorAll("#search-results li a")].map(a => a.href);
            if (links.length && links.length === before) return done(links);  // they appear one by one
            before = links.length;
            setTimeout(look, 500);
        };
        look(); setTimeout(() => done([]), 20000);
    })"""
    places = [address.split("/html/")[1] for address in browser.run(found)]
    assert any(place.startswith(wanted) for place in places[:among]), places[:5]
    assert browser.complaints == []


def test_words_of_notebooks_are_explained(html):
    for path in (html / "notebooks").glob("*.html"):
        links = re.findall(r'<a class="explained[^>]*>', path.read_text(encoding="utf-8"))
        assert links and all('title="' in link and "glossary.html#term-" in link for link in links), path.name


def test_slides_turn_and_fit_a_screen(html, browser):
    pictures = os.environ.get("BOOK_PICTURES")
    sessions = sorted((html / "teaching").glob("session_*.html"))
    assert len(sessions) == 6
    browser.resize(1280, 720)
    for path in sessions:
        browser.open(f"{path.as_uri()}?present")
        slides = browser.run("document.querySelectorAll('article > section > section').length") + 1
        assert slides >= 8
        for number in range(1, slides + 1):
            seen = browser.run("""(() => {
                const article = document.querySelector("article");
                return {place: article.querySelector("section").dataset.slide,
                        hidden: [...article.querySelectorAll(".notes")].every(note => !note.offsetHeight),
                        over: article.scrollHeight - article.clientHeight};
            })()""")
            if pictures:
                browser.picture(Path(pictures) / f"slide-{path.stem}-{number:02d}.png")
            assert (seen["place"], seen["hidden"]) == (f"{number} / {slides}", True)
            assert seen["over"] <= 0, (path.stem, number, seen["over"])
            browser.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))")
        browser.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))")
        assert not browser.run("document.body.classList.contains('presenting')")
