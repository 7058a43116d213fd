"""Settings classes and JSON, checked by pydantic; what is not allowed becomes one line.

Annotations say what is allowed: types, ranges (`Annotated[int, Field(ge=2, le=256)]`), choices (`Literal`), classes
inside classes. Types are strict ("3" is not 3; a whole number will do for a float), numbers are finite, unknown fields
are refused.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import pydantic.dataclasses
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from farmer_ref.support.errors import InputError, shown

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Whole = Annotated[int, Field(ge=0, lt=2**63)]  # a count or a seed that fits into 64 bits
Count = Annotated[int, Field(ge=1, le=1_000_000)]  # repetitions, each of which takes time or memory
CountOrNone = Annotated[int, Field(ge=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
ThreadCount = Annotated[int, Field(ge=1, le=1024)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(ge=0, le=1_000_000)]  # a temperature, say: products of them must fit into float32
PositiveFactor = Annotated[float, Field(gt=0, le=1_000_000)]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def settings_class(cls: type | None = None, *, known_as: str = "") -> Any:
    """Make a frozen dataclass with fields given by name, which raises `InputError` for a value that is not allowed.

    What the annotations cannot say, a short `__post_init__` checks with `require`. `known_as` is the field under which
    other settings hold this class: messages then name `known_as.field`, as the command line does.
    """
    if cls is None:
        return functools.partial(settings_class, known_as=known_as)
    if "__post_init__" in vars(cls):
        cls.__post_init__ = _for_pydantic(cls.__post_init__)
    made = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def __init__(self: Any, *arguments: Any, **values: Any) -> None:
        try:
            validate(self, *arguments, **values)
        except ValidationError as error:
            raise InputError(_line(error, made, known_as)) from None

    made.__init__ = __init__
    return made


def parse_json(kind: Any, content: bytes | str, *, known_as: str = "") -> Any:
    """JSON as a value of the type `kind`. Raises `InputError`; `known_as` goes before the names of fields."""
    try:
        return _adapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        raise InputError(_line(error, kind, known_as)) from None


def allowed_of(kind: Any, name: str) -> str:
    """What a settings class allows in a field, in words; dots lead into the classes inside it."""
    found = _allowed(_at(kind, name.split(".")))
    several = get_origin(found.kind) is tuple
    one = str(_allowed(get_args(found.kind)[0])) if several else str(found)
    return {"a whole number": "whole numbers"}.get(one, f"any number of: {one}") if several else one


_adapter = functools.cache(TypeAdapter)


def _for_pydantic(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A `__post_init__` whose `InputError` pydantic takes for a finding of its own, and adds where it was."""

    @functools.wraps(check)
    def checked(self: Any) -> None:
        try:
            check(self)
        except InputError as error:
            raise ValueError(str(error)) from None

    return checked


# -- pydantic's findings in our words ----------------------------------------------------------------------------------


class _Allowed(NamedTuple):
    """What an annotation allows: its type without notes, bounds by their name in pydantic, and whether None will do."""

    kind: Any
    bounds: dict[str, float]
    optional: bool

    @property
    def range(self) -> str:
        """The bounds in words."""
        bounds = dict(self.bounds)
        if self.kind is int:  # the next whole number, for a bound that is not allowed itself
            bounds |= {"ge": bounds["gt"] + 1} if "gt" in bounds else {}
            bounds |= {"le": bounds["lt"] - 1} if "lt" in bounds else {}
        low = "ge" if "ge" in bounds else "gt"
        high = "le" if "le" in bounds else "lt"
        words = {
            ("ge", "le"): "{ge:,} to {le:,}",
            ("ge", "lt"): "{ge:,} up to (not including) {lt:,}",
            ("gt", "le"): "above {gt:,} and at most {le:,}",
            ("gt", "lt"): "above {gt:,} and below {lt:,}",
            ("ge", None): "{ge:,} or more",
            ("gt", None): "above {gt:,}",
            (None, "le"): "at most {le:,}",
            (None, "lt"): "below {lt:,}",
            (None, None): "",
        }
        return words[low if low in bounds else None, high if high in bounds else None].format_map(bounds)

    def __str__(self) -> str:
        names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
        if get_origin(self.kind) is Literal:
            words = ", ".join(map(str, get_args(self.kind)))
        elif get_origin(self.kind) in (tuple, list):
            words = "a list [...]"
        else:
            words = names.get(self.kind, "an object {...}")
        return ", ".join(filter(None, [words, self.range])) + ", or None" * self.optional


def _line(error: ValidationError, kind: Any, known_as: str) -> str:
    """The first finding as one line."""
    found = error.errors(include_url=False)[0]
    where, given, context = found["loc"], shown(found["input"]), found.get("ctx", {})
    name = _name([known_as, *where] if known_as else where)
    match found["type"]:
        case "json_invalid":
            return f"content is not JSON ({context['error']}); allowed: JSON"
        case "value_error":  # of a __post_init__, which knows the names of its own fields
            return f"{name}." * bool(name) + str(context["error"])
        case "missing":
            return f"{name} is missing; allowed: {_allowed(_at(kind, where))}"
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"field is '{name}'; allowed: {', '.join(_fields(_at(kind, where[:-1])))}"
        case "unexpected_positional_argument":
            return f"argument {int(where[0]) + 1} of {known_as or 'settings'} is {given}; allowed: values given by name"
        case "dataclass_exact_type":  # from Python
            return f"{name} is {given}; allowed: {context['class_name']}(...)"
    allowed = _allowed(_at(kind, where))
    in_range = found["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
    return f"{name or 'content'} is {given}; allowed: {allowed.range if in_range else allowed}"


def _name(where: Sequence[str | int]) -> str:
    """A field's name as people write it: model.flow_width, rows[3].name."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{shown(part)[1:-1]}" for part in where)
    return "".join(parts).removeprefix(".")


def _allowed(annotation: Any) -> _Allowed:
    optional, bounds = False, {}
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation, *notes = arguments
            for bound in [part for note in notes for part in getattr(note, "metadata", [note])]:
                bounds |= {name: getattr(bound, name) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name)}
        elif origin in (Union, types.UnionType) and type(None) in arguments:
            annotation, optional = next(kind for kind in arguments if kind is not type(None)), True
        else:
            return _Allowed(annotation, bounds, optional)


def _fields(annotation: Any) -> dict[str, Any]:
    """The annotations of the fields of a class that pydantic knows, by name."""
    known = getattr(_allowed(annotation).kind, "__pydantic_fields__", {})
    return {name: Annotated[field.annotation, *field.metadata, ""] for name, field in known.items()}


def _at(annotation: Any, where: Sequence[str | int]) -> Any:
    """The annotation of the field at a place in `annotation`."""
    for part in where:
        kind = _allowed(annotation).kind
        if get_origin(kind) in (tuple, list, dict):
            arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
            annotation = arguments[min(int(part), len(arguments) - 1)] if isinstance(part, int) else arguments[-1]
        else:
            extra = get_type_hints(kind).get("__pydantic_extra__", dict[str, Any])  # of other names than the fields'
            annotation = _fields(kind).get(str(part), get_args(extra)[-1])
    return annotation
