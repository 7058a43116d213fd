"""Signatures of the reference as a reader needs them: plain types, no value longer than a line, few broken lines.

Sphinx shows what Python knows: the limits in `Annotated[int, Field(ge=2)]`, which messages and `--help` say in words,
marks such as `Positional[str]`, the modules of an alias's types, values of any length, and what pydantic tells of each
of its classes.
"""

from __future__ import annotations

import ast
import re
import sys
from typing import Annotated, Any, Literal, get_origin

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.autodoc import AttributeDocumenter

LINE = 84  # characters that fit side by side at 1,280 pixels, "[source]" among them
TYPE = "   :type: "  # how autodoc hands on the type of an attribute
# Around a type: they concern the command line, a type checker, a dataclass.
MARKS = ("Positional", "Unpack", "ClassVar")
MODULE = re.compile(r"\bfarmer_ref\.(?:\w+\.)+(?=[A-Z])")  # before the name of a class


class Plain(ast.NodeTransformer):
    """Types without what is said beside them, and parameters without a default that is longer than a line.

    `aliases` are names of such types and of choices, with the type alone or the choices.
    """

    def __init__(self, aliases: dict[str, str]) -> None:
        self.aliases = aliases

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Count = Annotated[int, ...] is int, and Kind = Literal["a", "b"] the latter."""
        return ast.parse(self.aliases.get(node.id, node.id), mode="eval").body

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Annotated[int, ...] and Positional[int] are int."""
        self.generic_visit(node)
        annotated = isinstance(node.slice, ast.Tuple) and ast.unparse(node.value).endswith("Annotated")
        marked = ast.unparse(node.value).split(".")[-1] in MARKS
        return node.slice.elts[0] if annotated else node.slice if marked else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """~int is int: Sphinx marks names so whose module is not shown."""
        self.generic_visit(node)
        return node.operand if isinstance(node.operand, ast.Name | ast.UnaryOp | ast.BinOp) else node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        """A long default is an ellipsis."""
        self.generic_visit(node)
        node.defaults = [fitting(default) for default in node.defaults]
        node.kw_defaults = [default and fitting(default) for default in node.kw_defaults]
        return node


def fitting(default: ast.expr) -> ast.expr:
    """A default, or an ellipsis where it is longer than a line."""
    return ast.Constant(...) if len(ast.unparse(default)) > LINE else default


def plain_type(text: str, cls: Any = None) -> str:
    """A type as Python writes it, without what is said beside it; `cls` is the class whose attribute has it."""
    return ast.unparse(Plain(aliases_of(cls)).visit(ast.parse(text, mode="eval")))


def plain_parameters(text: str, cls: Any = None) -> str:
    """The parameters of a signature; a default that is made anew for each object is an ellipsis."""
    function = ast.parse(f"def function{text.replace('<factory>', '...')}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    return f"({ast.unparse(Plain(aliases_of(cls)).visit(function.args))})"


def aliases_of(cls: Any) -> dict[str, str]:
    """The names that the modules of a class and of its bases have for types of which more is said, and for choices."""
    modules = [vars(sys.modules[base.__module__]) for base in getattr(cls, "__mro__", ())]
    named = [(name, value) for module in modules for name, value in module.items()]
    plain = {name: value.__origin__.__name__ for name, value in named if get_origin(value) is Annotated}
    choices = {name: f"Literal{list(value.__args__)}" for name, value in named if get_origin(value) is Literal}
    return plain | choices


def plain_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, parameters: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """For autodoc: none where Python knows nothing of the parameters, as of a protocol's."""
    if not parameters:  # of a module or an attribute
        return None
    if parameters == "(*args, **kwargs)":
        return "", None
    return plain_parameters(parameters, obj), returned and plain_type(returned)


class Attribute(AttributeDocumenter):
    """An attribute with a plain type."""

    def add_line(self, line: str, source: str, *numbers: int) -> None:
        """One line of what autodoc hands on."""
        plain = TYPE + plain_type(line.removeprefix(TYPE), self.parent) if line.startswith(TYPE) else line
        super().add_line(plain, source, *numbers)


def skip_pydantic_s(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """For autodoc: without what every pydantic model has, whose documentation is pydantic's."""
    return True if name == "model_config" and isinstance(obj, dict) else None


def one_code(app: Sphinx, domain: str, kind: str, content: addnodes.desc_content) -> None:
    """In "alias of dict[str, int]", the type is one piece of code, in place of one for each name."""
    for paragraph in content.findall(nodes.paragraph):
        if paragraph.astext().startswith("alias of "):
            for literal in list(paragraph.findall(nodes.literal)):
                literal.replace_self(nodes.inline("", "", *literal.children))
            words, *kind_of = paragraph.children
            paragraph.children = []
            paragraph += [words, nodes.literal("", "", *kind_of)]


def fit_lines(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Signatures on one line where they fit, else one parameter a line; values unless they are longer than a line."""
    for signature in doctree.findall(addnodes.desc_signature):
        for value in list(signature.findall(addnodes.desc_annotation)):
            if value.astext().startswith(" = ") and len(value.astext()) > LINE:
                signature.remove(value)
            for text in list(value.findall(nodes.Text)):
                if (short := MODULE.sub("", text)) != text:
                    text.parent.replace(text, nodes.Text(short))
        for parameters in signature.findall(addnodes.desc_parameterlist):
            parameters["multi_line_parameter_list"] = len(signature.astext()) > LINE


def setup(app: Sphinx) -> None:
    """Called by the extension of the book."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_autodocumenter(Attribute, override=True)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-skip-member", skip_pydantic_s)
    app.connect("object-description-transform", one_code)
    app.connect("doctree-resolved", fit_lines)
