"""The solution of notebook 07, FARMER in 200 lines, against the package; the notebook's checks, against mistakes."""

import ast
import contextlib
import inspect
import io
import re
import textwrap
import tokenize
from pathlib import Path

import jupytext
import pytest
import solution_07
import torch
from conftest import jacobian, small_model
from solution_07 import Mixture, Model, Sizes, Student, distillation_loss, fit, guided_sample, patchify, unpatchify

from farmer_ref import Farmer, GaussianMixture, Guidance, OneStepStudent
from farmer_ref.data.sets import load_split
from farmer_ref.model.student import Distillation, teacher_path

CONFIG = {"channels": 1, "condition_repeats": 1, "flow_blocks": 2, "max_log_scale": 4.0, "informative": 3}
CONFIG |= {"levels": 17, "pixels": "histogram"}
SMALL = {"blocks": 2, "flow_layers": 1, "width": 16, "head_dim": 8, "K_I": 3, "K_R": 4, "dropout": 0.0}
SIZES = Sizes(tokens=9, classes=3, prior_layers=2, **SMALL)  # as `small_model` with CONFIG


@pytest.fixture(scope="module")
def pair():
    """A small model of the package in float64, and the page's with its weights."""
    theirs = small_model(**CONFIG)
    theirs.pixels.fit(torch.randint(17, (50, 1, 6, 6)) // 2)  # the brighter half is rare
    ours = Model(SIZES).double().eval()
    weights = {name: weight for name, weight in theirs.state_dict().items() if not name.startswith("patchify")}
    ours.load_state_dict(weights)
    return ours, theirs


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "07_write_farmer.py"
LABELS = torch.tensor([0, 1, 2, -1, 0])


def test_the_likelihood_is_the_package_s(pair, images):
    ours, theirs = pair
    assert torch.allclose(ours.log_prob(images, LABELS), theirs.log_prob(images, LABELS), atol=1e-10)


def test_pixels_come_back_from_their_histogram(pair, images):
    pixels, log_slope = pair[0].pixels(images)
    assert torch.allclose(pair[1].pixels(images)[0], pixels) and log_slope.shape == (5,)
    assert (pair[0].pixels.inverse(pixels) - images).abs().max() < 1e-6


def test_the_inverse_returns_the_tokens(pair, images):
    tokens = patchify(images, 2)
    assert torch.equal(unpatchify(tokens, 2), images)
    assert (pair[0].flow.inverse(pair[0].flow(tokens)[0]) - tokens).abs().max() < 1e-10


def test_the_log_determinant_is_that_of_the_jacobian(pair, images):
    flow, tokens = pair[0].flow, patchify(images[:2], 2)
    for x, logdet in zip(tokens, flow(tokens)[1], strict=True):
        exact = torch.linalg.slogdet(jacobian(lambda y: flow(y)[0], x[None])).logabsdet
        assert torch.allclose(logdet, exact, atol=1e-9)


@pytest.mark.parametrize("w", [0.0, 1.5])
def test_samples_follow_the_package_s_prior(pair, w):
    """With and without guidance: the same mean log-density under the prior, within the noise of 2,000 samples."""
    torch.manual_seed(0)
    labels = torch.zeros(2000, dtype=torch.long)
    ours, theirs = pair[0].prior.sample(labels, w), pair[1].prior.sample(labels, Guidance(w))
    a, b = pair[1].prior.log_prob(ours), pair[1].prior.log_prob(theirs)
    assert abs(a.mean() - b.mean()) < 4 * ((a.var() + b.var()) / 2000) ** 0.5
    assert torch.allclose(ours.mean((0, 1)), theirs.mean((0, 1)), atol=0.2)


def test_resampling_draws_from_the_guided_density():
    """p_c = N(.5, .6), p_u = N(0, 1) in one dimension: p' at w = 1 is a normal with a known mean and variance."""
    torch.manual_seed(0)
    p_c, p_u = (
        Mixture(torch.zeros(4000, 1), torch.full((4000, 1, 1), mean), torch.full((4000, 1, 1), sigma).log())
        for mean, sigma in ((0.5, 0.6), (0.0, 1.0))
    )
    drawn = guided_sample(p_c, p_u, 5, w=1.0, counts=(200, 200)).flatten()
    precision = 2 / 0.6**2 - 1
    assert abs(drawn.mean() - 2 * 0.5 / 0.6**2 / precision) < 0.02
    assert abs(drawn.var() * precision - 1) < 0.05


def test_mixtures_are_the_package_s():
    raw, z = torch.randn(7, 3 * 5, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    ours, theirs = Mixture.from_raw(raw, 3), GaussianMixture.from_raw(raw, 3)
    assert torch.allclose(ours.log_prob(z), theirs.log_prob(z), atol=1e-12)


def test_the_student_is_the_package_s(pair, images):
    ours, theirs = pair
    x = patchify(images, 2)
    student = OneStepStudent.from_teacher(theirs.flow, form="inverse")
    loss = Distillation(student, "hidden", channels=4, width=8)
    levels = teacher_path(theirs.flow, x)
    mine = Student(ours.flow)
    assert torch.allclose(distillation_loss(mine, ours.flow, x), loss(levels[-1], levels), atol=1e-10)
    assert torch.allclose(mine.path(levels[-1])[-1], student(levels[-1]), atol=1e-10)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    train = load_split("digits", "train", Farmer.from_pretrained("digits").config)
    losses = fit(Model(Sizes(prior_layers=1, **SMALL)), train.values.float(), train.labels, steps=60)
    assert sum(losses[-10:]) < sum(losses[:10]) - 1


def test_the_page_is_200_lines_of_code():
    """Without blank lines, comments, docstrings, imports, the list of sizes, and `Pixels`, which is not the paper's."""
    tree = ast.parse(Path(solution_07.__file__).read_text(encoding="utf-8"))
    text = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) or getattr(node, "name", "") in ("Sizes", "Pixels"):
            text |= set(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text |= set(range(node.lineno, node.end_lineno + 1))
    with tokenize.open(solution_07.__file__) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.string.strip() and t.type != tokenize.COMMENT]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    assert len(lines - text) <= 210, len(lines - text)


# -- the notebook ------------------------------------------------------------------------------------------------------

CELLS = [
    re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)  # without %matplotlib
    for cell in jupytext.read(NOTEBOOK).cells
    if cell.cell_type == "code"
]
CHECKS = {cell.split("\n")[0].removeprefix("# "): cell for cell in CELLS if cell.startswith("# Check")}


