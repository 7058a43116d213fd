"""Distillation as a command: resuming, refusing, and what it leaves."""

import dataclasses
import json
import shutil

import pytest
import torch
from conftest import Dispatched
from helpers import QUICK, assert_same, contents, fails_with_one_line, metrics, stop_after
from PIL import Image

from farmer_ref import PRESETS, Farmer, InputError, OneStepStudent, distill, evaluate, sample, train
from farmer_ref.distill import DistillConfig
from farmer_ref.support.files import read_metadata, write_weights
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.presets import DISTILLATIONS
from farmer_ref.training.trainer import Trainer

BRIEF = ["--steps", "20", "--validate-every", "10", "--sample-every", "0", "--device", "cpu"]


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


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(("form", "loss"), [("forward", "hidden"), ("inverse", "projected")])
def test_ten_and_ten_steps_equal_twenty(run, tmp_path, form, loss):
    shutil.copytree(run, tmp_path / "other")
    arguments = [*BRIEF, "--form", form, "--loss", loss, "--dropout", "0.1"]
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
    records = metrics(run / "distillation")
    errors = [record for record in records if "validation_error_block_2" in record]
    assert [record["step"] for record in errors] == [10, 20]
    assert errors[1]["validation_error_block_1"] < errors[0]["validation_error_block_1"]
    assert all(0 < record[f"validation_error_block_{t}"] < 0.5 for record in errors for t in (1, 2))

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


def test_a_copy_of_the_teacher_goes_with_the_student(trained, run, capsys, tmp_path):
    out = tmp_path / "student"
    distill.main(["--run", str(trained), "--out", str(out), *BRIEF])
    assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert not (trained / "distillation").exists()
    images = Farmer.from_pretrained(out).sample(torch.arange(10), student=OneStepStudent.from_pretrained(out))
    assert images.isfinite().all()
    (run / "model.safetensors").write_bytes(b"another")
    capsys.readouterr()
    arguments = ["--run", trained, "--out", run, *BRIEF]
    fails_with_one_line(capsys, distill.main, arguments, "holds another model")
    assert not (run / "distillation").exists()


def test_a_run_without_a_student_says_so(capsys, trained):
    fails_with_one_line(
        capsys, sample.main, ["--run", trained, "--student"], "which holds no student", "python -m farmer_ref.distill"
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--max-noise", "-1"], ["max_noise is -1.0", "0 to 1,000,000"]),
        (["--dropout", "1"], ["dropout is 1.0"]),
        (["--steps", "0"], ["steps is 0", "1 or more"]),
    ],
)
def test_distill_refuses(capsys, trained, arguments, parts):
    fails_with_one_line(capsys, distill.main, ["--run", trained, *arguments], *parts)


def test_train_evaluate_and_no_student(tmp_path, capsys):
    train.main([*QUICK, "--model.flow", "coupling", "--out", str(tmp_path)])
    evaluate.main(["--run", str(tmp_path), "--samples", "20", "--draws", "1"])
    assert "bits/dim" in capsys.readouterr().out
    fails_with_one_line(capsys, distill.main, ["--run", tmp_path], "whose flow is 'coupling' and quick to invert")
    assert not (tmp_path / "distillation").exists()


@pytest.mark.parametrize("form", ["forward", "inverse"])
def test_a_student_is_saved_with_its_form(run, form):
    model = Farmer.from_pretrained(run)
    student = OneStepStudent.from_teacher(model.flow, form=form)
    student.save(run / "student.safetensors")
    loaded = OneStepStudent.from_pretrained(run)
    assert loaded.form == form and {block.form for block in loaded.blocks} == {form}
    z = torch.randn(2, model.config.tokens, model.config.token_channels)
    assert torch.equal(loaded(z), student.eval()(z))


@pytest.mark.parametrize("metadata", [None, {"form": "sideways"}])
def test_a_file_that_does_not_say_the_form_is_refused(run, capsys, metadata):
    student = OneStepStudent.from_teacher(Farmer.from_pretrained(run).flow)
    write_weights(run / "student.safetensors", student.state_dict(), metadata)
    arguments = ["--run", run, "--student"]
    fails_with_one_line(
        capsys, sample.main, arguments, "student.safetensors is", "'forward' or 'inverse'", "distil again"
    )


def test_a_resumed_distillation_keeps_its_form(run, capsys):
    """Also against the command's default; and one whose settings do not say the form is refused."""
    place, config = ["--run", str(run), "--resume"], run / "distillation" / "config.json"
    distill.main([*place, *BRIEF, "--form", "inverse"])
    distill.main([*place, "--steps", "21"])
    assert json.loads(config.read_text())["form"] == "inverse"
    assert read_metadata(run / "student.safetensors")["form"] == "inverse"
    capsys.readouterr()
    fails_with_one_line(capsys, distill.main, [*place, "--form", "forward"], "form is 'forward'; allowed: 'inverse'")
    settings = json.loads(config.read_text())
    del settings["form"]
    config.write_text(json.dumps(settings))
    fails_with_one_line(capsys, distill.main, place, "config.json has no form; allowed: 'forward'")


