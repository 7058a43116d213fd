"""The bibliography by author and year, in the list as in the text: a style for `references.bib`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pybtex.database import Entry, parse_file
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style
from pybtex.style.labels import BaseLabelStyle

from book.equations import HERE

STYLE = "author_year"


class Labels(BaseLabelStyle):
    """Zheng et al., 2026."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        """The label of each entry."""
        return map(label, sorted_entries)


class AuthorYear(Style):
    """Entries sorted by author and year."""

    default_label_style = Labels


def label(entry: Entry) -> str:
    """How the text cites an entry."""
    people = entry.persons["author"]
    names = [" ".join(map(str, person.rich_prelast_names + person.rich_last_names)) for person in people]
    who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    return f"{who}, {entry.fields['year']}"


def labels() -> dict[str, str]:
    """The label of every entry of `references.bib`, by its key."""
    return {key: label(entry) for key, entry in parse_file(HERE / "references.bib").entries.items()}


def register() -> None:
    """Make the style known to Sphinx by its name."""
    register_plugin("pybtex.style.formatting", STYLE, AuthorYear)
