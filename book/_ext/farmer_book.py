"""What the book adds to Sphinx: docstrings as the package writes them, their formulas set as formulas, names in prose
that link to the code, words of notebooks that the glossary explains, and slides.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from book import bibliography, formulas, live, signatures
from book.equations import CITATION, REPOSITORY, anchor, cited, entries, read

NOT_FARMERS = read()["other_papers"]
LISTED = {anchor(cite) for entry in entries() for cite in [entry["cite"], *cited(entry["cite"])]}
FIELDS = {  # how prose writes a method of an object
    "model.flow.": "AutoregressiveFlow.",
    "model.prior.": "AutoregressivePrior.",
    "model.patchify.": "Patchify.",
    "model.": "Farmer.",
    "flow.": "AutoregressiveFlow.",
    "prior.": "AutoregressivePrior.",
    "student.": "OneStepStudent.",
}
# A line on one argument, or on errors: a paragraph of its own.
STARTS = re.compile(r"`\w+`(?:, [^:`]{1,20})?: |Raises ")
CODE_OR_FLAG = re.compile(r"`[^`]+`|(?<![\w-])(?P<flag>--[a-z](?:[\w.-]*\w)?)")


def escaped(text: str) -> str:
    """Plain text as reStructuredText; *words* stay emphasised, with a full stop that ends them."""
    text = re.sub(r"([\\*|_`])", r"\\\1", text)
    return re.sub(r"(?<![\w*])\\\*(\w(?:[^*]*[\w.])?)\\\*(?![\w*])", r"*\1*", text)


def inline(text: str, name: str) -> str:
    """A paragraph of a docstring: `code` and flags as code, citations of the paper's equations as links."""
    text = CODE_OR_FLAG.sub(lambda found: f"`{found['flag']}`" if found["flag"] else found[0], text)
    parts = []
    for position, part in enumerate(re.split(r"`([^`]+)`", text)):
        if position % 2:
            parts.append(f"``{part}``")
            continue
        end = 0
        for match in CITATION.finditer(part):
            parts.append(escaped(part[end : match.start()]))
            target, end = anchor(cited(match[0])[0]), match.end()
            others = cited(match[0])[0] in NOT_FARMERS.get(name, [])
            parts.append(escaped(match[0]) if others or target not in LISTED else f":ref:`{match[0]} <{target}>`")
        parts.append(escaped(part[end:]))
    return re.sub(r"^([-+]|\d+\.) ", r"\\\1 ", "".join(parts))


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Paragraphs as text, indented lines and examples as they stand: the package's docstrings are plain text."""
    if lines and lines[0].startswith("Alias for field number"):  # what Python says of a named tuple's fields
        lines.clear()
    blocks: list[list[str]] = [[]]
    for line in lines:
        example = blocks[-1] and blocks[-1][0].startswith(">>> ")  # whatever it prints, up to an empty line
        other = not example and blocks[-1] and line.startswith("  ") != blocks[-1][-1].startswith("  ")
        other = other or (not example and STARTS.match(line))
        if other or not line.strip():
            blocks.append([])
        if line.strip():
            blocks[-1].append(line)
    lines.clear()
    for block in filter(None, blocks):
        if block[0].startswith(">>> "):
            lines += [*block, ""]
        elif block[0].startswith("  "):
            lines += ["::", "", *block, ""]
        else:
            lines += [inline(re.sub(r" {2,}", " ", " ".join(block)), name), ""]


