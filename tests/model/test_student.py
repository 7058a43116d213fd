"""Alg. 2: the one-step student, its losses, and the command that trains it."""

import pytest
import torch
from conftest import jacobian, mild_flow, small_model

from farmer_ref import InputError, OneStepStudent
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.model.student import Distillation, relative_errors, teacher_path
from farmer_ref.model.transformer import transformer_layers


def tokens(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", [{}, {"channel_mixing": True}, {"num_classes": 4}])
def test_the_teacher_s_path_is_the_flow(variant):
    flow = mild_flow(count=5, **variant)
    labels = torch.tensor([0, 3, -1]) if "num_classes" in variant else None
    levels = teacher_path(flow, tokens(), labels)
    assert len(levels) == 4 and torch.equal(levels[0], tokens())
    assert torch.equal(levels[-1], flow(tokens(), labels)[0])
    for block, before, after in zip(flow.blocks, levels, levels[1:], strict=False):
        assert torch.allclose(block.inverse(after, labels), before, atol=1e-9)


@pytest.mark.parametrize("form", ["forward", "inverse"])
@pytest.mark.parametrize("variant", [{}, {"channel_mixing": True}, {"num_classes": 4}])
def test_the_student_starts_as_a_bidirectional_copy(variant, form):
    flow = mild_flow(count=5, **variant)
    labels = torch.tensor([0, 3, -1]) if "num_classes" in variant else None
    student = OneStepStudent.from_teacher(flow, form=form)
    for (name, ours), theirs in zip(student.named_parameters(), flow.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr(), name
    levels = student.path(tokens(), labels)
    assert len(levels) == 3 and torch.equal(levels[-1], student(tokens(), labels))
    for number in range(3):  # every token but the first, which passes through, sees all tokens
        block = student.blocks[number]
        matrix = jacobian(lambda z, block=block: block(z, labels if labels is None else labels[:1]), tokens(1))
        sees = matrix.view(5, 3, 5, 3).abs().amax((1, 3)) > 0
        if block.network.reverse:
            sees = sees.flip(0, 1)
        assert sees[1:].all() and sees[0].tolist() == [True] + [False] * 4
        before = jacobian(
            lambda x, block=flow.blocks[number]: block(x, labels if labels is None else labels[:1])[0], tokens(1)
        )
        assert (before.view(5, 3, 5, 3).abs().amax((1, 3)) == 0).sum() == 10
    assert all(layer.causal for layer in transformer_layers(flow))  # the teacher stays causal


@pytest.mark.parametrize("masked", [True, False])
def test_a_masked_student_block_is_a_sweep_of_the_exact_inverse(masked):
    """Eq. 9 with z where that has x: the second token is exact too, as it depends on the first alone."""
    flow = mild_flow(count=5, channel_mixing=True)
    for teacher, block in zip(flow.blocks, OneStepStudent.from_teacher(flow, form="inverse").blocks, strict=True):
        for layer in transformer_layers(block):
            layer.causal = masked
        x = block(teacher(tokens())[0])
        errors = teacher.flip_if_reversed((x - tokens()).abs()).amax((0, 2))
        assert errors[0] < 1e-12 and errors[2:].min() > 1e-6
        assert (errors[1] < 1e-12) == masked


@pytest.mark.parametrize("variant", [{}, {"channel_mixing": True}, {"num_classes": 4}])
def test_both_forms_by_hand(variant):
    """(z_i - mu_i) sigma_i and z_i / sigma_i + mu_i, of what the network says at token i - 1; z_1 itself."""
    flow = mild_flow(count=5, **variant)
    labels = torch.tensor([0, 3, -1]) if "num_classes" in variant else None
    students = [OneStepStudent.from_teacher(flow, form=form) for form in ("forward", "inverse")]
    for forward, inverse in zip(*(student.blocks for student in students), strict=True):
        network = forward.network
        z = network.flip_if_reversed(tokens())
        hidden = network.transformer(network.project_in(z) + network.embedded_positions(labels))
        shift, raw = network.project_out(hidden).chunk(2, -1)
        scale = (2.5 * torch.tanh(raw / 2.5)).exp()
        assert shift.abs().min() > 0 and (scale - 1).abs().min() > 0
        by_hand = (z[:, 1:] - shift[:, :-1]) * scale[:, :-1], z[:, 1:] / scale[:, :-1] + shift[:, :-1]
        for block, rest in zip((forward, inverse), by_hand, strict=True):
            x = network.flip_if_reversed(torch.cat([z[:, :1], rest], 1))
            x = x if network.mixing is None else network.mixing.inverse(x)
            assert torch.allclose(block(tokens(), labels), x, atol=1e-12)
    with pytest.raises(InputError, match="form is 'sideways'; allowed: 'forward', 'inverse'"):
        OneStepStudent.from_teacher(flow, form="sideways")


@pytest.mark.parametrize("masked", [True, False])
def test_a_masked_block_of_the_forward_form_is_the_teacher_s_block(masked):
    """Eq. 8, word for word: with the mask, and before training, it maps z as the teacher maps x."""
    flow = mild_flow(count=5)
    for teacher, block in zip(flow.blocks, OneStepStudent.from_teacher(flow).blocks, strict=True):
        for layer in transformer_layers(block):
            layer.causal = masked
        assert torch.allclose(block(tokens()), teacher(tokens())[0], atol=1e-12) == masked


def test_losses_by_hand():
    flow = mild_flow(count=5)
    levels = teacher_path(flow, tokens())
    errors = {}
    for loss in ("hidden", "output", "projected"):
        torch.manual_seed(0)
        distillation = Distillation(OneStepStudent.from_teacher(flow), loss, channels=3, width=16).double()
        path = distillation.student.path(levels[-1])
        errors[loss] = distillation(levels[-1], levels)
        square = [(a - b).square().mean() for a, b in zip(path, reversed(levels[:-1]), strict=True)]
        heads = [(h(a) - b).square().mean() for h, a, b in zip(distillation.heads, path, levels[2:0:-1], strict=False)]
        expected = {
            "hidden": sum(square) / 3,
            "output": square[-1],
            "projected": square[-1] + (sum(heads) / 2 if heads else 0),
        }
        assert torch.allclose(errors[loss], expected[loss])
        assert len(distillation.heads) == (2 if loss == "projected" else 0)
    with pytest.raises(InputError, match="loss is 'magic'; allowed: hidden, output, projected"):
        Distillation(OneStepStudent.from_teacher(flow), "magic", channels=3, width=16)
    assert len({float(error.detach()) for error in errors.values()}) == 3


@pytest.mark.parametrize("form", ["forward", "inverse"])
def test_distillation_brings_the_student_nearer(form):
    flow = mild_flow(count=5)
    distillation = Distillation(OneStepStudent.from_teacher(flow, form=form), "hidden", channels=3, width=16)
    optimiser = torch.optim.Adam(distillation.parameters(), 1e-2)
    errors = []
    for step in range(201):
        levels = teacher_path(flow, torch.randn(32, 5, 3, dtype=torch.float64))
        if step in (0, 200):
            errors.append(sum(relative_errors(distillation.student.path(levels[-1]), levels)))
        optimiser.zero_grad()
        distillation(levels[-1], levels).backward()
        optimiser.step()
    assert errors[1] < 0.5 * errors[0]
    assert relative_errors(levels[-2::-1], levels) == [0.0] * 3


def test_a_model_of_any_basis_and_mixing_has_a_student():
    model = small_model(channel_mixing="learned", patch_basis="dct", flow_sees_class=True)
    student = OneStepStudent.from_teacher(model.flow).double()
    images = model.sample(torch.tensor([0, 1, -1]), student=student, generator=torch.Generator().manual_seed(0))
    assert images.shape == (3, 2, 6, 6) and images.abs().max() <= 1


def test_a_coupling_flow_has_no_student_and_no_sweeps():
    flow = small_model(flow="coupling").flow
    for use in (OneStepStudent.from_teacher, lambda flow: inverse_jacobi(flow, torch.zeros(1, 9, 8))):
        with pytest.raises(InputError, match="flow is 'CouplingFlow'; allowed: AutoregressiveFlow"):
            use(flow)


def test_samples_of_a_student_have_no_dropout():
    model = small_model()
    student = OneStepStudent.from_teacher(model.flow, dropout=0.5).train()
    a, b = (
        model.sample(torch.tensor([0]), student=student, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert torch.equal(a, b) and student.training
