"""Alg. 2: the one-step student, its losses, and the command that trains it."""

import json
import shutil

import pytest
import torch
from conftest import jacobian, mild_flow, small_model
from helpers import QUICK, assert_same, contents, fails_with_one_line, stop_after
from PIL import Image

from farmer_ref import Farmer, InputError, OneStepStudent, distill, evaluate, sample, train
from farmer_ref.model.student import Distillation, relative_errors, teacher_path
from farmer_ref.model.transformer import transformer_layers
from farmer_ref.support.files import write_weights
from farmer_ref.training.checkpoint import checkpoints

BRIEF = ["--steps", "20", "--validate-every", "10", "--sample-every", "0", "--device", "cpu"]


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


@pytest.mark.parametrize("variant", [{}, {"channel_mixing": True}, {"num_classes": 4}])
def test_the_student_starts_as_a_bidirectional_copy(variant):
    flow = mild_flow(count=5, **variant)
    labels = torch.tensor([0, 3, -1]) if "num_classes" in variant else None
    student = OneStepStudent.from_teacher(flow)
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
    for teacher, block in zip(flow.blocks, OneStepStudent.from_teacher(flow).blocks, strict=True):
        for layer in transformer_layers(block):
            layer.causal = masked
        x = block(teacher(tokens())[0])
        errors = teacher.flip_if_reversed((x - tokens()).abs()).amax((0, 2))
        assert errors[0] < 1e-12 and errors[2:].min() > 1e-6
        assert (errors[1] < 1e-12) == masked


def test_losses_by_hand():
    flow = mild_flow(count=5)
    levels = teacher_path(flow, tokens())
    errors = {}
    for loss in ("hidden", "output", "alignment"):
        torch.manual_seed(0)
        distillation = Distillation(OneStepStudent.from_teacher(flow), loss, channels=3, width=16).double()
        path = distillation.student.path(levels[-1])
        errors[loss] = distillation(levels[-1], levels)
        square = [(a - b).square().mean() for a, b in zip(path, reversed(levels[:-1]), strict=True)]
        heads = [(h(a) - b).square().mean() for h, a, b in zip(distillation.heads, path, levels[2:0:-1], strict=False)]
        expected = {
            "hidden": sum(square) / 3,
            "output": square[-1],
            "alignment": square[-1] + (sum(heads) / 2 if heads else 0),
        }
        assert torch.allclose(errors[loss], expected[loss])
        assert len(distillation.heads) == (2 if loss == "alignment" else 0)
    with pytest.raises(InputError, match="loss is 'magic'; allowed: hidden, output, alignment"):
        Distillation(OneStepStudent.from_teacher(flow), "magic", channels=3, width=16)
    assert len({float(error.detach()) for error in errors.values()}) == 3


def test_distillation_brings_the_student_nearer():
    flow = mild_flow(count=5)
    distillation = Distillation(OneStepStudent.from_teacher(flow), "hidden", channels=3, width=16)
    optimiser = torch.optim.Adam(distillation.parameters(), 3e-3)
    errors = []
    for step in range(801):
        levels = teacher_path(flow, torch.randn(64, 5, 3, dtype=torch.float64))
        if step in (0, 800):
            errors.append(sum(relative_errors(distillation.student.path(levels[-1]), levels)))
        optimiser.zero_grad()
        distillation(levels[-1], levels).backward()
        optimiser.step()
    assert errors[1] < 0.3 * errors[0]
    assert relative_errors(levels[-2::-1], levels) == [0.0] * 3


def test_noise_on_the_input_is_that_of_the_algorithm():
    """s ~ U[0, .3] for each image; the same for a sample whatever the batch around it."""
    z = torch.zeros(2000, 5, 3)
    noise = distill.disturbed(z, 0.3, seed=1, step=4)
    sizes = noise.square().mean((1, 2)).sqrt()
    assert float(noise.square().mean()) == pytest.approx(0.3**2 / 3, rel=0.05)  # E s^2
    assert sizes.max() < 0.3 * 2 and sizes.min() < 0.01
    assert torch.equal(distill.disturbed(z[:7], 0.3, seed=1, step=4), noise[:7])
    assert not torch.equal(distill.disturbed(z[:7], 0.3, seed=1, step=5), noise[:7])
    assert torch.equal(distill.disturbed(z, 0.0, seed=1, step=4), z)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train.main([*QUICK, "--out", str(folder)])
    return folder


