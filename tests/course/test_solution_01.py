"""The solutions of notebook 01, and the figures in its prose."""

import pytest
import torch
from conftest import prose_of, small_flow
from solution_01 import bend, fit_three_modes, unshifted

from book.pages import load


def test_without_the_shift_the_matrix_is_triangular_and_the_sum_wrong():
    block, x = small_flow(4, 2, 1).blocks[0], torch.randn(1, 4, 2, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(
        lambda flat: unshifted(block, flat.view(1, 4, 2))[0].flatten(), x.flatten()
    )
    parts = matrix.view(4, 2, 4, 2).norm(dim=(1, 3))
    assert parts.triu(1).max() == 0
    assert abs(matrix.slogdet().logabsdet - unshifted(block, x)[1]) > 1e-3


def test_blocks_that_read_one_way_are_one_block():
    flow, x = small_flow(4, 1, 4), torch.randn(5, 4, 1, dtype=torch.float64)
    assert bend(flow, x, 1) > 0.1
    for block in flow.blocks:
        block.reverse = False
    assert max(bend(flow, x, token) for token in range(4)) < 1e-9


def test_a_mixture_separates_what_one_gaussian_cannot():
    (few, bridged), (mixed, apart) = fit_three_modes(2, 1, 300), fit_three_modes(2, 3, 300)
    assert few > 0.4 and bridged > 0.1
    assert mixed < 0.15 and apart < 0.03


@pytest.fixture(scope="module")
def prose():
    return prose_of("01_flow_invertibility")


def test_seconds_of_the_inverses(prose):
    rows = {(row["method"], row["batch"]): row["seconds"] for row in load("inverses")["matrix"]["rows"]}
    assert f"one image takes {rows['jacobi', 1]:.2f} s, sequentially {rows['sequential', 1]:.2f} s" in prose
    assert f"sixteen take {rows['jacobi', 16]:.1f} s and {rows['sequential', 16]:.1f} s" in prose


def test_coupling_in_figures(prose):
    coupling, autoregressive = load("table4")["rows"][:2]
    back = [1000 * row["seconds_per_image"]["back"] for row in (coupling, autoregressive)]
    bits = [row["bits_per_dim"]["mean"] for row in (coupling, autoregressive)]
    assert f"takes {back[0]:.1f} ms an image, through the autoregressive flow {back[1]:.1f} ms" in prose
    assert f"coupling has {bits[0]:.2f} bits/dim, the other {bits[1]:.2f}" in prose
    assert "106.23" in coupling["paper"] and "5.55" in autoregressive["paper"] and "FID 106.23 and 5.55" in prose


def test_photographs_in_figures(prose):
    said = []
    for table, steps in (("basis", 600), ("basis_long", 2700)):
        bits = {row["name"]: row["bits_per_dim"]["mean"] for row in load(table)["rows"]}
        names = (f"{name}, no split, {steps} steps" for name in ("pixels", "pixels, learned mixing", "PCA"))
        said.append("{:.2f}, {:.2f} and {:.2f}".format(*(bits[name] for name in names)))
    first, second = said
    assert f"{first} bits/dim after 600 steps (`results/basis.json`), {second} after 2,700" in prose
