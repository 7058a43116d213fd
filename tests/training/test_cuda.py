"""The same on a GPU: skipped where there is none."""

import dataclasses

import pytest
import torch
from conftest import mild_flow, small_model
from helpers import QUICK, metrics, run_jobs

from farmer_ref import PRESETS, Farmer, Guidance, OneStepStudent, distill, sample, train
from farmer_ref.model import stepper as stepper_module
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.model.precision import full_precision, rounded_products
from farmer_ref.model.stepper import FixedMemory, stepper
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.training.costs import peak_flops, saved_bytes
from farmer_ref.training.runs import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture
def recordings(monkeypatch):
    """A list that gets an item for each graph that is recorded, from now on for few positions, too."""
    made, record = [], stepper_module.record
    monkeypatch.setattr(stepper_module, "RECORDED_FROM", 1)
    monkeypatch.setattr(stepper_module, "record", lambda *step: made.append(1) or record(*step))
    FixedMemory.forget()
    yield made
    FixedMemory.forget()


def test_likelihood_and_inverse_equal_the_cpu_s():
    model = small_model(channel_mixing="learned")
    x = torch.rand(4, 2, 6, 6, dtype=torch.float64) * 2 - 1
    labels = torch.tensor([0, 1, 2, -1])
    wanted = model.log_prob(x, labels)
    model.cuda()
    for given in (labels, labels.cuda(), labels.tolist()):
        assert torch.allclose(model.log_prob(x.cuda(), given).cpu(), wanted, atol=1e-8)
    z, _ = model.encode(x.cuda())
    assert torch.allclose(model.decode(z).cpu(), x, atol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [[], ["--model.patch-basis", "pca", "--model.channel-mixing", "learned"]])
def test_train_and_sample(tmp_path, precision, changes):
    arguments = [argument if argument != "cpu" else "cuda" for argument in QUICK]
    train.main([*arguments, *changes, "--precision", precision, "--out", str(tmp_path)])
    model = Run.open(tmp_path).load().cuda()
    images = model.sample(torch.arange(10, device="cuda"), generator=torch.Generator("cuda").manual_seed(0))
    assert torch.isfinite(images).all()


def test_compiled_training_logs_speed_and_memory(tmp_path):
    arguments = [argument if argument != "cpu" else "cuda" for argument in QUICK]
    ways = ["--compile", "--precision", "bfloat16", "--checkpoint-activations", "--accumulate", "2"]
    train.main([*arguments, "--log-every", "5", "--out", str(tmp_path / "eager")])
    train.main([*arguments, *ways, "--log-every", "5", "--out", str(tmp_path / "compiled")])
    eager, compiled = metrics(tmp_path / "eager"), metrics(tmp_path / "compiled")
    for wanted, line in zip(eager, compiled, strict=True):
        assert line["nats_per_dim"] == pytest.approx(wanted["nats_per_dim"], rel=0.05)
        assert line["images_per_second"] > 0 and line["peak_memory_gib"] > 0
        assert ("model_flops_utilisation" in line) == (peak_flops(torch.device("cuda")) > 0)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_memory_of_a_step_is_about_what_is_predicted(checkpointed):
    """Of eight more images, in a copy of FARMER-1.1B of less depth."""
    config = dataclasses.replace(PRESETS["farmer-1.1b-p16"].model, flow_blocks=4, prior_layers=4)
    model = Farmer(config).cuda()

    def peak(images):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            rows = torch.arange(images, device="cuda")
            training = TrainingPass(rows, images, recompute=checkpointed)
            terms = model(torch.rand(images, 3, 256, 256, device="cuda"), None, training)
        kept = torch.cuda.memory_allocated()
        terms.total.sum().backward()
        model.zero_grad()
        return kept

    peak(4)  # workspaces
    measured = (peak(16) - peak(8)) / 8
    assert saved_bytes(config, checkpoint_activations=checkpointed) == pytest.approx(measured, rel=0.25)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU here")