@pytest.fixture
def run(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("loss", ["hidden", "alignment"])
def test_ten_and_ten_steps_equal_twenty(run, tmp_path, loss):
    shutil.copytree(run, tmp_path / "other")
    arguments = [*BRIEF, "--loss", loss, "--dropout", "0.1"]
    distill.main(["--run", str(run), *arguments])
    halves = ["--run", str(tmp_path / "other"), *arguments]
    stop_after(10, halves, distill.main)
    assert checkpoints(tmp_path / "other" / "distillation")[-1].name == "step-10"
    OneStepStudent.from_pretrained(tmp_path / "other")  # usable at once
    distill.main([*halves, "--resume"])
    assert_same(contents(run), contents(tmp_path / "other"))
    a, b = (checkpoints(folder / "distillation")[-1] for folder in (run, tmp_path / "other"))
    assert_same(contents(a), contents(b))


def test_a_distilled_run_folder(run, tmp_path, capsys):
    before = (run / "model.safetensors").read_bytes()
    distill.main(["--run", str(run), *BRIEF, "--sample-every", "20", "--learning-rate", "1e-4"])
    printed = capsys.readouterr().out
    assert "finished at step 20" in printed and "relative error on validation images from Z^0 to Z^1: " in printed
    assert (run / "model.safetensors").read_bytes() == before
    wanted = {"checkpoints", "config.json", "metrics.jsonl", "samples", "tensorboard"}
    assert {path.name for path in (run / "distillation").iterdir()} == wanted
    assert Image.open(run / "distillation" / "samples" / "step-0000020.png").size == (10 * 42 + 2, 6 * 42 + 2)
    records = [json.loads(line) for line in (run / "distillation" / "metrics.jsonl").read_text().splitlines()]
    errors = [record for record in records if "validation_error_block_2" in record]
    assert [record["step"] for record in errors] == [10, 20]
    assert errors[1]["validation_error_block_1"] < errors[0]["validation_error_block_1"]
    assert all(0 < record[f"validation_error_block_{t}"] < 0.1 for record in errors for t in (1, 2))

    sample.main(["--run", str(run), "--student", "--out", str(tmp_path / "grid.png"), "--rows", "2"])
    evaluate.main(["--run", str(run), "--student", "--samples", "20", "--draws", "1"])
    assert "20 samples by the student" in capsys.readouterr().out

    fails_with_one_line(capsys, distill.main, ["--run", run, *BRIEF], "holds a distillation already", "--resume")
    arguments = ["--run", run, "--resume", "--loss", "output"]
    fails_with_one_line(capsys, distill.main, arguments, "loss is 'output'; allowed: 'hidden'")
    arguments = ["--run", run, "--student", "--weights", "raw"]
    fails_with_one_line(capsys, sample.main, arguments, "weights is 'raw', with a student")


def test_a_student_of_other_weights_is_refused(run, capsys):
    """A teacher that was trained further would silently be given the wrong student."""
    distill.main(["--run", str(run), *BRIEF])
    later = ["--run", str(run), "--resume", "--steps", "40", "--device", "cpu"]
    model = Farmer.from_pretrained(run)
    model.flow.blocks[0].project_out.bias.data += 1e-3
    write_weights(run / "model.safetensors", model.state_dict())
    with pytest.raises(InputError, match="was distilled from other weights than"):
        OneStepStudent.from_pretrained(run)
    capsys.readouterr()
    fails_with_one_line(capsys, distill.main, later, "whose weights have changed since")


def test_distilling_a_shipped_model_needs_a_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails_with_one_line(capsys, distill.main, ["--run", "digits"], "out is empty, and digits ships with the package")
    fails_with_one_line(capsys, distill.main, ["--run", "nothing"], "model is 'nothing'")
    assert not list(tmp_path.iterdir())


def test_a_copy_of_the_teacher_goes_with_the_student(teacher, run, capsys, tmp_path):
    out = tmp_path / "student"
    distill.main(["--run", str(teacher), "--out", str(out), *BRIEF])
    assert (out / "model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()
    assert not (teacher / "distillation").exists()
    images = Farmer.from_pretrained(out).sample(torch.arange(10), student=OneStepStudent.from_pretrained(out))
    assert images.isfinite().all()
    (run / "model.safetensors").write_bytes(b"another")
    capsys.readouterr()
    arguments = ["--run", teacher, "--out", run, *BRIEF]
    fails_with_one_line(capsys, distill.main, arguments, "holds another model")
    assert not (run / "distillation").exists()


def test_a_run_without_a_student_says_so(capsys, teacher):
    fails_with_one_line(
        capsys, sample.main, ["--run", teacher, "--student"], "which holds no student", "python -m farmer_ref.distill"
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--max-noise", "-1"], ["max_noise is -1.0", "0 to 1,000,000"]),
        (["--dropout", "1"], ["dropout is 1.0"]),
        (["--steps", "0"], ["steps is 0", "1 or more"]),
    ],
)
def test_distill_refuses(capsys, teacher, arguments, parts):
    fails_with_one_line(capsys, distill.main, ["--run", teacher, *arguments], *parts)


def test_a_model_of_any_basis_and_mixing_has_a_student():
    model = small_model(channel_mixing="learned", patch_basis="dct", flow_sees_class=True)
    student = OneStepStudent.from_teacher(model.flow).double()
    images = model.sample(torch.tensor([0, 1, -1]), student=student, generator=torch.Generator().manual_seed(0))
    assert images.shape == (3, 2, 6, 6) and images.abs().max() <= 1
