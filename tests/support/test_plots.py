"""Pictures."""

import matplotlib
import pytest
import torch
from helpers import labels_apart
from matplotlib.figure import Figure

from farmer_ref import Farmer
from farmer_ref.support.plots import STYLE, collisions, comparison, labelled_grids, model_at_work, save_plot, set_name


def test_labels_below_axes_do_not_touch(tmp_path):
    figure = Figure(figsize=(9, 2), layout="constrained")
    numbers, names, *panels = figure.subplots(1, 4, width_ratios=[1, 2, 1, 1])
    numbers.plot([0.272, 0.334], [0, 1])
    numbers.xaxis.set_major_formatter("{x:.6f}")
    names.bar(range(4), 1)
    names.set_xticks(range(4), ["one class left out", "blank", "Fashion-MNIST", "faint"])
    for panel in panels:
        panel.plot([1000, 9000], [0, 1])
    assert not labels_apart(figure)
    save_plot(figure, tmp_path / "plot.svg")
    assert "\n" in names.get_xticklabels()[0].get_text() and len(numbers.get_xticks()) >= 2
    assert labels_apart(figure)


def test_what_is_written_beside_a_panel_keeps_away_from_the_next():
    for wspace in (STYLE["figure.constrained_layout.wspace"], 0.02):  # ours, and matplotlib's
        with matplotlib.rc_context({"figure.constrained_layout.wspace": wspace}):
            figure = Figure(figsize=(6, 2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.set(title="left", xticks=[])
        right.set(ylabel="density")
        assert ("'density' is near \"the panel 'left'\"" in collisions(figure)) == (wspace == 0.02)
    left.set(title="a title as wide as its panel and more")
    right.set(title="a title as wide beside the other one", ylabel="")
    assert "'a title as wide beside the other one' is near 'a title as wide as its panel and more'" in collisions(
        figure
    )
    covered = Figure()
    axes = covered.subplots()
    for text in ("0.9", "1.0"):
        axes.annotate(text, (0.5, 0.5))
    assert collisions(covered) == ["'0.9' covers '1.0'"]


def test_symbols_in_names_of_rows_are_mathematics():
    assert set_name("both, resampling, Z_R ~ N(0, I)") == r"both, resampling, $Z_R \sim N(0, I)$"
    assert set_name("PCA, I = 12, Z_R ~ N(0, I), 600 steps") == "PCA, $I = 12$, $Z_R \\sim N(0, I)$, 600\nsteps"
    assert set_name("pixels and a long name, Z_R ~ N(0, I)") == "pixels and a long name,\n$Z_R \\sim N(0, I)$"
    assert set_name("$Z_R$: N(0, I)") == "$Z_R$: N(0, I)"  # which are set already
    assert set_name("I = 4, no split") == "$I = 4$, no split" and set_name("x 0.2") == "× 0.2"


def test_one_measure_has_a_figure_too():
    rows = [{"name": name, "bits_per_dim": {"mean": 2.0, "seeds": [1.9, 2.1]}} for name in ("one", "other")]
    (panel,) = comparison(rows, {"bits_per_dim": "bits/dim"}).axes
    assert panel.get_title() == "bits/dim" and len(panel.lines) == 4
    timed = [row | {"seconds_per_image": {"forward": 0.001, "prior": 0.002, "back": 0.003}} for row in rows]
    *_, panel = comparison(timed, {"bits_per_dim": "bits/dim"}).axes
    assert [bar.get_width() for bar in panel.patches] == [2, 2, 3, 3]  # of both rows the prior, then the inverse


@pytest.mark.filterwarnings("error")
def test_a_model_at_work_is_drawn_without_a_warning():
    figure = model_at_work(Farmer.from_pretrained("digits"), torch.zeros(1, 8, 8), label=3, token=7)
    assert [axes.get_title() for axes in figure.axes][1:3] == ["tokens X", "latents Z"]


def test_marked_images_have_a_frame():
    grids = {"one": torch.zeros(6, 1, 8, 8), "other": torch.zeros(6, 1, 8, 8)}
    marked = {"other": torch.tensor([False, False, False, False, True, False])}
    first, second = labelled_grids(grids, columns=3, marked=marked).axes
    assert not first.patches
    (frame,) = second.patches
    assert frame.get_xy() == (42.5, 42.5)  # the second row and column, 40 pixels and a gap each
    assert (frame.get_width(), frame.get_height()) == (42, 42)
