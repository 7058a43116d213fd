"""Formulas in plain text, as docstrings and the names of rows write them, set as formulas: `p_c (p_c / p_u)^w`.

A letter is italic, what follows its _ or ^ is lowered or raised, mu and sigma are the Greek letters, and a name of the
code or a path is code. Each is set by itself, so nothing need be known of where a formula begins and ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes

GREEK = {"mu": "μ", "sigma": "σ", "pi": "π", "phi": "φ", "Phi": "Φ"}
LARGE = {"sum": "∑", "prod": "∏"}
SIGNS = {">=": "≥", "<=": "≤", "->": "→", " * ": " · ", " - ": " − ", " o ": " ∘ ", "-": "−"} | LARGE
PRIME = "['\u2019]"  # as it is typed, and as typographers' quotes have it
RAISED = r"\^(?P<raised>\{[^}]*\}|\([^)]*\)|-?\w+)"
TOKEN = re.compile(
    rf"""
    (?<![\w\\])(?<!(?<!\.)\.)(?<!\w-)(?<!\w{PRIME})(?:
        (?P<letter>mu|sigma|[Pp]hi|pi|d[txzXZ]|[B-Zb-z](?!\.\w)|[Aa](?=[_^])|A(?=[ ]=|[ ][a-z]_))
        (?P<prime>{PRIME}(?!\w))?
        (?:_(?P<lowered>\{{[^}}]*\}}|<?[A-Za-z0-9]{{1,5}}(?:{PRIME}(?!\w)|,[a-z]\b)?))?
        (?:{RAISED})?
        (?P<more>(?:,[\w.+*\u2026]+)*)  # a shape: B,N,D
    |
        (?P<function>max|sum|prod|logsumexp|grad)_(?P<over>[a-z]{{1,2}}{PRIME}?)
    |
        (?P<logarithm>log)(?P<base>2|10)
    |
        (?P<code>(?:[\w-]+/)+[\w-]+\.[a-z]\w*|(?:\w+\.)*\.?[A-Za-z0-9]{{2,}}\w*_\w+(?:\.\w+)*(?:=\w+)?)
    )(?![\w])
    |
    (?<=[\w)\]}}|]){RAISED.replace("raised", "power")}
    |
    (?P<sign>[<>]=|(?<=[ ])->|[ ][*o-][ ]|-(?=log(?:2|10)?\b)|(?<=\()-(?=[a-z]\b)|(?<!\w[A-Z])(?<=[A-Z])-(?=1\b)
        |\bsum(?=[ ](?:log\b|[a-z]\b[)^])))
    """,
    re.VERBOSE,
)
LETTERS = re.compile(
    r"(?<![\w.])((?:d[txzXZ]|[A-Za-zμσπφΦ])(?:,[A-Za-z])*)(?![\w.])"
)  # of a shape, which has words and numbers, too
PLAIN = re.compile(rf"\b(?:\w|mu|sigma|pi)_|\^|\b[A-Z]{PRIME}?\s[=~]\s")  # what no prose has


def script(text: str) -> str:
    """What is lowered or raised, without the braces that hold it together."""
    text = re.sub(r"^\{(.*)\}$|^\((.*)\)$", r"\1\2", text).replace("'", "′").replace("\u2019", "′").replace("-", "−")
    return re.sub(r"[A-Za-z]+", lambda word: GREEK.get(word[0], word[0]), text)


def shape(text: str) -> Iterator[nodes.Node]:
    """B,heads,N,1: only the letters are italic."""
    for position, part in enumerate(LETTERS.split(text)):
        if part:
            yield nodes.emphasis("", part) if position % 2 else nodes.Text(part)


def typeset(text: str) -> Iterator[nodes.Node]:
    """A text in pieces, those of its formulas as they are set."""
    end = 0
    for token in TOKEN.finditer(text):
        if token.start() > end:
            yield nodes.Text(text[end : token.start()])
        end, plain = token.end(), not (token["lowered"] or token["raised"] or token["prime"])
        if token["letter"]:
            letter = GREEK.get(token["letter"], token["letter"]) + ("′" if token["prime"] else "")
            yield from shape(letter + token["more"]) if plain else (nodes.emphasis("", letter),)
        if token["logarithm"]:
            yield nodes.Text(token["logarithm"])
        if token["code"]:
            yield nodes.literal("", token["code"])
        if token["function"]:
            yield nodes.Text(LARGE.get(token["function"], token["function"]))
        if token["sign"]:
            yield nodes.Text(SIGNS[token["sign"]])
        for below in filter(None, (token["lowered"], token["over"], token["base"])):
            yield nodes.subscript("", script(below))
        for above in filter(None, (token["raised"], token["power"])):
            yield nodes.superscript("", script(above))
        if token["more"] and not plain:
            yield from shape(token["more"])
    if end < len(text):
        yield nodes.Text(text[end:])


def set_formulas(document: nodes.document, everywhere: bool) -> None:
    """Set the formulas of a page's paragraphs: everywhere, or where one has what no prose has."""
    for text in list(document.findall(nodes.Text)):
        plain = text.astext()
        if isinstance(text.parent, nodes.paragraph | nodes.emphasis | nodes.strong) and (
            everywhere or PLAIN.search(plain)
        ):
            text.parent.replace(text, list(typeset(plain)))
