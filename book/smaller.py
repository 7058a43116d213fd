"""Make the built book smaller, without a visible change but one: what no page loads, and digits that no screen shows.

Of MathJax, one bundle and its fonts stay, and of the icons the fonts that browsers load; source maps go. Bitmaps become
WebP, without loss, where that is smaller. Notebooks to download have no outputs, as students want them. Vector graphics
keep two decimals of a point. In highlighted code and in signatures, names, punctuation and spaces look like the text
around them and need no element of their own. The change: a formula and the punctuation after it stay on one line.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from PIL import Image

FOLDERS = (
    "_static/mathjax/",
    "_static/vendor/fontawesome/",
    "_static/locales/",
    "_static/scripts/fontawesome",
)  # of these, only USED
USED = (
    "_static/mathjax/tex-chtml.js",
    "_static/mathjax/output/chtml/fonts/",
    "_static/vendor/fontawesome/webfonts/fa-solid-900.woff2",
    "_static/vendor/fontawesome/webfonts/fa-brands-400.woff2",
)
ICONS = re.compile(r'<script src="[^"]*scripts/fontawesome\.js[^"]*"></script>')  # what the fonts show without a script
LONG = 24  # characters of a name that may be broken
WRAPPED = re.compile(r'<span class="pre">([^<]*)</span>')
PLAIN = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')
VERBATIM = re.compile(r"(<(?:pre|textarea|script)\b.*?</(?:pre|textarea|script)>)", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[\w.-]+")
FORMULA = re.compile(r'<span class="math notranslate nohighlight">[^<]*</span>[,.;:?!)]+')  # and what ends it
COORDINATES = re.compile(r' (?:d|x|y|points)="[^"]*"')


def unused(name: str) -> bool:
    """Whether no page loads a file of the book."""
    return (name.startswith(FOLDERS) and not name.startswith(USED)) or name.endswith(".map")


def shorter_path(text: str) -> str:
    """Coordinates with two decimals at most, and no spaces around the letters between them."""
    name, _, values = text.partition("=")
    values = re.sub(r"\s+", " ", re.sub(r"(\.\d\d)\d+", r"\1", values))
    values = re.sub(" ?([MLHVCSQTAZmlhvcsqtaz]) ?", r"\1", values)
    return f"{name}={values}"


def shorter_graphic(text: str) -> str:
    """An SVG without metadata, indentation and names that nothing refers to, its coordinates to two decimals."""
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = COORDINATES.sub(lambda found: shorter_path(found[0]), text)
    text = re.sub(r"translate\([^)]*\)", lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r' style="[^"]*"', lambda found: re.sub(r"([:;]) ", r"\1", found[0]), text)
    text = re.sub(r">\s+<", "><", text)
    text = re.sub(r"<g>(<(?:path|use|image)\b[^<>]*/>)</g>", r"\1", text)  # groups of one, of which nothing is said
    return re.sub(r"\n\s*", "\n", text)


def smaller_pictures(folder: Path) -> dict[str, str]:
    """Replace bitmaps by WebP; returns the new name of each replaced file, by its old one."""
    renamed = {}
    for path in sorted(folder.glob("*.png")):
        target = path.with_suffix(".webp")
        Image.open(path).save(target, lossless=True, quality=100)
        smaller, larger = sorted((path, target), key=lambda file: file.stat().st_size)
        larger.unlink()
        if smaller == target:
            renamed[path.name] = target.name
    return renamed


def word(text: str) -> str:
    """A word of code: a flag stays on one line, and a long name may break at underscores, except at its beginning."""
    if text.startswith("--"):
        return f'<span class="flag">{text}</span>'
    return re.sub(r"(?<=.{8})_", "_<wbr>", text) if len(text) > LONG and "/" not in text else text


def shorter_page(text: str, renamed: dict[str, str]) -> str:
    """A page with fewer elements in its code, and without indentation; no line begins with a formula's full stop."""
    text = re.sub(r"(?<=_images/)[\w.-]+\.png", lambda found: renamed.get(found[0], found[0]), ICONS.sub("", text))
    text = PLAIN.sub(r"\1", WRAPPED.sub(lambda found: word(found[1]), text))
    text = FORMULA.sub(r'<span class="together">\g<0></span>', text)
    parts = VERBATIM.split(text)  # every other one is verbatim
    parts[::2] = [re.sub(r"\s*\n\s*", "\n", part) for part in parts[::2]]
    parts[1::2] = [FLAG.sub(lambda found: word(found[0]), part) if part[:4] == "<pre" else part for part in parts[1::2]]
    return "".join(parts)


def without_outputs(path: Path) -> None:
    """Take the outputs from a notebook."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def make_smaller(html: Path) -> None:
    """All of that, for a built book."""
    renamed = smaller_pictures(html / "_images")
    for path in sorted(path for path in html.rglob("*") if path.is_file()):
        if unused(path.relative_to(html).as_posix()):
            path.unlink()
        elif path.suffix == ".svg":
            path.write_text(shorter_graphic(path.read_text(encoding="utf-8")), encoding="utf-8")
        elif path.suffix == ".html":
            path.write_text(shorter_page(path.read_text(encoding="utf-8"), renamed), encoding="utf-8")
        elif path.suffix == ".ipynb":
            without_outputs(path)
    for folder in sorted((path for path in html.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