def set_formulas(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Formulas in plain text as formulas: of docstrings all, elsewhere those of generated tables."""
    formulas.set_formulas(doctree, everywhere=docname.split("/")[0] == "api")


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Code in prose that is a name of the package, a file of it or one of its commands links to the reference."""
    known = app.env.get_domain("py").objects
    short: dict[str, set[str]] = {}
    for full in known:
        parts = full.split(".")
        for first in range(1, len(parts)):
            short.setdefault(".".join(parts[first:]), set()).add(full)

    def target(text: str) -> str | None:
        command = re.match(r"python -m (farmer_ref\.\w+)", text)
        if command:
            text = command[1]
        text = re.sub(r"\(.*\)$", "", text)
        if text in known:
            return text
        text = next((cls + text[len(var) :] for var, cls in FIELDS.items() if text.startswith(var)), text)
        found = short.get(text, set())
        telling = "." in text or "_" in text or text != text.lower()
        return next(iter(found)) if len(found) == 1 and telling else None

    def uri(text: str) -> str | None:
        file = re.fullmatch(r"(?:farmer_ref/)?((?:\w+/)?\w+)\.py", text)
        if file and f"farmer_ref.{file[1].replace('/', '.')}" in known:
            return f"{REPOSITORY}/blob/main/farmer_ref/{file[1]}.py"
        full = target(text)
        if full is None:
            return None
        entry = known[full]
        return f"{app.builder.get_relative_uri(docname, entry.docname)}#{entry.node_id}"

    for literal in list(doctree.findall(nodes.literal)):
        above, inside = literal.parent, []
        while above is not None:
            inside.append(type(above))
            above = above.parent
        if nodes.reference in inside or nodes.title in inside:
            continue
        address = uri(literal.astext())
        if address is not None:
            reference = nodes.reference("", "", internal=True, refuri=address, classes=["code-name"])
            literal.replace_self(reference)
            reference += literal


def source_of(domain: str, about: dict[str, str]) -> str | None:
    """Where the repository has the code of a documented name, for its [source] link."""
    if domain != "py" or not about["module"]:
        return None
    thing = importlib.import_module(about["module"])
    address = f"{REPOSITORY}/blob/main/{about['module'].replace('.', '/')}.py"
    try:
        thing = inspect.unwrap(functools.reduce(getattr, about["fullname"].split("."), thing))
        lines, first = inspect.getsourcelines(thing)
    except (AttributeError, TypeError, OSError):  # a field, a value, a method that Python makes
        return None
    return f"{address}#L{first}-L{first + len(lines) - 1}"


def explained(app: Sphinx) -> dict[str, tuple[str, str]]:
    """Every word of the glossary, lower case: its anchor, and the first sentence of what it means."""
    found = {}
    for item in app.env.get_doctree("glossary").findall(nodes.definition_list_item):
        *terms, definition = item.children
        meaning = re.sub(r" \((?:Eqs?|Alg)\.[^)]*\)", "", " ".join(definition.astext().split()))
        for term in terms:
            first = re.match(r".+?\.(?= |$)", meaning)
            found[term.astext().lower()] = (term["ids"][0], first[0] if first else meaning)
    return found


def explain_words(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """In a notebook, the first use of each word of the glossary links there, and shows its meaning on hover."""
    if not docname.startswith("notebooks/"):
        return
    meanings = explained(app)
    longest_first = "|".join(sorted(map(re.escape, meanings), key=len, reverse=True))
    word = re.compile(rf"\b({longest_first})\b", re.IGNORECASE)
    glossary = app.builder.get_relative_uri(docname, "glossary")
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.paragraph | nodes.emphasis | nodes.strong):
            continue
        parts: list[nodes.Node] = []
        end, plain = 0, text.astext()
        for match in word.finditer(plain):
            if (known := meanings.pop(match[0].lower(), None)) is None:
                continue
            anchor_there, meaning = known
            address = f"{glossary}#{anchor_there}"
            link = nodes.reference("", match[0], internal=True, refuri=address, reftitle=meaning, classes=["explained"])
            parts += [nodes.Text(plain[end : match.start()]), link]
            end = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(plain[end:])])


def settle(app: Sphinx, config: Config) -> None:
    """What _config.yml cannot say: a function, and what an extension says after it."""
    config.linkcode_resolve = source_of
    config.mathjax_path = "mathjax/startup.js"  # in place of a bundle, much of which is a menu that the book hides


def without_needless_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Without a service that runs code from the page, which this book does not offer, and without the live page's
    and the slides' scripts, which Jupyter Book finds in _static: the pages that need them load them (`Live`, `Slides`).
    """
    context["script_files"] = [
        script
        for script in context["script_files"]
        if not re.search(r"thebe|_static/(live|slides)/", f"{script.filename} {script.attributes.get('body')}".lower())
    ]


class Live(SphinxDirective):
    """```{live} draw```: a widget of the live page; the first of a page loads the scripts."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The widget's place, and what it needs."""
        name, folder = self.arguments[0], "../" * self.env.docname.count("/") + "_static/live/"
        if name not in live.WIDGETS:
            raise self.error(f"live is {name!r}; allowed: {', '.join(live.WIDGETS)}")
        found = f'<div data-farmer="{name}"></div>'
        if not self.env.temp_data.get("live"):
            self.env.temp_data["live"] = True
            scripts = "".join(f'<script src="{folder}{script}" defer></script>' for script in live.LOADED)
            found += f'<link rel="stylesheet" href="{folder}live.css">{scripts}'
        return [nodes.raw("", found, format="html")]


class Slides(SphinxDirective):
    """```{slides}```: the page's sections are slides, to be shown one at a time."""

    def run(self) -> list[nodes.Node]:
        """The button that starts them, and the script behind it."""
        script = "../" * self.env.docname.count("/") + "_static/slides/slides.js"
        bar = (
            '<p class="slides-bar"><button class="present">Present</button> '
            "arrow keys turn the slides, Escape ends; print while presenting for a PDF</p>"
        )
        sheet = f'<link rel="stylesheet" href="{script.removesuffix("js")}css">'
        return [nodes.raw("", f'{bar}{sheet}<script src="{script}" defer></script>', format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    bibliography.register()
    signatures.setup(app)
    app.add_directive("live", Live)
    app.add_directive("slides", Slides)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("config-inited", settle)
    app.connect("doctree-resolved", set_formulas)
    app.connect("doctree-resolved", link_names)
    app.connect("doctree-resolved", explain_words)
    app.connect("html-page-context", without_needless_scripts, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
