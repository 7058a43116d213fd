"""The drawings: each can be made, as a vector graphic, and the names on them are the package's."""

import importlib
import inspect
import io
import pkgutil
import re
import warnings

import pytest

import farmer_ref
from farmer_ref.support.drawings import CODE, drawings

SOURCES = "\n".join(
    inspect.getsource(importlib.import_module(module.name))
    for module in pkgutil.walk_packages(farmer_ref.__path__, "farmer_ref.")
    if module.name.split(".")[1] == "model"
)


def texts(figure):
    return [text for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("draw", drawings(), ids=lambda draw: draw.__name__)
def test_a_drawing_is_a_vector_graphic_with_a_description(draw):
    with warnings.catch_warnings(), io.StringIO() as file:
        warnings.simplefilter("error")
        draw().savefig(file, format="svg")
        drawn = file.getvalue()
    assert "<image" not in drawn and len(drawn) < 200_000
    assert len(inspect.getdoc(draw)) > 60


@pytest.mark.parametrize("draw", drawings(), ids=lambda draw: draw.__name__)
def test_names_on_a_drawing_are_in_the_code(draw):
    """`FlowBlock.inverse` needs a class FlowBlock, and something that is called inverse."""
    written = [text.get_text() for text in texts(draw()) if text.get_color() == CODE["color"]]
    assert written
    for line in written:
        for name in re.findall(r"\b(?:[A-Z]\w+|\w*_\w+)\b", re.sub(r"\$[^$]*\$", "", line)):
            assert re.search(rf"\b{name}\b", SOURCES), (line, name)


def test_everything_written_is_on_the_page():
    for draw in drawings():
        figure = draw()
        figure.draw_without_rendering()
        page = figure.bbox.padded(2)
        for text in texts(figure):
            box = text.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()