@pytest.mark.parametrize("options", [[], ["--compile"]])
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_gpus_train_as_one(tmp_path, way, options):
    arguments = [*(argument if argument != "cpu" else "cuda" for argument in QUICK), "--log-every", "1"]
    train.main([*arguments, "--out", str(tmp_path / "one")])
    run_jobs(("train", 0, [*arguments, *options, "--parallel", way, "--out", str(tmp_path / "two")]))
    one, two = ([line["nats_per_dim"] for line in metrics(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)


def test_shipped_weights_score_the_same_on_both_devices():
    cpu = Farmer.from_pretrained("digits")
    images = cpu.sample(torch.arange(10), generator=torch.Generator().manual_seed(0))
    wanted = cpu.log_prob(images, torch.arange(10))
    gpu = cpu.cuda().log_prob(images.cuda(), torch.arange(10, device="cuda"))
    assert torch.allclose(gpu.cpu(), wanted, atol=0.05)


@pytest.mark.parametrize("variant", [{}, {"channel_mixing": True}, {"num_classes": 4}])
@pytest.mark.parametrize("batch", [1, 5])
def test_recorded_inverses_equal_the_cpu_s(variant, batch, recordings):
    """Twice each: a second recording must not disturb the first one's results."""
    flow = mild_flow(**variant)
    labels = torch.tensor([0, 3, -1, 2, 1])[:batch] if "num_classes" in variant else None
    x = torch.randn(batch, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z, wanted = flow(x, labels)[0].cuda(), flow.inverse(flow(x, labels)[0], labels)
    flow, labels = flow.cuda(), None if labels is None else labels.cuda()
    results = [flow.inverse(z, labels) for _ in range(2)]
    results += [inverse_jacobi(flow, z, labels, tolerance=1e-9, windows=[window] * 3)[0] for window in (None, 1, 5)]
    for result in results:
        assert torch.allclose(result.cpu(), wanted, atol=1e-8)
    assert len(recordings) == 3  # one a block, whose 11 positions are one bucket


@torch.no_grad()
@pytest.mark.parametrize("repeats", [1, 2])
def test_recorded_steps_equal_the_whole_pass(repeats, recordings):
    transformer = small_model(condition_repeats=repeats).prior.transformer.cuda()
    inputs = torch.randn(4, repeats + 9, 16, dtype=torch.float64, device="cuda")
    step = stepper(transformer, repeats + 9, like=inputs)
    parts = [step(part).clone() for part in inputs.split([repeats, *[1] * 9], 1)]
    assert torch.allclose(torch.cat(parts, 1), transformer(inputs), atol=1e-10)
    assert len(recordings) == 1


@pytest.mark.parametrize("rule", ["resampling", "naive"])
def test_guided_samples_follow_the_seed(rule):
    model = Farmer.from_pretrained("digits").cuda()
    labels, guidance = torch.arange(10, device="cuda"), Guidance(scale=2.0, rule=rule)
    a, b, c = (
        model.sample(labels, guidance, method=method, generator=torch.Generator("cuda").manual_seed(0))
        for method in ("sequential", "sequential", "jacobi")
    )
    assert torch.equal(a, b) and a.isfinite().all()
    assert (a - c).abs().max() < 1e-2


def test_distil_and_sample(tmp_path):
    distill.main(["--run", "digits", "--out", str(tmp_path), "--steps", "20", "--device", "cuda"])
    student = OneStepStudent.from_pretrained(tmp_path).cuda()
    images = Farmer.from_pretrained(tmp_path).cuda().sample(torch.arange(10, device="cuda"), student=student)
    assert images.isfinite().all()
    sample.main(
        ["--run", str(tmp_path), "--student", "--guidance", "1", "--out", str(tmp_path / "a.npz"), "--count", "20"]
    )


def test_products_are_rounded_in_a_step_and_never_in_a_density():
    """TF32 has 10 bits: errors near 1e-3 of the numbers, where float32 has 1e-6. Cards before Ampere have none."""
    a = torch.randn(512, 512, device="cuda")
    exact = (a.double() @ a.double()).float()
    with rounded_products():
        rounded = (a @ a - exact).abs().max()
        with full_precision(a):
            error = (a @ a - exact).abs().max()
    assert error < 1e-3
    if torch.cuda.get_device_capability() >= (8, 0):
        assert 1e-2 < rounded < 1


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_under_autocast_and_without(dtype):
    """Buckets of 64 and 128 positions, twice: the second time from the graphs of the first."""
    transformer = small_model().prior.transformer.float().cuda()
    inputs = torch.randn(4, 100, 16, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        wanted = transformer(inputs)
        for _ in range(2):
            step = stepper(transformer, 100, like=inputs)
            found = torch.cat([step(part).clone() for part in inputs.split([2, *[1] * 98], 1)], 1)
            assert torch.allclose(found, wanted, atol=1e-4 if dtype == torch.float32 else 0.1)


def test_graphs_are_recorded_once_and_leave_no_memory_behind(recordings):
    """After they were forgotten, too: before training goes on, say."""
    flow, left = mild_flow(torch.float32, 100).cuda(), []
    for number in range(1, 4):
        for _ in range(4):
            flow.inverse(torch.randn(8, 100, 3, device="cuda"))
        assert len(recordings) == number * 3 * 2  # blocks, and buckets of 64 and 128 positions
        FixedMemory.forget()
        left.append(torch.cuda.memory_allocated())
    assert max(left[1:]) - left[0] < 2**16  # the first time, libraries allocate workspaces: 32 MiB each on an H100


def test_denoising_takes_bounded_memory(monkeypatch):
    model = Farmer(PRESETS["digits-noise"].model).cuda()
    monkeypatch.setattr("farmer_ref.model.farmer.DENOISING_BYTES", 200 * model.config.gradient_bytes)
    peaks = []
    for images in (200, 200, 2000):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.denoise(torch.rand(images, 1, 8, 8, device="cuda"), torch.zeros(images, dtype=torch.long, device="cuda"))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] < 1.5 * peaks[1]


def test_nothing_waits_for_the_gpu_between_forward_and_backward(tmp_path, monkeypatch):
    gradients = train.Trainer._gradients

    def strict(trainer, batch, progress):
        if trainer.step < 2:  # workspaces, and what is read once a run
            return gradients(trainer, batch, progress)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return gradients(trainer, batch, progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train.Trainer, "_gradients", strict)
    arguments = [argument if argument != "cpu" else "cuda" for argument in QUICK]
    train.main([*arguments, "--precision", "bfloat16", "--out", str(tmp_path)])