@pytest.mark.parametrize(
    ("recorded", "given", "teacher"),
    [
        ("teachers/a", [], "teachers/a"),
        ("owner/name@abc", ["--run", "owner/name"], "owner/name@abc"),  # its newest commit may be another teacher
        ("teachers/a", ["--run", "moved/a"], "moved/a"),
    ],
)
def test_a_resumed_distillation_finds_its_teacher(tmp_path, recorded, given, teacher):
    folder = tmp_path / "distillation"
    folder.mkdir()
    settings = dataclasses.asdict(DistillConfig(run=recorded, out=str(tmp_path), steps=50))
    (folder / "config.json").write_text(json.dumps(settings))
    found = distill.settings(["--out", str(tmp_path), "--resume", *given])
    assert (found.run, found.out, found.steps) == (teacher, str(tmp_path), 50)


def test_a_distillation_that_has_moved_with_its_teacher_resumes_where_it_is(run, tmp_path):
    distill.main(["--run", str(run), *BRIEF])
    run.rename(tmp_path / "moved")
    assert distill.settings(["--run", str(tmp_path / "moved"), "--resume"]).run == str(tmp_path / "moved")


def test_a_resumed_distillation_keeps_its_images(run, capsys):
    place = ["--run", str(run), "--resume"]
    distill.main([*place, *BRIEF])
    capsys.readouterr()
    parts = ["dataset is 'digits-without-3'; allowed: the teacher's images", "as in the distillation that is resumed"]
    fails_with_one_line(capsys, distill.main, [*place, "--dataset", "digits-without-3"], *parts)
    distill.main([*place, "--dataset", "digits", "--steps", "21"])  # the same by name


def test_the_preset_of_the_paper_is_its_teacher_s_for_60_epochs(capsys):
    config, teacher = distill.settings(["--preset", "farmer"]), PRESETS["farmer-1.1b-p16"]
    assert config.steps * config.batch_size == pytest.approx(60 * 1_281_167, rel=1e-5)
    for name in ("batch_size", "learning_rate", "final_learning_rate", "precision", "ema_decay", "weight_decay"):
        assert getattr(config, name) == getattr(teacher, name), name
    assert (config.form, config.loss, config.max_noise) == ("forward", "hidden", 0.3)
    assert distill.settings(["--preset", "farmer", "--steps", "7"]).steps == 7
    assert distill.settings([]) == distill.settings(["--preset", "digits"]) == distill.DistillConfig()
    with pytest.raises(SystemExit):
        distill.settings(["--preset", "farmer", "--help"])
    shown = capsys.readouterr().out
    assert "300273" in shown and "bfloat16" in shown and "farmer" in shown
    fails_with_one_line(
        capsys, distill.main, ["--preset", "magic"], "preset is 'magic'", f"allowed: {', '.join(DISTILLATIONS)}"
    )


def test_the_paper_s_preset_distils(run, capsys):
    """Its batches, bfloat16 and warm-up, of the digits: a few steps of it run."""
    few = ["--steps", "4", "--batch-size", "32", "--workers", "0", "--device", "cpu"]
    distill.main(["--run", str(run), "--preset", "farmer", *few])
    assert "finished at step 4" in capsys.readouterr().out
    later = ["--run", run, "--resume", "--preset", "digits", "--steps", "8"]
    fails_with_one_line(capsys, distill.main, later, "preset is 'digits'; allowed: 'farmer'")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_teacher_runs_in_the_precision_of_the_step(run, monkeypatch, precision):
    """Its forward pass beside the student's forward and backward: in float32 it took two thirds of a GPU's step."""
    gradients, modes = Trainer._gradients, []

    def traced(trainer, batch, progress):
        with Dispatched() as mode:
            logged = gradients(trainer, batch, progress)
        modes.append(mode)
        return logged

    monkeypatch.setattr(Trainer, "_gradients", traced)
    distill.main(["--run", str(run), *BRIEF, "--steps", "1", "--precision", precision])
    in_layers = [dtype for dtype, _, shape in modes[0].products if dtype == torch.bfloat16]
    layers = PRESETS["tiny"].model.flow_blocks * PRESETS["tiny"].model.flow_layers
    assert len(in_layers) == (4 * layers * (1 + 1 + 2) if precision == "bfloat16" else 0)
    assert "_local_scalar_dense" not in modes[0].names
