"""What the paper numbers, where the code has it, and what checks it: `equations.yml`, read and made into a page.

`tests/project/test_book.py` keeps the list complete (`paper_items.yml` is the paper's own) and true in both directions:
what it names exists and cites the equation, and what cites an equation is named.
"""

from __future__ import annotations

import ast
import functools
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent
REPOSITORY = "https://github.com/farmer-ref/farmer_ref"
CITATION = re.compile(
    r"\b(?:(Eq|Alg|Fig)s?\.|(Table|Figure)s?)\s+(\d+[a-z]?(?:(?:-|\s+to\s+|,\s+|\s+and\s+)\d+[a-z]?)*)\b"
)


def entries() -> list[dict[str, Any]]:
    """Every entry of the list: `cite` ("Eq. 8"), `about`, `code` and `tests`, or `no_code`, the reason."""
    return [entry for part in read()["parts"] for entry in part["entries"]]


@functools.cache
def paper_items() -> dict[str, dict[str, Any]]:
    """The paper's own numbered items: what each `says`, and `words`, patterns of which one stands beside a citation."""
    return yaml.safe_load((HERE / "paper_items.yml").read_text(encoding="utf-8"))


def read() -> dict[str, Any]:
    """The whole file: `parts`, and `other_papers`, the citations in docstrings that are not of FARMER's equations."""
    return yaml.safe_load((HERE / "equations.yml").read_text(encoding="utf-8"))


def cited(text: str) -> list[str]:
    """What a text cites, ranges written out: "Eqs. 8-10 and Figure 6a" is Eq. 8, Eq. 9, Eq. 10 and Fig. 6."""
    found = []
    for short, word, numbers in CITATION.findall(text):
        kind = {"Table": "Table", "Figure": "Fig."}.get(word, f"{short}.")
        for part in re.split(r",\s+|\s+and\s+", re.sub(r"(?<=\d)[a-z]", "", numbers)):
            first, *last = re.split(r"-|\s+to\s+", part)
            found += [f"{kind} {number}" for number in range(int(first), int((last or [first])[0]) + 1)]
    return found


def docstrings(folder: Path = ROOT / "farmer_ref") -> dict[str, str]:
    """The docstring of every module, class and function of the package, by full name.

    That of a function inside a function, which cannot be imported, is added to the outer one's.
    """
    found: dict[str, str] = {}

    def visit(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> None:
        found[name] = f"{found.get(name, '')}\n{ast.get_docstring(node) or ''}".strip()
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                visit(child, name if isinstance(node, ast.FunctionDef) else f"{name}.{child.name}")

    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        visit(ast.parse(path.read_text(encoding="utf-8")), ".".join(part for part in parts if part != "__init__"))
    return found


def anchor(cite: str) -> str:
    """The label of an entry in the book: "Eq. 8" is eq-8."""
    return re.sub(r"\W+", "-", cite.lower().replace("§", "section-")).strip("-")


def page() -> str:
    """The list as Markdown: what the paper numbers, and every entry with links into the code and to its tests."""
    coded = {cite: "no_code" not in entry for entry in entries() for cite in cited(entry["cite"])}
    lines = ["| item | the paper says | here |", "|-|-|-|"]
    for cite, item in paper_items().items():
        lines.append(f"| [{cite}](#{anchor(cite)}) | {item['says']} | {'code' if coded[cite] else 'no code'} |")
    lines.append("")
    taken = {anchor(entry["cite"]) for entry in entries()}  # each item has one place to link to
    for part in read()["parts"]:
        lines += [f"## {part['title']}", ""]
        for entry in part["entries"]:
            anchors = dict.fromkeys([anchor(entry["cite"]), *map(anchor, cited(entry["cite"]))])
            own = [name for name in anchors if name == anchor(entry["cite"]) or name not in taken]
            taken.update(own)
            lines += [
                *(f"({name})=" for name in own),
                f"### {entry['cite']} · {entry['title']}",
                "",
                entry["about"].strip(),
                "",
            ]
            if "no_code" in entry:
                lines += [f"- No code of its own: {entry['no_code'].strip()}"]
            else:
                code = [f"{{py:obj}}`{short(name)} <{defined(name)}>`" for name in entry["code"]]
                lines += [f"- In the code: {', '.join(code)}"]
            tests = [
                f"[`{test.split('::')[1]}`]({REPOSITORY}/blob/main/tests/{test.split('::')[0]})"
                for test in entry.get("tests", ())
            ]
            lines += [*([f"- Checked by: {', '.join(tests)}"] if tests else []), ""]
    return "\n".join(lines)


def defined(name: str) -> str:
    """The full name of a thing where its source is: a method that a class inherits is documented at its base."""
    thing = pkgutil.resolve_name(name)
    return f"{thing.__module__}.{thing.__qualname__}" if inspect.isfunction(thing) else name


def short(name: str) -> str:
    """A full name without its package and modules, FlowBlock.forward; of a command, with it: train.main."""
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part != part.lower()), len(parts) - 1)
    return ".".join(parts[1 if name.endswith(".main") else first :])