def functions(tree):
    """The functions and methods of a file or a cell: {qualified name: node}."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{part.name}", part) for part in node.body if isinstance(part, ast.FunctionDef))


def parts():
    """What a student writes: {qualified name: node}."""
    found = (pair for cell in CELLS if not cell.startswith("%") for pair in functions(ast.parse(cell)))
    return {name: node for name, node in found if any(ast.unparse(d) == "part" for d in node.decorator_list)}


def test_the_starter_has_the_solution_s_signatures_and_no_bodies():
    solution = dict(functions(ast.parse(Path(solution_07.__file__).read_text(encoding="utf-8"))))
    assert len(parts()) == 19
    for name, node in parts().items():
        assert ast.unparse(node.args) == ast.unparse(solution[name].args)
        assert ast.get_docstring(node) == ast.get_docstring(solution[name])
        assert [ast.unparse(line) for line in node.body[1:]] == ["raise NotImplementedError"]


def test_what_the_starter_gives_is_the_solution_s():
    given = {name: node for cell in CELLS for name, node in functions(ast.parse(cell))}
    solution = dict(functions(ast.parse(Path(solution_07.__file__).read_text(encoding="utf-8"))))
    for name in (given.keys() & solution.keys()) - parts().keys():
        assert ast.unparse(given[name]) == ast.unparse(solution[name]), name


@pytest.fixture(scope="module")
def notebook():
    """The names of the notebook after its starter cells, without the training."""
    names = {"__name__": "notebook"}
    untrained = [cell for cell in CELLS if not re.search(r"mine|steps|plt\.\w+\(|labelled_grids\(", cell)]
    with contextlib.chdir(NOTEBOOK.parent), contextlib.redirect_stdout(io.StringIO()):
        for cell in [CELLS[1], *untrained]:
            exec(cell, names)
    return names


def test_unwritten_parts_fail_without_the_solution(notebook):
    notebook["BORROW"] = False
    with pytest.raises(NotImplementedError):
        exec(CHECKS["Check 1"], notebook)
    notebook["BORROW"] = True


def mistakes():
    """{part: (check, how the text of the solution becomes wrong)}, each a mistake that people make."""
    return {
        "dequantise": ("Check 1", "/ levels - 1", "/ (levels - 1) - 1"),
        "patchify": ("Check 1", "permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 4, 3, 5, 1)"),
        "unpatchify": ("Check 1", "permute(0, 3, 1, 4, 2, 5)", "permute(0, 3, 2, 4, 1, 5)"),
        "to_bits_per_dim": ("Check 1", "levels / 2", "levels"),
        "Block.affine": ("Check 2", "raw[:, :-1], (0, 0, 1, 0)", "raw, (0, 0, 0, 0)"),
        "Block.forward": ("Check 2", "log_sigma.sum((1, 2))", "-log_sigma.sum((1, 2))"),
        "Block.inverse": ("Check 2", "-log_sigma[:, i]", "log_sigma[:, i]"),
        "Flow.forward": ("Check 3", "total + logdet", "logdet"),
        "Flow.inverse": ("Check 3", "reversed(self.blocks)", "self.blocks"),
        "Mixture.log_prob": ("Check 4", " - self.log_sigma", " + self.log_sigma"),
        "Mixture.sample": ("Check 4", "mean + sigma *", "mean + sigma**2 *"),
        "candidate_log_weights": ("Check 5", ">= first", ">= candidates.shape[1]"),
        "guided_sample": ("Check 5", "weights.softmax(-1)", "torch.ones_like(weights)"),
        "Prior.log_prob": ("Check 6", "hidden[:, :-1], hidden[:, -1:]", "hidden[:, 1:], hidden[:, -1:]"),
        "Prior.sample": ("Check 6", ", w=w,", ", w=3 * w,"),
        "Model.log_prob": ("Check 7", "+ logdet", "- logdet"),
        "Model.sample": ("Check 7", "self.flow.inverse(self.prior.sample(labels, w))", "self.prior.sample(labels, w)"),
        "Student.path": ("Check 9", "-log_sigma", "log_sigma"),
        "distillation_loss": ("Check 9", "teacher[-2::-1]", "teacher[-1:0:-1]"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_a_check_notices_a_mistake(name, notebook, monkeypatch):
    check, right, wrong = mistakes()[name]
    owner, _, method = name.rpartition(".")
    place = getattr(solution_07, owner) if owner else solution_07
    source = textwrap.dedent(inspect.getsource(getattr(place, method)))
    assert right in source
    made = {}
    exec(source.replace(right, wrong, 1), vars(solution_07), made)
    monkeypatch.setattr(place, method, made[method])
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises((AssertionError, RuntimeError)):
        exec(CHECKS[check], notebook)
