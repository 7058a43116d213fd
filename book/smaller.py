"""Make the built book smaller, without a visible change but one: what no page loads, and digits that no screen shows.

Only the parts of MathJax that the pages load are kept, and only the icon fonts that browsers load; source maps go.
Bitmaps become WebP, without loss, where that is smaller, also those inside vector graphics. Notebooks to download have
no outputs, as students want them. Vector graphics keep two decimals of a point, and 640 parts of the height of a
letter. In highlighted code and in signatures, names, punctuation and spaces look like the text around them and need no
element of their own. The change: a formula stays on one line with its brackets and the punctuation after it."""

from __future__ import annotations

import base64
import io
import itertools
import re
import string
from collections import Counter
from collections.abc import Iterator
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
    "_static/mathjax/startup.js",  # which loads the others, as _config.yml says
    "_static/mathjax/core.js",
    "_static/mathjax/input/tex.js",
    "_static/mathjax/output/chtml.js",
    "_static/mathjax/output/chtml/fonts/",
    "_static/mathjax/a11y/assistive-mml.js",
    "_static/vendor/fontawesome/webfonts/fa-solid-900.woff2",
    "_static/vendor/fontawesome/webfonts/fa-brands-400.woff2",
)
ALPHABETS = re.compile(r"MathJax_(?:Fraktur|SansSerif|Script|Calligraphic-Bold)")  # that no formula of the book uses
ICONS = re.compile(r'<script src="[^"]*scripts/fontawesome\.js[^"]*"></script>')  # what the fonts show without a script
LONG = 24  # characters of a name that may be broken
JOINT = re.compile(r"(?<=.{8})(?:_|\.(?=[A-Za-z_]{6}))")  # where; no dot before a file's ending
WRAPPED = re.compile(r'<span class="pre">([^<]*)</span>')
LISTED = re.compile(r'(?<=nav-link" href="#)([^"]*"><code[^>]*>)<span class="pre">([^<]*)</span>')  # beside the page
PLAIN = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')
VERBATIM = re.compile(r"(<(?:pre|textarea|script)\b.*?</(?:pre|textarea|script)>)", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[\w.-]+")
MATHEMATICS = r'<span class="math notranslate nohighlight">[^<]*</span>'
FORMULA = re.compile(rf"[(\[]+{MATHEMATICS}[,.;:?!)\]]*|{MATHEMATICS}[,.;:?!)\]]+")  # and what encloses or ends it
ATTRIBUTE = re.compile(r' (d|x|y|points|transform)="([^"]*)"')
LETTER_SHAPE = re.compile(
    r'(<path[^>]* d=")([^"]*)(" transform="scale\()0\.015625(\)")'
)  # of matplotlib's, 6400 to an em
COARSER = 10  # so many of these units become one
PATH = re.compile(r"([MLCQZz])|(-?\d*\.?\d+(?:e[-+]?\d+)?)")  # what matplotlib writes
ALIKE = re.compile(r'<g([^>]*)>((?:<use [^>]*?(?P<style> style="[^"]*")/>)(?:<use [^>]*?(?P=style)/>)+)</g>')
COLOUR = re.compile(r"#(\w)\1(\w)\2(\w)\3\b")
BITMAP = re.compile(r"data:image/png;base64,([\w+/=\s]+)")


def unused(name: str) -> bool:
    """Whether no page loads a file of the book."""
    return (
        (name.startswith(FOLDERS) and not name.startswith(USED))
        or name.endswith(".map")
        or ALPHABETS.search(name) is not None
    )


def short_number(value: int, digits: int) -> str:
    """value / 10^digits without a needless zero: .5, -3."""
    text = f"{abs(value) / 10**digits:.{digits}f}"
    text = text.rstrip("0").rstrip(".").lstrip("0") if digits else text
    return ("-" if value < 0 and text else "") + (text or "0")


def joined(numbers: list[str]) -> str:
    """Numbers one after another, with spaces only where they would run together."""
    text = numbers[0]
    for number in numbers[1:]:
        text += number if number[0] == "-" else f" {number}"
    return text


def shorter_path(path: str, digits: int, divisor: int = 1) -> str:
    """A path divided by `divisor`, each point rounded to `digits` decimals and written as the way from the last one."""
    if re.sub(r"[\s,]", "", PATH.sub("", path)):  # other commands than matplotlib's
        return path
    parts: list[tuple[str, list[int]]] = []
    for command, number in PATH.findall(path):
        if command:
            parts.append((command, []))
        else:
            parts[-1][1].append(round(float(number) * 10**digits / divisor))
    here, start, found, last = [0, 0], [0, 0], [], ""
    for command, numbers in parts:
        if command in "Zz":
            found.append(last := "z")
            here = start
            continue
        size = {"M": 2, "L": 2, "Q": 4, "C": 6}[command]
        for place in range(0, len(numbers), size):
            points = numbers[place : place + size]
            way = [value - here[axis % 2] for axis, value in enumerate(points)]
            here, letter = points[-2:], command.lower()
            if letter == "l" and 0 in way:
                letter, way = ("v", way[1:]) if way[0] == 0 else ("h", way[:1])
            text = joined([short_number(value, digits) for value in way])
            follows = letter == last or (letter, last) == ("l", "m")
            found.append(text if follows and text[0] == "-" else f" {text}" if follows else letter + text)
            last = letter
            if command == "M":
                start, command = here, "L"  # more points after a first one are lines
    return "".join(found)


def rounded(text: str) -> str:
    """A text whose numbers have two decimals at most."""
    return re.sub(r"-?\d*\.\d+", lambda number: short_number(round(float(number[0]) * 100), 2), text)


def shorter_attribute(found: re.Match[str]) -> str:
    """A path, a place or a shift with two decimals at most."""
    name, value = found.groups()
    if name == "transform":
        value = re.sub(r"translate\([^)]*\)", lambda shift: rounded(shift[0]), value)
    else:
        value = shorter_path(value, 2) if name == "d" else rounded(value)
    return f' {name}="{value}"'


def smaller_bitmap(found: re.Match[str]) -> str:
    """A PNG inside a graphic as WebP, without loss, where that is smaller."""
    png, file = base64.b64decode(found[1]), io.BytesIO()
    Image.open(io.BytesIO(png)).save(file, "webp", lossless=True, quality=100)
    kind, data = min(("webp", file.getvalue()), ("png", png), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def short_names(mark: str) -> Iterator[str]:
    """a, b, ..., Z, aa, ab, ..., each followed by `mark`."""
    for length in itertools.count(1):
        yield from ("".join(letters) + mark for letters in itertools.product(string.ascii_letters, repeat=length))


def shorter_graphic(text: str, mark: str = "") -> str:
    """An SVG without metadata, indentation and names that nothing refers to, its coordinates to two decimals.

    All names end in `mark`: graphics that stand in one page, as those of a notebook do in some editors, need their own.
    """
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE[^>]*>", "", text, flags=re.DOTALL)
    text = re.sub(r"='([^'\"]*)'", r'="\1"', text)  # as notebooks have it
    text = re.sub(r"\s+", " ", BITMAP.sub(smaller_bitmap, text))
    text = LETTER_SHAPE.sub(
        lambda found: f"{found[1]}{shorter_path(found[2], 0, COARSER)}{found[3]}{0.015625 * COARSER}{found[4]}", text
    )
    text = ATTRIBUTE.sub(shorter_attribute, text)
    text = text.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    for blank in re.findall(r'<path id="([^"]*)" transform="[^"]*"/>', text):
        text = re.sub(rf'<use href="#{blank}"[^>]*/>', "", text)
    # a letter's shift along its line, as its place
    text = re.sub(r'(<use href="[^"]*") transform="translate\(([^ )]+) 0\)"/>', r'\1 x="\2"/>', text)
    used = dict.fromkeys(re.findall(r"(?:href=\"|url\()#([\w.-]+)", text))
    names = dict(zip(used, short_names(mark), strict=False))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", text)
    text = re.sub(r"((?:href=\"|url\()#)([\w.-]+)", lambda found: found[1] + names[found[2]], text)
    text = re.sub(r' style="[^"]*"', lambda found: COLOUR.sub(r"#\1\2\3", re.sub(r"([:;]) ", r"\1", found[0])), text)
    text = re.sub(r"> <", "><", text)
    text = re.sub(r"<g>(<(?:path|use|image)\b[^<>]*/>)</g>", r"\1", text)  # groups of one, of which nothing is said
    return with_classes(ALIKE.sub(alike, text), mark).strip() + "\n"


def alike(found: re.Match[str]) -> str:
    """A group of marks of one style, which is said once."""
    style = found["style"]
    if "style=" in found[1] or "opacity:" in style.replace("-opacity:", ""):  # which a group does not pass on
        return found[0]
    return f"<g{found[1]}{style}>{found[2].replace(style, '')}</g>"


def with_classes(text: str, mark: str) -> str:
    """A graphic whose styles, where several elements have the same, are classes of a sheet."""
    counts = Counter(re.findall(r' style="([^"]*)"', text))
    names = dict(zip((style for style, count in counts.items() if count > 1), short_names(mark), strict=False))
    sheet = "".join(f".{name}{{{style}}}" for style, name in names.items())
    text = re.sub(
        r' style="([^"]*)"', lambda found: f' class="{names[found[1]]}"' if found[1] in names else found[0], text
    )
    return re.sub(r"<svg[^>]*>", lambda found: f"{found[0]}<style>{sheet}</style>", text, count=1) if sheet else text


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
    """A word of code: a flag stays on one line, and a long name may break behind underscores and the dots of modules.

    Browsers themselves break a path behind its slashes; only long names in it get more places, none near the beginning.
    """
    if text.startswith("--"):
        return f'<span class="flag">{text}</span>'
    return "/".join(JOINT.sub(r"\g<0><wbr>", part) if len(part) > LONG else part for part in text.split("/"))


def listed(found: re.Match[str]) -> str:
    """A name in the narrow list of the page's names, which may break after an underscore and before a capital."""
    return found[1] + re.sub(r"(?<=\w_)(?=\w)|(?<=[a-z])(?=[A-Z])", "<wbr>", found[2])


def shorter_page(text: str, renamed: dict[str, str]) -> str:
    """A page with fewer elements in its code, and without indentation, whose formulas keep their punctuation."""
    text = re.sub(r"(?<=_images/)[\w.-]+\.png", lambda found: renamed.get(found[0], found[0]), ICONS.sub("", text))
    text = LISTED.sub(listed, text)
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
