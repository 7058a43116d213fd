"""Drawings of the machine, by code and in one style: the parts of the method with their names in the package.

Each function returns a figure, and its docstring is the text that the book gives it. Like the formulas, drawings count
tokens from 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from farmer_ref.support.plots import COLOURS, STYLE

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, INK = COLOURS
GREY, PALE = "#6b6b6b", "#f1eef6"
DRAWING = STYLE | {"axes.grid": False}
X_COLOUR, Z_COLOUR = "#fdd0a2", "#c6c3e6"  # tokens, latents
CODE = {"family": "DejaVu Sans Mono", "color": "#5e3c99", "fontsize": 8.5}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A page of width by height units, each .6 inches, without axes."""
    figure = Figure(figsize=(0.6 * width, 0.6 * height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return figure, axes


def box(
    axes: Axes, place: tuple[float, float], size: tuple[float, float], text: str, *, code: str = "", fill: str = PALE
) -> None:
    """A rounded box centred at a place, with a text and, below it, a name of the code."""
    (x, y), (width, height) = place, size
    corner = (x - width / 2, y - height / 2)
    shape = "round,pad=0,rounding_size=.18"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=shape, fc=fill, ec=INK, lw=1.1))
    axes.text(x, y + (0.19 if code else 0), text, ha="center", va="center")
    if code:
        axes.text(x, y - 0.26, code, ha="center", va="center", **CODE)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    colour: str = INK,
    dashed: bool = False,
) -> None:
    """An arrow between two places."""
    line = {"color": colour, "lw": 1.2, "linestyle": "--" if dashed else "-", "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, **line))


def token(axes: Axes, place: tuple[float, float], text: str, *, fill: str, width: float = 0.9) -> None:
    """A token: a square with its name."""
    x, y = place
    axes.add_patch(Rectangle((x - width / 2, y - 0.36), width, 0.72, fc=fill, ec=INK, lw=1.1))
    axes.text(x, y, text, ha="center", va="center")


def squares(axes: Axes, corners: list[tuple[float, float]], side: float, *, fill: str) -> None:
    """Squares of one colour, by their lower left corners, as one path."""
    if corners:
        paths = [Path.unit_rectangle().transformed(Affine2D().scale(side).translate(*corner)) for corner in corners]
        axes.add_patch(PathPatch(Path.make_compound_path(*paths), fc=fill, ec=GREY, lw=0.7, alpha=0.85))


def label(axes: Axes, place: tuple[float, float], text: str, **options: Any) -> None:
    """A name of the code."""
    axes.text(*place, text, **{"ha": "left", "va": "center", **CODE, **options})


def flow_block() -> Figure:
    """One block of the flow: a causal network reads the tokens, its outputs move one token to the right, and shift and
    scale the tokens; the inverse goes token by token.
    """
    with matplotlib.rc_context(DRAWING):
        figure, axes = canvas(16.2, 9.1)
        columns = [2.2, 4.6, 7.0, 9.4]
        right = columns[-1]
        for i, x in enumerate(columns, 1):
            token(axes, (x, 0.75), f"$x_{i}$", fill=X_COLOUR)
            token(axes, (x, 8.35), f"$z_{i}$", fill=Z_COLOUR)
            arrow(axes, (x, 1.15), (x, 2.1))
            token(axes, (x, 5.35), "$0,\\ 1$" if i == 1 else f"$\\mu_{i},\\ \\sigma_{i}$", fill="#d9f0d3", width=1.35)
            arrow(axes, (x, 5.75), (x, 6.7), colour=GREEN)
            box(axes, (x, 7.0), (1.7, 0.6), "shift, scale", fill="white")
            arrow(axes, (x, 7.32), (x, 7.95))
            # The token itself goes round the network, to be shifted and scaled.
            axes.plot(
                [x - 0.3, x - 0.95, x - 0.95], [1.35, 1.9, 6.22], color="#d08b3c", lw=1.2, solid_joinstyle="round"
            )
            axes.plot([x - 0.1, x - 0.3], [1.18, 1.35], color="#d08b3c", lw=1.2)
            arrow(axes, (x - 0.95, 6.2), (x - 0.55, 6.68), colour="#d08b3c")
        centre = (columns[0] + right) / 2
        shape = "round,pad=0,rounding_size=.18"
        axes.add_patch(FancyBboxPatch((1.5, 2.1), right - 0.8, 1.35, boxstyle=shape, fc=PALE, ec=INK, lw=1.1, zorder=2))
        axes.text(
            centre, 3.0, "causal transformer: position $i$ sees tokens $1 \\dots i$", ha="center", va="center", zorder=3
        )
        label(axes, (centre, 2.52), "project_in · transformer · project_out", ha="center", zorder=3)
        for x, following in itertools.pairwise(columns):
            arrow(axes, (x, 3.5), (following - 0.2, 4.97), colour=GREEN)
        axes.plot([right, right + 0.35], [3.5, 3.75], color=GREEN, lw=1.2, ls=":")
        axes.text(right + 0.4, 3.9, "dropped", color=GREY, fontsize=8.5, va="center")
        axes.text(11.55, 4.75, "shifted right by one", va="center")
        label(axes, (11.55, 4.3), "all_shifts_and_log_scales")
        axes.text(11.55, 7.25, "$z_i = (x_i - \\mu_i) \\odot \\sigma_i$", va="center", fontsize=12)
        label(axes, (11.55, 6.75), "FlowBlock.forward, in parallel")
        axes.text(11.55, 6.05, "$\\log|\\det| = \\sum_i \\log \\sigma_i$", va="center")
        axes.text(11.55, 2.35, "$x_i = z_i \\oslash \\sigma_i + \\mu_i$", va="center", fontsize=12, color=ORANGE)
        label(axes, (11.55, 1.85), "FlowBlock.inverse")
        axes.text(11.55, 1.4, "token by token: $\\mu_i$, $\\sigma_i$", va="center", fontsize=9)
        axes.text(11.55, 1.0, "need $x_1 \\dots x_{i-1}$ first", va="center", fontsize=9)
        axes.plot([right + 0.6, 11.1, 11.1], [8.35, 8.35, 0.75], color=ORANGE, lw=1.2, ls="--")
        arrow(axes, (11.1, 0.75), (right + 0.55, 0.75), colour=ORANGE)
    return figure


def pipeline() -> Figure:
    """The whole method: an image becomes tokens, the flow makes latents of them, and the prior says how probable these
    are; from right to left, the same parts draw a sample.
    """
    digit = ["..xxxx..", ".xx..xx.", ".....xx.", "...xxx..", ".....xx.", ".....xx.", ".xx..xx.", "..xxxx.."]
    with matplotlib.rc_context(DRAWING):
        figure, axes = canvas(17.4, 6.9)
        y = 4.4
        for row, line in enumerate(digit):
            for column, mark in enumerate(line):
                left = 0.35 + 0.27 * column + 0.05 * (column // 2)
                top = y + 1.0 - 0.27 * row - 0.05 * (row // 2)
                fill = "#8856a7" if mark == "x" else "#e9e4f1"
                axes.add_patch(Rectangle((left, top), 0.27, 0.27, fc=fill, ec="white", lw=0.4))
        axes.text(1.5, y + 1.75, "image", ha="center")

        def column(x: float, fill: str, name: str, split: bool = False) -> None:
            for i in range(8):
                parts = [(0.0, 0.54, fill), (0.54, 0.18, "#e7e5f4")] if split else [(0.0, 0.72, fill)]
                for left, width, shade in parts:
                    corner = (x - 0.36 + left, y + 0.95 - 0.3 * i)
                    axes.add_patch(Rectangle(corner, width, 0.26, fc=shade, ec=INK, lw=0.7))
            axes.text(x, y + 1.75, name, ha="center")

        column(5.2, X_COLOUR, "tokens $X$")
        column(9.3, Z_COLOUR, "latents $Z$", split=True)
        axes.text(9.12, y - 1.5, "$Z_I$", ha="center")
        axes.text(9.62, y - 1.5, "$Z_R$", ha="center")
        arrow(axes, (2.75, y), (4.65, y))
        axes.text(3.7, y + 0.32, "cut", ha="center")
        label(axes, (3.7, y - 0.35), "Patchify", ha="center")
        arrow(axes, (5.75, y), (8.75, y))
        axes.text(7.25, y + 0.32, "flow, $n$ blocks", ha="center")
        label(axes, (7.25, y - 0.35), "AutoregressiveFlow", ha="center")
        arrow(axes, (9.9, y), (11.35, y))
        box(axes, (12.75, y), (2.6, 1.9), "causal\ntransformer", fill=PALE)
        label(axes, (12.75, y + 1.75), "AutoregressivePrior", ha="center", va="baseline")
        axes.text(12.75, y + 1.22, "class $c$", ha="center", va="center", fontsize=8.5, color=GREY)
        arrow(axes, (14.1, y), (14.9, y))
        grid = np.linspace(-1, 1, 120)
        for k, (shift, colour) in enumerate(((0.9, BLUE), (0.0, ORANGE), (-0.9, GREEN))):
            bumps = 0.62 * np.exp(-((grid + 0.35) ** 2) / 0.05) + (0.3 + 0.12 * k) * np.exp(-((grid - 0.3) ** 2) / 0.08)
            axes.fill_between(
                16.05 + 0.95 * grid, y + shift - 0.3, y + shift - 0.3 + bumps, color=colour, alpha=0.3, lw=0
            )
            axes.plot(16.05 + 0.95 * grid, y + shift - 0.3 + bumps, color=colour, lw=1.3)
        axes.text(16.05, y + 1.75, "mixtures", ha="center")
        label(axes, (16.05, y - 1.75), "GaussianMixture", ha="center", va="baseline")
        # What the score is made of.
        arrow(axes, (7.25, y - 0.65), (7.25, 1.95), colour=GREY)
        arrow(axes, (16.05, y - 1.9), (16.05, 1.95), colour=GREY)
        axes.text(7.25, 1.6, "$\\log|\\det\\,\\partial Z/\\partial X|$", ha="center", va="center")
        axes.text(16.05, 1.6, "$\\log p(Z \\mid c)$", ha="center", va="center")
        axes.text(11.65, 1.6, "$+$", ha="center", va="center", fontsize=13)
        axes.text(3.1, 1.6, "$\\log p(\\mathrm{image} \\mid c)\\;=$", ha="center", va="center", fontsize=11)
        label(axes, (3.1, 1.1), "Farmer.log_prob", ha="center")
        arrow(axes, (16.9, 0.45), (0.6, 0.45), colour=ORANGE, dashed=True)
        axes.text(
            8.9,
            0.62,
            "to sample: draw $Z$ from the mixtures, token by token, then undo the flow",
            ha="center",
            color=ORANGE,
            va="bottom",
            fontsize=9,
        )
        label(axes, (16.9, 0.8), "Farmer.sample", ha="right")
    return figure


def channel_split() -> Figure:
    """The split of the channels: the informative ones are predicted token by token, each by a mixture of its own; the
    redundant ones of all tokens share one mixture, which has seen all informative ones.
    """
    with matplotlib.rc_context(DRAWING):
        figure, axes = canvas(16.2, 7.0)
        rows = [5.6, 4.6, 3.6, 2.6]
        for i, y in enumerate(rows, 1):
            for channel in range(6):
                fill = Z_COLOUR if channel < 4 else "#fee0b6"
                corner = (1.0 + 0.5 * channel, y - 0.3)
                axes.add_patch(Rectangle(corner, 0.5, 0.6, fc=fill, ec=INK, lw=0.9))
            axes.text(0.6, y, f"$z_{i}$", ha="center", va="center")
        axes.text(2.0, 6.45, "$Z_I$, $I$ channels", ha="center", va="center", fontsize=9)
        axes.text(5.15, 6.0, "only $Z_I$ is read", ha="center", va="center", fontsize=8.5, color="#8073ac")
        axes.text(3.6, 1.85, "$Z_R$, $R$ channels", ha="center", va="center", fontsize=9)
        box(axes, (7.4, 4.1), (2.3, 3.6), "causal\ntransformer")
        axes.text(7.4, 6.45, "class $c$", ha="center", va="center", fontsize=9, color=GREY)
        arrow(axes, (7.4, 6.25), (7.4, 5.95), colour=GREY)
        grid = np.linspace(-1, 1, 120)
        for i, y in enumerate(rows, 1):
            axes.plot([3.0, 3.0], [y - 0.3, y + 0.3], color=INK, lw=2)
            arrow(axes, (4.1, y), (6.2, y), colour="#8073ac")
            arrow(axes, (8.6, y), (9.5, y), colour="#8073ac")
            bumps = 0.5 * np.exp(-((grid + 0.5 - 0.2 * i) ** 2) / 0.05) + 0.3 * np.exp(-((grid - 0.4) ** 2) / 0.04)
            axes.fill_between(10.6 + 0.9 * grid, y - 0.25, y - 0.25 + bumps, color=BLUE, alpha=0.25, lw=0)
            axes.plot(10.6 + 0.9 * grid, y - 0.25 + bumps, color=BLUE, lw=1.2)
            before = "c" if i == 1 else f"z_{{<{i}}}^I, c"
            axes.text(11.75, y, f"$p(z_{i}^I \\mid {before})$", va="center")
        label(axes, (11.75, 6.45), "token_head: $K_I$ components", ha="left")
        bumps = 0.45 * np.exp(-((grid + 0.3) ** 2) / 0.12) + 0.4 * np.exp(-((grid - 0.35) ** 2) / 0.07)
        axes.fill_between(10.6 + 0.9 * grid, 0.75, 0.75 + bumps, color=ORANGE, alpha=0.3, lw=0)
        axes.plot(10.6 + 0.9 * grid, 0.75 + bumps, color=ORANGE, lw=1.2)
        axes.plot([7.4, 7.4], [2.25, 1.0], color=ORANGE, lw=1.2)
        arrow(axes, (7.4, 1.0), (9.5, 1.0), colour=ORANGE)
        axes.text(7.2, 1.25, "the state after\nthe last token", ha="right", va="center", fontsize=8.5, color=ORANGE)
        axes.text(11.75, 1.0, "$G_{N+1}(z_i^R;\\, Z_I, c)$ for all $i$", va="center", color=ORANGE)
        label(axes, (11.75, 0.45), "redundant_head: $K_R$ components", ha="left")
        label(axes, (0.5, 0.45), "AutoregressivePrior.split, .log_prob_parts")
    return figure


def causal_masks() -> Figure:
    """Which token may depend on which: attention with the causal mask, the same after the shift by one, a block that
    reads back to front, and the bug, no mask at all. White is zero.
    """
    rows, columns = np.indices((6, 6))
    kinds = (
        ("causal attention", "position $i$ sees $1 \\dots i$", columns <= rows, BLUE, "is_causal=True"),
        ("shifted by one", "$\\mu_i, \\sigma_i$ see $1 \\dots i-1$", columns < rows, GREEN, "_shifted_right"),
        ("back to front", "every other block", columns > rows, GREEN, "reverse=True"),
        ("no mask", "$\\mu_i$ sees $x_i$: a bug", columns >= 0, ORANGE, "causal=False"),
    )
    with matplotlib.rc_context(DRAWING):
        figure, axes = canvas(16.4, 5.6)
        for k, (title, below, seen, colour, code) in enumerate(kinds):
            left = 0.75 + 4.05 * k
            for fill, chosen in ((colour, seen), ("white", ~seen)):
                corners = [(left + 0.5 * column, 4.1 - 0.5 * row) for row, column in np.argwhere(chosen)]
                squares(axes, corners, 0.5, fill=fill)
            axes.text(left + 1.5, 4.95, title, ha="center", va="center", fontsize=11)
            axes.text(left + 1.5, 1.05, below, ha="center", va="center", fontsize=9)
            label(axes, (left + 1.5, 0.5), code, ha="center")
            for i in range(6):
                axes.text(left - 0.2, 4.35 - 0.5 * i, str(i + 1), ha="center", va="center", fontsize=7.5, color=GREY)
                axes.text(left + 0.25 + 0.5 * i, 1.42, str(i + 1), ha="center", va="center", fontsize=7.5, color=GREY)
    return figure


def gaussian_mixture() -> Figure:
    """A mixture of three Gaussians: each component with its weight, mean and width, and their sum."""
    parts = ((0.25, -1.6, 0.45), (0.55, 0.2, 0.6), (0.20, 2.1, 0.3))  # weight, mean, sigma
    grid = np.linspace(-3.6, 3.8, 500)
    curves = [w * np.exp(-(((grid - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for w, m, s in parts]
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(8.4, 3.0), layout="constrained")
        axes = figure.subplots()
        for k, (curve, colour) in enumerate(zip(curves, (BLUE, ORANGE, GREEN), strict=True), 1):
            _, mean, sigma = parts[k - 1]
            axes.fill_between(grid, curve, color=colour, alpha=0.25, lw=0)
            axes.plot(grid, curve, color=colour, lw=1.3)
            axes.plot([mean, mean], [0.36 * curve.max(), curve.max()], color=colour, lw=1, ls=":")
            axes.text(mean, -0.035, f"$\\mu_{k}$", ha="center", va="top", color=colour, fontsize=11)
            height = curve.max() * math.exp(-0.5)
            axes.annotate("", (mean + sigma, height), (mean, height), arrowprops={"arrowstyle": "<->", "color": colour})
            axes.text(mean + sigma / 2, height + 0.012, f"$\\sigma_{k}$", ha="center", va="bottom", color=colour)
            axes.text(mean, curve.max() * 0.22, f"area $\\pi_{k}$", ha="center", color=INK, fontsize=9)
        axes.plot(grid, sum(curves), color=INK, lw=2)
        axes.text(
            -3.55, 0.385, "$p(z) = \\sum_k \\pi_k\\,\\mathcal{N}(z;\\,\\mu_k, \\sigma_k^2)$", fontsize=12, va="center"
        )
        axes.text(-3.55, 0.325, "logits, mean, log_scale", **CODE)
        axes.text(-3.55, 0.28, "GaussianMixture.log_prob", **CODE)
        axes.set(xlim=(-3.7, 3.9), ylim=(-0.075, 0.43), yticks=[], xticks=[])
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_position("zero")
        axes.text(3.85, -0.035, "$z$", ha="right", va="top")
    return figure


def dequantised_cell() -> Figure:
    """Grey levels and cells: each level owns an interval of width 2/L, whose probability is the area of the density
    above it; two pixels own a square.
    """
    levels, width = 6, 2 / 6
    grid = np.linspace(-1, 1, 601)
    density = 0.35 + 1.0 * np.exp(-((grid + 0.35) ** 2) / 0.06) + 0.55 * np.exp(-((grid - 0.6) ** 2) / 0.03)
    density /= np.trapezoid(density, grid)
    chosen = 1  # the level whose cell is marked
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(9.4, 3.3), layout="constrained")
        line, square = figure.subplots(1, 2, width_ratios=[1.75, 1])
        for level in range(levels):
            left = -1 + width * level
            inside = (grid >= left) & (grid <= left + width)
            marked = level == chosen
            line.fill_between(
                grid[inside], density[inside], color=ORANGE if marked else SKY, alpha=0.45 if marked else 0.16, lw=0
            )
            line.plot([left, left], [0, np.interp(left, grid, density)], color=GREY, lw=0.8, ls=":")
            line.text(left + width / 2, -0.09, f"$v = {level}$", ha="center", va="top", fontsize=9)
        line.plot(grid, density, color=INK, lw=1.6)
        left = -1 + width * chosen
        line.annotate(
            "",
            (left, -0.3),
            (left + width, -0.3),
            arrowprops={"arrowstyle": "<->", "color": ORANGE},
            annotation_clip=False,
        )
        line.text(left + width / 2, -0.34, "$2/L$", ha="center", va="top", color=ORANGE)
        line.text(0.02, 1.2, "area = $P(v=1)$", color=ORANGE, va="center")
        line.annotate("", (left + 0.24, 0.75), (0.0, 1.18), arrowprops={"arrowstyle": "->", "color": ORANGE})
        line.text(0.02, 1.03, "$x = 2\\,(v + u)\\,/\\,L - 1,\\quad u \\sim U[0, 1)$", va="center")
        line.text(0.02, 0.86, "Dequantiser", va="center", **CODE)
        line.set(xlim=(-1.02, 1.02), ylim=(-0.5, 1.42), yticks=[], xticks=[], title="one pixel, $L = 6$ grey levels")
        line.spines["left"].set_visible(False)
        line.spines["bottom"].set_position("zero")
        line.text(1.02, -0.09, "$x$", ha="right", va="top")
        for level in range(levels + 1):
            edge = -1 + width * level
            square.plot([edge, edge], [-1, 1], color=GREY, lw=0.7)
            square.plot([-1, 1], [edge, edge], color=GREY, lw=0.7)
        corner = (-1 + width, -1 + 3 * width)
        square.add_patch(Rectangle(corner, width, width, fc=ORANGE, alpha=0.45, lw=0))
        dots = np.random.default_rng(4).random((16, 2)) * 0.9 * width + 0.05 * width + corner
        square.plot(*dots.T, ".", color=INK, ms=3)
        square.text(
            -1 + 2.15 * width,
            -1 + 3.5 * width,
            "one image,\nvolume $(2/L)^d$",
            va="center",
            fontsize=9.5,
            bbox={"fc": "white", "ec": "none"},
        )
        square.set(
            aspect="equal", xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), xticks=[], yticks=[], title="two pixels, $d = 2$"
        )
        square.set(xlabel="pixel 1", ylabel="pixel 2")
        for spine in square.spines.values():
            spine.set_visible(False)
    return figure


def guidance_by_resampling() -> Figure:
    """Guidance in one dimension: candidates of p_c and of p_u, drawn as large as their weights; one is taken."""
    grid = np.linspace(-3.2, 3.4, 500)

    def normal(z: np.ndarray, mean: float, sigma: float) -> np.ndarray:
        return np.exp(-(((z - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))

    def conditional(z: np.ndarray) -> np.ndarray:
        return 0.75 * normal(z, 0.9, 0.6) + 0.25 * normal(z, -0.9, 0.6)

    def unconditional(z: np.ndarray) -> np.ndarray:
        return normal(z, -0.1, 1.15)

    w = 1.0
    guided = conditional(grid) * (conditional(grid) / unconditional(grid)) ** w
    guided /= np.trapezoid(guided, grid)
    from_c, from_u = np.array([1.35, 0.75, 0.25, -0.85, 1.75]), np.array([-1.9, -0.35, 1.05, 0.5, -1.2])
    exponents = ((from_c, w), (from_u, w + 1))
    weights = [(conditional(z) / unconditional(z)) ** exponent for z, exponent in exponents]
    total = sum(part.sum() for part in weights)
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(8.8, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.plot(grid, conditional(grid), color=BLUE)
        axes.plot(grid, unconditional(grid), color=GREY, ls="--")
        axes.fill_between(grid, guided, color=ORANGE, alpha=0.2, lw=0)
        axes.plot(grid, guided, color=ORANGE)
        axes.text(1.88, 0.24, "$p_c$", color=BLUE, fontsize=12)
        axes.text(-2.05, 0.14, "$p_u$", color=GREY, fontsize=12, ha="right")
        axes.text(1.62, 0.66, "$p' \\propto p_c\\,(p_c/p_u)^w$", color=ORANGE, fontsize=12)
        rows = ((-0.16, from_c, weights[0], BLUE), (-0.34, from_u, weights[1], GREY))
        for y, z, weight, colour in rows:
            axes.scatter(z, np.full(len(z), y), s=2600 * weight / total, color=colour, alpha=0.55, lw=0, zorder=3)
            axes.plot([-3.1, 2.55], [y, y], color=colour, lw=0.6, alpha=0.5)
        axes.text(-3.15, -0.10, "candidates of $p_c$: weight $(p_c/p_u)^{w}$", color=BLUE, fontsize=9, va="bottom")
        axes.text(-3.15, -0.285, "candidates of $p_u$: weight $(p_c/p_u)^{w+1}$", color=GREY, fontsize=9, va="bottom")
        axes.plot(0.75, -0.16, "o", ms=23, mfc="none", mec=ORANGE, mew=1.8, zorder=4)
        axes.annotate(
            "drawn",
            (0.86, -0.21),
            (2.15, -0.28),
            color=ORANGE,
            va="center",
            arrowprops={"arrowstyle": "<-", "color": ORANGE},
        )
        axes.text(3.35, 0.46, "weighed_candidates", ha="right", **CODE)
        axes.text(3.35, 0.405, "draw_token", ha="right", **CODE)
        axes.set(xlim=(-3.2, 3.4), ylim=(-0.44, 0.86), xticks=[], yticks=[])
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_position("zero")
    return figure


def teacher_and_student() -> Figure:
    """The teacher's forward pass shows the path from X to Z in parallel; the student walks it back, one pass a block,
    and every level is compared.
    """
    names = ("$X = Z^0$", "$Z^1$", "$Z^2$", "$Z^3 = Z$")
    with matplotlib.rc_context(DRAWING):
        figure, axes = canvas(16.2, 6.0)
        places = (1.5, 5.9, 10.3, 14.7)

        def strip(x: float, y: float, fill: str, dashed: bool = False) -> None:
            for i in range(5):
                corner = (x - 1.0 + 0.4 * i, y - 0.25)
                line = {"ec": ORANGE if dashed else INK, "lw": 0.9, "ls": "--" if dashed else "-"}
                axes.add_patch(Rectangle(corner, 0.4, 0.5, fc=fill, **line))

        def mixed(share: float) -> tuple[float, ...]:
            ends = (matplotlib.colors.to_rgb(c) for c in (X_COLOUR, Z_COLOUR))
            return tuple((1 - share) * a + share * b for a, b in zip(*ends, strict=True))

        for k, (x, name) in enumerate(zip(places, names, strict=True)):
            strip(x, 4.35, mixed(k / 3))
            axes.text(x, 5.0, name, ha="center", va="center", fontsize=11)
            if k < 3:
                arrow(axes, (x + 1.15, 4.35), (places[k + 1] - 1.15, 4.35))
                axes.text((x + places[k + 1]) / 2, 4.65, f"block {k + 1}", ha="center", fontsize=9)
                strip(x, 1.75, mixed(k / 3), dashed=True)
                arrow(axes, (x, 2.15), (x, 3.95), colour=GREEN)
                arrow(axes, (x, 3.95), (x, 2.15), colour=GREEN)
                axes.text(x + 0.15, 3.05, "squared\nerror", color=GREEN, fontsize=8.5, va="center")
        for k in (2, 1, 0):
            start = (places[k + 1] - (0.2 if k == 2 else 1.15), 4.0 if k == 2 else 1.75)
            arrow(axes, start, (places[k] + 1.15, 1.75), colour=ORANGE)
            x = (places[k] + places[k + 1]) / 2
            axes.text(x + (0.75 if k == 2 else 0), 1.35, "one pass", ha="center", fontsize=9, color=ORANGE)
        axes.text(0.5, 5.65, "teacher: the exact flow, causal; forward in parallel", va="center")
        label(axes, (15.7, 5.65), "teacher_path(flow, x)", ha="right")
        student = "student: the same blocks without the mask, from $Z$ through its own levels"
        axes.text(0.5, 0.75, student, va="center", color=ORANGE)
        label(axes, (15.7, 0.75), "OneStepStudent.path(z)", ha="right")
        axes.text(
            0.5, 0.28, "exact inverse: $N - 1$ steps a block   ·   student: 1", va="center", fontsize=9, color=GREY
        )
        label(axes, (15.7, 0.28), "Distillation", ha="right")
    return figure


def drawings() -> tuple[Callable[[], Figure], ...]:
    """All of them, in the order of the course."""
    first = (pipeline, flow_block, causal_masks, gaussian_mixture, dequantised_cell)
    return (*first, channel_split, guidance_by_resampling, teacher_and_student)
